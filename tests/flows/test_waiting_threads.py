"""Threads of OpenMP soon sleep where a command runs, so that they take no core from the thread they wait for."""

import os
import subprocess
import sys

import pytest

PRINT = (
    "import os, sys; from flows.cli import command; sys.argv = ['relevance'];"
    "command.app = lambda: print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules); command.main()"
)


@pytest.mark.parametrize(
    ("variables", "count"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_the_count_is_set_before_torch_reads_it(variables: dict[str, str], count: str) -> None:
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    ended = subprocess.run(
        [sys.executable, "-c", PRINT], env=kept | variables, capture_output=True, text=True, check=True
    )
    assert ended.stdout.split() == [count, "False"]
