"""What every command shares: its exit code, its two streams, and its machine-readable result."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, NoReturn, ParamSpec

import typer
from rich.console import Console

from embeddings import ArchiveError, EncoderError, ImageError, SourceError
from episodes import EpisodeError, ManifestError

#: Everything asked for was done.
DONE = 0
#: Done, but some inputs were refused; each is named with a reason.
SOME_REFUSED = 1
#: The command line does not say something that can be done.
WRONG_USAGE = 2
#: Refused; nothing changed.
REFUSED = 3

#: Answers go here.
out = Console(highlight=False, soft_wrap=True)
#: Notes, refusals and progress go here, so that answers can be piped.
err = Console(stderr=True, highlight=False, soft_wrap=True)

JsonOption = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Also write the result as JSON to FILE ('-' prints it instead)."),
]

P = ParamSpec("P")


class Usage(Exception):
    """The command line is wrong in a way only the command itself can see; exit code 2."""


class Refused(Exception):
    """The command cannot be carried out on what is there; exit code 3."""


def command(function: Callable[P, int]) -> Callable[P, None]:
    """Turn a function that returns an exit code into a command whose errors are one sentence each."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = function(*args, **kwargs)
        except (Usage, EncoderError, ManifestError) as error:
            _fail(str(error), WRONG_USAGE if _is_usage(error) else REFUSED)
        except (Refused, ArchiveError, EpisodeError, ImageError, SourceError) as error:
            _fail(str(error), REFUSED)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            _fail(f"{where}{error.strerror or error}.", REFUSED)
        except KeyboardInterrupt:
            _fail("Stopped; what was committed before is kept.", REFUSED)
        raise typer.Exit(code)

    return run


def _is_usage(error: Exception) -> bool:
    """A wrong name or column is wrong usage; a file that is not there or is broken is a refusal."""
    text = str(error)
    return isinstance(error, Usage) or "has no column" in text or "There is no " in text or "is named by" in text


def _fail(sentence: str, code: int) -> NoReturn:
    err.print(f"[bold red]radshot:[/] {escape(sentence)}")
    raise typer.Exit(code)


def escape(text: object) -> str:
    """Text that Rich prints as it is, square brackets included."""
    from rich.markup import escape as rich_escape

    return rich_escape(str(text))


def note(text: str) -> None:
    """Say something beside the answer, on standard error."""
    err.print(escape(text), style="dim")


def list_refused(refused: Sequence[tuple[str, str]]) -> None:
    """Name each refused input with its reason, on standard error."""
    for source, reason in refused:
        err.print(f"[yellow]refused[/] {escape(source)}: {escape(reason)}")


def exit_code(done: int, refused: int) -> int:
    """0 when nothing was refused, 1 when some inputs were, 3 when all were."""
    if not refused:
        return DONE
    return SOME_REFUSED if done else REFUSED


def write_json(path: Path | None, result: Any) -> None:
    """Write a command's result where `--json` says, whole or not at all."""
    if path is None:
        return
    text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
        return
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Write a file in one step: another process sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
