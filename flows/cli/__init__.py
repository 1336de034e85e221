"""The command line: one file for each group of commands; `command` joins them."""

import gc


def main() -> None:
    """Runs the command `relevance`, see `flows.cli.command`.

    Nothing looks for garbage until a command begins, because importing leaves hardly any. If none begins, as with
    `--help`, nothing looks for it at the end either. Both together are a sixth of the time that `--help` takes.
    """
    gc.disable()
    from flows.cli import command

    try:
        command.main()
    finally:
        if not gc.isenabled():
            gc.freeze()
