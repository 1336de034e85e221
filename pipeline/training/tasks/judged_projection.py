"""The judged projection: short vectors with which training queries find the documents that were judged best for them.

It is learned from vectors at full width, which the base gives once for each query and document, so thousands of queries
cost seconds; no layer of the base is trained. Two losses: contrast of a query's best document with the others of the
step, and the base's similarities between all texts of the step, which keep what no query asked for.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline import schema, text
from pipeline.artifacts import Artifact
from pipeline.config import EncoderConfig, LoopConfig
from pipeline.errors import TrainingError
from pipeline.models.bi_encoder import BiEncoder
from pipeline.text import counted
from pipeline.training.loop import pair_tokens, shards
from pipeline.training.loop.batches import Ints
from pipeline.training.loop.loop import Step, train
from pipeline.training.losses import distillation, ranking
from pipeline.training.tasks.bi_encoder import prefix
from pipeline.training.tasks.projection import HELD_OUT, NEAREST, neighbours_kept

if TYPE_CHECKING:
    import pandas as pd

BATCH = 256
"""Pairs of a step; as many further documents are contrasted with all of them."""
STEPS = 1500
"""Steps of a training, whatever the number of pairs is."""
LOOP = LoopConfig(learning_rate=2e-3, evaluations=0, precision="fp32", weight_decay=0.0)
"""The loop of a training, but for its seed and its epochs."""


@dataclass(frozen=True, slots=True)
class BestPairs:
    """Training queries and the documents that were judged best for them."""

    queries: list[str]
    documents: list[str]
    """Title and text of each document, the judged ones first."""
    pairs: Ints
    """(pairs, 2) rows in `queries` and `documents`."""
    known: Ints
    """Sorted keys `query · documents + document` of all judged pairs, whatever their grade."""


def fit(model: BiEncoder, data: Artifact, config: EncoderConfig, checkpoint: Path) -> dict[str, float]:
    """Sets the model's projection; its body stays as it is.

    Args:
        model: the encoder, in eval mode.
        data: its documents and the judgments of its training queries are read.
        config: the section, of which these are read: `in_batch_weight` and `temperature` of the contrast,
            `similarity_temperature`, widths and seed.
        checkpoint: folder that keeps finished vectors and the state of the learning; a killed run goes on from there.

    Returns:
        The share of the ten documents nearest to a held-out query at full width that the short vectors find too:
        `neighbours_kept before`, by the principal directions, and `neighbours_kept`.

    Raises:
        TrainingError: fewer than ten documents or judged pairs, or one training query alone.
    """
    best = best_pairs(data, config.loop.seed, config.projection_documents)
    if min(len(best.documents), len(best.pairs)) < NEAREST or len(best.queries) < 2:
        raise TrainingError(
            f"{data.path}: {counted(len(best.pairs), 'judged pair')} of {counted(len(best.queries), 'training query')} "
            f"and {counted(len(best.documents), 'document')}; encoder.projection judgments needs {NEAREST} or more "
            "pairs and documents, of 2 queries or more; take similarities"
        )
    label = "projection"
    queries, documents = (
        torch.from_numpy(
            shards.pooled_vectors(
                checkpoint,
                f"judged-{name}",
                model,
                pair_tokens.tokenise(model.tokenizer, texts, template.max_tokens, f"tokenise {name}"),
                template,
                label=label,
            )
        )
        for name, texts, template in (
            ("queries", best.queries, model.query_template),
            ("documents", best.documents, model.document_template),
        )
    )
    task = JudgedProjectionTask(model.dense, queries, documents, best, config)
    model.fit_projection(F.normalize(torch.cat([task.documents, task.queries]), dim=1), about="origin")
    before = task.evaluate()
    loop = replace(LOOP, seed=config.loop.seed, epochs=STEPS / len(task.plan(0)))
    train(model.dense, task, loop, label=label, checkpoint=checkpoint / label)
    return {"neighbours_kept before": round(before, 4), "neighbours_kept": round(task.evaluate(), 4)}


def best_pairs(data: Artifact, seed: int, most: int) -> BestPairs:
    """The training queries of a data artifact with their best judged documents; others follow, up to `most`."""
    import pandas as pd

    judged = schema.read(data.file("judgments.parquet"), "judgments").to_pandas()
    judged = judged[(judged["split"] == "train") & ~_itself(judged, schema.own_documents(data.path))]
    table = schema.read(data.file("documents.parquet"), "documents")
    rows = pd.Series(np.arange(len(table)), index=table["doc_id"].to_pylist())
    judged = judged[judged["doc_id"].isin(rows.index)]
    top = judged[(judged["grade"] > 0) & (judged["grade"] == judged.groupby("query_id")["grade"].transform("max"))]
    top = top.drop_duplicates(["query_id", "doc_id"])  # By people and by clicks, or for two fields.
    draw = np.random.default_rng(seed)
    wanted = draw.permutation(np.unique(rows[top["doc_id"]].to_numpy(dtype=np.int64)))
    unjudged = draw.permutation(np.setdiff1d(np.arange(len(table)), wanted))
    chosen = np.concatenate([wanted, unjudged])[:most]
    row_of = pd.Series(np.arange(len(chosen)), index=table["doc_id"].take(chosen).to_pylist())
    judged, top = (frame[frame["doc_id"].isin(row_of.index)] for frame in (judged, top))
    query_ids = top["query_id"].drop_duplicates()
    number = pd.Series(np.arange(len(query_ids)), index=query_ids)
    judged = judged[judged["query_id"].isin(number.index)]
    words = schema.read(data.file("queries.parquet"), "queries").to_pandas().set_index("query_id")["text"]
    picked = table.take(chosen)
    titles, bodies = (picked[name].to_pylist() for name in ("title", "text"))
    pairs = np.stack([number[top["query_id"]].to_numpy(), row_of[top["doc_id"]].to_numpy()], axis=1).astype(np.int64)
    keys = number[judged["query_id"]].to_numpy() * len(chosen) + row_of[judged["doc_id"]].to_numpy()
    return BestPairs(
        queries=words[query_ids].tolist(),
        documents=[text.document_text(title, body) for title, body in zip(titles, bodies, strict=True)],
        pairs=draw.permutation(pairs),
        known=np.unique(keys.astype(np.int64)),
    )


def _itself(judged: "pd.DataFrame", own: frozenset[str]) -> "pd.Series[bool]":
    """Whether a row joins a query with the document that it is."""
    return judged["query_id"].isin(own) & (judged["query_id"] == judged["doc_id"])


def held_out(queries: Ints) -> NDArray[np.bool_]:
    """Whether each pair, (pairs,), is measured on and not learned from.

    These are all pairs of the queries that come first: of as many as have HELD_OUT pairs, or a fifth of all, and of one
    query at least.

    Args:
        queries: (pairs,) the query of each pair.
    """
    names, first, counts = np.unique(queries, return_index=True, return_counts=True)
    order = np.argsort(first)
    taken = counts[order].cumsum() <= min(HELD_OUT, len(queries) // 5)
    taken[:1] = True
    return np.isin(queries, names[order[taken]])


class JudgedProjectionTask:
    """Steps and loss for the loop; a chunk is rows of `pairs`, and further documents."""

    unit = "pairs"

    def __init__(
        self, dense: nn.Linear, queries: Tensor, documents: Tensor, best: BestPairs, config: EncoderConfig
    ) -> None:
        """
        Args:
            dense: the projection that learns.
            queries: (queries, hidden) pooled vectors of the base.
            documents: (documents, hidden), likewise.
            best: the pairs of the two.
            config: weights, temperatures, widths and seed.
        """
        device = dense.weight.device
        self.dense, self.config = dense, config
        self.queries, self.documents = queries.to(device), documents.to(device)
        is_held_out = held_out(best.pairs[:, 0])
        self.pairs, self.held_out = best.pairs[~is_held_out], best.pairs[is_held_out]
        self.known = best.known

    def plan(self, epoch: int) -> list[Step[tuple[Ints, Ints]]]:
        draw = np.random.default_rng([self.config.loop.seed, epoch])
        parts = np.array_split(draw.permutation(len(self.pairs)), math.ceil(len(self.pairs) / BATCH))
        random_rows = [draw.integers(len(self.documents), size=BATCH) for _ in parts]
        return [
            Step([(part, other)], examples=len(part), tokens=len(part), padded=len(part))
            for part, other in zip(parts, random_rows, strict=True)
        ]

    def loss(self, chunk: tuple[Ints, Ints]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Contrast and similarities of these pairs and documents, mean over the widths."""
        part, random_rows = chunk
        query, document = self.pairs[part].T
        columns = np.concatenate([document, random_rows])
        wide = torch.cat([self.queries[query], self.documents[columns]])  # (queries + documents, hidden)
        short, target = F.normalize(self.dense(wide), dim=1), F.normalize(wide, dim=1)
        allowed = torch.from_numpy(~self.judged(query, columns)).to(wide.device)
        positive = torch.eye(*allowed.shape, dtype=torch.bool, device=wide.device)
        contrasts, similarities = [], []
        for width in self.config.all_widths:
            vectors = prefix(short, width)
            cosines = vectors[: len(part)] @ vectors[len(part) :].T
            contrasts.append(ranking.contrast_loss(cosines, positive, allowed, self.config.temperature))
            similarities.append(distillation.similarity_loss(vectors, target, self.config.similarity_temperature))
        contrast, similarity = torch.stack(contrasts).mean(), torch.stack(similarities).mean()
        return self.config.in_batch_weight * contrast + similarity, {"contrast": contrast, "similarity": similarity}

    def judged(self, queries: Ints, documents: Ints) -> NDArray[np.bool_]:
        """Whether each pair of these queries and documents was judged, (queries, documents); either may repeat."""
        keys = queries * len(self.documents)
        begin, end = (np.searchsorted(self.known, bound) for bound in (keys, keys + len(self.documents)))
        counts = end - begin
        row = np.repeat(np.arange(len(queries)), counts)
        place_in_row = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        document = self.known[begin[row] + place_in_row] - keys[row]
        judged = np.zeros((len(queries), len(documents)), dtype=np.bool_)
        pair, column = np.nonzero(document[:, None] == documents)
        judged[row[pair], column] = True
        return judged

    @torch.no_grad()
    def evaluate(self) -> float:
        """Share of the ten nearest of all documents that held-out queries keep."""
        return neighbours_kept(self.dense, self.queries[np.unique(self.held_out[:, 0])], self.documents)
