"""`radshot quarantine`: the files an archive could not take, and why."""

from __future__ import annotations

import dataclasses
from collections import Counter

import typer

from .archives import Folder
from .console import DONE, JsonOption, command, note, one_line, print_table, write_json


@command
def quarantine_command(
    folder: Folder,
    reasons: bool = typer.Option(False, "--reasons", help="Count reasons instead of listing files."),
    json_file: JsonOption = None,
) -> int:
    """List the files that an archive refused, and why.

    They are tried again at every run; one that succeeds, or belongs to a
    patient who is forgotten, leaves the list.

    \b
    Examples
      radshot quarantine archive
      radshot quarantine archive --reasons
    """
    from embeddings import Archive

    with Archive.open(folder, create=False) as held:
        refused = held.quarantine()
    if reasons:
        counts = Counter((one.stage, one.reason) for one in refused)
        print_table(
            ("files", "stage", "reason"),
            [(count, stage, reason) for (stage, reason), count in counts.most_common()],
            numbers=("files",),
        )
    elif refused:
        print_table(("when", "stage", "file", "reason"), [(one.at, one.stage, one.path, one.reason) for one in refused])
    note(f"{one_line(folder)}: {len(refused):,} file{'s' * (len(refused) != 1)} refused")
    write_json(json_file, {"archive": str(folder), "refused": [dataclasses.asdict(one) for one in refused]})
    return DONE
