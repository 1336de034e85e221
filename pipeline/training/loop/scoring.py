"""Scores of many pairs from a cross-encoder, vectors of many texts from a bi-encoder: batches of like length.

This is for training, which needs them from the model in hand; what is served or indexed comes from the exported
bundle.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.evaluation import metrics
from pipeline.models.bi_encoder import BiEncoder
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.progress import bar
from pipeline.tokens import TextTemplate
from pipeline.training.loop import batches, memory
from pipeline.training.loop.batches import Ints, Pairs, Ragged
from pipeline.training.loop.loop import autocast

Floats = NDArray[np.float32]

CPU_TOKENS = 2048
CUDA_TOKENS = 65_536
"""Padded tokens of one batch. On a CPU more gain nothing and leave the cache."""

SMALLER = (
    "lower max_tokens of the teacher or the encoder, take a smaller base, or end what else fills the memory, and start "
    "again"
)
"""What helps where scoring runs out of memory: its batches are of one size."""

MEASURE = "ndcg@10"
"""Of the valid split: chooses the best state, stands in the metrics. Linear gain."""


def device() -> torch.device:
    """Where models are trained and run here: the first GPU, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _batch_tokens(where: torch.device) -> int:
    return CUDA_TOKENS if where.type == "cuda" else CPU_TOKENS


@torch.no_grad()
def cross_scores(
    model: CrossEncoder,
    pairs: Pairs,
    places: Ints,
    *,
    precision: str = "auto",
    label: str = "score",
    layers: Sequence[int] = (),
    keep_states: Callable[[Ints, torch.Tensor], None] | None = None,
) -> Floats:
    """(places,) raw scores of these pairs, in their order.

    Args:
        model: in eval mode.
        layers: also compute first-token states after these, from 1.
        keep_states: is given where in `places` a batch's pairs are, (batch,), and their states,
            (batch, layers, hidden) float32.
    """
    where = next(model.parameters()).device
    lengths = batches.pair_lengths(pairs, model.template)[places]
    scores = np.zeros(len(places), dtype=np.float32)
    with memory.shortage_named(f"{label.strip()}:", SMALLER), bar(label, len(places), "pairs") as advance:
        for chosen in batches.scoring_batches(lengths, _batch_tokens(where)):
            inputs = batches.rectangle(batches.pair_inputs(pairs, places[chosen], model.template), where)
            with autocast(precision, where):
                reading = model.read(*inputs.all, first=layers)
            scores[chosen] = reading.scores.cpu().numpy()
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
    """Vectors of these texts, in their order: (numbers, dimensions), or (numbers, hidden) before the projection."""
    where = next(model.parameters()).device
    inputs = batches.text_inputs(texts, numbers, template)
    lengths = np.array([len(ids) for ids, _ in inputs], dtype=np.int64)
    width = model.dense.in_features if pooled else model.dense.out_features
    found = np.zeros((len(numbers), width), dtype=np.float32)
    with memory.shortage_named(f"{label.strip()}:", SMALLER), bar(label, len(numbers), "texts") as advance:
        for chosen in batches.scoring_batches(lengths, _batch_tokens(where)):
            part = batches.rectangle([inputs[place] for place in chosen], where)
            with autocast(precision, where):
                encode = model.pooled if pooled else model
                found[chosen] = encode(part.input_ids, part.attention_mask).float().cpu().numpy()
            advance(len(chosen))
    return found


def cosines(model: BiEncoder, pairs: Pairs, places: Ints, *, precision: str = "auto", label: str = "encode") -> Floats:
    """(places,) cosine of query and document of these pairs; each text is encoded once."""
    queries, query = np.unique(pairs.query[places], return_inverse=True)
    documents, document = np.unique(pairs.document[places], return_inverse=True)
    of_queries = vectors(model, pairs.queries, queries, model.query_template, precision=precision, label=label)
    of_documents = vectors(model, pairs.documents, documents, model.document_template, precision=precision, label=label)
    found: Floats = (of_queries[query] * of_documents[document]).sum(1)
    return found


def ndcg(pairs: Pairs, places: Ints, scores: Floats) -> float:
    """Mean nDCG@10 of the queries of these pairs, ranked by these scores."""
    return float(metrics.by_query(pairs.query[places], pairs.grades[places], scores, (MEASURE,))[MEASURE].mean())


def valid_places(pairs: Pairs, most: int, seed: int) -> Ints:
    """The valid split, or whole queries of it, drawn by the seed, until there are `most` pairs; 0 for no limit."""
    places = pairs.places("valid")
    if not most or len(places) <= most:
        return places
    queries = np.unique(pairs.query[places])
    np.random.default_rng(seed).shuffle(queries)
    counts = np.bincount(pairs.query[places])[queries]
    kept = queries[: max(1, int(np.searchsorted(np.cumsum(counts), most, side="right")))]
    return places[np.isin(pairs.query[places], kept)]
