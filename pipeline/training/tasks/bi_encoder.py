"""What the encoder learns in a step: the teacher's score differences, and contrast with documents of other queries.

Each loss is the mean over the widths at which the vector must rank alone: a prefix is cut off, scaled to unit length
and compared like a whole vector (Kusupati et al., Matryoshka representation learning, NeurIPS 2022, arXiv:2205.13147).

Contrast sees the documents of one chunk. A step that fits `loop.chunk_tokens` is one chunk, so that is all of them; a
step cut into several contrasts each query with fewer. Gradients through a cache, which would lift that, are not used.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import EncoderConfig
from pipeline.models.bi_encoder import BiEncoder
from pipeline.training.loop import batches, scoring
from pipeline.training.loop.batches import Ints, Pairs
from pipeline.training.loop.loop import Step
from pipeline.training.losses import distillation, ranking

SCALE_SAMPLE = 1024
"""Pairs on which cosines are first brought to the width of the teacher's scores."""


class BiEncoderLearner(nn.Module):
    """The encoder and, for each width, the factor between its cosines and the teacher's scores.

    The factors are thrown away at the end.
    """

    def __init__(self, encoder: BiEncoder, scales: Sequence[float]) -> None:
        super().__init__()
        self.encoder = encoder
        logs = [math.log(scale) for scale in scales]
        self.log_scale = nn.Parameter(torch.tensor(logs, device=encoder.dense.weight.device))  # (widths,)


@dataclass(frozen=True, slots=True)
class BiEncoderChunk:
    """Pairs of whole queries, and what the whole step counts."""

    places: Ints
    documents: int
    answered: int
    """Queries with a document above grade 0."""
    texts: int
    """Distinct queries and documents, counted by chunk."""


class EncoderTask:
    """Steps, losses and nDCG for the loop."""

    unit = "pairs"

    def __init__(
        self,
        learner: BiEncoderLearner,
        pairs: Pairs,
        targets: NDArray[np.float32],
        config: EncoderConfig,
        *,
        max_list: int,
        hard: NDArray[np.bool_] | None = None,
        wide: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """
        Args:
            targets: (pairs,) the teacher's scores.
            hard: (pairs,) whether a pair is a negative that its own query may be contrasted with; none by default.
            wide: (queries, hidden) and (documents, hidden) unit vectors of the base, for the similarity term.
        """
        self.learner = learner
        self.pairs = pairs
        self.config = config
        self.max_list = max_list
        self.device = learner.log_scale.device
        self.train = pairs.indices("train")
        self.valid = scoring.valid_indices(pairs, config.loop.valid_pairs, config.loop.seed)
        self.spread = spread(targets[self.train], pairs.query[self.train])
        self.targets = targets / self.spread
        """The teacher's scores with differences of about 1, so that the weights mean the same for any teacher."""
        self.wide = wide
        taken = slice(None) if hard is None else ~hard
        self.joined = np.unique(self._keys(pairs.query[taken], pairs.document[taken]))
        model = learner.encoder
        special = len(model.document_template.before) + len(model.document_template.after)
        self.query_lengths = np.minimum(pairs.queries.lengths + special, model.query_template.max_tokens)
        self.document_lengths = np.minimum(pairs.documents.lengths + special, model.document_template.max_tokens)

    def plan(self, epoch: int) -> list[Step[BiEncoderChunk]]:
        """Each training query once, with at most `max_list` of its pairs."""
        query, document = self.pairs.query[self.train], self.pairs.document[self.train]
        # A query is encoded once for all its documents: each of its pairs bears a part.
        shared = -(-self.query_lengths[query] // np.minimum(np.bincount(query)[query], self.max_list))
        planned = batches.plan(
            self.document_lengths[document] + shared, query, self.config.loop, max_list=self.max_list, epoch=epoch
        )
        steps = []
        for chunks in planned:
            chosen = [self.train[places] for places in chunks]
            documents = sum(map(len, chosen))
            answered = sum(len(np.unique(self.pairs.query[places][self.pairs.grades[places] > 0])) for places in chosen)
            lengths = [self._lengths(*self._numbers(places)[:2]) for places in chosen]
            texts = sum(map(len, lengths))
            steps.append(
                Step(
                    [BiEncoderChunk(places, documents, answered, texts) for places in chosen],
                    examples=documents,
                    tokens=sum(int(each.sum()) for each in lengths),
                    padded=sum(batches.padded_tokens(each) for each in lengths),
                )
            )
        return steps

    def loss(self, chunk: BiEncoderChunk) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The weighted sum of the losses, and each by itself. Contrast is with the documents of the chunk."""
        queries, documents, query, document = self._numbers(chunk.places)
        vectors = self._encode(queries, documents)  # (queries + documents, dimensions)
        of_queries, of_documents = vectors[: len(queries)], vectors[len(queries) :]
        grades = self.pairs.grades[chunk.places]

        config = self.config
        terms: dict[str, tuple[float, Tensor]] = {}
        with torch.autocast(self.device.type, enabled=False):  # Cosines over a small temperature need their digits.
            cut = [(prefix(of_queries, width), prefix(of_documents, width)) for width in config.all_widths]
            if config.margin_weight:
                targets = torch.from_numpy(self.targets[chunk.places]).to(self.device)
                scales = self.learner.log_scale.exp() / self.spread  # (widths,)
                found = [
                    ranking.margin_loss(
                        (left[query] * right[document]).sum(1) * scale, targets, query, total=chunk.documents
                    )
                    for (left, right), scale in zip(cut, scales, strict=True)
                ]
                terms["margin"] = config.margin_weight, _mean(found)
            if config.in_batch_weight:
                positive, allowed = self._contrasts(queries, documents, query.cpu(), document.cpu(), grades)
                found = [
                    ranking.contrast_loss(left @ right.T, positive, allowed, config.temperature, total=chunk.answered)
                    for left, right in cut
                ]
                terms["contrast"] = config.in_batch_weight, _mean(found)
            if self.wide is not None:
                wide = torch.cat([self.wide[0][queries], self.wide[1][documents]]).to(self.device)
                found = [
                    distillation.similarity_loss(
                        prefix(vectors, width), wide, config.similarity_temperature, total=chunk.texts
                    )
                    for width in config.all_widths
                ]
                terms["similarity"] = config.similarity_weight, _mean(found)
        loss = sum((weight * value for weight, value in terms.values()), vectors.sum() * 0)
        return loss, {name: value for name, (_, value) in terms.items()}

    def evaluate(self) -> float:
        """nDCG@10 of the valid queries by cosine."""
        found = scoring.cosines(
            self.learner.encoder, self.pairs, self.valid, precision=self.config.loop.precision, label="  valid"
        )
        return scoring.ndcg(self.pairs, self.valid, found)

    def _numbers(self, places: Ints) -> tuple[Ints, Ints, Tensor, Tensor]:
        """Distinct queries and documents of these pairs, and each pair's place among them, (n,) twice."""
        queries, query = np.unique(self.pairs.query[places], return_inverse=True)
        documents, document = np.unique(self.pairs.document[places], return_inverse=True)
        return queries, documents, torch.from_numpy(query).to(self.device), torch.from_numpy(document).to(self.device)

    def _lengths(self, queries: Ints, documents: Ints) -> Ints:
        return np.concatenate([self.query_lengths[queries], self.document_lengths[documents]])

    def _encode(self, queries: Ints, documents: Ints) -> Tensor:
        """(queries + documents, dimensions), each text once, whatever its kind in rectangles of like length."""
        model = self.learner.encoder
        inputs = batches.text_inputs(self.pairs.queries, queries, model.query_template)
        inputs += batches.text_inputs(self.pairs.documents, documents, model.document_template)
        order, parts = [], []
        for places in batches.length_groups(self._lengths(queries, documents)):
            part = batches.pad([inputs[place] for place in places], self.device)
            order.append(places)
            parts.append(model(part.input_ids, part.attention_mask))
        back = np.argsort(np.concatenate(order))
        return torch.cat(parts)[torch.from_numpy(back).to(self.device)]

    def _contrasts(
        self, queries: Ints, documents: Ints, query: Tensor, document: Tensor, grades: Ints
    ) -> tuple[Tensor, Tensor]:
        """Positives: a query's documents of its highest grade. Negatives: documents that no pair joins with the query,
        and its hard ones."""
        best = np.zeros(len(queries), dtype=np.int64)
        np.maximum.at(best, query.numpy(), grades)
        top = torch.from_numpy((grades == best[query.numpy()]) & (grades > 0))
        positive = torch.zeros(len(queries), len(documents), dtype=torch.bool)
        positive[query[top], document[top]] = True
        known = np.isin(self._keys(queries[:, None], documents[None, :]), self.joined)
        return positive.to(self.device), torch.from_numpy(~known).to(self.device)

    def _keys(self, query: Ints, document: Ints) -> Ints:
        return np.asarray(query * len(self.pairs.documents) + document)


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean()


def spread(targets: NDArray[np.float32], groups: Ints) -> float:
    """Standard deviation of scores within their queries; 1 where no query has two."""
    found = float(ranking.centred(torch.from_numpy(targets), torch.from_numpy(groups)).square().mean().sqrt())
    return found if found > 0 else 1.0


def prefix(vectors: Tensor, width: int) -> Tensor:
    """(n, width) the first dimensions of unit vectors, of unit length themselves."""
    return vectors if width == vectors.shape[1] else F.normalize(vectors[:, :width], dim=1)


def first_scales(
    model: BiEncoder, pairs: Pairs, targets: NDArray[np.float32], widths: Sequence[int], seed: int
) -> list[float]:
    """For each width the factor that gives untrained cosines the teacher's spread within queries."""
    places = pairs.indices("train")
    queries = np.unique(pairs.query[places])
    np.random.default_rng(seed).shuffle(queries)
    ends = np.cumsum(np.bincount(pairs.query[places])[queries])
    sample = places[np.isin(pairs.query[places], queries[: 1 + int(np.searchsorted(ends, SCALE_SAMPLE))])]
    queries, query = np.unique(pairs.query[sample], return_inverse=True)
    documents, document = np.unique(pairs.document[sample], return_inverse=True)
    label = "first scale"
    left = torch.from_numpy(scoring.vectors(model, pairs.queries, queries, model.query_template, label=label))
    right = torch.from_numpy(scoring.vectors(model, pairs.documents, documents, model.document_template, label=label))
    wanted, scales = spread(targets[sample], pairs.query[sample]), []
    for width in widths:
        found = (prefix(left, width).numpy()[query] * prefix(right, width).numpy()[document]).sum(1)
        scales.append(wanted / max(1e-3, spread(found, pairs.query[sample])))
    return scales
