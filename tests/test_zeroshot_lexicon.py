from pathlib import Path

import pytest

from episodes.phantom_reports import TERMS
from zeroshot.errors import LexiconError
from zeroshot.lexicon import BUILTIN, Finding, Lexicon
from zeroshot.phrases import PhraseError, phrase_pattern

CHESTXRAY14 = {
    "Atelectasis": "Pulmonary Atelectasis",
    "Cardiomegaly": "Cardiomegaly",
    "Effusion": "Pleural Effusion",
    "Infiltration": "Infiltrate",
    "Mass": "Mass",
    "Nodule": "Nodule",
    "Pneumonia": "Pneumonia",
    "Pneumothorax": "Pneumothorax",
    "Consolidation": "Consolidation",
    "Edema": "Pulmonary Edema",
    "Emphysema": "Emphysema",
    "Fibrosis": "Pulmonary Fibrosis",
    "Pleural_Thickening": "Pleural Thickening",
    "Hernia": "Hernia, Hiatal",
}


def found(lexicon: Lexicon, text: str) -> list[str]:
    return [match.finding.name for match in lexicon.search(text) if not match.denial]


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "own.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(("name", "canonical"), CHESTXRAY14.items())
def test_the_findings_of_chestxray14_go_by_their_usual_names(name: str, canonical: str) -> None:
    assert Lexicon.builtin().canonical(name) == canonical


@pytest.mark.parametrize("name", TERMS)
def test_the_findings_of_phantoms_are_known(name: str) -> None:
    lexicon = Lexicon.builtin()
    assert name in lexicon
    finding = lexicon[name]
    for term in TERMS[name]:
        if term not in (
            "lobar pneumonia",
            "patchy opacities",
            "hyperinflation",
            "bullous disease",
            "scoliotic deformity",
        ):
            assert lexicon[term] == finding


def test_all_lexicon_names_are_their_own_canonical_names() -> None:
    lexicon = Lexicon.builtin()
    assert len(lexicon) > 80
    for finding in lexicon:
        assert lexicon.canonical(finding.name) == finding.name == str(finding)
        assert lexicon.canonical(finding.name.upper().replace(" ", "_")) == finding.name


def test_canonical_takes_plurals_and_british_spelling() -> None:
    lexicon = Lexicon.builtin()
    assert lexicon.canonical("pleural effusions") == "Pleural Effusion"
    assert lexicon.canonical("pulmonary oedema") == "Pulmonary Edema"


def test_unknown_names_get_a_hint() -> None:
    with pytest.raises(LexiconError, match=r"does not know 'cardiomegly'; did you mean 'Cardiomegaly'\?"):
        Lexicon.builtin().canonical("cardiomegly")
    assert "unicorn" not in Lexicon.builtin()
    with pytest.raises(LexiconError, match=r"does not know 'qqqq'\."):
        Lexicon.builtin()["qqqq"]


@pytest.mark.parametrize(
    ("phrase", "yes", "no"),
    [
        (
            "pleural effusion",
            ["pleural effusions", "Pleural-effusion", "pleural XXXX effusion"],
            ["pleural", "effusion"],
        ),
        ("left|right lung", ["left lung", "right lungs"], ["upper lung"]),
        ("low lung? volume", ["low volumes", "low lung volume"], ["low heart volume"]),
        ("elevat* ... diaphragm", ["elevated diaphragm", "elevation of the right diaphragm"], ["diaphragm elevation"]),
        ("edema", ["edema", "oedema"], ["eczema"]),
        ("tumour", ["tumor", "tumours"], ["tumoral"]),
        ("metastasis", ["metastases"], ["metastatic"]),
        ("deformity", ["deformities"], ["deform"]),
    ],
)
def test_terms(phrase: str, yes: list[str], no: list[str]) -> None:
    lexicon = Lexicon.of_terms({"x": (phrase,)})
    assert phrase_pattern(phrase)
    for text in yes:
        assert found(lexicon, f"There is {text} here") == ["x"], text
    for text in no:
        assert found(lexicon, f"There is {text} here") == [], text


def test_a_gap_is_at_most_six_words_and_stays_in_the_sentence() -> None:
    lexicon = Lexicon.of_terms({"x": ("red ... blue",)})
    assert found(lexicon, "red a b c d e f blue") == ["x"]
    assert found(lexicon, "red a b c d e f g blue") == []
    assert found(lexicon, "red; blue") == []


@pytest.mark.parametrize("phrase", ["", "... lung", "lung ...", "lung?", "the? lung?"])
def test_terms_begin_and_end_with_a_word(phrase: str) -> None:
    with pytest.raises(PhraseError, match="begins and ends with a word"):
        phrase_pattern(phrase)


def test_the_longest_term_wins_and_words_in_a_gap_count() -> None:
    lexicon = Lexicon.of_terms(
        {"Granuloma": ("granuloma",), "Calcified": ("calcified granuloma",), "Elevated": ("elevated ... diaphragm",)}
    )
    assert found(lexicon, "calcified granuloma") == ["Calcified"]
    assert found(lexicon, "a granuloma") == ["Granuloma"]
    assert sorted(found(lexicon, "elevated by granuloma of the diaphragm")) == ["Elevated", "Granuloma"]


def test_ignored_terms_are_none() -> None:
    lexicon = Lexicon([Finding("Mass", synonyms=("mass",), ignored=("body mass",))])
    assert found(lexicon, "high body mass") == []
    assert found(lexicon, "a mass") == ["Mass"]


def test_broader_findings_through_several_steps() -> None:
    lexicon = Lexicon([Finding("a", implies=("b",)), Finding("b", implies=("c",)), Finding("c", implies=("a",))])
    assert [finding.name for finding in lexicon.broader(lexicon["a"])] == ["b", "c"]


def test_a_file_extends_the_builtin_lexicon(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '[[finding]]\nname = "Pneumothorax"\nsynonyms = ["collapsed lung sign"]\n'
        '[[finding]]\nname = "Azygos Lobe"\nsynonyms = ["azygos lobe"]\naliases = ["azygos"]\ncode = "RadLex X"\n',
    )
    lexicon = Lexicon.read(path, extend=Lexicon.builtin())
    assert found(lexicon, "collapsed lung sign") == ["Pneumothorax"]
    assert found(lexicon, "pneumothorax") == ["Pneumothorax"]
    assert lexicon.canonical("azygos") == "Azygos Lobe"
    assert lexicon["azygos"].code == "RadLex X"
    assert len(lexicon) == len(Lexicon.builtin()) + 1
    assert [finding.name for finding in Lexicon.read(path)] == ["Pneumothorax", "Azygos Lobe"]
    assert len(Lexicon.read(BUILTIN)) == len(Lexicon.builtin())


def test_terms_extend_a_lexicon() -> None:
    lexicon = Lexicon.of_terms({"Emphysema": ("bullous air",)}, extend=Lexicon.builtin())
    assert found(lexicon, "bullous air") == ["Emphysema"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("finding = [", "is no TOML file"),
        ("[[findings]]\nname = 'x'", r"must hold \[\[finding\]\] tables and nothing else"),
        ("", r"must hold \[\[finding\]\] tables"),
        ("[[finding]]\nsynonyms = ['x']", "A finding needs a name, which table 1 of .* lacks"),
        ("[[finding]]\nname = 'x'\nsynonym = ['x']", "unknown field 'synonym'; did you mean 'synonyms'?"),
        ("[[finding]]\nname = 'x'\nzzz = ['x']", "unknown field 'zzz'; it may have aliases"),
        ("[[finding]]\nname = 'x'\nsynonyms = 'x'", "field 'synonyms' of the finding 'x' must be a list of texts"),
        ("[[finding]]\nname = 'x'\ncode = 3", "field 'code' of the finding 'x' must be a text"),
        ("[[finding]]\nname = 'x'\nsynonyms = ['... y']", "term '... y' of 'x' cannot be read"),
        ("[[finding]]\nname = 'x'\npatterns = ['(']", r"pattern '\(' of 'x' cannot be read"),
        ("[[finding]]\nname = 'x'\nimplies = ['y']", "'x' implies 'y', which the lexicon does not hold"),
        ("[[finding]]\nname = 'x'\n[[finding]]\nname = 'X'", "names the finding 'X' twice"),
        (
            "[[finding]]\nname = 'x'\naliases = ['z']\n[[finding]]\nname = 'y'\naliases = ['z']",
            "gives the name 'z' to 'x' and 'y'",
        ),
    ],
)
def test_what_is_no_lexicon(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(LexiconError, match=message):
        Lexicon.read(write(tmp_path, text))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(LexiconError, match="cannot be read: No such file"):
        Lexicon.read(tmp_path / "none.toml")
