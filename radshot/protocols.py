"""`radshot zeroshot protocol`: published protocols on public collections, one command each once the data are there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import (
    JsonOption,
    Usage,
    check_target,
    command,
    exit_code,
    list_refused,
    refused_json,
    write_json,
    write_text,
)
from .embedding import ENCODER_HELP

if TYPE_CHECKING:
    from .protocol_data import Settings
    from .protocol_page import Page

#: Protocols, each with the options that are its own.
PROTOCOLS = {
    "chestxray14": ("--alignment", "--text-encoder", "--reports", "--text", "--unseen"),
    "chestxray14-episodes": ("--unseen", "--k-shot", "--episodes"),
    "openi": ("--alignment", "--text-encoder", "--text"),
}


@command
def protocol_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"One of {', '.join(PROTOCOLS)}.", show_default=False)],
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder the data set was unpacked into.", show_default=False)
    ],
    encoder: Annotated[str, typer.Option(metavar="ENC", help=ENCODER_HELP)],
    archive: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep vectors in this archive, so that a rerun embeds none anew.")
    ] = None,
    alignment: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="ridge, ridge-to-text, cca, eszsl, ale or contrastive. By default several."),
    ] = None,
    text_encoder: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="tfidf (by default), bert, hf:<id or folder>, or a folder."),
    ] = None,
    reports: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A CSV of texts to fit the text encoder on, not the descriptions alone."),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option("--text", metavar="COLUMN", help="Text column; repeat it to join several.")
    ] = None,
    unseen: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Finding to learn without; repeat it.")
    ] = None,
    k_shot: Annotated[
        list[int] | None, typer.Option(metavar="N", min=1, help="Patients per finding; repeat it. By default 1, 5, 30.")
    ] = None,
    episodes: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Episodes for each number of shots; 600 by default.")
    ] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out images that the tables list and the folder lacks.")
    ] = False,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the page as Markdown.")] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0)] = 0,
    json_file: JsonOption = None,
) -> int:
    """Run a published protocol on a public collection you have.

    chestxray14: learn words from images of ten findings, rank fourteen (Hayat
    et al. 2021). chestxray14-episodes: small multi-label tasks of seen and
    unseen findings (after MetaChest). openi: find images by reports and
    reports by images, and findings by descriptions. Published figures stand
    beside those measured.

    \b
    Examples
      radshot zeroshot protocol chestxray14 nih/ --encoder enc \\
          --archive nih-vectors --json nih.json --markdown nih.md
      radshot zeroshot protocol openi indiana/ --encoder enc
    """
    from .protocol_data import Settings

    given = {
        "--alignment": alignment, "--text-encoder": text_encoder, "--reports": reports, "--text": text,
        "--unseen": unseen, "--k-shot": k_shot, "--episodes": episodes,
    }  # fmt: skip
    _check(name, {option for option, value in given.items() if value})
    _check_names(alignment, unseen or [])
    if (reports is None) != (not text) and name == "chestxray14":
        raise Usage("--reports and --text go together: a table of texts, and its text columns.")
    if markdown is not None:
        check_target(markdown, "--markdown")
    page = _run_of(name)(
        Settings(
            folder=folder,
            encoder=encoder,
            archive=archive,
            alignment=alignment,
            text_encoder=text_encoder or "tfidf",
            reports=reports,
            text=tuple(text or ()),
            unseen=tuple(dict.fromkeys(unseen or ())),
            k_shot=tuple(dict.fromkeys(k_shot or ())),
            episodes=episodes or 600,
            skip_missing=skip_missing,
            seed=seed,
        )
    )
    page.show()
    list_refused(page.refused)
    if markdown is not None:
        write_text(markdown, page.to_markdown())
    write_json(json_file, {**page.result, "notes": list(page.notes), "refused": refused_json(page.refused)})
    return exit_code(page.images, len(page.refused))


def _check(name: str, given: set[str]) -> None:
    """Refuse a protocol that there is not, and options that are another's.

    Raises:
        Usage: With what there is.
    """
    import difflib

    if name not in PROTOCOLS:
        close = difflib.get_close_matches(name, PROTOCOLS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise Usage(f"There is no protocol {name!r}; there are {', '.join(PROTOCOLS)}.{hint}")
    for option in sorted(given - set(PROTOCOLS[name])):
        owners = [other for other, own in PROTOCOLS.items() if option in own]
        raise Usage(f"{option} goes with {' and '.join(owners)}, not with {name}.")


def _check_names(alignment: str | None, unseen: list[str]) -> None:
    """Refuse an alignment or a finding that there is not.

    Raises:
        Usage: With what there is.
    """
    from episodes import CHESTXRAY14_FINDINGS
    from zeroshot import alignment_names

    if alignment is not None and alignment not in alignment_names():
        raise Usage(f"--alignment is one of {', '.join(alignment_names())}; got {alignment!r}.")
    for name in unseen:
        if name not in CHESTXRAY14_FINDINGS:
            raise Usage(f"--unseen names one of {', '.join(CHESTXRAY14_FINDINGS)}; got {name!r}.")
    if len(set(unseen)) > len(CHESTXRAY14_FINDINGS) - 2:
        raise Usage("--unseen must leave at least two findings to be seen.")


def _run_of(name: str) -> Callable[[Settings], Page]:
    """What carries a protocol out."""
    from .protocol_chestxray14 import run_chestxray14
    from .protocol_episodes import run_episodes
    from .protocol_openi import run_openi

    return {"chestxray14": run_chestxray14, "chestxray14-episodes": run_episodes, "openi": run_openi}[name]
