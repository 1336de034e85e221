"""Two hundred releases swapped under load: no failed request, every score that of the release which its answer names.

    pytest -m benchmark tests/benchmarks/test_swaps.py -s

The service is a process of its own, asked by four clients without a pause; the releases are tiny and differ in their
weights.
"""

from pathlib import Path

import pytest

from tests.serving import swaps
from tests.serving.conftest import TinyWorkspace
from tests.serving.processes import start

pytestmark = pytest.mark.benchmark

SWAPS = 200


def test_two_hundred_swaps(tmp_path: Path) -> None:
    workspace = TinyWorkspace(tmp_path / "workspace")
    releases = swaps.releases_of(workspace, 3)
    server = start(workspace.path, RELEVANCE_POLL_S="0.02")
    load, seconds = swaps.swap_under_load(server, workspace, releases, SWAPS)
    assert server.stop() == 0
    print(
        f"\n{SWAPS} swaps, {load.answers.total():,} requests, {len(load.faults)} failed or wrong; "
        f"{1000 * seconds:.0f} ms from the pointer's move to the new release, the median"
    )
    assert load.faults == []
    assert set(load.answers) == set(releases)
