"""The command line. Every command can write its result as JSON, and none ever prompts."""

from __future__ import annotations

from typing import Annotated

import typer

from . import __version__
from .archives import backup_command, embed_command, forget_command, search_command, stats_command, verify_command
from .demonstration import demo_command
from .learning import evaluate_command, train_command
from .sets import classify_command, register_command

HELP = """Few-shot recognition for radiology: train an encoder, register a few labelled images, ask about the next one.

Exit codes: 0 done; 1 done, but some inputs were refused (each is named with a reason); 2 wrong usage; 3 refused,
nothing changed. Research use, not a medical device.
"""

app = typer.Typer(help=HELP, no_args_is_help=True, add_completion=False, rich_markup_mode="markdown")
for name, function in (
    ("demo", demo_command),
    ("train", train_command),
    ("evaluate", evaluate_command),
    ("embed", embed_command),
    ("search", search_command),
    ("register", register_command),
    ("classify", classify_command),
    ("forget", forget_command),
    ("verify", verify_command),
    ("stats", stats_command),
    ("backup", backup_command),
):
    app.command(name)(function)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"radshot {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Hold the options that belong to no command."""


def main() -> None:
    """Run the command line."""
    app(prog_name="radshot")


if __name__ == "__main__":
    main()
