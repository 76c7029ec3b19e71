"""Runtimes without torch: no file but the network's own is read, nothing is reported, and threads may share one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embeddings import EncoderError
from embeddings.runtimes import import_openvino, onnx_network, openvino_network


def need(package: str) -> None:
    """Skip without a package; importing OpenVINO to find out would report that to its makers."""
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def model(*, outside: str | None = None, where: str = "initializer") -> bytes:
    """Make y = x W as ONNX; `outside` names the file its weights lie in."""
    need("onnx")
    import onnx

    helper = onnx.helper
    weights = onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32) * 2, "W")
    if outside is not None:
        weights.ClearField("raw_data")
        weights.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", outside), ("length", "64")):
            entry = weights.external_data.add()
            entry.key, entry.value = key, value
    shape = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 4]) for name in ("x", "y")]
    product = helper.make_node("MatMul", ["x", "W"], ["y"])
    if where == "initializer":
        graph = helper.make_graph([product], "g", shape[:1], shape[1:], [weights])
    elif where == "attribute":
        constant = helper.make_node("Constant", [], ["W"], value=weights)
        graph = helper.make_graph([constant, product], "g", shape[:1], shape[1:])
    else:
        inner = helper.make_graph([product], "inner", [], shape[1:], [weights])
        yes = onnx.numpy_helper.from_array(np.array(True), "yes")
        branch = helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner)
        graph = helper.make_graph([branch], "g", shape[:1], shape[1:], [yes])
    content: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    ).SerializeToString()
    return content


@pytest.mark.parametrize("where", ["initializer", "attribute", "subgraph"])
def test_a_network_in_onnx_has_its_weights_within(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("onnxruntime")
    batch = np.arange(8, dtype=np.float32).reshape(2, 4)
    run = onnx_network({"model.onnx": model(where=where)}, exact=False)
    np.testing.assert_array_equal(run(batch), 2 * batch)
    monkeypatch.chdir(tmp_path)  # where ONNX Runtime would look
    np.eye(4, dtype=np.float32).tofile(tmp_path / "secret.bin")
    for place in ("secret.bin", "../secret.bin", "/etc/hostname"):
        with pytest.raises(EncoderError, match=r"model\.onnx names weights in another file"):
            onnx_network({"model.onnx": model(outside=place, where=where)}, exact=False)


def test_what_is_no_network_is_said() -> None:
    need("onnxruntime")
    need("openvino")
    whole = model()
    for content in (b"\x80\x04cos\nsystem\n.", whole[: len(whole) // 2]):
        with pytest.raises(EncoderError, match=r"model\.onnx is no ONNX network|does not take the network"):
            onnx_network({"model.onnx": content}, exact=False)
    with pytest.raises(EncoderError, match="ONNX Runtime does not take the network"):
        onnx_network({"model.onnx": b""}, exact=False)
    with pytest.raises(EncoderError, match=r"model\.xml is no OpenVINO network: it does not begin as XML"):
        openvino_network({"model.xml": whole, "model.bin": b""}, exact=False)
    with pytest.raises(EncoderError, match="OpenVINO does not take the network"):
        openvino_network({"model.xml": b"<?xml version='1.0'?><net/>", "model.bin": b""}, exact=False)


def test_images_of_another_shape_are_said() -> None:
    need("onnxruntime")
    run = onnx_network({"model.onnx": model()}, exact=False)
    with pytest.raises(EncoderError, match=r"ONNX Runtime cannot run the network on images \(2, 5\)"):
        run(np.zeros((2, 5), dtype=np.float32))


def written(folder: Path) -> dict[str, bytes]:
    """Make y = x W as OpenVINO has it."""
    need("openvino")
    openvino: Any = import_openvino()
    network = openvino.Core().read_model(model(), b"")
    openvino.save_model(network, folder / "model.xml", compress_to_fp16=False)
    return {name: (folder / name).read_bytes() for name in ("model.xml", "model.bin")}


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_threads_share_a_network(kind: str, tmp_path: Path) -> None:
    need("onnxruntime")
    if kind == "onnx":
        run = onnx_network({"model.onnx": model()}, exact=True)
    else:
        run = openvino_network(written(tmp_path), exact=True)
    wrong: list[object] = []

    def ask(seed: int) -> None:
        batch = np.random.default_rng(seed).normal(size=(256, 4)).astype(np.float32)
        try:
            wrong.extend(1 for _ in range(50) if not np.array_equal(run(batch), 2 * batch))
        except EncoderError as error:
            wrong.append(error)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_openvino_reports_nothing(tmp_path: Path) -> None:
    need("openvino")
    script = (
        "import sys, warnings; warnings.simplefilter('ignore');"
        "from embeddings.runtimes import import_openvino; found = import_openvino();"
        "print(found.__name__, 'openvino_telemetry' in sys.modules)"
    )
    environment = os.environ | {"HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment, cwd=Path.cwd()
    )
    assert done.stdout.strip() == "openvino False"
    assert not list(tmp_path.iterdir())  # it would note its user's number there
