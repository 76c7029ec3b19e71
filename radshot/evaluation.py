"""`radshot evaluate`: an encoder and its heads on few-shot episodes, beside what no training would give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import (
    JsonOption,
    Refused,
    check_target,
    command,
    exit_code,
    list_refused,
    note,
    out,
    print_table,
    refused_json,
    write_json,
    write_text,
)
from .embedding import ENCODER_HELP
from .manifest_options import HEAD_HELP, Group, Image, Label, Manifests, Where

if TYPE_CHECKING:
    from embeddings import Encoder
    from episodes import PairedDifference, Report

    from .inputs import Labelled

#: Encoders that are measured beside the one asked for: what no training at all would give.
BASELINES = ("pixels-32", "hog-64")
#: The head the baselines are measured with.
BASELINE_HEAD = "prototypes"


@command
def evaluate_command(
    manifests: Manifests,
    encoder: Annotated[str, typer.Option(metavar="ENC", help=ENCODER_HELP)],
    label: Label = ["label"],  # noqa: B006 - typer reads the default
    group: Group = None,
    where: Where = None,
    image: Image = "image",
    head: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help=f"{HEAD_HELP} Repeat it; by default all that fit.")
    ] = None,
    n_way: Annotated[int, typer.Option(metavar="N", min=2, help="Classes per episode.")] = 5,
    k_shot: Annotated[int, typer.Option(metavar="N", min=1, help="Support patients per class.")] = 5,
    n_query: Annotated[int, typer.Option(metavar="N", min=1, help="Query images per class, at most.")] = 15,
    episodes: Annotated[int, typer.Option(metavar="N", min=1, help="Number of episodes.")] = 600,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of the episodes.")] = 0,
    baselines: Annotated[bool, typer.Option(help="Also measure raw pixels and HOG on the same episodes.")] = True,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the report as Markdown.")] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write it as a page: confusions, classes, training curves.")
    ] = None,
    json_file: JsonOption = None,
) -> int:
    """Measure an encoder and its heads on few-shot episodes.

    No patient is on both sides of an episode. Every head, and raw pixels and
    HOG beside them, answers the same episodes; differences to the first row
    come with an interval over patients.

    \b
    Example
      radshot evaluate test.csv --encoder enc --label finding --n-way 3 \\
          --k-shot 5 --markdown report.md --html report.html
    """
    from episodes import EpisodeSampler, compare, render_reports
    from fewshot import heads_for, make_head

    from .inputs import check_heads, encode_readable, open_encoder, read_manifests

    if markdown is not None:
        check_target(markdown, "--markdown")
    if html is not None:
        check_target(html, "--html")
    check_heads(head or ())
    source = read_manifests(manifests, labels=label, group=group, where=where, image=image)
    chosen = open_encoder(encoder)
    names = head or heads_for(chosen.similarity)
    try:
        for name in names:
            make_head(name, similarity=chosen.similarity, source=chosen.source_statistics)
    except ValueError as error:
        raise Refused(str(error)) from None
    EpisodeSampler(source.labels, n_way, k_shot, n_query, groups=source.groups, n_episodes=1)  # fail before the work
    vectors, kept, refused = encode_readable(chosen, source.images)
    list_refused(refused)
    if not kept:
        raise Refused(f"None of the {len(source.images):,} images could be read.")
    labels = [source.labels[i] for i in kept]
    groups = None if source.groups is None else [source.groups[i] for i in kept]
    sampler = EpisodeSampler(labels, n_way, k_shot, n_query, groups=groups, n_episodes=episodes, seed=seed)
    reports = [_measure(chosen, name, vectors, labels, sampler, source, where) for name in names]
    for spec in BASELINES if baselines else ():
        plain = open_encoder(spec)
        if plain.fingerprint == chosen.fingerprint:
            continue
        note(f"measuring {spec} beside it")
        rows, readable, _ = encode_readable(plain, [source.images[i] for i in kept])
        if len(readable) < len(kept):
            note(f"{spec} is left out: it needs the images themselves, and some of them cannot be read.")
            continue
        reports.append(_measure(plain, BASELINE_HEAD, rows, labels, sampler, source, where))
    differences = [compare(reports[0], other) for other in reports[1:]]
    _print_reports(reports, differences)
    result = {
        "reports": [report.to_dict() for report in reports],
        "differences": [
            {
                "first": reports[0].name,
                "second": other.name,
                "difference": paired.difference,
                "interval": [paired.low, paired.high],
                "p_value": paired.p_value,
            }
            for other, paired in zip(reports[1:], differences, strict=True)
        ],
        "refused": refused_json(refused),
    }
    write_json(json_file, result)
    if markdown is not None:
        write_text(markdown, "\n\n".join(report.to_markdown() for report in reports) + "\n")
    if html is not None:
        history = getattr(chosen, "training", {}).get("history")
        write_text(html, render_reports(reports, differences=differences, history=history))
    return exit_code(len(kept), len(refused))


def _measure(
    encoder: Encoder, head: str, vectors: Any, labels: list[Any], sampler: Any, source: Labelled, where: str | None
) -> Report:
    """One head on one encoder's vectors, with what the figure was computed from."""
    from episodes import evaluate
    from fewshot import make_head

    return evaluate(
        make_head(head, center=encoder.source_mean, similarity=encoder.similarity, source=encoder.source_statistics),
        vectors,
        labels,
        sampler,
        name=f"{encoder.name}, {head}",
        provenance={
            "encoder": encoder.name,
            "encoder_fingerprint": encoder.fingerprint,
            "manifests": [manifest.data_hash for manifest in source.manifests],
            "where": where,
        },
    )


def _print_reports(reports: Sequence[Report], differences: Sequence[PairedDifference]) -> None:
    first = reports[0]
    unit = "patients" if first.patients_known else "images"
    out.print(f"{first.n_way}-way {first.k_shot}-shot, {first.episodes:,} episodes, {first.patients:,} query {unit}")
    beside = [""] + [f"{paired.difference:+.3f} [{paired.low:+.3f}, {paired.high:+.3f}]" for paired in differences]
    rows = [
        (
            f"{report.accuracy:.3f}",
            f"[{report.interval[0]:.3f}, {report.interval[1]:.3f}]",
            "" if report.episode_interval is None else f"{report.episode_interval:.3f}",
            difference,
            report.name,
        )
        for report, difference in zip(reports, beside, strict=True)
    ]
    header = ("accuracy", f"95% over {unit}", "± episodes", "first minus this", "encoder, head")
    print_table(header, rows, numbers=header[:4])
    for warning in first.warnings:
        note(warning)
