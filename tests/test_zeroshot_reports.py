from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from episodes.label_states import label_states
from episodes.phantom_reports import TERMS
from zeroshot.errors import LexiconError, ReportError
from zeroshot.lexicon import Lexicon
from zeroshot.reports import Report, parse_report
from zeroshot.weak_labels import report_labels

TYPICAL = """EXAM: CHEST, TWO VIEWS

CLINICAL HISTORY: Cough, rule out pneumonia.

COMPARISON: Prior film showed pneumothorax.

FINDINGS: The heart is enlarged. There is a small left pleural
effusion. No pneumothorax. Dr. Smith was told of a 1.5 cm nodule in the right upper lobe.

IMPRESSION:
1. Cardiomegaly.
2. Possible pneumonia at the left base.
"""


def names(report: Report) -> tuple[list[str], list[str], list[str]]:
    return tuple(sorted(map(str, those)) for those in (report.present, report.absent, report.uncertain))


def test_a_typical_report() -> None:
    report = parse_report(TYPICAL)
    assert names(report) == (["Cardiomegaly", "Nodule", "Pleural Effusion"], ["Pneumothorax"], ["Pneumonia"])
    assert list(report.sections) == ["technique", "history", "comparison", "findings", "impression"]
    assert not report.normal
    assert not report.contradictions
    nodule = next(mention for mention in report.mentions if str(mention.finding) == "Nodule")
    assert (nodule.side, nodule.place, nodule.section, nodule.state) == ("right", "upper lobe", "findings", "present")
    assert report.text[nodule.start : nodule.end] == "nodule"
    effusion = next(mention for mention in report.mentions if str(mention.finding) == "Pleural Effusion")
    assert (effusion.side, effusion.severity) == ("left", "mild")
    for sentence in report.sentences:
        assert report.text[sentence.start : sentence.end] == sentence.text


def test_a_mapping_of_sections() -> None:
    report = parse_report({"Indication": "Pneumonia?", "findings": "Lungs are clear.", "IMPRESSION": "No effusion."})
    assert names(report) == ([], ["Consolidation", "Opacity", "Pleural Effusion"], [])
    assert report.normal
    assert report.sections["history"] == "Pneumonia?"
    assert str(report.mentions[0].finding) == "Pneumonia"


@pytest.mark.parametrize(
    ("text", "sections"),
    [
        ("Small effusion.", ["findings"]),
        ("Findings: Small effusion. Impression: Effusion.", ["findings", "impression"]),
        ("FINDINGS\nSmall effusion.\n\nIMPRESSION\nEffusion.\n", ["findings", "impression"]),
        ("**Findings:** Small effusion.\n**Impression:** Effusion.", ["findings", "impression"]),
        ("Small effusion. CONCLUSION: Effusion.", ["findings", "impression"]),
        ("INDICATION: cough\nSmall effusion. IMPRESSION: Effusion.", ["history", "findings", "impression"]),
        ("History: cough. Comparison: None. Report: Effusion.", ["history", "comparison", "findings"]),
    ],
)
def test_headings(text: str, sections: list[str]) -> None:
    report = parse_report(text)
    assert list(report.sections) == sections
    assert [str(finding) for finding in report.present] == ["Pleural Effusion"]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("1. No effusion. 2. Heart is large.", ["No effusion.", "Heart is large."]),
        ("1) Effusion 2) Nodule", ["Effusion", "Nodule"]),
        ("- Effusion\n- Nodule", ["Effusion", "Nodule"]),
        ("Nodule of 1.5 cm is seen by Dr. Jones today.", ["Nodule of 1.5 cm is seen by Dr. Jones today."]),
        ("Nodule at the apex.There is scarring.", ["Nodule at the apex.", "There is scarring."]),
        ("There is a small right\npleural effusion.", ["There is a small right\npleural effusion."]),
        ("Effusion vs. atelectasis is seen.", ["Effusion vs. atelectasis is seen."]),
        ("The XXXX is XXXX. XXXX effusion.", ["The XXXX is XXXX.", "XXXX effusion."]),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert [sentence.text for sentence in parse_report(text).sentences] == sentences


@pytest.mark.parametrize(
    ("text", "present", "absent"),
    [
        (
            "PNEUMOTHORAX: none. EFFUSION: small, left. CARDIOMEGALY: no",
            ["Pleural Effusion"],
            ["Cardiomegaly", "Pneumothorax"],
        ),
        ("[ ] effusion [x] pneumothorax", ["Pneumothorax"], ["Pleural Effusion"]),
        ("☐ effusion\n☑ pneumothorax is there", ["Pneumothorax"], ["Pleural Effusion"]),
        ("[**2019-3-4**] CHEST: ___ man with effusion.", ["Pleural Effusion"], []),
        ("Chest x-XXXX shows XXXX effusion.", ["Pleural Effusion"], []),
    ],
)
def test_templates_and_marks(text: str, present: list[str], absent: list[str]) -> None:
    assert names(parse_report(text))[:2] == (present, absent)


@pytest.mark.parametrize(
    ("text", "side", "place", "severity"),
    [
        ("Large right pleural effusion.", "right", None, "severe"),
        ("Bilateral pleural effusions.", "bilateral", None, None),
        ("Pleural effusions, left greater than right.", "bilateral", None, None),
        ("Moderate left and small right pleural effusion.", "bilateral", None, "mild"),
        ("Pleural effusion, left.", "left", None, None),
        ("Trace pleural effusion at the left lung base.", "left", "base", "minimal"),
        ("Pleural effusion.", None, None, None),
        ("Pleural effusion, large right hiatal hernia.", None, None, None),
    ],
)
def test_side_place_and_severity(text: str, side: str | None, place: str | None, severity: str | None) -> None:
    mention = parse_report(text).mentions[0]
    assert str(mention.finding) == "Pleural Effusion"
    assert (mention.side, mention.place, mention.severity) == (side, place, severity)


@pytest.mark.parametrize(
    ("text", "contradicted"),
    [
        ("There is a left effusion. No effusion.", True),
        ("FINDINGS: Pneumothorax is seen. IMPRESSION: No pneumothorax.", True),
        ("There is a left effusion. No right effusion.", False),
        ("Nodule in the right upper lobe. No nodule in the left upper lobe.", False),
        ("There is a small effusion. No large effusion.", False),
        ("Cardiomegaly is seen. Heart size is normal.", False),
        ("HISTORY: Pneumothorax. FINDINGS: No pneumothorax, clear lungs.", False),
        ("COMPARISON: Film with pneumothorax. FINDINGS: No pneumothorax.", False),
        ("History of pneumothorax. No pneumothorax.", False),
    ],
)
def test_contradictions(text: str, contradicted: bool) -> None:
    report = parse_report(text)
    assert bool(report.contradictions) == contradicted
    for clash in report.contradictions:
        assert clash.finding in report.uncertain
        assert clash.finding not in report.present + report.absent
        assert str(clash).startswith(f"{clash.finding}: ")


def test_no_finding_has_two_states() -> None:
    report = parse_report(TYPICAL)
    assert len(set(report.present + report.absent + report.uncertain)) == sum(map(len, names(report)))


def test_broader_findings_are_present_too_but_not_denied() -> None:
    assert names(parse_report("There is hilar adenopathy."))[0] == ["Hilar Adenopathy", "Lymph Nodes"]
    assert names(parse_report("There is no hilar adenopathy."))[1] == ["Hilar Adenopathy"]


@pytest.mark.parametrize(
    "text", ["Clear lungs.", "No effusion.", "Cardiomegaly.", "NORMAL CHEST.", "Stable.", "Normal."]
)
def test_short_english_passes(text: str) -> None:
    parse_report(text)


@pytest.mark.parametrize("text", ["", "  \n", "XXXX ___", "[**name**]", "12.5"])
def test_texts_without_words(text: str) -> None:
    with pytest.raises(ReportError, match="must hold words; this text is empty"):
        parse_report(text)
    with pytest.raises(ReportError, match="must hold words"):
        parse_report({"findings": text})


@pytest.mark.parametrize(
    "text",
    [
        "Kein Pneumothorax, keine Ergüsse. Herz normal gross.",
        "No hay derrame pleural ni neumotórax.",
        "Pas d'épanchement pleural. Le coeur est de taille normale.",
        "Cuore nei limiti. Non versamento pleurico.",
        "Sem derrame pleural.",
        "胸部X線写真は正常です",
        "qwer asdf zxcv",
    ],
)
def test_other_languages_are_refused(text: str) -> None:
    with pytest.raises(ReportError, match="must be in English; this text does not seem to be"):
        parse_report(text)


def test_what_is_no_report() -> None:
    with pytest.raises(ReportError, match="a text or a mapping of section to text; got int"):
        parse_report(3)  # type: ignore[arg-type]
    with pytest.raises(ReportError, match="The section 'findings' of a report must be a text; got int"):
        parse_report({"findings": 3})  # type: ignore[dict-item]


def test_long_texts_are_read_in_reasonable_pieces() -> None:
    report = parse_report("There is no effusion and calcified granuloma of the left right upper lobe, " * 300)
    assert max(len(sentence.text) for sentence in report.sentences) <= 600


def test_labels() -> None:
    texts = ["No effusion. Cardiomegaly.", "Possible effusion.", "Kein Erguss.", {"findings": "Effusion is seen."}]
    labels = report_labels(texts, ["effusion", "Cardiomegaly", "Mass"])
    assert labels.findings == ("Pleural Effusion", "Cardiomegaly", "Mass")
    nan = np.nan
    expected = np.array([[0, 1, nan], [nan, nan, nan], [nan, nan, nan], [1, nan, nan]])
    np.testing.assert_array_equal(labels.table, expected)
    assert labels.table.dtype == np.float64
    assert [row for row, _ in labels.problems] == [2]
    assert "must be in English" in labels.problems[0][1]
    assert report_labels(texts, ["effusion"], uncertain="present").table[1, 0] == 1
    assert report_labels(texts, ["effusion"], uncertain="absent").table[1, 0] == 0
    assert report_labels(texts).findings == ("Pleural Effusion", "Cardiomegaly")
    assert report_labels([]).table.shape == (0, 0)


def test_labels_go_on_to_episodes() -> None:
    frame = report_labels(["No effusion.", "Effusion is seen."]).frame()
    classes, states = label_states(frame)
    assert classes == ("Pleural Effusion",)
    assert states.tolist() == [[0], [1]]
    frame = report_labels(["No effusion.", "Effusion is seen."]).frame(["a.png", "b.png"], ["p1", "p2"])
    assert list(frame.columns) == ["image", "patient", "Pleural Effusion"]
    assert label_states(frame, ["Pleural Effusion"])[1].tolist() == [[0], [1]]


def test_wrong_labels() -> None:
    with pytest.raises(ReportError, match="uncertain must be one of 'unknown', 'present', 'absent'; got 'maybe'"):
        report_labels([], uncertain="maybe")
    with pytest.raises(LexiconError, match="does not know 'unicorn'"):
        report_labels([], ["unicorn"])
    with pytest.raises(ReportError, match="must differ; two of them are 'Pleural Effusion'"):
        report_labels([], ["effusion", "Pleural Effusion"])
    with pytest.raises(ReportError, match="1 reports need as many entries of 'image'; got 2"):
        report_labels(["No effusion."]).frame(["a", "b"])


def test_a_users_lexicon() -> None:
    lexicon = Lexicon.of_terms({"azygos lobe": ("azygos lobe", "azygos fissure")})
    assert names(parse_report("There is an azygos fissure and an effusion.", lexicon))[0] == ["azygos lobe"]


@pytest.mark.parametrize("finding", TERMS)
def test_phantom_terms_of_a_lexicon_of_their_own(finding: str) -> None:
    lexicon = Lexicon.of_terms(TERMS)
    for term in TERMS[finding]:
        assert names(parse_report(f"FINDINGS: Mild {term} on the left.", lexicon)) == ([finding], [], [])
        assert names(parse_report(f"FINDINGS: No {term}.", lexicon)) == ([], [finding], [])
        assert names(parse_report(f"The chest is free of {term}.", lexicon)) == ([], [finding], [])


@pytest.mark.shared_data
def test_l1(shared_data: Path) -> None:
    table = pd.read_csv(shared_data / "indiana_reports" / "indiana_reports.csv")
    table = table[(table["Problems"] != "No Indexing") & (table["uid"] % 5 == 0)]
    truth = [{name.strip() for name in problems.split(";")} for problems in table["Problems"]]
    counted = Counter(name for one in truth for name in one if name != "normal")
    findings = [name for name, count in counted.items() if count >= 10]
    texts = [
        {"findings": row.findings, "impression": row.impression}
        for row in table[["findings", "impression"]].fillna("").itertuples()
    ]
    told = report_labels(texts, findings).table == 1
    scores = []
    for column, name in enumerate(findings):
        true = np.array([name in one for one in truth])
        scores.append(2 * (told[:, column] & true).sum() / (told[:, column].sum() + true.sum()))
    assert np.mean(scores) >= 0.83
