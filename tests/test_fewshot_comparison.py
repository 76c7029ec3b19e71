"""ComparisonSet: registered, contradicted, removed, reopened, shared between processes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from embeddings import (
    Archive,
    ArchiveError,
    ArchiveLocked,
    EncoderMismatch,
    ImageError,
    Snapshot,
    UnknownId,
    embed_archive,
    load_encoder,
    reembed_archive,
)
from episodes import Manifest
from fewshot import ComparisonSet, NeighborClassifier, PrototypeClassifier, Registration
from fewshot.outliers import outlier_scores
from fewshot.registration import Candidate, sort_out

ROOT = Path(__file__).resolve().parent.parent
ENCODER = load_encoder("pixels-16")


def png(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 20), dtype=np.uint8)).save(path)
    return path


def dicom(path: Path, seed: int, patient: str) -> str:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(seed)])
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.PatientID, data.Modality = patient, "CR"
    data.Rows, data.Columns, data.SamplesPerPixel = 24, 20, 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PixelData = np.random.default_rng(seed).integers(0, 4096, (24, 20), dtype=np.uint16).tobytes()
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    return str(data.SOPInstanceUID)


def content(cases: ComparisonSet) -> tuple[list[str], list[str], list[str | None], bytes]:
    return cases.ids, cases.labels, cases.patients, cases.vectors.tobytes()


@pytest.fixture
def cases(tmp_path: Path) -> ComparisonSet:
    with ComparisonSet.open(tmp_path / "cases", encoder=ENCODER) as opened:
        yield opened


def test_register_classes_one_after_another(cases: ComparisonSet, tmp_path: Path) -> None:
    a = [png(tmp_path / f"a{i}.png", i) for i in range(3)]
    b = [png(tmp_path / f"b{i}.png", 10 + i) for i in range(2)]
    done = cases.register("cyst", a, patients=["p1", "p1", "p2"], ids=["a0", "a1", "a2"])
    unknown = (("a0", None), ("a1", None), ("a2", None))  # of two patients nothing can be said
    assert done == Registration(("a0", "a1", "a2"), (), (), outlier_scores=unknown)
    before = cases.vectors.copy()
    cases.register("abscess", b, ids=["b0", "b1"])
    assert cases.ids == ["a0", "a1", "a2", "b0", "b1"] and len(cases) == 5
    assert cases.labels == ["cyst"] * 3 + ["abscess"] * 2
    assert cases.patients == ["p1", "p1", "p2", None, None]
    assert cases.classes == ["abscess", "cyst"]
    assert cases.shots == {"abscess": 2, "cyst": 2}
    assert np.array_equal(cases.vectors[:3], before)  # a class added later moves nothing
    assert np.array_equal(cases.vectors, ENCODER.encode([*a, *b]))
    clf = PrototypeClassifier().fit(cases.vectors, cases.labels, ids=cases.ids, groups=cases.patients)
    assert clf.decide(ENCODER.encode([b[1]]))[0].evidence[0].id == "b1"


def test_rows_are_aligned_though_ids_were_given_in_another_order(cases: ComparisonSet, tmp_path: Path) -> None:
    files = [png(tmp_path / f"{i}.png", i) for i in range(4)]
    cases.register("x", files, ids=["d", "b", "c", "a"], patients=["4", "2", "3", "1"])
    assert cases.ids == ["a", "b", "c", "d"] and cases.patients == ["1", "2", "3", "4"]
    assert np.array_equal(cases.vectors, ENCODER.encode([files[3], files[1], files[2], files[0]]))


def test_the_same_image_again_is_a_duplicate(cases: ComparisonSet, tmp_path: Path) -> None:
    first = png(tmp_path / "a.png", 1)
    copy = tmp_path / "copy of a.png"
    copy.write_bytes(first.read_bytes())
    cases.register("x", [first], patients=["p"])
    stored = content(cases)
    assert cases.register("x", [first], patients=["p"]) == Registration((), (first.as_posix(),), ())
    assert cases.register("x", [first]).duplicates == (first.as_posix(),)
    assert cases.register("x", [copy]).duplicates == (first.as_posix(),)
    assert cases.register("x", [copy], ids=["another id"]).duplicates == (first.as_posix(),)
    twice = png(tmp_path / "b.png", 2)
    done = cases.register("x", [twice, twice])
    assert (done.registered, done.duplicates) == ((twice.as_posix(),), (twice.as_posix(),))
    cases.remove(id=twice.as_posix())
    assert content(cases) == stored


@pytest.mark.parametrize("how", ["label", "content", "patient", "no patient"])
def test_a_contradiction_is_refused_and_nothing_is_stored(cases: ComparisonSet, tmp_path: Path, how: str) -> None:
    known, new = png(tmp_path / "a.png", 1), png(tmp_path / "new.png", 2)
    cases.register("x", [known], ids=["a"], patients=[None if how == "no patient" else "p1"])
    stored = content(cases)
    if how == "content":
        changed = png(tmp_path / "other.png", 3)
        arguments = ("x", [new, changed])
        options = {"ids": ["new", "a"]}
        reason = "the id 'a' is taken by another image; give this one an id of its own"
    elif how == "label":
        arguments, options = ("y", [new, known]), {"ids": ["new", "b"]}
        reason = r"it is registered as 'x' \(id 'a'\); remove it there first"
    else:
        arguments, options = ("x", [new, known]), {"ids": ["new", "a"], "patients": ["p9", "p2"]}
        of = "patient 'p1'" if how == "patient" else "no known patient"
        reason = rf"it is registered for {of} \(id 'a'\); remove it there first"
    with pytest.raises(ImageError, match=reason):
        cases.register(*arguments, **options)
    assert content(cases) == stored
    done = cases.register(*arguments, **options, on_error="report")
    assert done.registered == ("new",) and done.duplicates == ()
    assert len(done.refused) == 1 and done.refused[0][0] == str(arguments[1][1])
    assert len(cases) == 2


def test_one_bad_file_stops_all_or_is_listed(cases: ComparisonSet, tmp_path: Path) -> None:
    good = [png(tmp_path / f"{i}.png", i) for i in range(2)]
    empty, missing, black = tmp_path / "empty.png", tmp_path / "missing.png", tmp_path / "black.png"
    empty.touch()
    Image.new("L", (20, 20)).save(black)
    text = tmp_path / "text.png"
    text.write_text("not an image")
    batch = [good[0], empty, missing, black, text, good[1]]
    for bad in (empty, missing, black, text):
        with pytest.raises(ImageError, match=bad.name):
            cases.register("x", [good[0], bad])
    assert len(cases) == 0
    done = cases.register("x", batch, on_error="report")
    assert done.registered == tuple(g.as_posix() for g in good)
    assert [name for name, _ in done.refused] == [str(p) for p in (empty, missing, black, text)]
    assert all(reason for _, reason in done.refused)
    assert len(cases) == 2


def test_removing_equals_never_having_registered_to_the_bit(tmp_path: Path) -> None:
    files = {f"{c}{i}": png(tmp_path / f"{c}{i}.png", 100 * ord(c) + i) for c in "abc" for i in range(6)}
    patients = {name: f"patient {int(name[1]) // 2}" for name in files}
    queries = ENCODER.encode([png(tmp_path / f"q{i}.png", 7000 + i) for i in range(6)])

    def answers(cases: ComparisonSet) -> str:
        support = {"ids": cases.ids, "groups": cases.patients}
        heads = [PrototypeClassifier(), PrototypeClassifier(metric="euclidean"), NeighborClassifier(3)]
        decisions = [h.fit(cases.vectors, cases.labels, **support).decide(queries) for h in heads]
        return repr([[(d, d.score.hex(), d.margin.hex()) for d in ds] for ds in decisions])

    def register(cases: ComparisonSet, names: list[str]) -> None:
        for label in "abc":
            own = [n for n in names if n[0] == label]
            cases.register(label, [files[n] for n in own], ids=own, patients=[patients[n] for n in own])

    everything = sorted(files)
    with ComparisonSet.open(tmp_path / "removed", encoder=ENCODER) as removed:
        register(removed, everything[::-1])
        full = answers(removed)
        assert removed.remove(patient="patient 1") == ("a2", "a3", "b2", "b3", "c2", "c3")
        assert removed.remove(id="b5") == ("b5",)
        assert removed.remove(label="c") == ("c0", "c1", "c4", "c5")
        with ComparisonSet.open(tmp_path / "never", encoder=ENCODER) as never:
            register_names = [n for n in everything if n[0] != "c" and patients[n] != "patient 1" and n != "b5"]
            for label in "ab":
                own = [n for n in register_names if n[0] == label]
                never.register(label, [files[n] for n in own], ids=own, patients=[patients[n] for n in own])
            assert content(removed) == content(never)
            assert answers(removed) == answers(never) != full
        assert removed.archive.verify().ok
        gone = files["a2"].name.encode()
        for stored in (tmp_path / "removed").rglob("*"):
            assert not stored.is_file() or gone not in stored.read_bytes(), stored


def test_removing_what_is_not_there_says_so(cases: ComparisonSet, tmp_path: Path) -> None:
    cases.register("pneumonia", [png(tmp_path / "a.png", 1)], ids=["a"], patients=["p"])
    with pytest.raises(UnknownId, match="has no row of id 'b'"):
        cases.remove(id="b")
    with pytest.raises(UnknownId, match="has no row of patient 'q'"):
        cases.remove(patient="q")
    with pytest.raises(
        UnknownId,
        match=r"^The comparison set has no class 'pneumnia'; it has pneumonia\. Did you mean 'pneumonia'\?$",
    ):
        cases.remove(label="pneumnia")
    with pytest.raises(ValueError, match=r"^Name one of id, patient or label to remove; got none\.$"):
        cases.remove()
    with pytest.raises(ValueError, match=r"^Name one of id, patient or label to remove; got id, label\.$"):
        cases.remove(id="a", label="pneumonia")
    assert cases.ids == ["a"]


def test_a_removed_image_may_come_back_under_another_label(cases: ComparisonSet, tmp_path: Path) -> None:
    file = png(tmp_path / "a.png", 1)
    cases.register("x", [file], ids=["a"])
    cases.remove(id="a")
    assert cases.register("y", [file], ids=["a"]).registered == ("a",)
    assert cases.labels == ["y"]


def test_provenance(cases: ComparisonSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = png(tmp_path / "dir" / "a.png", 1)
    monkeypatch.chdir(tmp_path)
    before = datetime.now(UTC).replace(microsecond=0)
    assert cases.register("x", ["dir/a.png"], patients=["p"]).registered == ("dir/a.png",)
    facts = cases.provenance("dir/a.png")
    assert before <= datetime.fromisoformat(facts.pop("registered_at")) <= datetime.now(UTC)
    assert facts == {
        "label": "x",
        "patient": "p",
        "path": str(file),
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "encoder": ENCODER.fingerprint,
    }
    with pytest.raises(KeyError, match="The comparison set has no image 'b'"):
        cases.provenance("b")


def test_dicom_brings_its_own_patient_and_id(cases: ComparisonSet, tmp_path: Path) -> None:
    uids = [dicom(tmp_path / f"{i}.dcm", i, f"00{i}") for i in range(3)]
    files = [tmp_path / f"{i}.dcm" for i in range(3)]
    done = cases.register("x", files, patients=[None, "override", " "])
    assert done.registered == tuple(uids)
    assert {name: cases.provenance(name)["patient"] for name in uids} == dict(
        zip(uids, ["000", "override", "002"], strict=True)
    )
    assert cases.remove(patient="002") == (uids[2],)


def test_patients_are_text_and_missing_ones_are_unknown(cases: ComparisonSet, tmp_path: Path) -> None:
    files = [png(tmp_path / f"{i}.png", i) for i in range(4)]
    cases.register("x", files, ids=list("abcd"), patients=[7, float("nan"), np.int64(7), ""])
    assert cases.patients == ["7", None, "7", None]
    assert cases.shots == {"x": 3}
    assert cases.remove(patient="7") == ("a", "c")


def test_a_manifest_is_registered(cases: ComparisonSet, tmp_path: Path) -> None:
    for i in range(4):
        png(tmp_path / "images" / f"{i}.png", i)
    (tmp_path / "m.csv").write_text(
        "image,finding,patient\nimages/0.png,x,007\nimages/1.png,y,8\nimages/gone.png,y,9\nimages/3.png,x,007\n"
    )
    manifest = Manifest.read(tmp_path / "m.csv", label="finding", group="patient")
    with pytest.raises(ImageError, match=r"gone\.png"):
        cases.register_manifest(manifest, on_error="raise")
    assert len(cases) == 0
    done = cases.register_manifest(manifest)
    assert done.registered == ("images/0.png", "images/1.png", "images/3.png")
    assert [Path(name).name for name, _ in done.refused] == ["gone.png"]
    assert (cases.labels, cases.patients) == (["x", "y", "x"], ["007", "8", "007"])
    assert cases.register_manifest(manifest).duplicates == done.registered


def test_a_manifest_with_several_labels_in_a_row_is_refused(cases: ComparisonSet, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("image,label\n0.png,x\n1.png,x|y\n")
    with pytest.raises(ValueError, match=r"^A support image has one class; row 2 of the manifest has 2: x, y\.$"):
        cases.register_manifest(Manifest.read(tmp_path / "m.csv"))


def test_paths_with_spaces_and_other_alphabets(tmp_path: Path) -> None:
    file = png(tmp_path / "Röntgen Bilder" / "肺 é.png", 1)
    folder = tmp_path / "Fälle и случаи"
    with ComparisonSet.open(folder, encoder=ENCODER) as cases:
        cases.register("Lungenentzündung", [file], patients=["Müller, Ž"])
    with ComparisonSet.open(folder) as again:
        assert (again.ids, again.labels) == ([file.as_posix()], ["Lungenentzündung"])
        assert again.remove(patient="Müller, Ž") == (file.as_posix(),)


def run(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, stderr=None, text=True
    )


def test_another_process_reads_what_this_one_wrote(cases: ComparisonSet, tmp_path: Path) -> None:
    files = [png(tmp_path / f"{i}.png", i) for i in range(3)]
    cases.register("x", files, ids=list("abc"), patients=["1", "2", "2"])
    code = (
        "import json, sys; from fewshot import ComparisonSet\n"
        "with ComparisonSet.open(sys.argv[1]) as c:\n"
        "    print(json.dumps([c.ids, c.labels, c.patients, c.vectors.tolist()]))\n"
        "    c.remove(id='b')\n"
    )
    process = run(code, tmp_path / "cases")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(out)[:3] == [["a", "b", "c"], ["x"] * 3, ["1", "2", "2"]]
    assert np.array_equal(np.array(json.loads(out)[3], np.float32), ENCODER.encode(files))
    assert cases.ids == ["a", "c"]  # the open set sees the other process's removal at the next look


def test_processes_that_register_at_once_lose_nothing(tmp_path: Path) -> None:
    each, crowd = 20, 4
    for i in range(each * crowd):
        png(tmp_path / "images" / f"{i:03}.png", i)
    shared = png(tmp_path / "images" / "shared.png", 999)
    ComparisonSet.open(tmp_path / "cases", encoder=ENCODER).close()
    code = (
        "import sys; from pathlib import Path; from embeddings import load_encoder; from fewshot import ComparisonSet\n"
        "root, me, each = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])\n"
        "with ComparisonSet.open(root / 'cases', encoder=load_encoder('pixels-16')) as c:\n"
        "    for i in range(me * each, (me + 1) * each):\n"
        "        c.register(f'class {me}', [root / 'images' / f'{i:03}.png'], ids=[f'{i:03}'])\n"
        "    c.register('shared', [root / 'images' / 'shared.png'], ids=[f'shared by {me}'])\n"
    )
    crowd_of = [run(code, tmp_path, me, each) for me in range(crowd)]
    for process in crowd_of:
        process.communicate(timeout=120)
    assert [process.returncode for process in crowd_of] == [0] * crowd
    with ComparisonSet.open(tmp_path / "cases") as cases:
        assert cases.shots == {**{f"class {me}": each for me in range(crowd)}, "shared": 1}
        files = [tmp_path / "images" / f"{i:03}.png" for i in range(each * crowd)]
        assert np.array_equal(cases.vectors, ENCODER.encode([*files, shared]))
        assert cases.archive.verify().ok


def test_what_is_there_is_looked_at_under_the_writers_lock(
    cases: ComparisonSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []

    def look(snapshot: Snapshot, candidates: list[Candidate]) -> object:
        with Archive.open(tmp_path / "cases", timeout=0.05) as other, pytest.raises(ArchiveLocked):
            other.set_note("between", 1)
        looked.append(len(candidates))
        return sort_out(snapshot, candidates)

    monkeypatch.setattr("fewshot.comparison.sort_out", look)
    cases.register("x", [png(tmp_path / "a.png", 1)])
    assert looked == [1] and len(cases) == 1


def test_another_encoder_is_refused(cases: ComparisonSet, tmp_path: Path) -> None:
    cases.register("x", [png(tmp_path / "a.png", 1)])
    with pytest.raises(EncoderMismatch, match=r"pixels-16 .* pixels-8 .*"):
        ComparisonSet.open(tmp_path / "cases", encoder=load_encoder("pixels-8"))
    assert len(cases) == 1


def test_without_an_encoder_nothing_is_registered_or_made(cases: ComparisonSet, tmp_path: Path) -> None:
    with (
        ComparisonSet.open(tmp_path / "cases") as reader,
        pytest.raises(ValueError, match=r"^This comparison set was opened without an encoder, which registering"),
    ):
        reader.register("x", [png(tmp_path / "a.png", 1)])
    with pytest.raises(ArchiveError, match="There is no archive at"):
        ComparisonSet.open(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_an_empty_set_is_empty_and_says_so_when_asked(cases: ComparisonSet) -> None:
    assert (len(cases), cases.ids, cases.labels, cases.patients, cases.classes, cases.shots) == (0, [], [], [], [], {})
    assert cases.vectors.shape == (0, 256)
    for head in (PrototypeClassifier(), NeighborClassifier()):
        with pytest.raises(
            ValueError, match=r"^The comparison set is empty: register at least one image before asking\.$"
        ):
            head.fit(cases.vectors, cases.labels, ids=cases.ids, groups=cases.patients)
    assert cases.register("x", []) == Registration((), (), ())


@pytest.mark.parametrize("metadata", [[{}, {}], [{"label": "x"}, {"label": "y"}], []])
def test_an_archive_is_no_comparison_set_labelled_or_not(tmp_path: Path, metadata: list[dict[str, str]]) -> None:
    with Archive.open(tmp_path / "scans", encoder=ENCODER) as archive:
        archive.add(["a", "b"][: len(metadata)], np.eye(2, 256)[: len(metadata)], metadata=metadata)
    for encoder in (None, ENCODER):
        with pytest.raises(ArchiveError, match=r"scans' is an archive of embedded images, not a comparison set: "):
            ComparisonSet.open(tmp_path / "scans", encoder=encoder)


def test_an_emptied_set_is_still_a_set_and_takes_no_unlabelled_images(tmp_path: Path) -> None:
    scans = png(tmp_path / "scans" / "a.png", 1).parent
    with ComparisonSet.open(tmp_path / "cases", encoder=ENCODER) as cases:
        cases.register("x", [scans / "a.png"], patients=["p"])
        cases.remove(patient="p")
    with pytest.raises(ArchiveError, match="is a comparison set, not an archive: add labelled images to it with"):
        embed_archive(scans, ENCODER, tmp_path / "cases")
    with ComparisonSet.open(tmp_path / "cases", encoder=ENCODER) as cases:
        assert len(cases) == 0
        cases.register("y", [scans / "a.png"])
        assert cases.labels == ["y"]


def test_reembedding_keeps_the_kind(tmp_path: Path) -> None:
    with ComparisonSet.open(tmp_path / "cases", encoder=ENCODER) as cases:
        cases.register("x", [png(tmp_path / "a.png", 1)], patients=["p"])
    other = load_encoder("pixels-8")
    assert reembed_archive(tmp_path / "cases", other).replaced
    with ComparisonSet.open(tmp_path / "cases", encoder=other) as cases:
        assert (cases.labels, cases.patients, cases.vectors.shape) == (["x"], ["p"], (1, 64))


def test_a_file_whose_name_is_no_text_is_registered(cases: ComparisonSet, tmp_path: Path) -> None:
    good, bad = (os.fsdecode(os.fsencode(tmp_path) + name) for name in (b"/scan-\xff.png", b"/bad-\xff.png"))
    png(tmp_path / "a.png", 1).rename(good)
    Path(bad).write_text("no image")
    done = cases.register("x", [good, bad], on_error="report")
    assert done.registered == (rf"{tmp_path}/scan-\xff.png",)
    assert done.refused[0][0] == rf"{tmp_path}/bad-\xff.png"
    assert cases.provenance(done.registered[0])["path"] == done.registered[0]
    assert cases.register("x", [good]).duplicates == done.registered


def test_wrong_usage(cases: ComparisonSet, tmp_path: Path) -> None:
    file = png(tmp_path / "a.png", 1)
    with pytest.raises(ValueError, match=r"^images must be a list of files; got one path\. Put it in a list\.$"):
        cases.register("x", file)
    with pytest.raises(ValueError, match=r"^1 images need 1 patients; got 2\.$"):
        cases.register("x", [file], patients=["1", "2"])
    with pytest.raises(ValueError, match=r"^1 images need 1 ids; got 0\.$"):
        cases.register("x", [file], ids=[])
    for label in ("", "  ", None, 3):
        with pytest.raises(ValueError, match=r"^A label must be a non-empty string; got "):
            cases.register(label, [file])
    with pytest.raises(ValueError, match=r"^on_error must be 'raise' or 'report'; got 'ignore'\.$"):
        cases.register("x", [file], on_error="ignore")
    with pytest.raises(ValueError, match=r"^A support image is a file, so that it can be told again; got ndarray\.$"):
        cases.register("x", [np.zeros((4, 4))])
    assert len(cases) == 0


def test_a_vector_that_is_not_finite_is_refused(cases: ComparisonSet, tmp_path: Path) -> None:
    class Broken:
        name, dim, fingerprint, source_mean = ENCODER.name, ENCODER.dim, ENCODER.fingerprint, None

        def load(self, source: object) -> np.ndarray:
            return ENCODER.load(source)

        def encode_loaded(self, batch: list[np.ndarray]) -> np.ndarray:
            rows = ENCODER.encode_loaded(batch)
            rows[0] = np.nan
            return rows

    files = [png(tmp_path / f"{i}.png", i) for i in range(2)]
    cases.encoder = Broken()
    with pytest.raises(ImageError, match=r"0\.png: its vector holds NaN or infinity"):
        cases.register("x", files)
    done = cases.register("x", files, on_error="report", ids=["a", "b"])
    assert done.registered == ("b",) and done.refused == ((str(files[0]), "its vector holds NaN or infinity"),)


def patterned(path: Path, kind: int, seed: int) -> Path:
    """Stripes along one side or the other, or a blob, with noise."""
    y, x = np.mgrid[0:24, 0:20]
    clean = [100 * np.sin(x), 100 * np.sin(y), 150 * np.exp(-((x - 10) ** 2 + (y - 12) ** 2) / 30)][kind]
    noise = np.random.default_rng(seed).normal(scale=20, size=clean.shape)
    Image.fromarray(np.clip(100 + clean + noise, 0, 255).astype(np.uint8)).save(path)
    return path


def three_classes(cases: ComparisonSet, folder: Path) -> None:
    for kind in range(3):
        files = [patterned(folder / f"{kind}{i}.png", kind, 10 * kind + i) for i in range(6)]
        done = cases.register(
            f"class {kind}", files, patients=[f"p{kind}{i}" for i in range(6)], ids=[f"{kind}{i}" for i in range(6)]
        )
        assert len(done.registered) == 6 and len(done.outliers) <= 1


def test_a_mislabelled_image_is_registered_and_told(cases: ComparisonSet, tmp_path: Path) -> None:
    three_classes(cases, tmp_path)
    before = cases.outliers()
    wrong = patterned(tmp_path / "wrong.png", 1, 99)
    done = cases.register("class 0", [wrong], patients=["p9"], ids=["wrong"])
    assert done.registered == ("wrong",) and "wrong" in cases.ids
    (outlier,) = done.outliers
    assert (outlier.id, outlier.label, outlier.nearest_class, outlier.suspected) == (
        "wrong",
        "class 0",
        "class 1",
        True,
    )
    assert outlier.score is not None and outlier.evidence[0].label == "class 1"
    whole = cases.outliers()
    assert done.outlier_scores == (("wrong", outlier.score),)
    assert outlier in whole.images and whole.suspects[0] == outlier and len(whole.images) == 19
    cases.remove(id="wrong")
    assert cases.outliers() == before  # as if it had never been there
    assert cases.register("class 1", [wrong], patients=["p9"], ids=["wrong"]).outliers == ()


def test_outliers_subtract_the_source_mean_and_leave_images_for_calibration_alone(
    cases: ComparisonSet, tmp_path: Path
) -> None:
    assert cases.outliers().images == ()
    three_classes(cases, tmp_path)
    plain = cases.outliers()
    wrong = patterned(tmp_path / "wrong.png", 1, 99)
    done = cases.register("class 0", [wrong], patients=["p9"], ids=["wrong"], role="calibration")
    assert done.registered == ("wrong",) and done.outliers == () and cases.outliers() == plain
    mean = cases.vectors.mean(axis=0)

    class Centred:
        source_mean = mean

    cases.encoder = Centred()
    assert cases.outliers() == outlier_scores(
        cases.vectors, cases.labels, ids=cases.ids, groups=cases.patients, center=mean
    )
    assert cases.outliers() != plain
