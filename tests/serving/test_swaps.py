"""Releases swapped under load, in another process and over HTTP; tests/benchmarks/test_swaps.py does it more often."""

from typing import Any

from tests.serving import swaps
from tests.serving.processes import start


def test_no_request_is_lost_and_every_score_is_of_the_release_it_names(fresh: Any) -> None:
    releases = swaps.releases_of(fresh, 3)
    server = start(fresh.path, RELEVANCE_POLL_S="0.02")
    load, _ = swaps.swap_under_load(server, fresh, releases, 10)
    assert server.stop() == 0
    assert load.faults == []
    assert set(load.answers) == set(releases)
