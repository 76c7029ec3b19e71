"""The command line. Every command can write its result as JSON, and none ever prompts."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from typing import Annotated

import typer

from .archives import backup_command, forget_command, search_command, stats_command, verify_command
from .classifying import classify_command
from .demonstration import demo_command
from .deploying import deploy_command, deployments_command
from .embedding import embed_command
from .estimating import estimate_command
from .evaluation import evaluate_command
from .exporting import export_command
from .quarantine import quarantine_command
from .sets import register_command
from .training import train_command
from .zeroshot import zeroshot_app

HELP = """Few-shot recognition for radiology: train an encoder, register a few
labelled images, ask about the next one.

\b
  radshot demo --out demo               see the whole path on synthetic images
  radshot train train.csv --out enc     learn an encoder from a source domain
  radshot register cases --encoder enc --label cyst a.dcm b.dcm c.dcm
  radshot classify cases new.dcm        ask, and see which images spoke for it
  radshot deploy cases                  choose its head and calibrate it, for
                                        probabilities and "none of these"
  radshot estimate cases                say how often it will be right
  radshot embed scans --encoder enc --archive archive
  radshot search archive new.dcm        find what looks like it
  radshot zeroshot fit reports.csv --text report --encoder enc --out words
                                        learn what words look like

Answers go to standard output, notes and refused inputs to standard error.
--json FILE, which every command takes, writes the answer for a program.

\b
Exit codes
  0    done
  1    done, but some inputs were refused; each is named with a reason
  2    wrong usage
  3    refused; nothing changed
  130  stopped by Ctrl-C; what was committed before is kept

Research use, not a medical device.
"""

# Plain help, which pipes and greps well; and no local variables, which may name patients, in a crash's traceback.
app = typer.Typer(
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)
app.command("demo", short_help="Show the whole path on synthetic radiographs.")(demo_command)
for name, function in (
    ("train", train_command),
    ("evaluate", evaluate_command),
    ("embed", embed_command),
    ("search", search_command),
    ("register", register_command),
    ("classify", classify_command),
    ("deploy", deploy_command),
    ("deployments", deployments_command),
    ("estimate", estimate_command),
    ("forget", forget_command),
    ("verify", verify_command),
    ("stats", stats_command),
    ("backup", backup_command),
    ("quarantine", quarantine_command),
    ("export", export_command),
):
    app.command(name)(function)


app.add_typer(zeroshot_app, name="zeroshot", short_help="Recognise classes from words alone, and with shots.")


def _show_version(asked: bool) -> None:
    if asked:
        from . import __version__

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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may hold bytes that are no text
    app(prog_name="radshot")


if __name__ == "__main__":
    main()
