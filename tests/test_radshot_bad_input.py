"""Bad input through the command line: one clear sentence, the right exit code, and nothing stored is lost."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian
from typer.testing import CliRunner

from embeddings import Archive
from radshot.cli import app

Store = list[tuple[str, bytes, str]]


def run(*arguments: object, code: int) -> Any:
    """Run a command line in this process, expect its exit code and, where it fails, one sentence that says why."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr)
    assert "Traceback" not in result.stderr
    sentences = [line for line in result.stderr.splitlines() if line.startswith("radshot: ")]
    assert len(sentences) <= 1
    assert all(line.endswith((".", "?")) for line in sentences), sentences
    return result


def sentence(result: Any) -> str:
    """The one sentence of a refusal."""
    (found,) = [line for line in result.stderr.splitlines() if line.startswith("radshot: ")]
    return str(found).removeprefix("radshot: ")


def picture(seed: int, side: int = 20) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 255, (side, side), dtype=np.uint8)


def png(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed)).save(path)
    return path


def dicom_without_pixels(path: Path) -> Path:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    data.SOPClassUID, data.SOPInstanceUID, data.PatientID = ComputedRadiographyImageStorage, "1.2.3.4", "P"
    data.save_as(path, enforce_file_format=True)
    return path


def holds_nan(path: Path) -> Path:
    pixels = picture(5).astype(np.float32) / 255
    pixels[3, 3] = np.nan
    Image.fromarray(pixels).save(path, format="TIFF")
    return path


def truncated(path: Path) -> Path:
    whole = png(path, 6).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


BAD_FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda folder: folder / "missing.png", r"no such file|missing"),
    "truncated": (lambda folder: truncated(folder / "truncated.png"), r"truncated|damaged|cut short|ends"),
    "not an image": (
        lambda folder: written(folder / "words.png", b"not an image at all\n" * 9),
        r"no image|not an image",
    ),
    "empty": (lambda folder: written(folder / "empty.png", b""), r"empty"),
    "without pixels": (lambda folder: dicom_without_pixels(folder / "report.dcm"), r"no pixel|without pixel"),
    "all black": (
        lambda folder: (Image.new("L", (20, 20)).save(folder / "black.png"), folder / "black.png")[1],
        r"same grey level",
    ),
    "NaN": (lambda folder: holds_nan(folder / "nan.tiff"), r"NaN"),
    "a folder": (lambda folder: folder, r"folder|regular|cannot be read"),
}


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A folder of six good images."""
    for i in range(6):
        png(tmp_path / "scans" / f"good-{i}.png", i)
    return tmp_path / "scans"


@pytest.fixture
def archive(tmp_path: Path, scans: Path) -> Path:
    """An archive of these."""
    run("embed", scans, "--encoder", "pixels-16", "--archive", tmp_path / "archive", code=0)
    return tmp_path / "archive"


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    """A comparison set of two classes of three patients."""
    folder = tmp_path / "cases"
    for number, label in enumerate(("cyst", "mass")):
        images = [png(tmp_path / "support" / f"{label}-{i}.png", 100 * number + i + 50) for i in range(3)]
        patients = [part for i in range(3) for part in ("--patient", f"{label}{i}")]
        run("register", folder, "--encoder", "pixels-16", "--label", label, *images, *patients, code=0)
    return folder


def state(folder: Path) -> Store:
    """All rows of a sound store: ids, vectors, metadata."""
    with Archive.open(folder) as held:
        report = held.verify()
        assert report.ok, report.problems
        snapshot = held.snapshot()
        return [
            (name, snapshot.vectors[i].tobytes(), json.dumps(snapshot.metadata[i], sort_keys=True))
            for i, name in enumerate(snapshot.ids)
        ]


@pytest.fixture
def unchanged(archive: Path, cases: Path) -> Any:
    """Both stores hold after the test exactly what they held before it."""
    before = state(archive), state(cases)
    yield
    assert (state(archive), state(cases)) == before


# -- files that are no images ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BAD_FILES)
@pytest.mark.usefixtures("unchanged")
def test_a_bad_file_alone_is_refused_with_its_reason(kind: str, tmp_path: Path, archive: Path, cases: Path) -> None:
    (tmp_path / "bad").mkdir()
    make, reason = BAD_FILES[kind]
    path = make(tmp_path / "bad")
    result = run("search", archive, path, code=3)
    assert str(path) in sentence(result)
    expect(sentence(result), reason)
    result = run("classify", cases, path, code=3)
    expect(result.stderr, f"refused {path}: .*({reason})")
    result = run("register", cases, "--label", "mass", path, code=3)
    expect(result.stderr, f"refused {path}: .*({reason})")
    result = run("register", tmp_path / "fresh", "--encoder", "pixels-16", "--label", "mass", path, code=3)
    expect(result.stderr, f"refused {path}: .*({reason})")
    assert not (tmp_path / "fresh").exists(), "no empty set is left behind"


def expect(text: str, pattern: str) -> None:
    assert re.search(pattern, text), (pattern, text)


@pytest.mark.parametrize("kind", [kind for kind in BAD_FILES if kind not in ("missing", "a folder")])
def test_in_a_folder_the_bad_file_is_reported_and_the_others_are_embedded(
    kind: str, tmp_path: Path, scans: Path
) -> None:
    make, reason = BAD_FILES[kind]
    path = make(scans)
    archive = tmp_path / "archive"
    result = run("embed", scans, "--encoder", "pixels-16", "--archive", archive, code=1)
    expect(result.stderr, f"refused {path}: .*({reason})")
    assert "7 files: 6 embedded" in result.stdout
    assert "1 refused" in result.stdout
    assert len(state(archive)) == 6
    before = state(archive)
    run("embed", scans, "--encoder", "pixels-16", "--archive", archive, code=1)
    assert state(archive) == before
    Image.fromarray(picture(77)).save(path, format="PNG")  # whatever its name says
    run("embed", scans, "--encoder", "pixels-16", "--archive", archive, code=0)
    assert len(state(archive)) == 7, "once it is whole it is taken"


def test_in_a_batch_every_bad_file_is_reported_and_the_others_are_done(tmp_path: Path, cases: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    bad = [make(folder) for make, _ in BAD_FILES.values()]
    good = [png(tmp_path / "more" / f"{i}.png", 300 + i) for i in range(3)]
    mixed = [good[0], *bad, *good[1:]]
    result = run("classify", cases, *mixed, "--json", tmp_path / "a.json", code=1)
    answers = json.loads((tmp_path / "a.json").read_text())
    assert [one["image"] for one in answers] == [str(path) for path in mixed]
    assert [one["label"] is None for one in answers] == [path in bad for path in mixed]
    assert all(one["error"] for one in answers if one["label"] is None)
    assert all(f"refused {path}: " in result.stderr for path in bad)
    run("register", cases, "--label", "mass", *mixed, "--json", tmp_path / "r.json", code=1)
    done = json.loads((tmp_path / "r.json").read_text())
    assert len(done["registered"]) == 3
    assert [one["image"] for one in done["refused"]] == [str(path) for path in bad]
    assert len(state(cases)) == 9
    rows = "".join(f"{path},a,{i}\n" for i, path in enumerate(mixed))
    manifest = written(tmp_path / "m.csv", f"image,label,patient\n{rows}".encode())
    archive = tmp_path / "batch"
    run("embed", "--manifest", manifest, "--encoder", "pixels-16", "--archive", archive, code=1)
    assert len(state(archive)) == 3


def test_training_and_evaluation_leave_bad_images_out_and_say_so(tmp_path: Path) -> None:
    rows = ["image,label,patient"]
    for number, label in enumerate("abc"):
        for i in range(5):
            path = png(tmp_path / "in" / f"{label}{i}.png", 10 * number + i)
            rows.append(f"in/{path.name},{label},{label}{i}")
    (tmp_path / "in" / "a0.png").write_bytes(b"")
    manifest = written(tmp_path / "m.csv", "\n".join(rows).encode())
    few = ("--n-way", 3, "--k-shot", 2, "--n-query", 1, "--episodes", 4)
    result = run("evaluate", manifest, "--encoder", "pixels-16", *few, "--json", tmp_path / "e.json", code=1)
    refused = [one["image"] for one in json.loads((tmp_path / "e.json").read_text())["refused"]]
    assert refused == [str(tmp_path / "in" / "a0.png")]
    assert f"refused {refused[0]}: " in result.stderr
    options = ("--image-size", 16, "--k-shot", 2, "--n-query", 1, "--episodes", 4, "--validation", "none")
    result = run("train", manifest, "--out", tmp_path / "e", *options, "--json", tmp_path / "t.json", code=1)
    assert [one["image"] for one in json.loads((tmp_path / "t.json").read_text())["refused"]] == refused
    for path in (tmp_path / "in").iterdir():
        path.write_bytes(b"")
    run("evaluate", manifest, "--encoder", "pixels-16", *few, code=3)
    result = run("train", manifest, "--out", tmp_path / "f", *options, code=3)
    assert "could be read" in sentence(result)
    assert not (tmp_path / "f").exists()


# -- what does not belong together -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchanged")
def test_an_image_or_a_set_for_another_encoder(scans: Path, archive: Path, cases: Path) -> None:
    image = scans / "good-0.png"
    for arguments in (
        ("embed", scans, "--encoder", "pixels-8", "--archive", archive),
        ("search", archive, image, "--encoder", "pixels-8"),
        ("register", cases, "--encoder", "hog-32", "--label", "mass", image),
        ("classify", cases, image, "--encoder", "hog-32"),
    ):
        told = sentence(run(*arguments, code=3))
        expect(told, r"holds vectors of pixels-16 .*the encoder given is (pixels-8|hog-32)")
        assert "radshot embed --reembed" in told


@pytest.mark.usefixtures("unchanged")
def test_an_encoder_that_is_gone_or_broken(tmp_path: Path, scans: Path, archive: Path, cases: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "encoder.json").write_text("{")
    told = sentence(run("embed", scans, "--encoder", tmp_path / "broken", "--archive", archive, code=3))
    expect(told, "encoder.json is not JSON, or was cut short")
    (tmp_path / "bare").mkdir()
    expect(
        sentence(run("embed", scans, "--encoder", tmp_path / "bare", "--archive", archive, code=3)), "no encoder.json"
    )
    expect(
        sentence(run("classify", cases, scans / "good-0.png", "--encoder", "pixls-16", code=2)), "no encoder 'pixls-16'"
    )
    vectors = written(tmp_path / "v.csv", b"id,v0,v1\ngood-0.png,1,2\ngood-1.png,2,1\n")
    own = tmp_path / "own"
    spec = f"vectors:{vectors}"
    run("register", own, "--encoder", spec, "--label", "x", scans / "good-0.png", code=0)
    vectors.rename(tmp_path / "moved.csv")
    told = sentence(run("classify", own, scans / "good-1.png", code=3))
    expect(told, "cannot be loaded from vectors:.*: name it with --encoder")
    run("classify", own, scans / "good-1.png", "--encoder", f"vectors:{tmp_path / 'moved.csv'}", code=0)


def test_more_shots_than_there_are_patients(tmp_path: Path) -> None:
    rows = ["image,label,patient"]
    rows += [f"{png(tmp_path / f'{label}{i}.png', i).name},{label},{label}{i // 2}" for label in "ab" for i in range(6)]
    manifest = written(tmp_path / "m.csv", "\n".join(rows).encode())
    told = sentence(run("evaluate", manifest, "--encoder", "pixels-16", "--n-way", 2, "--k-shot", 3, code=3))
    expect(told, "2-way 3-shot .* needs 2 classes of at least 4 patients; none qualifies: the largest is 'a' with 3")
    told = sentence(run("train", manifest, "--out", tmp_path / "e", "--k-shot", 3, code=3))
    expect(told, "3")
    assert not (tmp_path / "e").exists()


def test_more_neighbours_than_there_are_rows(archive: Path, scans: Path, cases: Path, tmp_path: Path) -> None:
    run("search", archive, scans / "good-0.png", "-k", 500, "--json", tmp_path / "s.json", code=0)
    assert len(json.loads((tmp_path / "s.json").read_text())["results"]) == 5, "all there are, without the query itself"
    run("classify", cases, scans / "good-0.png", "--head", "neighbors", code=0)


def test_an_empty_comparison_set_and_an_empty_archive(cases: Path, scans: Path) -> None:
    for label in ("cyst", "mass"):
        for i in range(3):
            run("forget", cases, "--patient", f"{label}{i}", code=0)
    told = sentence(run("classify", cases, scans / "good-0.png", code=3))
    assert told == f"The comparison set '{cases}' is empty: register at least one image before asking."
    assert "is empty: embed images" in sentence(run("search", cases, scans / "good-0.png", code=3))
    assert state(cases) == []
    run("register", cases, "--label", "cyst", scans / "good-0.png", code=0)
    run("classify", cases, scans / "good-1.png", code=0)


@pytest.mark.usefixtures("unchanged")
def test_no_store_there(tmp_path: Path, scans: Path, archive: Path) -> None:
    nowhere = tmp_path / "nowhere"
    for arguments in (
        ("search", nowhere, scans / "good-0.png"),
        ("forget", nowhere, "--id", "x"),
        ("verify", nowhere),
        ("stats", nowhere),
        ("backup", nowhere, tmp_path / "b"),
        ("classify", nowhere, scans / "good-0.png"),
        ("embed", "--reembed", "--encoder", "hog-32", "--archive", nowhere),
    ):
        assert f"There is no archive at '{nowhere}'" in sentence(run(*arguments, code=3))
    told = sentence(run("register", nowhere, "--label", "x", scans / "good-0.png", code=3))
    assert told == f"There is no comparison set at '{nowhere}'; name an encoder with --encoder to make one."
    assert "no folder or file" in sentence(
        run("embed", tmp_path / "nothing", "--encoder", "pixels-16", "--archive", nowhere, code=3)
    )
    assert not nowhere.exists()
    assert "archive of embedded images" in sentence(run("classify", archive, scans / "good-0.png", code=3))
    told = sentence(run("backup", archive, archive.parent, code=3))
    assert "is there already" in told


@pytest.mark.usefixtures("unchanged")
def test_an_unknown_id_patient_or_label(tmp_path: Path, archive: Path, cases: Path) -> None:
    assert "has no row of id 'good-9.png'" in sentence(run("search", archive, "--id", "good-9.png", code=3))
    assert "has no row of id 'x'" in sentence(run("forget", cases, "--id", "x", code=3))
    assert "has no row of patient 'x'" in sentence(run("forget", cases, "--patient", "x", code=3))
    told = sentence(run("search", cases, "--id", held_id(cases), "--where", "label = 'tumour'", code=3))
    assert told == f"No row of the archive '{cases}' meets \"label = 'tumour'\"."
    manifest = written(tmp_path / "m.csv", b"image,label\na.png,cyst\nb.png,\n")
    for arguments in (
        ("register", cases, "--manifest", manifest),
        ("evaluate", manifest, "--encoder", "pixels-16"),
        ("train", manifest, "--out", tmp_path / "e"),
    ):
        expect(sentence(run(*arguments, code=3)), r"Row 2 of m.csv \(line 3\) has no label")
    manifest = written(tmp_path / "n.csv", b"image,label\na.png,cyst|mass\n")
    assert "has one class" in sentence(run("register", cases, "--manifest", manifest, code=3))
    told = sentence(run("evaluate", manifest, "--encoder", "pixels-16", "--where", "label = 'x'", code=3))
    assert told == "No row of n.csv meets \"label = 'x'\"."


def held_id(folder: Path) -> str:
    with Archive.open(folder) as held:
        return held.ids[0]


@pytest.mark.usefixtures("unchanged")
def test_an_image_registered_under_another_label_stays_where_it_is(tmp_path: Path, cases: Path) -> None:
    image = tmp_path / "support" / "cyst-0.png"
    result = run("register", cases, "--label", "mass", image, code=3)
    assert f"refused {image}: it is registered as 'cyst'" in result.stderr


# -- manifests -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchanged")
def test_a_manifest_without_the_named_column(tmp_path: Path, scans: Path, archive: Path, cases: Path) -> None:
    manifest = written(tmp_path / "m.csv", b"image,finding,patient\nscans/good-0.png,cyst,p\n")
    embed = ("embed", "--manifest", manifest, "--encoder", "pixels-16", "--archive", archive)
    for arguments, missing in (
        (("train", manifest, "--out", tmp_path / "e"), "label"),
        (("evaluate", manifest, "--encoder", "pixels-16", "--label", "findings"), "findings"),
        (("evaluate", manifest, "--encoder", "pixels-16", "--label", "finding", "--group", "pateint"), "pateint"),
        (("register", cases, "--manifest", manifest), "label"),
        ((*embed, "--image", "file"), "file"),
        ((*embed, "--group", "subject"), "subject"),
        (("embed", manifest, "--encoder", "pixels-16", "--archive", archive, "--image", "file"), "file"),
    ):
        told = sentence(run(*arguments, code=2))
        expect(told, f"^m.csv has no column '{missing}'; it has image, finding, patient[.;]")
    assert "did you mean 'finding'?" in sentence(
        run("evaluate", manifest, "--encoder", "pixels-16", "--label", "findings", code=2)
    )
    told = sentence(run(*embed, "--where", "findng = 'cyst'", code=2))
    expect(told, "names 'findng', and the table has no such column.*did you mean 'finding'")
    assert "has a bracket that is never closed" in sentence(run(*embed, "--where", "(finding = 'cyst'", code=2))
    told = sentence(run("search", archive, scans / "good-0.png", "--where", "modality = 'CT'", code=2))
    expect(told, "names 'modality', and the table has no such column")


@pytest.mark.usefixtures("unchanged")
def test_a_manifest_that_is_missing_empty_or_no_table(tmp_path: Path, archive: Path, cases: Path) -> None:
    for name, content, reason in (
        ("gone.csv", None, "There is no manifest"),
        ("empty.csv", b"", "is empty"),
        ("header.csv", b"image,label\n", "has a header but no rows"),
        ("binary.csv", b"image\x00,label\n", "not a table of text"),
        ("ragged.csv", b"image,label\na.png,x,y\n", "Row 1 of ragged.csv (line 2) has 3 cells"),
        ("broken.parquet", b"PAR1nonsense", "is not a readable Parquet file"),
    ):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        for arguments in (
            ("train", path, "--out", tmp_path / "e"),
            ("register", cases, "--manifest", path),
            ("embed", path, "--encoder", "pixels-16", "--archive", archive),
        ):
            assert reason in sentence(run(*arguments, code=3))
    assert not (tmp_path / "e").exists()


# -- names -----------------------------------------------------------------------------------------------------------


def test_paths_with_spaces_and_letters_of_other_alphabets(tmp_path: Path) -> None:
    home = tmp_path / "Röntgen Bilder 肺 [1]"
    images = [png(home / "in folder" / f"überprüft {i} – ß.png", i) for i in range(3)]
    rows = "".join(f"in folder/{path.name},Zyste № {i % 2},päтиент {i}\n" for i, path in enumerate(images))
    manifest = home / "Tabelle ä.csv"
    manifest.write_text(f"image,Befund,Fall\n{rows}", encoding="utf-8")
    archive, cases = home / "Archiv ö", home / "Fälle"
    own = ("--encoder", "pixels-16")
    run("embed", "--manifest", manifest, "--group", "Fall", *own, "--archive", archive, code=0)
    run("embed", home / "in folder", *own, "--archive", archive, code=0)
    assert len(state(archive)) == 3
    result = run("search", archive, "--id", f"in folder/{images[0].name}", "--where", "Befund = 'Zyste № 0'", code=0)
    assert f"in folder/{images[2].name}" in result.stdout
    run("register", cases, "--manifest", manifest, "--label-column", "Befund", "--group", "Fall", *own, code=0)
    target = home / "Antwort ü.json"
    result = run("classify", cases, images[1], "--json", target, code=0)
    assert json.loads(target.read_text(encoding="utf-8"))[0]["label"] == "Zyste № 1"
    assert str(images[1]) in result.stdout
    run("forget", cases, "--patient", "päтиент 1", code=0)
    run("verify", cases, code=0)
    run("backup", cases, home / "Kopie é", code=0)
    run("embed", "--reembed", "--encoder", "hog-32", "--archive", archive, code=0)
    assert len(state(archive)) == 3
    missing = home / "fehlt ü.png"
    assert f"refused {missing}: " in run("classify", cases, missing, code=3).stderr


def test_a_file_name_that_is_no_text(tmp_path: Path, cases: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/bad-\xff-name.png"
    try:
        shutil.copyfile(png(tmp_path / "x.png", 1), raw)
    except OSError:
        pytest.skip("this file system holds only names that are text")
    target = tmp_path / "a.json"
    command = [sys.executable, "-m", "radshot", "classify", str(cases), os.fsdecode(raw), "--json", str(target)]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"bad-\\udcff-name.png" in done.stdout
    assert json.loads(target.read_text())[0]["image"].endswith("bad-\udcff-name.png")


# -- the store -------------------------------------------------------------------------------------------------------


def test_a_damaged_store_is_told_by_every_command(tmp_path: Path, archive: Path, scans: Path) -> None:
    (segment,) = (archive / "segments").glob("seg-*")
    content = bytearray(segment.read_bytes())
    content[-5] ^= 1
    segment.write_bytes(content)
    result = run("verify", archive, "--json", tmp_path / "v.json", code=3)
    found = json.loads((tmp_path / "v.json").read_text())
    assert found["ok"] is False
    assert found["problems"]
    assert "DAMAGED" in result.stdout
    assert result.stderr == ""
    for arguments in (
        ("stats", archive),
        ("search", archive, scans / "good-0.png"),
        ("backup", archive, tmp_path / "b"),
    ):
        told = sentence(run(*arguments, code=3))
        assert "radshot verify" in told or segment.name in told
    assert not (tmp_path / "b").exists()
    (archive / "archive.sqlite").write_bytes(b"no database" * 99)
    run("verify", archive, code=3)
    assert "archive.sqlite" in sentence(run("stats", archive, code=3))


def test_a_store_that_another_process_writes_to(archive: Path, scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import sys, time\nfrom embeddings import Archive\n"
        "with Archive.open(sys.argv[1]) as held, held.writing():\n"
        "    print('locked', flush=True)\n    sys.stdin.read()\n"
    )
    before = state(archive)
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(archive)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        opened = Archive.open.__func__  # type: ignore[attr-defined]
        monkeypatch.setattr(Archive, "open", classmethod(lambda cls, *a, **k: opened(cls, *a, **{**k, "timeout": 0.1})))
        told = sentence(run("forget", archive, "--id", "good-0.png", code=3))
        expect(told, f"is being written by process {holder.pid} on .* since ")
        run("search", archive, scans / "good-0.png", code=0)
    finally:
        holder.communicate("")
        monkeypatch.undo()
    assert state(archive) == before
    run("forget", archive, "--id", "good-0.png", code=0)


def limited(*arguments: object, file_bytes: int) -> subprocess.CompletedProcess[str]:
    """Run a command line that may write no file longer than so many bytes: a full disk that needs no rights to make."""
    return subprocess.run(
        [sys.executable, "-m", "radshot", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes)),
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )


@pytest.mark.parametrize("file_bytes", [2_000, 20_000])
def test_a_store_on_a_full_disk(file_bytes: int, tmp_path: Path, archive: Path, cases: Path, scans: Path) -> None:
    before = state(archive), state(cases)
    for i in range(40):
        png(tmp_path / "many" / f"{i}.png", 500 + i)
    for arguments in (
        ("embed", tmp_path / "many", "--encoder", "pixels-16", "--archive", archive),
        ("register", cases, "--label", "mass", *sorted((tmp_path / "many").iterdir())),
        ("forget", cases, "--patient", "cyst0"),
        ("embed", "--reembed", "--encoder", "hog-64", "--archive", archive),
    ):
        done = limited(*arguments, file_bytes=file_bytes)
        assert "Traceback" not in done.stderr, done.stderr
        if arguments[0] == "forget" and done.returncode != 3:
            continue  # what it writes may still fit
        assert done.returncode == 3, (arguments[0], done.stdout, done.stderr)
        (told,) = [line for line in done.stderr.splitlines() if line.startswith("radshot: ")]
        expect(told, "(full|too large)")
        if arguments[0] != "forget":
            assert "what was stored before is intact" in told
    after = state(archive), state(cases)
    assert after[0] == before[0]
    assert [row for row in before[1] if "cyst0" not in row[2]] == [row for row in after[1] if "cyst0" not in row[2]]
    run("embed", tmp_path / "many", "--encoder", "pixels-16", "--archive", archive, code=0)
    assert len(state(archive)) == 46, "with room again the same command goes through"
    run("embed", scans, "--encoder", "pixels-16", "--archive", tmp_path / "elsewhere", code=0)


def test_a_result_that_cannot_be_written_is_one_sentence(cases: Path, tmp_path: Path) -> None:
    blocker = written(tmp_path / "file", b"")
    result = run("stats", cases, "--json", blocker / "out.json", code=3)
    expect(result.stderr, "file")
