"""Decoding processes: what comes back is what the function gave, and what breaks one costs one call."""

from __future__ import annotations

import json
import math
import mmap
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embeddings import Archive, ImageError, embed_archive, load_encoder
from embeddings import decoding as decoding_module
from embeddings.decoding import SHARED_BYTES, Decoder, DecodingLimits, UnknownToDecoder, close_decoders, decoders
from embeddings.decoding_worker import _Arena, answer, pack, private_bytes
from embeddings.errors import DecoderUnavailable
from embeddings.readers import LocalReader, ProcessReader, identity_of, load_image, reader_for, shows_the_same

MEMORY = 128 << 20


@pytest.fixture(scope="module")
def decoder() -> Any:
    one = Decoder(DecodingLimits(memory=MEMORY, seconds=1))
    yield one
    one.close()


def draw(path: Path, seed: int, *, side: int = 24) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")
    return path


def test_answers_come_back_as_they_are(decoder: Decoder) -> None:
    assert decoder.call(math.sqrt, 2.0) == math.sqrt(2.0)
    assert decoder.call(divmod, 7, 2) == (3, 1)
    assert decoder.call(str.split, "a b") == ["a", "b"]
    assert decoder.call(dict, {"one": 1, "none": None, "nested": {"x": [True]}}) == {
        "one": 1,
        "none": None,
        "nested": {"x": [True]},
    }
    for dtype in ("<f4", "<f8", "|u1", "<i2", "|b1"):
        array = np.arange(12).reshape(3, 4).astype(dtype)
        back = decoder.call(np.transpose, array)
        np.testing.assert_array_equal(back, array.T)
        assert back.dtype == array.dtype
    assert decoder.call(np.empty, (0, 5)).shape == (0, 5)
    assert decoder.call(np.float32, 0.5) == 0.5


def test_arrays_are_the_callers_own(decoder: Decoder) -> None:
    first = decoder.call(np.full, 1000, 1)
    decoder.call(np.full, 1000, 2)
    assert (first == 1).all()
    first[0] = 3  # writable


def test_an_error_of_the_function_is_one_sentence_with_the_file(decoder: Decoder, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nowhere\.png: there is no such file"):
        decoder.call(identity_of, tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match=r"a\.png: cannot be read: TypeError: object of type 'int' has no len"):
        decoder.call(len, 3, source="a.png")
    with pytest.raises(ImageError, match="cannot be read: no such file or directory"):
        decoder.call(os.listdir, tmp_path / "nowhere")
    with pytest.raises(ImageError, match="an answer cannot hold a set"):
        decoder.call(set, "ab")
    with pytest.raises(ImageError, match="an answer holds numbers, not"):
        decoder.call(np.asarray, ["text"])


def test_a_crash_costs_one_call(decoder: Decoder) -> None:
    with pytest.raises(ImageError, match=r"x: made its decoder crash \(SIGABRT\)"):
        decoder.call(os.abort, source="x")
    assert decoder.call(math.sqrt, 4) == 2
    with pytest.raises(ImageError, match=r"made its decoder crash \(exit code 7\)"):
        decoder.call(os._exit, 7)
    assert decoder.call(math.sqrt, 4) == 2


def test_memory_is_limited(decoder: Decoder) -> None:
    with pytest.raises(ImageError, match="needs more than the 128 MB an image may take"):
        decoder.call(np.ones, 2 * MEMORY // 8)
    assert decoder.call(np.ones, 3).tolist() == [1, 1, 1]


def test_processor_time_is_limited(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding_module, "WALL_FACTOR", 100)  # other programs may want the processors
    with pytest.raises(ImageError, match="needs more than 1 s of processor time to decode"):
        decoder.call(pow, 10**8, 10**8)


def test_time_by_the_clock_is_limited(decoder: Decoder) -> None:
    with pytest.raises(ImageError, match="took longer than 4 s to decode"):
        decoder.call(time.sleep, 60, source="x")
    assert decoder.call(math.sqrt, 4) == 2


def test_time_is_counted_per_call(decoder: Decoder) -> None:
    decoder.call(math.sqrt, 4)
    pid = decoder.pid
    for _ in range(5):
        decoder.call(sum, range(12_000_000))  # each a good part of the second one call may take
    assert decoder.pid == pid


def test_what_the_process_cannot_import_is_said(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    script = types.ModuleType("a_running_script")
    exec("def load(path): return path", script.__dict__)
    monkeypatch.setitem(sys.modules, "a_running_script", script)
    with pytest.raises(UnknownToDecoder, match="cannot load what it was sent"):
        decoder.call(script.load, "x")


def test_nonsense_is_no_answer(decoder: Decoder) -> None:
    decoder.call(math.sqrt, 4)
    with pytest.raises(ImageError, match="made its decoder answer nonsense"):
        decoder._unpacked({"array": [0, "|O", [4]]})
    with pytest.raises(ValueError, match="smaller than requested"):
        decoder._unpacked({"array": [SHARED_BYTES - 4, "<f8", [100]]})


def test_an_answer_larger_than_the_shared_memory_is_refused() -> None:
    with mmap.mmap(-1, 4096) as memory:
        reply = json.loads(answer(pickle.dumps((np.ones, (4096,))), memory))
    assert reply["failure"] == "large"
    with mmap.mmap(-1, 4096) as memory:
        arena = _Arena(memory)
        places = [pack(np.zeros(10, dtype=np.uint8), arena)["array"][0] for _ in range(2)]
        assert places == [0, 64]
        del arena


def test_a_process_ends_with_its_parent(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import math, time
        from embeddings.decoding import Decoder
        one = Decoder()
        one.call(math.sqrt, 4)
        print(one.pid, flush=True)
        time.sleep(60)
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    for _ in range(200):
        if not _alive(child):
            break
        time.sleep(0.05)
    assert not _alive(child)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_script_without_a_main_guard_embeds(tmp_path: Path) -> None:
    for seed in range(3):
        draw(tmp_path / "s" / f"{seed}.png", seed)
    script = f"""
from embeddings import embed_archive, load_encoder
print(embed_archive({str(tmp_path / "s")!r}, load_encoder("pixels-8"), {str(tmp_path / "x")!r}, workers=2).embedded)
"""
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run([sys.executable, str(tmp_path / "script.py")], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "3"


def test_idle_processes_are_used_again() -> None:
    limits = DecodingLimits(memory=MEMORY, seconds=3)
    with decoders(1, limits) as (one,):
        one.call(math.sqrt, 4)
        pid = one.pid
        with decoders(1, limits) as (other,):
            assert other is not one
    with decoders(2, limits) as lent:
        assert pid in [each.pid for each in lent]
    close_decoders()
    assert one.pid is None


def test_limits_the_program_was_started_under_are_kept(tmp_path: Path) -> None:
    script = "import math, resource; resource.setrlimit(resource.RLIMIT_CPU, (300, 300));"
    script += "from embeddings.decoding import Decoder; print(Decoder().call(math.sqrt, 4))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2.0"


def test_an_odd_entry_of_the_path_does_no_harm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path])
    one = Decoder()
    assert one.call(math.sqrt, 4) == 2
    one.close()


@pytest.mark.parametrize(
    "reply", [b"[1]", b"7", b"[" * 100_000, b"{", b'{"answer": {"array": [1e30, "|u1", [3]]}}',
              b'{"answer": {"array": [0, "|u1", [-1]]}}', b'{"answer": {"array": [0, "|u1"]}}', b'{"answer": {"x": 1}}']
)  # fmt: skip
def test_an_answer_that_no_sound_process_gives_is_an_error_of_the_image(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, reply: bytes
) -> None:
    decoder.call(math.sqrt, 4)
    monkeypatch.setattr(decoding_module, "_receive", lambda connection: reply)
    with pytest.raises(ImageError, match="made its decoder answer nonsense"):
        decoder.call(math.sqrt, 4, source="x")
    monkeypatch.undo()
    decoder.close()


def test_a_process_that_cannot_start_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(DecoderUnavailable, match=r"cannot be started .*: decode in this one with workers=0"):
        Decoder().call(math.sqrt, 4)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(DecoderUnavailable, match="cannot be started"):
        Decoder().call(math.sqrt, 4)


def test_both_readers_read_the_same(tmp_path: Path) -> None:
    image = draw(tmp_path / "a.png", 1)
    encoder = load_encoder("pixels-8")
    with reader_for(encoder, 1) as (apart, threads), reader_for(encoder, 0) as (here, none):
        assert (threads, none) == (1, 0)
        assert isinstance(apart, ProcessReader) and isinstance(here, LocalReader)
        assert apart.identity(image) == here.identity(image)
        found, expected = apart.load(image, {}), here.load(image, {})
        np.testing.assert_array_equal(found.image, expected.image)
        np.testing.assert_array_equal(apart.expand([found.image])[0], encoder.load(image))
        assert apart.same_image(image, draw(tmp_path / "b.png", 1))
        assert not apart.same_image(image, draw(tmp_path / "c.png", 2))


def test_relative_paths_are_those_of_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "one" / "s" / "a.png", 1)
    draw(tmp_path / "two" / "s" / "a.png", 2)
    encoder = load_encoder("pixels-8")
    for folder in ("one", "two"):  # the second job is lent the processes of the first
        monkeypatch.chdir(tmp_path / folder)
        assert embed_archive("s", encoder, "x", workers=1).embedded == 1
    with Archive.open(tmp_path / "two" / "x") as archive:
        np.testing.assert_allclose(archive.vectors, encoder.encode([tmp_path / "two" / "s" / "a.png"]))


def test_an_encoder_with_a_way_of_its_own_is_read_here(tmp_path: Path) -> None:
    class Own(type(load_encoder("pixels-8"))):  # type: ignore[misc]
        def load(self, source: Any) -> Any:
            return super().load(source)

    with reader_for(Own(8), 2) as (reader, threads):
        assert isinstance(reader, LocalReader)
        assert threads == 2
    vectors = load_encoder({"a.png": [1.0, 2.0]})
    with reader_for(vectors, 2) as (reader, _):
        assert isinstance(reader, LocalReader)


def test_the_worker_side_functions(tmp_path: Path) -> None:
    image = draw(tmp_path / "a.png", 3)
    assert load_image(np.asarray, image, {})["warnings"] == []  # type: ignore[arg-type]
    assert shows_the_same(image, image)
    assert private_bytes() > 1 << 20


def test_a_file_that_crashes_its_decoder_is_refused_and_the_job_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(6):
        draw(tmp_path / "s" / f"{seed}.png", seed)
    original = Decoder._exchange

    def exchange(self: Decoder, request: bytes, name: object) -> dict[str, Any]:
        if str(name).endswith("3.png") and b"load_image" in request:
            request = pickle.dumps((os.abort, ()))
        return original(self, request, name)

    monkeypatch.setattr(Decoder, "_exchange", exchange)
    report = embed_archive(tmp_path / "s", load_encoder("pixels-8"), tmp_path / "x", workers=2)
    assert (report.embedded, report.quarantined) == (5, 1)
    ((path, reason),) = report.refused
    assert path.endswith("3.png")
    assert reason == "made its decoder crash (SIGABRT)"
