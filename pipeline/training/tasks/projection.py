"""The learned projection: short vectors whose nearest neighbours are those of the base at full width.

It is learned from documents alone, whose full-width vectors are computed once; no layer of the base is trained. A short
excerpt of each document stands in for a query, so that short texts count as much as long ones.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from time import monotonic

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline import text
from pipeline.artifacts import Artifact
from pipeline.config import EncoderConfig, LoopConfig
from pipeline.errors import TrainingError
from pipeline.models.bi_encoder import BiEncoder
from pipeline.text import counted
from pipeline.training.loop import pair_tokens, scoring, shards
from pipeline.training.loop.batches import Ints
from pipeline.training.loop.loop import Step, train
from pipeline.training.loop.pair_tokens import Ragged
from pipeline.training.losses import distillation
from pipeline.training.tasks.bi_encoder import prefix

HELD_OUT = 400
"""Documents, at most a fifth of all, that are measured on and not learned from."""

EXCERPTS = 2
"""Excerpts of each document; a step sees one of them."""

SHORTEST = 4
"""Tokens of a excerpt; the longest has as many as a query may have."""

BATCH = 512
"""Documents of a step, each with a excerpt."""

STEPS = 1600
"""Steps of a training, whatever the number of texts is."""

TIME_SHARE = 0.4
"""Share of the encoder's `loop.max_seconds` that the projection may take."""

READING_SHARE = 0.6
"""Share of the projection's time for the vectors that it learns from; the rest is for the learning."""

TRIAL = 128
"""Documents whose vectors tell how many others can be read in the time."""

LOOP = LoopConfig(learning_rate=1e-3, evaluations=0, precision="fp32", weight_decay=0.0)
"""The loop of a training, but for its seed and its epochs."""

NEAREST = 10
"""Documents of a query by which the projection is judged."""


def fit(model: BiEncoder, data: Artifact, config: EncoderConfig, checkpoint: Path) -> dict[str, float]:
    """Sets the model's projection; its body stays as it is.

    It starts from the principal directions about the origin, which keep inner products best, and learns
    `distillation.similarity_loss` at all widths.

    Args:
        data: the artifact whose documents are read, at most `config.projection_documents`, drawn by the seed; fewer,
            and fewer steps, where `config.loop.max_seconds` bounds the time.
        checkpoint: folder that keeps finished vectors and the state of the learning; a killed run goes on from there.

    Returns:
        The share of the ten documents nearest to a held-out excerpt at full width that the whole short vectors find
        too: `neighbours_kept before`, by the principal directions, and `neighbours_kept`.

    Raises:
        TrainingError: fewer than ten documents with words.
    """
    seed, label = config.loop.seed, "projection"
    documents, excerpts = _texts(model, data, config)
    seconds = TIME_SHARE * config.loop.max_seconds
    if seconds:
        count = _affordable(model, documents, READING_SHARE * seconds, checkpoint)
        documents, excerpts = _first(documents, excerpts, count)
    wide, parts = (
        torch.from_numpy(shards.pooled_vectors(checkpoint, f"{label}-{name}", model, texts, template, label=label))
        for name, texts, template in (
            ("documents", documents, model.document_template),
            ("excerpts", excerpts, model.query_template),
        )
    )
    learned = len(documents) - min(HELD_OUT, len(documents) // 5)
    task = ProjectionTask(model.dense, wide, parts.view(EXCERPTS, len(documents), -1), config, learned)
    seen = torch.cat([task.documents[:learned], task.excerpts[0, :learned]])
    model.fit_projection(F.normalize(seen, dim=1), about="origin")
    before = task.evaluate()
    epochs = STEPS / len(task.plan(0))
    loop = replace(LOOP, seed=seed, epochs=epochs)
    if seconds:
        loop = replace(loop, max_tokens=round(epochs * learned), max_seconds=(1 - READING_SHARE) * seconds)
    train(model.dense, task, loop, label=label, checkpoint=checkpoint / label)
    return {"neighbours_kept before": round(before, 4), "neighbours_kept": round(task.evaluate(), 4)}


class ProjectionTask:
    """Steps and loss for the loop; a chunk is the indices of documents and which excerpt of each."""

    unit = "documents"

    def __init__(
        self, dense: nn.Linear, documents: Tensor, excerpts: Tensor, config: EncoderConfig, learned: int
    ) -> None:
        """
        Args:
            documents: (n, hidden) pooled vectors of the base.
            excerpts: (excerpts, n, hidden), several of each document.
            learned: number of documents, the first ones, that train; the rest is measured on.
        """
        self.dense = dense
        device = dense.weight.device
        self.documents, self.excerpts = documents.to(device), excerpts.to(device)
        self.config = config
        self.learned = learned

    def plan(self, epoch: int) -> list[Step[tuple[Ints, Ints]]]:
        draw = np.random.default_rng([self.config.loop.seed, epoch])
        order, which = draw.permutation(self.learned), draw.integers(len(self.excerpts), size=self.learned)
        parts = np.array_split(order, math.ceil(self.learned / BATCH))
        return [Step([(part, which[part])], examples=len(part), tokens=len(part), padded=len(part)) for part in parts]

    def loss(self, chunk: tuple[Ints, Ints]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """`similarity_loss` of these documents and their excerpts, mean over the widths."""
        chosen, which = (torch.from_numpy(part).to(self.documents.device) for part in chunk)
        wide = torch.cat([self.documents[chosen], self.excerpts[which, chosen]])
        short = F.normalize(self.dense(wide), dim=1)
        target = F.normalize(wide, dim=1)
        losses = [
            distillation.similarity_loss(prefix(short, width), target, self.config.similarity_temperature)
            for width in self.config.all_widths
        ]
        return torch.stack(losses).mean(), {}

    @torch.no_grad()
    def evaluate(self) -> float:
        """Share of the ten nearest of all documents that held-out excerpts keep."""
        return neighbours_kept(self.dense, self.excerpts[0, self.learned :], self.documents)


@torch.no_grad()
def neighbours_kept(dense: nn.Linear, queries: Tensor, documents: Tensor) -> float:
    """Share of each query's NEAREST documents by cosine that are still among them after the projection.

    Args:
        dense: the projection.
        queries: (queries, hidden) vectors before it.
        documents: (documents, hidden), likewise.
    """
    wide = F.normalize(queries, dim=1) @ F.normalize(documents, dim=1).T  # (queries, documents)
    short = F.normalize(dense(queries), dim=1) @ F.normalize(dense(documents), dim=1).T
    nearest = min(NEAREST, wide.shape[1])
    wanted = torch.zeros_like(wide).scatter_(1, wide.topk(nearest).indices, 1.0)
    return float(wanted.gather(1, short.topk(nearest).indices).mean())


def _affordable(model: BiEncoder, documents: Ragged, seconds: float, checkpoint: Path) -> int:
    """The number of documents whose vectors, and those of their excerpts, are computed in about `seconds`.

    The number is kept in `checkpoint`, as the vectors of a killed run fit no other.
    """

    def measure() -> shards.Arrays:
        trial = documents.taken(np.arange(min(TRIAL, len(documents))))
        began = monotonic()
        rows = np.arange(len(trial))
        scoring.vectors(model, trial, rows, model.document_template, label="projection", pooled=True)
        each = (monotonic() - began) / len(trial) * 2  # Excerpts together are about as long as their document.
        return {"documents": np.array([min(len(documents), max(TRIAL, int(seconds / each)))])}

    return int(shards.kept(checkpoint, "projection-size", measure)["documents"][0])


def _first(documents: Ragged, excerpts: Ragged, count: int) -> tuple[Ragged, Ragged]:
    """The first documents, and all excerpts of these."""
    first = np.arange(count)
    return documents.taken(first), excerpts.taken(
        np.concatenate([turn * len(documents) + first for turn in range(EXCERPTS)])
    )


def _texts(model: BiEncoder, data: Artifact, config: EncoderConfig) -> tuple[Ragged, Ragged]:
    """Tokens of the documents, in a random order, and EXCERPTS excerpts of each, round by round."""
    table = pq.read_table(data.file("documents.parquet"), columns=["title", "text"])
    most = config.max_query_tokens
    draw = np.random.default_rng(config.loop.seed)
    chosen = draw.permutation(len(table))[: config.projection_documents]
    titles, bodies = (table.column(name).take(chosen).to_pylist() for name in ("title", "text"))
    words = [text.document_text(title, body) for title, body in zip(titles, bodies, strict=True)]
    read = pair_tokens.tokenise(model.tokenizer, words, model.document_template.max_tokens, "tokenise documents")
    documents = [read[index] for index in np.flatnonzero(read.lengths).tolist()]
    if len(documents) < NEAREST:
        raise TrainingError(
            f"{data.path}: {counted(len(documents), 'document')} with words; encoder.projection similarities needs "
            f"{NEAREST} or more, take directions"
        )
    excerpts = []
    for ids in documents * EXCERPTS:
        length = int(draw.integers(min(SHORTEST, most), most + 1))
        begin = int(draw.integers(0, max(1, len(ids) - length + 1)))
        excerpts.append(ids[begin : begin + length])
    return Ragged.of(documents), Ragged.of(excerpts)
