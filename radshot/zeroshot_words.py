"""`radshot zeroshot describe` and `reports`: words that speak for a set's classes, and labels read from reports."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from .console import (
    DONE,
    JsonOption,
    Refused,
    Usage,
    check_target,
    command,
    exit_code,
    list_refused,
    note,
    out,
    print_table,
    refused_json,
    write_json,
)
from .manifest_options import Group, Image, Manifests, Where
from .sets import SetFolder
from .words import Describe, Texts


@command
def describe_command(
    folder: SetFolder,
    model_folder: Annotated[
        Path, typer.Option("--words", metavar="MODEL", help="Folder made by radshot zeroshot fit.", show_default=False)
    ],
    describe: Describe,
    replace: Annotated[
        bool, typer.Option("--replace", help="Forget what was said of other classes; by default it stays.")
    ] = False,
    encoder: Annotated[str | None, typer.Option(metavar="ENC", help="The image encoder, if it has moved.")] = None,
    json_file: JsonOption = None,
) -> int:
    """Let words speak for classes of a comparison set, beside its images.

    A class may have words, images or both: without images it is what its
    words say, and every patient registered moves it. radshot classify asks
    both together; radshot deploy keeps them together.

    \b
    Example
      radshot zeroshot describe cases --words words --describe findings.toml
      radshot classify cases new.png
    """
    import numpy as np

    from fewshot import ComparisonSet

    from .words import as_words, descriptions_of, is_built_in, open_model

    descriptions = descriptions_of(describe)
    model, chosen = open_model(model_folder, encoder)
    words = as_words(model, descriptions, leave_out=is_built_in(describe))
    with ComparisonSet.open(folder, encoder=chosen) as cases:
        try:
            before = None if replace else cases.words
        except ValueError as error:
            raise Refused(f"{error} Give --replace.") from None
        if before is not None:
            if not np.array_equal(before.center, words.center):
                raise Refused(
                    f"What was said of {', '.join(sorted(before.priors))} comes from another fit of words than "
                    f"'{model_folder}': describe all classes again with --replace."
                )
            words = dataclasses.replace(words, priors={**before.priors, **words.priors})
        cases.describe(words)
        shots = cases.shots
    rows = [(f"{len(words.priors[name].phrases)}", f"{shots.get(name, 0)}", name) for name in sorted(words.priors)]
    print_table(("sentences", "patients", "class"), rows, numbers=("sentences", "patients"))
    write_json(
        json_file,
        {
            "set": str(folder),
            "prior_shots": model.prior_shots,
            "classes": {
                name: {"phrases": list(prior.phrases), "shots": shots.get(name, 0)}
                for name, prior in words.priors.items()
            },
        },
    )
    return DONE


@command
def reports_command(
    manifests: Manifests,
    text: Texts,
    table: Annotated[Path, typer.Option("--out", metavar="FILE", help="CSV to write: one row per image.")],
    finding: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Findings wanted; repeat it. By default all mentioned.")
    ] = None,
    lexicon: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A TOML file of further findings and synonyms.")
    ] = None,
    uncertain: Annotated[str, typer.Option(metavar="HOW", help="What doubt counts as: unknown, present or absent.")] = (
        "unknown"
    ),
    group: Group = None,
    where: Where = None,
    image: Image = "image",
    json_file: JsonOption = None,
) -> int:
    """Read the findings of reports: weak labels for an archive.

    The table has a column per finding of 1 (present), 0 (denied) and nothing
    (not mentioned, which is not absent), and a label column of what is
    present; radshot train and evaluate take it as a manifest with
    --where "label is not null", for a report may affirm nothing.
    """
    from zeroshot import Lexicon, report_labels

    from .words import read_texts

    if uncertain not in ("unknown", "present", "absent"):
        raise Usage(f"--uncertain is unknown, present or absent; got {uncertain!r}.")
    check_target(table, "--out")
    words = Lexicon.builtin() if lexicon is None else Lexicon.read(lexicon, extend=Lexicon.builtin())
    data = read_texts(manifests, text=text, group=group, where=where, image=image)
    if not any(said.strip() for said in data.texts):
        raise Refused("None of the rows has a text: name the column with --text.")
    found = report_labels(data.texts, finding or None, uncertain=uncertain, lexicon=words)
    if len(found.problems) == len(data.texts):
        raise Refused(f"None of the {len(data.texts):,} reports could be read; the first: {found.problems[0][1]}")
    frame = found.frame(images=[str(path.absolute()) for path in data.images], groups=data.groups)
    named = [[name for name, value in zip(found.findings, row, strict=True) if value == 1] for row in found.table]
    frame.insert(1, "label", ["|".join(names) for names in named])
    frame.to_csv(table, index=False)
    problems = [(str(data.images[i]), reason) for i, reason in found.problems]
    list_refused(problems)
    present, absent = (int((found.table == value).sum()) for value in (1, 0))
    doubtful = found.contradicted
    if doubtful:
        note(
            f"{len(doubtful):,} reports affirm a finding and deny it elsewhere, which is left empty: row {doubtful[0]}."
        )
    out.print(
        f"{len(data.texts) - len(problems):,} reports, {len(found.findings)} findings: {present:,} present, "
        f"{absent:,} denied; in {table}"
    )
    write_json(
        json_file,
        {"table": str(table), "findings": list(found.findings), "present": present, "absent": absent,
         "refused": refused_json(problems)},
    )  # fmt: skip
    return exit_code(len(data.texts) - len(problems), len(problems))
