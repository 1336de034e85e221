"""Runs the command `relevance` in a fork of a server that has imported everything, see `tests.forked`.

For answers, messages and exit codes. What depends on a new interpreter, such as the variables that Python or a library
reads as it starts, needs a process of its own.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from tests import forked


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The end of the command with these arguments, in this environment and in `cwd` or else the current folder."""
    words = ["relevance", *map(str, arguments)]
    with TemporaryDirectory() as folder:
        log, *outputs = (Path(folder) / name for name in ("log", "stdout", "stderr"))
        ended = forked.run(_command, words, str(cwd or Path.cwd()), dict(os.environ), outputs, log=log)
        stdout, stderr = (path.read_text(encoding="utf-8") for path in outputs)
    code = ended.exit_code if ended.returned is None else ended.returned
    return subprocess.CompletedProcess(words, code, stdout, ended.output + stderr)


def _command(words: list[str], cwd: str, environment: Mapping[str, str], outputs: list[Path]) -> int:
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = words
    from flows.cli import main

    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0
