"""Fifty SIGTERMs under load: every request whose connection was accepted has its answer."""

import random
from collections import Counter
from pathlib import Path

import pytest

from tests.serving.conftest import TinyWorkspace
from tests.serving.process.shutdown import stop_under_load

ROUNDS = 50


@pytest.mark.benchmark
def test_fifty_sigterms_lose_no_request(tmp_path: Path) -> None:
    workspace = TinyWorkspace(tmp_path)
    workspace.releases.promote(workspace.publish(1), reason="test")
    draw = random.Random(28)
    statuses: Counter[int] = Counter()
    lost: list[str] = []
    for turn in range(ROUNDS):
        load, code = stop_under_load(tmp_path, workers=1 + turn % 2, pause_s=draw.uniform(0.0, 0.5))
        statuses += load.statuses
        lost += [f"round {turn}: {words}" for words in load.lost]
        assert code == 0
        print(f"round {turn + 1}: {load.statuses.total()} answered, {load.refused} refused, {len(load.lost)} lost")
    print(f"{statuses.total():,} requests answered over {ROUNDS} SIGTERMs, {len(lost)} lost")
    assert set(statuses) == {200}
    assert lost == []
