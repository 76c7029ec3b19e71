"""Whatever neither trains nor encodes leaves torch, transformers and monai alone; checked in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

CHECK = """
import sys
heavy = sorted({name.split(".")[0] for name in sys.modules} & {"torch", "transformers", "monai"})
assert not heavy, f"{heavy} were imported"
"""

IMPORTS = "import embeddings, episodes, fewshot, radshot, zeroshot"

STORE = """
import sys
import numpy as np
from embeddings import Archive, Index, load_encoder
encoder = load_encoder("pixels-16")
vectors = np.random.default_rng(0).normal(size=(30, encoder.dim)).astype("float32")
with Archive.open(sys.argv[1], encoder=encoder) as archive:
    facts = [{"label": "x", "patient": f"p{i}"} for i in range(30)]
    archive.add([f"i{i:02}" for i in range(30)], vectors, metadata=facts)
with Archive.open(sys.argv[1]) as archive:
    by_vector = Index(archive).search(vectors[3:4], 5)
    by_id = Index(archive).search(archive.vectors[[archive.ids.index("i03")]], 5)
    assert by_vector.ids == by_id.ids and by_id.ids[0][0] == "i03"
    archive.remove(patient="p3")
    assert "i03" not in Index(archive).search(vectors[3:4], 29).ids[0]
    assert archive.verify().ok
"""

EPISODES = """
import numpy as np
from embeddings import SourceStatistics
from episodes import EpisodeSampler, evaluate
from fewshot import HEADS, make_head
rng = np.random.default_rng(0)
labels = [f"c{i % 4}" for i in range(80)]
vectors = np.eye(4, 8)[[i % 4 for i in range(80)]] + 0.1 * rng.normal(size=(80, 8))
sampler = EpisodeSampler(labels, 3, 2, 5, groups=[f"p{i // 2}" for i in range(80)], n_episodes=20, seed=0)
source = SourceStatistics.of(vectors, labels, groups=[f"p{i // 2}" for i in range(80)])
for name in set(HEADS) - {"relation", "words"}:
    assert evaluate(make_head(name, source=source), vectors, labels, sampler).accuracy > 0.95
"""

COMPARISON = """
import sys
from pathlib import Path
import numpy as np
from PIL import Image
from embeddings import load_encoder
from fewshot import ComparisonSet, PrototypeClassifier
folder = Path(sys.argv[1])
folder.mkdir()
files = [folder / f"{i}.png" for i in range(6)]
for i, file in enumerate(files):
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 20), dtype=np.uint8)).save(file)
encoder = load_encoder("pixels-16")
with ComparisonSet.open(folder / "cases", encoder=encoder) as cases:
    cases.register("a", files[:3])
    cases.register("b", files[3:])
    clf = PrototypeClassifier().fit(cases.vectors, cases.labels, ids=cases.ids, groups=cases.patients)
    assert clf.decide(encoder.encode([files[4]]))[0].label == "b"
"""

TEXT = """
import sys
import numpy as np
from embeddings import TextEncoder, TfidfTextEncoder, load_text_encoder
texts = [f"{size} effusion on the {side}" for size in ("small", "large", "no") for side in ("left", "right")]
encoder = TfidfTextEncoder(dim=4).fit(texts)
encoder.save(sys.argv[1])
loaded = load_text_encoder(sys.argv[1])
assert isinstance(loaded, TextEncoder) and loaded.fingerprint == encoder.fingerprint
assert np.array_equal(loaded.encode(texts), encoder.encode(texts))
assert loaded.known(["left", "zebra"]) == [True, False] and loaded.truncated(["left"]) == [False]
"""

ZEROSHOT = """
import sys
import numpy as np
from embeddings import PrecomputedEncoder, TfidfTextEncoder
from fewshot import ClassPrior, WordsAndShotsClassifier
from zeroshot import ZeroShotClassifier, ZeroShotModel, mark_denied, parse_report
rng = np.random.default_rng(0)
findings = ("effusion", "nodule", "fracture")
codes = np.arange(60) % 3
images = 3 * np.eye(3, 8)[codes] + 0.5 * rng.normal(size=(60, 8))
texts = [mark_denied(f"Large {findings[c]}. No {findings[(c + 1) % 3]}.") for c in codes]
encoder = PrecomputedEncoder(["x"], np.zeros((1, 8)))
words = TfidfTextEncoder(dim=8).fit(texts)
model = ZeroShotModel.fit(images, texts, encoder=encoder, text_encoder=words, alignment="cca", denials=True)
model.save(sys.argv[1])
model = ZeroShotModel.load(sys.argv[1])
said = {name: f"Large {name}." for name in findings}
asked = ZeroShotClassifier(model).describe(said).decide(images[:9])
assert [decision.label for decision in asked] == [findings[c] for c in codes[:9]]
priors = {name: ClassPrior(*prior) for name, prior in model.image_priors(model.space(said)).items()}
both = WordsAndShotsClassifier(priors, center=model.to_image.image_mean).fit(images[:1], ["effusion"])
assert both.predict(images[:9]).tolist() == [findings[c] for c in codes[:9]]
report = parse_report("Small left pleural effusion. No pneumothorax.")
assert [str(finding) for finding in report.absent] == ["Pneumothorax"]
"""

HELP = """
import sys
from radshot.cli import main
for words in (["radshot", "--help"], ["radshot", "classify", "--help"]):
    sys.argv = words
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, stop.code
"""


@pytest.mark.parametrize(
    "work",
    [IMPORTS, STORE, EPISODES, COMPARISON, TEXT, ZEROSHOT, HELP],
    ids=["imports", "store", "episodes", "comparison set", "text", "zero-shot", "help"],
)
def test_torch_is_not_imported(tmp_path: Path, work: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", work + CHECK, str(tmp_path / "place")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_the_check_can_fail() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['torch.nn'] = sys\n" + CHECK], capture_output=True, text=True
    )
    assert done.returncode == 1 and "['torch'] were imported" in done.stderr
