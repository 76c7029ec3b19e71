"""The Indiana University collection in its published layouts, written small."""

from __future__ import annotations

import csv
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from episodes import EpisodeSampler, Manifest, ManifestError, UnknownColumn, k_fold, read_openi

COLUMNS = [
    "image",
    "patient",
    "label",
    "indication",
    "comparison",
    "findings",
    "impression",
    "report",
    "projection",
    "mesh",
    "automatic",
]

# number -> (major headings, automatic headings, sections, images)
REPORTS: dict[str, tuple[list[str], list[str], dict[str, str], list[str]]] = {
    "1": (
        ["normal"],
        [],
        {"COMPARISON": "None.", "INDICATION": "Cough & fever", "FINDINGS": "Clear  lungs.", "IMPRESSION": "Normal."},
        ["CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001"],
    ),
    "2": (
        ["Cardiomegaly/borderline", "Pulmonary Artery/enlarged", "Cardiomegaly/mild"],
        ["Cardiomegaly"],
        {"FINDINGS": "Large heart.", "IMPRESSION": ""},
        ["CXR2_IM-0652-1001"],
    ),
    "10": (["No Indexing"], [], {"FINDINGS": "Poor film."}, ["CXR10_IM-0002-1001"]),
    "11": (["Opacity/lung", "technical quality of image unsatisfactory "], [], {}, ["CXR11_IM-0067-1001"]),
    "12": (["Mass"], [], {"FINDINGS": "A mass."}, []),
}


def xml(number: str, *, root: str = "eCitation", named: bool = True) -> str:
    major, automatic, sections, images = REPORTS[number]
    uid = f'<uId id="CXR{number}"/>' if named else ""
    texts = "".join(f'<AbstractText Label="{name}">{escape(text)}</AbstractText>' for name, text in sections.items())
    mesh = "".join(f"<major>{term}</major>" for term in major)
    mesh += "".join(f"<automatic>{term}</automatic>" for term in automatic)
    parents = "".join(
        f'<parentImage id="{image}"><figureId>F1</figureId><caption>Chest</caption>'
        f'<panel type="single"><url>/storage/{image}.jpg</url></panel></parentImage>'
        for image in images
    )
    return (
        f'<?xml version="1.0" encoding="utf-8"?><{root}>{uid}<MedlineCitation><Article><Abstract>{texts}</Abstract>'
        f"</Article></MedlineCitation><MeSH>{mesh}</MeSH>{parents}</{root}>"
    )


def write_reports(root: Path, folder: str = "ecgen-radiology") -> Path:
    (root / folder).mkdir(parents=True)
    for number in REPORTS:
        (root / folder / f"{number}.xml").write_text(xml(number), encoding="utf-8")
    return root


def all_images() -> list[str]:
    return [image for *_, images in REPORTS.values() for image in images]


def write_png(root: Path, folder: str = "NLMCXR_png") -> Path:
    (root / folder).mkdir(parents=True)
    for image in all_images():
        (root / folder / f"{image}.png").write_bytes(b"a picture")
    return root


def dicom_name(image: str) -> str:
    number, rest = image.removeprefix("CXR").split("_", 1)
    return f"{number}/{number}_{rest.removeprefix('1_')}.dcm"


def write_dicom(root: Path, folder: str = "NLMCXR_dcm") -> Path:
    for image in all_images():
        path = root / folder / dicom_name(image)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"a picture")
    return root


def write_tables(root: Path) -> Path:
    (root / "images" / "images_normalized").mkdir(parents=True)
    with (root / "indiana_reports.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression"])
        for number, (major, _, sections, _) in REPORTS.items():
            named = [sections.get(name, "") for name in ("INDICATION", "COMPARISON", "FINDINGS", "IMPRESSION")]
            rows.writerow([number, ";".join(major), ";".join(major), "Chest, 2 views", *named])
    with (root / "indiana_projections.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["uid", "filename", "projection"])
        for number, (*_, images) in REPORTS.items():
            for place, image in enumerate(images):
                name = dicom_name(image).split("/")[1] + ".png"
                (root / "images" / "images_normalized" / name).write_bytes(b"a picture")
                rows.writerow([number, name, ("Frontal", "Lateral")[place]])
    return root


def facts(manifest: Manifest, *left_out: str) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = manifest.table.drop(columns=["image", *left_out]).to_dict("records")
    return rows


def test_reads_reports_and_png_files(tmp_path: Path) -> None:
    manifest = read_openi(write_png(write_reports(tmp_path)))
    assert list(manifest.table.columns) == COLUMNS
    assert manifest.images == [tmp_path.resolve() / "NLMCXR_png" / f"{image}.png" for image in all_images()]
    assert all(path.is_file() for path in manifest.images)
    assert manifest.groups == ["1", "1", "2", "10", "11"]
    assert manifest.labels == [
        ("No Finding",),
        ("No Finding",),
        ("Cardiomegaly", "Pulmonary Artery"),
        (),
        ("Opacity",),
    ]
    first, heart = manifest.table.iloc[0], manifest.table.iloc[2]
    assert first["findings"] == "Clear lungs." and first["indication"] == "Cough & fever"
    assert first["report"] == (
        "INDICATION: Cough & fever\nCOMPARISON: None.\nFINDINGS: Clear lungs.\nIMPRESSION: Normal."
    )
    assert heart["report"] == "FINDINGS: Large heart." and heart["impression"] == ""
    assert heart["mesh"] == "Cardiomegaly/borderline|Pulmonary Artery/enlarged|Cardiomegaly/mild"
    assert heart["automatic"] == "Cardiomegaly"
    assert set(manifest.table["projection"]) == {""}
    assert len(manifest.where("label IS NULL")) == 1


def test_dicom_files_and_other_folder_names_tell_the_same(tmp_path: Path) -> None:
    png = read_openi(write_png(write_reports(tmp_path / "a")))
    dicom = read_openi(write_dicom(write_reports(tmp_path / "b", "texts/xml"), "."))
    assert facts(dicom) == facts(png)
    assert dicom.table["image"].tolist() == [dicom_name(image) for image in all_images()]
    both = write_dicom(write_png(tmp_path / "b", "pictures"), "films")
    assert read_openi(both).table["image"].str.startswith("pictures/").all()
    assert read_openi(both, prefer="dicom").table["image"].str.endswith(".dcm").all()
    with pytest.raises(ManifestError, match="prefer must be 'png' or 'dicom'; got 'jpeg'"):
        read_openi(both, prefer="jpeg")  # type: ignore[arg-type]


def test_the_tables_tell_what_the_reports_tell(tmp_path: Path) -> None:
    png = read_openi(write_png(write_reports(tmp_path / "a")))
    tables = read_openi(write_tables(tmp_path / "b"))
    assert facts(tables, "projection", "automatic", "mesh") == facts(png, "projection", "automatic", "mesh")
    assert tables.table["projection"].tolist() == ["Frontal", "Lateral", "Frontal", "Frontal", "Frontal"]
    assert tables.images[0].name == "1_IM-0001-3001.dcm.png" and tables.images[0].is_file()
    together = read_openi(write_tables(tmp_path / "a"))  # the XML reports, with the table's projections
    assert together.table["automatic"].tolist() == ["", "", "Cardiomegaly", "", ""]
    assert together.table["projection"].tolist() == tables.table["projection"].tolist()
    assert together.images == png.images


def test_an_image_is_found_by_its_very_name_first(tmp_path: Path) -> None:
    write_png(write_reports(tmp_path))
    (tmp_path / "NLMCXR_png" / "1_IM-0001-3001.png").write_bytes(b"another")
    assert read_openi(tmp_path).images[0].name == "CXR1_1_IM-0001-3001.png"


def test_linked_folders_hidden_files_and_unnamed_reports(tmp_path: Path) -> None:
    write_png(tmp_path / "elsewhere")
    root = write_reports(tmp_path / "set")
    (root / "png").symlink_to(tmp_path / "elsewhere" / "NLMCXR_png")
    (root / "loop").symlink_to(root)
    (root / "ecgen-radiology" / "._1.xml").write_bytes(b"\x00\x05 no report")
    (root / "ecgen-radiology" / "2.xml").write_text(xml("2", named=False))
    (root / "layout.xml").write_text("<project/>")
    manifest = read_openi(root)
    assert manifest.table["image"].tolist() == [f"png/{image}.png" for image in all_images()]
    assert manifest.groups == ["1", "1", "2", "10", "11"]


def test_patients_never_cross_parts(tmp_path: Path) -> None:
    manifest = read_openi(write_png(write_reports(tmp_path)))
    groups = manifest.groups
    assert groups is not None
    for fold in k_fold([names[0] if names else "?" for names in manifest.labels], 2, groups=groups):
        assert not {groups[row] for row in fold.train} & {groups[row] for row in fold.test}
    labels = ["x", "y", "x", "x", "y"]  # report 1 has an image of each
    for episode in EpisodeSampler(labels, n_way=2, k_shot=1, n_query=2, groups=groups, n_episodes=20, seed=0):
        support = {groups[row] for rows in episode.support for row in rows}
        assert not support & {groups[row] for rows in episode.query for row in rows}


def test_missing_images(tmp_path: Path) -> None:
    write_png(write_reports(tmp_path))
    (tmp_path / "NLMCXR_png" / "CXR1_1_IM-0001-4001.png").unlink()
    with pytest.raises(
        ManifestError, match=r"1 of the 5 images in the reports are not in .*, such as 'CXR1_1_IM-0001-4001'; unpack"
    ):
        read_openi(tmp_path)
    manifest = read_openi(tmp_path, missing="skip")
    assert manifest.groups == ["1", "2", "10", "11"]
    for path in (tmp_path / "NLMCXR_png").iterdir():
        path.unlink()
    with pytest.raises(ManifestError, match="5 of the 5 images in the reports are not in"):
        read_openi(tmp_path, missing="skip")


BOMB = (
    '<!DOCTYPE eCitation [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    '<eCitation><uId id="CXR1"/><AbstractText Label="FINDINGS">&b;</AbstractText></eCitation>'
)
EXTERNAL = (
    '<!DOCTYPE eCitation [<!ENTITY secret SYSTEM "secret.txt">]>'
    '<eCitation><AbstractText Label="FINDINGS">&secret;</AbstractText></eCitation>'
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BOMB, r"ecgen-radiology/1\.xml in .* declares a document type, where entities may hide; reports have none"),
        (EXTERNAL, r"1\.xml in .* declares a document type"),
        (('<?xml version="1.0" encoding="utf-16"?>' + BOMB).encode("utf-16"), r"1\.xml in .* declares a document type"),
        ('<!DOCTYPE eCitation SYSTEM "a.dtd"><eCitation/>', r"1\.xml in .* declares a document type"),
        ("<eCitation>&b;</eCitation>", r"1\.xml in .* is not readable XML: undefined entity"),
        ("<eCitation><uId", r"1\.xml in .* is not readable XML: unclosed token"),
        ("", r"1\.xml in .* is not readable XML: no element found"),
        ('<?xml version="1.0" encoding="martian"?><eCitation/>', r"1\.xml in .* is not readable XML: "),
    ],
)
def test_hostile_and_damaged_reports(tmp_path: Path, content: str | bytes, message: str) -> None:
    write_png(write_reports(tmp_path))
    (tmp_path / "secret.txt").write_text("secret")
    path = tmp_path / "ecgen-radiology" / "1.xml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ManifestError, match=message):
        read_openi(tmp_path)


def test_what_is_no_collection(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="nowhere does not exist; name the folder the data set was unpacked into"):
        read_openi(tmp_path / "nowhere")
    with pytest.raises(ManifestError, match="holds no report: neither XML files with root 'eCitation'"):
        read_openi(tmp_path)
    (tmp_path / "a.xml").write_text(xml("12"))
    with pytest.raises(ManifestError, match=r"None of the 1 reports in .* names an image"):
        read_openi(tmp_path)
    (tmp_path / "a.xml").write_text(xml("1", root="article"))
    with pytest.raises(ManifestError, match="holds no report"):
        read_openi(tmp_path)
    (tmp_path / "a.xml").write_text(xml("1"))
    (tmp_path / "b.xml").write_text(xml("1"))
    with pytest.raises(ManifestError, match=r"Report 1 is there twice, in a\.xml and b\.xml; keep one copy"):
        read_openi(tmp_path)


def test_damaged_tables(tmp_path: Path) -> None:
    write_tables(tmp_path)
    reports, projections = tmp_path / "indiana_reports.csv", tmp_path / "indiana_projections.csv"
    whole = {path: path.read_text() for path in (reports, projections)}
    projections.unlink()
    with pytest.raises(ManifestError, match=r"holds indiana_reports\.csv without indiana_projections\.csv; put both"):
        read_openi(tmp_path)
    projections.write_text(whole[projections] + "99,99_IM-1-1001.dcm.png,Frontal\n")
    with pytest.raises(
        ManifestError, match=r"gives the image '99_IM-1-1001\.dcm\.png' to report 99, which indiana_rep"
    ):
        read_openi(tmp_path)
    projections.write_text(whole[projections].replace("projection", "view"))
    with pytest.raises(UnknownColumn, match=r"projections\.csv has no column 'projection'; it has uid, filename, view"):
        read_openi(tmp_path)
    projections.write_text(whole[projections].replace("filename", "file"))
    with pytest.raises(UnknownColumn, match=r"has no column 'filename'; .* did you mean 'file'"):
        read_openi(tmp_path)
    projections.write_text(whole[projections])
    reports.write_text(whole[reports].replace("uid,MeSH", "uid,Mesh"))
    with pytest.raises(UnknownColumn, match=r"indiana_reports\.csv has no column 'MeSH'; .* did you mean 'Mesh'"):
        read_openi(tmp_path)
    lines = whole[reports].splitlines()
    reports.write_text("\n".join([*lines, lines[1]]))
    with pytest.raises(ManifestError, match=r"Report 1 is there twice, in indiana_reports\.csv; keep one copy"):
        read_openi(tmp_path)
    reports.unlink()
    with pytest.raises(ManifestError, match=r"holds indiana_projections\.csv without indiana_reports\.csv; put both"):
        read_openi(tmp_path)
