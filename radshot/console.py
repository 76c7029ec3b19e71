"""What every command shares: its exit code, its two streams, and its machine-readable result."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, NoReturn, ParamSpec

import typer

#: Everything asked for was done.
DONE = 0
#: Done, but some inputs were refused; each is named with a reason.
SOME_REFUSED = 1
#: The command line does not say something that can be done.
WRONG_USAGE = 2
#: Refused; nothing changed.
REFUSED = 3
#: Stopped by Ctrl-C: 128 and the signal's number, as shells have it.
INTERRUPTED = 130
#: What `--json` takes for "print it".
PRINTED = "-"

JsonOption = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write the result as JSON to FILE; '-' prints it, and nothing else."),
]

P = ParamSpec("P")


class Usage(Exception):
    """The command line is wrong in a way only the command itself can see; exit code 2."""


class Refused(Exception):
    """The command cannot be carried out on what is there; exit code 3."""


class Printer:
    """Prints lines as they are, without wrapping, so that what is piped loses nothing; styled on a terminal only."""

    def __init__(self, *, stderr: bool) -> None:
        self.stderr = stderr

    def print(self, text: object = "", *, color: str | None = None, dim: bool = False) -> None:
        """Print one line."""
        typer.secho(str(text), err=self.stderr, fg=color, dim=dim or None)


#: Answers go here: to standard output, unless that is kept for JSON.
out = Printer(stderr=False)
#: Notes, refusals and progress go here, so that answers can be piped.
err = Printer(stderr=True)


def command(function: Callable[P, int]) -> Callable[P, None]:
    """Turn a function that returns an exit code into a command whose errors are one sentence each."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        target = kwargs.get("json_file")
        json_file = target if isinstance(target, Path) else None
        out.stderr = str(json_file) == PRINTED
        try:
            code = _checked(function, json_file, args, kwargs)
        finally:
            out.stderr = False
        raise typer.Exit(code)

    return run


def _checked(function: Callable[..., int], json_file: Path | None, args: Any, kwargs: Any) -> int:
    try:
        if json_file is not None:
            check_target(json_file, "--json")
        return function(*args, **kwargs)
    except KeyboardInterrupt:
        _fail("Stopped; what was committed before is kept.", INTERRUPTED, json_file)
    except BrokenPipeError:
        raise  # the reader of the pipe has seen enough; typer ends quietly
    except Exception as error:
        code = _code_of(error)
        if code is None:
            raise
        sentence = str(error)
        if isinstance(error, OSError):
            sentence = f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or error}"
        _fail(sentence if sentence.endswith((".", "?")) else f"{sentence}.", code, json_file)


def check_target(file: Path, option: str) -> None:
    """Find out before the work whether its result can be written to the file an option names."""
    if file.is_dir():
        raise Usage(f"{option} names a file to write, and '{file}' is a folder.")
    if str(file) != PRINTED:
        file.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(file.parent, os.W_OK):
            raise Refused(f"{option} cannot write to the folder '{file.parent}'.")


def _code_of(error: Exception) -> int | None:
    """The exit code an error stands for; None for one that is a mistake in the program."""
    from embeddings import (
        ArchiveError,
        DecoderUnavailable,
        EncoderError,
        ImageError,
        SourceError,
        UnknownColumn,
        UnknownEncoder,
    )

    if isinstance(error, Usage | UnknownColumn | UnknownEncoder):
        return WRONG_USAGE
    refusals = Refused | ArchiveError | DecoderUnavailable | EncoderError | ImageError | SourceError | OSError
    if isinstance(error, refusals):
        return REFUSED
    if isinstance(error, ImportError):  # a missing extra, such as FAISS; the sentence names the install command
        return REFUSED
    from episodes import EpisodeError, FilterError, ManifestError
    from episodes import UnknownColumn as UnknownManifestColumn
    from fewshot import TrainingError
    from zeroshot import ZeroShotError

    if isinstance(error, FilterError | UnknownManifestColumn):
        return WRONG_USAGE
    return REFUSED if isinstance(error, EpisodeError | ManifestError | TrainingError | ZeroShotError) else None


def _fail(sentence: str, code: int, json_file: Path | None) -> NoReturn:
    err.print(f"radshot: {sentence}", color=typer.colors.RED)
    if json_file is not None:
        with suppress(OSError):  # the sentence above says enough
            write_json(json_file, {"error": sentence, "exit_code": code})
    raise typer.Exit(code)


def note(text: str) -> None:
    """Say something beside the answer, on standard error."""
    err.print(text, dim=True)


def one_line(text: object) -> str:
    r"""Text for one cell of one line: line breaks, terminal controls and unprintable bytes appear as `\n`, `\x1b`."""
    plain = str(text)
    if plain.isprintable():
        return plain
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in plain)


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]], *, numbers: Sequence[str] = ()) -> None:
    """Print aligned columns, one line per row, nothing cut off; a column that may be long stands best at the end.

    Args:
        header: The columns' names.
        rows: As many cells each.
        numbers: The columns that are flush right.
    """
    cells = [[one_line(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    right = [name in numbers for name in header]
    for number, row in enumerate(cells):
        line = "  ".join(
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(row, widths, right, strict=True)
        )
        out.print(line.rstrip(), dim=number == 0)


def list_refused(refused: Sequence[tuple[str, str]]) -> None:
    """Name each refused input with its reason, on standard error."""
    for source, reason in refused:
        err.print(f"refused {one_line(source)}: {one_line(reason)}", color=typer.colors.YELLOW)


def refused_json(refused: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """Refused inputs as they stand in every command's JSON."""
    return [{"image": source, "reason": reason} for source, reason in refused]


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
    if str(path) == PRINTED:
        sys.stdout.write(text)
        return
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Write a file in one step: another process sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    # Made as any new file is, so that whoever the umask lets read it can. In JSON, what UTF-8 cannot hold (bytes of a
    # file's name) turns into a valid escape.
    with temporary.open("x", encoding="utf-8", errors="backslashreplace") as file:
        try:
            file.write(text)
            file.flush()
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
