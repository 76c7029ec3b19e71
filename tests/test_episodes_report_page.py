"""Report pages: every figure is the report's, nothing is loaded or run, whatever the labels hold."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from episodes import EpisodeError, EpisodeSampler, Report, compare, evaluate
from episodes.charts import BOTTOM, LEFT, PANEL_HEIGHT, PANEL_WIDTH, RIGHT, TOP, stages, ticks
from episodes.report import CONFUSIONS, TABLE_ROWS
from episodes.report_page import BAR_WIDTH, MATRIX_CLASSES, render_reports, training_page

NASTY = [
    "<script>alert(1)</script>",
    '"><img src="http://example.org/x.png">',
    "pipe|and\nnewline",
    "🫁 lung",
    "{{ 7 * 7 }}",
    "long " * 80,
    "",
    "half \ud800 a pair",
    "\x00\x07",
]


class Nearest:
    """Nearest mean, or none of these beyond a radius."""

    def __init__(self, radius: float = math.inf, drop: int = 0) -> None:
        self.radius = radius
        self.drop = drop

    def fit(self, X, y):
        self.names_ = list(dict.fromkeys(y))
        rows = [[i for i, name in enumerate(y) if name == one] for one in self.names_]
        self.means_ = np.stack([X[own, self.drop :].mean(axis=0) for own in rows])
        return self

    def predict(self, X):
        far = np.linalg.norm(X[:, None, self.drop :] - self.means_[None], axis=2)
        return [self.names_[i] if d[i] < self.radius else None for d, i in zip(far, far.argmin(1), strict=True)]


def made(
    names: list[str], *, n_way: int = 2, episodes: int = 20, known: bool = True, seed: int = 0, images: int = 16
) -> tuple[EpisodeSampler, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = [name for name in names for _ in range(images)]
    groups = [f"p{i // 2}" for i in range(len(labels))]
    vectors = np.repeat(rng.normal(size=(len(names), 6)), images, axis=0) + rng.normal(size=(len(labels), 6))
    sampler = EpisodeSampler(labels, n_way, 2, 3, groups=groups if known else None, n_episodes=episodes, seed=seed)
    return sampler, vectors.astype(np.float32)


def report_of(names: list[str], classifier: Nearest | None = None, name: str = "nearest", **options: object) -> Report:
    sampler, vectors = made(names, **options)
    return evaluate(classifier or Nearest(2.6), vectors, list(sampler.labels), sampler, name=name)


def words(n: int) -> list[str]:
    return [f"class {i:02}" for i in range(n)]


def history(n: int = 10, stage: str | None = None, held_out: bool = True) -> list[dict]:
    rows = []
    for i in range(1, n + 1):
        row = {
            "episode": 50 * i,
            "loss": 2.0 / i,
            "train_accuracy": 1 - 0.5 / i,
            "validation_accuracy": 0.9 - 0.4 / i if held_out and i % 2 == 0 else None,
            "learning_rate": 0.001 * i,
            "seconds": 1.5 * i,
        }
        rows.append(row if stage is None else {"stage": stage, **row})
    return rows


class Node:
    """An element, its attributes, and what is in it."""

    def __init__(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.tag, self.attributes, self.parts = tag, attributes, []

    @property
    def text(self) -> str:
        return "".join(part if isinstance(part, str) else part.text for part in self.parts)

    def every(self, tag: str, kind: str = "") -> Iterator[Node]:
        for part in self.parts:
            if isinstance(part, Node):
                if part.tag == tag and kind in (part.attributes.get("class") or ""):
                    yield part
                yield from part.every(tag, kind)


class Tree(HTMLParser):
    """Parses a page, and fails where a tag is not closed by its own kind."""

    EMPTY = ("meta", "br", "img", "link")

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Node("page", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, dict(attrs))
        self.open[-1].parts.append(node)
        if tag not in self.EMPTY:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].parts.append(Node(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].parts.append(data)


def parsed(page: str) -> Node:
    """The page as a tree, after what must hold of every page."""
    page.encode("utf-8")
    reader = Tree()
    reader.feed(page)
    reader.close()
    assert reader.open == [reader.root]
    root = reader.root
    for tag in ("script", "img", "link", "iframe", "object", "image", "use", "a", "form", "input", "base"):
        assert not list(root.every(tag)), tag
    pending = [root]
    while pending:
        node = pending.pop()
        assert not [name for name in node.attributes if name.startswith("on") or name in ("src", "href", "xlink:href")]
        assert "url(" not in (node.attributes.get("style") or "")
        pending += [part for part in node.parts if isinstance(part, Node)]
    (style,) = root.every("style")
    assert "url(" not in style.text and "@import" not in style.text
    for drawing in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        ET.fromstring(drawing)
        assert "nan" not in drawing and "inf" not in drawing.replace("infinity", "")
    return root


def table(root: Node, kind: str) -> list[list[str]]:
    """The texts of a table's body, drawings left empty."""
    found = [body for one in root.every("table", kind) for body in one.every("tbody")]
    return [
        ["" if list(cell.every("svg")) else " ".join(cell.text.split()) for cell in row.parts
         if isinstance(cell, Node) and cell.tag in ("td", "th")]
        for body in found for row in body.every("tr")
    ]  # fmt: skip


@pytest.fixture(scope="module")
def five() -> list[Report]:
    sampler, vectors = made(words(5), n_way=3)
    labels = list(sampler.labels)
    heads = [("ours", Nearest(2.6)), ("all but one", Nearest(drop=1)), ("half", Nearest(drop=3))]
    return [evaluate(head, vectors, labels, sampler, name=name) for name, head in heads]


def test_the_headline_is_the_reports(five: list[Report]) -> None:
    report = five[0]
    root = parsed(report.to_html())
    (title,) = root.every("title")
    assert title.text == "ours"
    (figure,) = root.every("div", "figure")
    assert figure.text == f"{report.accuracy:.3f}"
    (facts,) = root.every("dl")
    assert [value.text for value in facts.every("dd")] == [
        f"{report.interval[0]:.3f} to {report.interval[1]:.3f}",
        f"{report.episode_mean:.3f} ± {report.episode_interval:.3f}",
        f"{1 / 3:.3f}",
        f"{report.abstained * 100:.1f} %",
    ]
    assert "3-way 2-shot, 20 episodes, 5 classes, 40 query patients" in root.text
    assert report.abstained > 0


def test_every_class_has_its_figures_and_a_bar_of_its_length(five: list[Report]) -> None:
    report = five[0]
    root = parsed(report.to_html())
    rows = table(root, "classes")
    assert len(rows) == 5
    for number, (row, (label, found)) in enumerate(zip(rows, report.per_class.items(), strict=True), 1):
        assert row[0] == f"{number}{label}"
        ends = f"{found.interval[0]:.3f} to {found.interval[1]:.3f}"
        assert row[2:] == [f"{found.recall:.3f}", ends, *map(str, (found.patients, found.queries, found.abstained))]
    (drawn,) = root.every("table", "classes")
    bars = [bar for row in drawn.every("td", "plot") for bar in row.every("rect")]
    whiskers = [line.attributes["d"] for row in drawn.every("td", "plot") for line in row.every("path", "ink")]
    for bar, whisker, found in zip(bars, whiskers, report.per_class.values(), strict=True):
        assert float(bar.attributes["width"]) == pytest.approx(found.recall * BAR_WIDTH, abs=0.01)
        low, high = re.match(r"M([\d.]+) 10H([\d.]+)M", whisker).groups()
        assert float(low) == pytest.approx(found.interval[0] * BAR_WIDTH, abs=0.01)
        assert float(high) == pytest.approx(found.interval[1] * BAR_WIDTH, abs=0.01)


def test_the_matrix_holds_every_count_and_shades_by_row(five: list[Report]) -> None:
    report = five[0]
    root = parsed(report.to_html())
    rows = table(root, "matrix")
    assert [[0 if cell == "·" else int(cell) for cell in row[1:]] for row in rows] == report.confusion.tolist()
    assert report.confusion[:, -1].sum() > 0
    (matrix,) = root.every("table", "matrix")
    cells = list(matrix.every("td"))
    shares = report.confusion / report.confusion.sum(axis=1, keepdims=True)
    drawn = [float(cell.attributes["style"].removeprefix("--share:")) for cell in cells]
    assert drawn == pytest.approx((shares * 0.75).ravel().tolist(), abs=0.0006)
    right = [i for i, cell in enumerate(cells) if "right" in cell.attributes["class"]]
    assert right == [6 * i + i for i in range(5)]


def test_the_most_frequent_confusions_are_listed(five: list[Report]) -> None:
    report = five[0]
    names = [*report.per_class, "none of these"]
    every = [
        (int(report.confusion[i, j]), names[i], names[j]) for i in range(5) for j in range(6)
        if i != j and report.confusion[i, j]
    ]  # fmt: skip
    rows = table(parsed(report.to_html()), "confusions")
    assert len(rows) == min(CONFUSIONS, len(every))
    assert [int(row[2]) for row in rows] == sorted((count for count, _, _ in every), reverse=True)[: len(rows)]
    totals = dict(zip(names, report.confusion.sum(axis=1).tolist(), strict=False))
    for true, answer, count, share in rows:
        assert (int(count), true, answer) in every
        assert share == f"{int(count) / totals[true] * 100:.1f} %"


def test_baselines_stand_beside_it_with_paired_differences(five: list[Report]) -> None:
    root = parsed(render_reports(five))
    rows = table(root, "compared")
    for row, report in zip(rows, five, strict=True):
        ends = f"{report.interval[0]:.3f} to {report.interval[1]:.3f}"
        mean = f"{report.episode_mean:.3f} ± {report.episode_interval:.3f}"
        assert row == [report.name, "", f"{report.accuracy:.3f}", ends, mean, f"{report.abstained * 100:.1f} %"]
    found = [compare(five[0], other) for other in five[1:]]
    rows = table(root, "differences")
    for row, other, one in zip(rows, five[1:], found, strict=True):
        ends = f"{one.low:+.3f} to {one.high:+.3f}"
        assert row == [other.name, "", f"{one.difference:+.3f}", ends, f"{one.p_value:.3f}"]
    (drawn,) = root.every("table", "differences")
    whiskers = [list(cell.every("path", "ink"))[-1].attributes["d"] for cell in drawn.every("td", "plot")]
    texts = [tick.text for head in drawn.every("th", "plot") for tick in head.every("text")]
    reach = float(texts[-1])
    assert texts[2] == "0" and float(texts[0]) == -reach >= -1
    for whisker, one in zip(whiskers, found, strict=True):
        ends = re.match(r"M([\d.]+) 10H([\d.]+)M", whisker).groups()
        values = [(float(end) / BAR_WIDTH * 2 - 1) * reach for end in ends]
        assert values == pytest.approx([one.low, one.high], abs=reach / 1000)
    assert render_reports(five, differences=found) == render_reports(five)
    assert not table(parsed(render_reports(five, differences=[])), "differences")
    assert "Beside others" not in five[0].to_html()


def test_baselines_of_other_episodes_are_refused(five: list[Report]) -> None:
    other = report_of(words(5), n_way=3, seed=1, name="other")
    with pytest.raises(EpisodeError, match="ours and other were not evaluated on the same episodes"):
        render_reports([five[0], other])
    assert "other" in render_reports([five[0], other], differences=[])
    with pytest.raises(EpisodeError, match=r"^Each of the 2 baselines needs its difference, or none of them; got 1\.$"):
        render_reports(five, differences=[compare(five[0], five[1])])
    with pytest.raises(EpisodeError, match=r"^A page needs at least one report; got none\.$"):
        render_reports([])


def test_many_classes_show_the_hardest_first_and_lose_no_query() -> None:
    report = report_of(words(60), n_way=10, images=8, episodes=60)
    root = parsed(report.to_html())
    recalls = [math.inf if row[2] == "never drawn" else float(row[2]) for row in table(root, "classes")]
    assert len(recalls) == 60 and recalls == sorted(recalls)
    (more,) = root.every("details")
    assert len(list(more.every("td", "name"))) == 60 - TABLE_ROWS
    rows = table(root, "matrix")
    assert len(rows) == MATRIX_CLASSES and all(len(row) == MATRIX_CLASSES + 3 for row in rows)
    (head,) = (row for one in root.every("table", "matrix") for part in one.every("thead") for row in part.every("tr"))
    assert [cell.text.strip() for cell in head.every("th")][-2:] == ["30 other classes", "none of these"]
    numbers = [int(re.match(r"\d\d?(?=class)", row[0]).group()) for row in rows]
    for number, row in zip(numbers, rows, strict=True):
        counts = [0 if cell == "·" else int(cell) for cell in row[1:]]
        own = report.confusion[number - 1]
        assert sum(counts) == own.sum() and counts[-1] == own[-1]
        assert counts[:-2] == own[[other - 1 for other in numbers]].tolist()
    assert "Only the 30 hardest of 60 classes are shown." in root.text
    assert "An episode offers 10 of the 60 classes" in root.text


def test_doubts_are_said() -> None:
    report = report_of(words(8), episodes=2, known=False)
    assert report.unreliable and any(found.recall is None for found in report.per_class.values())
    root = parsed(report.to_html())
    (box,) = root.every("div", "warnings")
    assert [item.text for item in box.every("li")] == list(report.warnings)
    assert "(patients unknown)" in root.text and "95 % interval over images" in root.text
    rows = dict(zip(report.per_class, table(root, "classes"), strict=True))
    for label, found in report.per_class.items():
        assert (rows[label][2] == "never drawn") == (found.recall is None)
        assert ("few images" in rows[label][0]) == (label in report.unreliable)
    assert "warnings" not in [div.attributes.get("class") for div in parsed(
        report_of(words(3), images=40, episodes=60).to_html()).every("div")]  # fmt: skip


def test_a_single_episode_and_left_out_classes() -> None:
    sampler, vectors = made(words(3), episodes=1)
    labels = [*sampler.labels, "rare <b>"]
    groups = [*sampler.groups, "p0"]
    more = EpisodeSampler(labels, 2, 2, 3, groups=groups, n_episodes=1)
    report = evaluate(Nearest(), np.vstack([vectors, vectors[:1]]), labels, more)
    root = parsed(report.to_html())
    assert "±" not in root.text and report.episode_interval is None
    assert "Left out for too few patients: rare <b> (1)." in " ".join(root.text.split())


@pytest.mark.parametrize("label", NASTY)
def test_labels_are_shown_and_never_obeyed(label: str) -> None:
    names = [label, "plain"]
    report = report_of(names, name=label, n_way=2)
    page = render_reports([report, report], history=history(3, stage=label), title=label)
    root = parsed(page)
    rows = table(root, "classes")
    shown = " ".join(label.replace("\x00", " ").replace("\x07", " ").replace("\ud800", "\ufffd").split()) or repr(label)
    assert any(shown in row[0] for row in rows)
    assert (shown if label else "Nearest") in " ".join(next(root.every("h1")).text.split())
    assert "\x00" not in page
    parsed(training_page(history(3, stage=label), {"classes": names, "note": label}, label))


def test_provenance_is_complete_and_others_say_where_they_differ(five: list[Report]) -> None:
    report = five[0]
    root = parsed(render_reports(five))
    first, *others = root.every("table", "facts")
    rows = {row.parts[0].text: row.parts[1].text for row in first.every("tr")}
    assert rows["data_sha256"] == report.manifest["data_sha256"]
    assert {f"sampler.{key}" for key in report.manifest["sampler"]} <= set(rows)
    assert rows["sampler.seed"] == "0" and rows["sampler.patients_known"] == "true"
    assert {key.removeprefix("versions.") for key in rows if key.startswith("versions.")} == set(
        report.manifest["versions"]
    )
    assert [[cell.text for row in one.every("tr") for cell in row.every("td")] for one in others] == [
        ["classifier.settings.drop", "1", "classifier.settings.radius", "inf"],
        ["classifier.settings.drop", "3", "classifier.settings.radius", "inf"],
    ]


def read_back(root: Node, figure: int, line: int, low: float, high: float, last: float) -> list[tuple[float, float]]:
    """A curve's points as (episode, value)."""
    drawing = list(list(root.every("figure"))[figure].every("svg"))[-1]
    points = list(drawing.every("polyline"))[line].attributes["points"]
    found = []
    for point in points.split():
        x, y = map(float, point.split(","))
        episode = (x - LEFT) / (PANEL_WIDTH - LEFT - RIGHT) * last
        found.append((episode, low + (PANEL_HEIGHT - BOTTOM - y) / (PANEL_HEIGHT - TOP - BOTTOM) * (high - low)))
    return found


def test_the_curves_are_the_history(five: list[Report]) -> None:
    entries = history(10)
    root = parsed(five[0].to_html(history=entries))
    assert len(list(root.every("figure"))) == 2
    held = [(e["episode"], e["validation_accuracy"]) for e in entries if e["validation_accuracy"] is not None]
    trained = [(e["episode"], e["train_accuracy"]) for e in entries]
    losses = [(e["episode"], e["loss"]) for e in entries]
    for line, (pairs, top) in enumerate(((held, 1.0), (trained, 1.0))):
        for got, meant in zip(read_back(root, 0, line, 0, top, 500), pairs, strict=True):
            assert got == pytest.approx(meant, abs=0.02)
    for got, meant in zip(read_back(root, 1, 0, 0, 2.0, 500), losses, strict=True):
        assert got == pytest.approx(meant, abs=0.02)
    said = " ".join(root.text.split())
    assert "After 500 episodes: loss 0.2, training accuracy 0.950, validation accuracy 0.860; 15 seconds" in said
    assert "learning rate at most 0.01." in said
    assert "Training" not in [heading.text for heading in parsed(five[0].to_html()).every("h2")]


def test_stages_are_drawn_apart_and_nothing_held_out_is_said() -> None:
    both = history(4, "simclr", held_out=False) + history(6, "prototypical")
    drawn = stages(both, best_episode=200)
    assert [(stage.name, stage.validated, stage.last["episode"]) for stage in drawn] == [
        ("simclr", False, 200),
        ("prototypical", True, 300),
    ]
    assert [[len(panel.lines) for panel in stage.panels] for stage in drawn] == [[1, 1], [2, 1]]
    assert [panel.mark is None for stage in drawn for panel in stage.panels] == [True, True, False, False]
    assert drawn[1].panels[0].mark == pytest.approx(LEFT + 200 / 300 * (PANEL_WIDTH - LEFT - RIGHT))
    assert len(stages(history(3) + history(3))) == 2  # the same method twice counts its episodes anew
    root = parsed(training_page(both, {"best_episode": 200}))
    assert [heading.text for heading in root.every("h3")] == ["Stage 1: simclr", "Stage 2: prototypical"]
    assert "nothing held out to validate on" in root.text
    assert "The dotted line marks the weights that were kept." in root.text


@pytest.mark.parametrize("loss", [0.0, 1.5, 1e-7, 3e6, -2.0])
@pytest.mark.parametrize("episode", [1, 7, 123_456])
def test_a_single_validation_is_a_dot_inside_the_drawing(loss: float, episode: int) -> None:
    entry = {**history(1)[0], "episode": episode, "loss": loss, "validation_accuracy": 1.0}
    (stage,) = stages([entry])
    for panel in stage.panels:
        assert len(panel.y_ticks) >= 2 and len(panel.x_ticks) >= 2
        for line in panel.lines:
            assert line.dotted
            for x, y in line.points:
                assert LEFT <= x <= PANEL_WIDTH - RIGHT and TOP - 1e-6 <= y <= PANEL_HEIGHT - BOTTOM + 1e-6
    parsed(training_page([entry]))


def test_a_loss_that_falls_a_thousandfold_gets_a_logarithmic_axis() -> None:
    entries = [{**entry, "loss": 10.0 ** (3 - 3 * i / 30) if i < 5 else 0.5} for i, entry in enumerate(history(30))]
    panel = stages(entries)[0].panels[1]
    assert panel.y_label == "loss, log scale"
    assert [tick.text for tick in panel.y_ticks] == ["0.1", "1", "10", "100", "1000"]
    top, foot = TOP, PANEL_HEIGHT - BOTTOM
    for (_, y), entry in zip(panel.lines[0].points, entries, strict=True):
        assert 10 ** (-1 + 4 * (foot - y) / (foot - top)) == pytest.approx(entry["loss"])
    assert stages(history(30))[0].panels[1].y_label == "loss"  # 2 / i: the first is but 15 times the median


def test_values_that_are_no_numbers_are_left_out() -> None:
    entries = history(5)
    entries[2]["loss"] = math.nan
    entries[3]["loss"] = None
    entries[4]["train_accuracy"] = None
    (stage,) = stages(entries)
    assert [len(line.points) for line in stage.panels[0].lines] == [2, 4]
    assert [len(line.points) for line in stage.panels[1].lines] == [3]
    parsed(training_page(entries))


@pytest.mark.parametrize("most", [4, 6, 10])
def test_ticks_are_round_and_cover_the_range(most: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        low = float(rng.normal() * 10.0 ** rng.integers(-3, 4)) if rng.random() < 0.5 else 0.0
        high = low + float(10.0 ** rng.uniform(-3, 6))
        got = ticks(low, high, most)
        steps = np.diff(got)
        assert 2 <= len(got) <= most
        assert got[0] <= low + 1e-6 * (high - low) and got[-1] >= high - 1e-6 * (high - low)
        assert np.allclose(steps, steps[0], rtol=1e-5)
        assert round(float(steps[0]) / 10.0 ** math.floor(math.log10(steps[0] * 1.001)), 3) in (1, 2, 5)


def test_a_training_has_a_page_of_its_own() -> None:
    summary = {
        "method": "prototypical",
        "config": {"n_way": 5, "backbone_config": {"width": 64}},
        "classes": ["a", "b"],
        "images": 1234,
        "best_episode": 400,
        "best_accuracy": 0.8127,
        "stopped_early": True,
    }
    root = parsed(training_page(history(), summary, "conv4 & co"))
    assert next(root.every("h1")).text == "conv4 & co"
    assert [figure.text for figure in root.every("div", "figure")] == ["0.813"]
    assert [value.text for value in root.every("dd")] == ["400", "1,234", "2", "yes"]
    (facts,) = root.every("table", "facts")
    rows = {row.parts[0].text: row.parts[1].text for row in facts.every("tr")}
    assert rows["config.n_way"] == "5" and rows["config.backbone_config.width"] == "64"
    assert rows["classes"] == '["a", "b"]' and rows["method"] == "prototypical"
    assert "Nothing has been recorded yet." in parsed(training_page([])).text
    unheld = parsed(training_page(history(held_out=False), {"best_accuracy": None, "best_episode": 500}))
    assert not list(unheld.every("div", "figure"))


def test_the_same_report_gives_the_same_page_and_a_title_replaces_the_name(five: list[Report]) -> None:
    assert five[0].to_html(history=history()) == render_reports([five[0]], history=history())
    root = parsed(five[0].to_html(title="Unseen findings"))
    assert next(root.every("h1")).text == "Unseen findings"
    assert "ours, 3-way" in root.text


def test_templates_are_read_only_when_a_page_is_made() -> None:
    work = (
        "import sys, episodes, episodes.report, episodes.report_page; "
        "sys.exit(any(name in sys.modules for name in ('jinja2', 'torch')))"
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", work], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
