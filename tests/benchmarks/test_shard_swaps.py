"""Two hundred swaps of a divided release under queries: no failed request, every answer that of one version.

    pytest -m benchmark tests/benchmarks/test_shard_swaps.py -s

Two shards and the service that asks them are processes over workspaces of their own, whose pointers move in random
order with random pauses; three clients search without a pause. The versions differ in documents and weights.
"""

from pathlib import Path

import pytest

from tests.serving.shard_swaps import Machines

pytestmark = pytest.mark.benchmark

SWAPS = 200


def test_two_hundred_swaps_of_a_divided_release(tmp_path: Path) -> None:
    machines = Machines.start(tmp_path, 3)
    counts, seconds = machines.swap_under_load(SWAPS, seed=4)
    assert machines.stop() == [0] * len(machines.servers)
    print(
        f"\n{SWAPS} swaps, {counts.complete.total():,} complete answers, {counts.partial.total():,} marked partial "
        f"{dict(counts.partial)}, {len(counts.faults)} failed or wrong; {1000 * seconds:.0f} ms from the move of the "
        "last pointer to the new release, the median"
    )
    assert counts.faults == []
    assert set(counts.complete) == {version.releases[-1] for version in machines.versions}
