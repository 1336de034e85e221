"""Scores of many pairs from a cross-encoder and vectors of many texts from a bi-encoder, in batches of like length.

Training uses this on the PyTorch model; served scores and indexed vectors come from the exported bundle. A score or
vector that is not a number is an error here, so none reaches a measure or a file.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import TrainingError
from pipeline.evaluation import metrics
from pipeline.models.bi_encoder import BiEncoder
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.progress import bar
from pipeline.tokens import TextTemplate
from pipeline.training.loop import batches, memory, pair_tokens
from pipeline.training.loop.batches import Ints
from pipeline.training.loop.loop import autocast
from pipeline.training.loop.pair_tokens import Pairs, Ragged

Floats = NDArray[np.float32]

CPU_TOKENS = 2048
CUDA_TOKENS = 65_536
"""Padded tokens of one batch. On a CPU more gain nothing and leave the cache."""

SMALLER = (
    "lower max_tokens of the teacher or the encoder, take a smaller base, or end what else fills the memory, and start "
    "again"
)
"""Advice where scoring runs out of memory: the size of its batches is fixed."""

MEASURE = "ndcg@10"
"""The measure of the valid split that chooses the best state and stands in the metrics; its gain is linear."""


def device() -> torch.device:
    """The device on which models are trained and run here: the first GPU, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _batch_tokens(where: torch.device) -> int:
    return CUDA_TOKENS if where.type == "cuda" else CPU_TOKENS


def shards(lengths: Ints, size: int) -> list[Ints]:
    """The batches of `cross_scores` over all pairs, joined to parts of at least `size` pairs (the last may have fewer).

    Scored alone, a part goes through the model in these same batches, so its scores are the same to the last bit.

    Args:
        lengths: (pairs,) tokens of each pair.
        size: pairs of a part.

    Returns:
        The indices of each part's pairs.
    """
    parts: list[Ints] = []
    held: list[Ints] = []
    for batch in batches.scoring_batches(lengths, _batch_tokens(device())):
        held.append(batch)
        if sum(map(len, held)) >= size:
            parts.append(np.concatenate(held))
            held = []
    return [*parts, *([np.concatenate(held)] if held else [])]


@torch.no_grad()
def cross_scores(
    model: CrossEncoder,
    pairs: Pairs,
    indices: Ints,
    *,
    precision: str = "auto",
    label: str = "score",
    layers: Sequence[int] = (),
    keep_states: Callable[[Ints, torch.Tensor], None] | None = None,
) -> Floats:
    """Raw scores of these pairs.

    Args:
        model: the model, in eval mode.
        indices: (n,) which pairs.
        precision: precision of the matrix products: fp32, bf16, or auto for what suits the device.
        label: shown beside the progress bar.
        layers: layers, from 1, after which first-token states are computed too.
        keep_states: called for each batch with the positions of its pairs in `indices`, (batch,), and their states,
            (batch, layers, hidden) float32.

    Returns:
        (n,) float32, in the order of `indices`.

    Raises:
        TrainingError: a score is not a finite number, or memory runs out.
    """
    where = next(model.parameters()).device
    lengths = pair_tokens.pair_lengths(pairs, model.template)[indices]
    scores = np.zeros(len(indices), dtype=np.float32)
    with memory.shortage_named(f"{label.strip()}:", SMALLER), bar(label, len(indices), "pairs") as advance:
        for chosen in batches.scoring_batches(lengths, _batch_tokens(where)):
            inputs = batches.pad(batches.pair_inputs(pairs, indices[chosen], model.template), where)
            with autocast(precision, where):
                reading = model.read(*inputs.all, first=layers)
            scores[chosen] = reading.scores.cpu().numpy()
            _check_finite(scores[chosen], label)
            if keep_states is not None:
                keep_states(chosen, reading.first)
            advance(len(chosen))
    return scores


@torch.no_grad()
def vectors(
    model: BiEncoder,
    texts: Ragged,
    numbers: Ints,
    template: TextTemplate,
    *,
    precision: str = "auto",
    label: str = "encode",
    pooled: bool = False,
) -> Floats:
    """Vectors of these texts, in the order of `numbers`.

    Args:
        model: the model, in eval mode.
        texts: tokens of all texts.
        numbers: (n,) which of the texts.
        template: special tokens and maximum length.
        precision: precision of the matrix products: fp32, bf16, or auto for what suits the device.
        label: shown beside the progress bar.
        pooled: gives the vectors before the projection.

    Returns:
        (n, dimensions) float32 of unit length, or (n, inputs of the projection) with `pooled`.

    Raises:
        TrainingError: a vector is not finite, or memory runs out.
    """
    where = next(model.parameters()).device
    inputs = batches.text_inputs(texts, numbers, template)
    lengths = np.array([len(ids) for ids, _ in inputs], dtype=np.int64)
    width = model.dense.in_features if pooled else model.dense.out_features
    result = np.zeros((len(numbers), width), dtype=np.float32)
    with memory.shortage_named(f"{label.strip()}:", SMALLER), bar(label, len(numbers), "texts") as advance:
        for chosen in batches.scoring_batches(lengths, _batch_tokens(where)):
            part = batches.pad([inputs[index] for index in chosen], where)
            with autocast(precision, where):
                encode = model.pooled if pooled else model
                result[chosen] = encode(part.input_ids, part.attention_mask).float().cpu().numpy()
            _check_finite(result[chosen], label)
            advance(len(chosen))
    return result


def _check_finite(values: Floats, label: str) -> None:
    """Raises TrainingError unless all values are finite: NaN sorts anywhere, so a measure would hide it."""
    if not np.isfinite(values).all():
        raise TrainingError(
            f"{label.strip()}: the model gives values that are not numbers: "
            "lower loop.learning_rate, set loop.precision to fp32, or take another base model"
        )


def cosines(model: BiEncoder, pairs: Pairs, indices: Ints, *, precision: str = "auto", label: str = "encode") -> Floats:
    """(indices,) cosine of query and document of these pairs; each text is encoded once."""
    queries, query = np.unique(pairs.query[indices], return_inverse=True)
    documents, document = np.unique(pairs.document[indices], return_inverse=True)
    of_queries = vectors(model, pairs.queries, queries, model.query_template, precision=precision, label=label)
    of_documents = vectors(model, pairs.documents, documents, model.document_template, precision=precision, label=label)
    similarities: Floats = (of_queries[query] * of_documents[document]).sum(1)
    return similarities


def ndcg(pairs: Pairs, indices: Ints, scores: Floats) -> float:
    """Mean nDCG@10 of the queries of these pairs, ranked by these scores."""
    return float(metrics.by_query(pairs.query[indices], pairs.grades[indices], scores, (MEASURE,))[MEASURE].mean())


def valid_indices(pairs: Pairs, most: int, seed: int) -> Ints:
    """Indices of the valid split's pairs, or of whole queries drawn by the seed with at most about `most` pairs.

    Args:
        pairs: all pairs.
        most: 0 for no limit.
        seed: seed of the draw.
    """
    indices = pairs.indices("valid")
    if not most or len(indices) <= most:
        return indices
    queries = np.unique(pairs.query[indices])
    np.random.default_rng(seed).shuffle(queries)
    counts = np.bincount(pairs.query[indices])[queries]
    kept = queries[: max(1, int(np.searchsorted(np.cumsum(counts), most, side="right")))]
    return indices[np.isin(pairs.query[indices], kept)]
