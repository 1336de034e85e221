"""Minutes and CPU-seconds of the transcripts in `flows/examples`, as they stand, from a file to a served answer.

pytest -m benchmark tests/benchmarks/test_transcripts.py -s [-k csv]
"""

import resource
import time
from pathlib import Path
from typing import Any

import pytest

from tests.flows.test_transcripts import WRITERS, follow, world

__all__ = ["world"]

pytestmark = [pytest.mark.benchmark, pytest.mark.demo_model]


def cpu_seconds() -> float:
    """Seconds that the processes which this one waited for have computed."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("name", WRITERS)
def test_minutes(name: str, world: Any, tmp_path: Path) -> None:
    began, computed = time.perf_counter(), cpu_seconds()
    answer = follow(name, world, tmp_path, ())
    print(
        f"\n{name}: {(time.perf_counter() - began) / 60:.1f} minutes, {cpu_seconds() - computed:.0f} CPU-seconds; "
        f"first result {answer['reranked'][0]['title']!r}"
    )
