"""The command `relevance`. Parses, calls one function, prints; exit codes are those of `pipeline.errors`.

Nothing heavy is imported before a command needs it, so that `--help` answers at once.
"""

import gc
import os
import sys
from typing import Annotated

import typer

from flows.cli import data, index, json_output, judging, recipe, releases, serving, surroundings, torchrun, training
from flows.logs import write_log
from pipeline.errors import RelevanceError
from pipeline.secrets import hide_passwords, print_traceback

app = typer.Typer(
    help="Trains, distils, indexes, judges and serves relevance models for search.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for commands in (training, judging, serving):
    app.add_typer(commands.app)
app.add_typer(releases.app, name="releases")
app.add_typer(index.app, name="index")
app.add_typer(recipe.app, name="recipe")
app.add_typer(data.app, name="data")


INTERRUPTED = 130
"""The exit code after Ctrl-C or SIGINT, which Typer turns into it."""
SPINS = "1000"
"""Turns of the loop in which an idle thread of GNU OpenMP waits for work before it sleeps. In the default of 300,000 it
keeps a core from the thread that it waits for, where other processes compute: that took half of the speed and more, see
tests/benchmarks/waiting_threads.py."""


def main() -> None:
    """Runs the command and turns an error of this package into one message and its exit code.

    The message goes to standard error; where JSON was asked for, an object with both goes to standard output too.
    """
    surroundings.open_streams()
    write_log()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    try:
        surroundings.check(sys.argv)
        with torchrun.watched():
            app()
    except Exception as error:  # A hook of Typer's takes the place of ours and would show passwords.
        message, code = _tell(error)
        json_output.print_failure(message, code, sys.argv)
        raise SystemExit(code) from None
    except (SystemExit, KeyboardInterrupt) as end:
        if isinstance(end, SystemExit) and end.code != INTERRUPTED:
            _repeat_usage_error(end)
            raise
        message = "stopped; start the same command again to go on"
        print(f"relevance: {message}", file=sys.stderr)
        json_output.print_failure(message, INTERRUPTED, sys.argv)
        raise SystemExit(INTERRUPTED) from None
    finally:
        surroundings.remove_unused_workspaces()


def _repeat_usage_error(end: SystemExit) -> None:
    """Prints the message of a wrong option or argument as JSON too; Typer has printed it for a person and ends."""
    format_message = getattr(end.__context__, "format_message", None)
    if format_message is not None and isinstance(end.code, int):
        json_output.print_failure(format_message(), end.code, sys.argv)


def _tell(error: Exception) -> tuple[str, int]:
    """Prints an error for a person, one of this package or of its surroundings in one line.

    Returns:
        The message, and the exit code.
    """
    from pipeline import machine_memory

    try:
        with machine_memory.shortage_told():
            raise error
    except RelevanceError as known:
        message, code = str(known), known.exit_code
    except OSError as failure:
        message, code = f"{hide_passwords(str(failure))}; look at the path, its permissions and the free space", 1
    except Exception as unknown:
        print_traceback(unknown)
        return hide_passwords(f"{type(unknown).__name__}: {unknown}"), 1
    print(f"relevance: {message}", file=sys.stderr)
    return message, code


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"relevance {version('search-relevance')}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    _wanted: Annotated[  # Its callback prints and ends.
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Trains, distils, indexes, judges and serves relevance models for search."""
    torchrun.require_training(context.invoked_subcommand)
    if not gc.isenabled():  # See `flows.cli.main`; what was imported so far lives as long as the process.
        gc.freeze()
        gc.enable()
