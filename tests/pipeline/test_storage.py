"""Copies of shared storage on this machine: nobody else reads them, and they go with the process that made them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_layers import ROOT

SCRIPT = """
import sys, time
from pipeline import storage
print(storage.fetched(sys.argv[1]), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["end", signal.SIGTERM, signal.SIGKILL])
def test_a_copy_goes_with_its_process_or_with_the_next_fetch(tmp_path: Path, how: str | signal.Signals) -> None:
    source, temporary = tmp_path / "documents", tmp_path / "temporary"
    source.mkdir()
    temporary.mkdir()
    (source / "part.parquet").write_bytes(b"rows")
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT, f"file://{source}"]

    def start() -> tuple[subprocess.Popen[str], Path]:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    with start()[0] as process:
        (copy,) = temporary.iterdir()
        assert copy.stat().st_mode & 0o077 == 0
        assert (copy / "documents" / "part.parquet").read_bytes() == b"rows"
        if isinstance(how, signal.Signals):
            process.send_signal(how)
    process, path = start()
    with process:
        assert [folder.resolve() for folder in temporary.iterdir()] == [path.parents[0].resolve()]
    assert list(temporary.iterdir()) == []
