"""The command line. Everything heavy is imported inside the commands, so that `--help` is instant."""

from __future__ import annotations

import logging
import signal
import sys
from typing import Annotated, Any, NoReturn

import typer

from xft import __version__
from xft.cli import curating, making, scoring, synthesis
from xft.errors import XftError

app = typer.Typer(
    help="Dense code LLM in, better dense code LLM out: upcycle, tune, merge, score.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
making.register(app)
curating.register(app)
scoring.register(app)
synthesis.register(app)

USAGE_ERROR: Any = typer.BadParameter.__mro__[1]
"""Click's UsageError, out of typer, since newer versions of it carry a click of their own."""


def main() -> NoReturn:
    """Run a command; a user's mistake is one line and exit code 2, an interruption 130."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = app(_join_subcommand(sys.argv[1:]), standalone_mode=False)
    except USAGE_ERROR as mistake:
        if message := " ".join(mistake.format_message().split()).rstrip("."):  # empty where the help was printed
            print(f"error: {message}; see --help", file=sys.stderr)
        code = 2
    except XftError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except OSError as error:  # of the disk or the network: it is full, a folder may not be written
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror or error}; mend that, and the same command goes on", file=sys.stderr)
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    if code == 130:  # newer versions of typer return it for an interruption
        print("interrupted; the same command goes on from here", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _join_subcommand(arguments: list[str]) -> list[str]:
    """Read `eval score` and the like as one name each, so that `eval MODEL` stays a command of its own."""
    second = {"eval": scoring.SUBCOMMANDS, "curate": curating.SUBCOMMANDS}.get("".join(arguments[:1]), ())
    if "".join(arguments[1:2]) in second:
        return [" ".join(arguments[:2]), *arguments[2:]]
    return arguments


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


def _version(asked: bool) -> None:
    if asked:
        print(f"xft {__version__}")
        raise typer.Exit


@app.callback()
def _main(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False) -> None:
    pass
