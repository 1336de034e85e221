"""Training of a bi-encoder: the teacher's score differences, and contrast with documents of other queries.

Each loss is the mean over the widths at which the vector must rank alone: a prefix is cut off, scaled to unit length
and compared like a full vector. The losses are those of `bi_encoder_terms`.

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
from pipeline.errors import ConfigError
from pipeline.models.bi_encoder import BiEncoder
from pipeline.training.loop import batches, scoring
from pipeline.training.loop.batches import Ints
from pipeline.training.loop.loop import Step
from pipeline.training.loop.pair_tokens import Pairs
from pipeline.training.losses import ranking
from pipeline.training.losses.bi_encoder_terms import (
    BiEncoderCounts,
    BiEncoderWeights,
    EncodedChunk,
    terms_at_widths,
)

SCALE_SAMPLE = 1024
"""Number of pairs from which the first factors between cosines and scores are taken."""


class BiEncoderLearner(nn.Module):
    """The encoder and, for each width, a factor between its cosines and the teacher's scores.

    The factors are discarded at the end.
    """

    def __init__(self, encoder: BiEncoder, scales: Sequence[float]) -> None:
        super().__init__()
        self.encoder = encoder
        logs = [math.log(scale) for scale in scales]
        self.log_scale = nn.Parameter(torch.tensor(logs, device=encoder.dense.weight.device))  # (widths,)


@dataclass(frozen=True, slots=True)
class BiEncoderChunk:
    """The part of a step that goes through the model at once: all pairs of some queries, and the step's counts."""

    indices: Ints
    counts: BiEncoderCounts


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderTargets:
    """Targets of the encoder besides grades."""

    scores: NDArray[np.float32]
    """(pairs,) the teacher's scores."""
    hard: NDArray[np.bool_]
    """(pairs,) whether a pair is a mined negative, which its own query is contrasted with."""
    base_vectors: tuple[Tensor, Tensor] | None = None
    """(queries, hidden) and (documents, hidden) unit vectors of the untrained base, for the similarity term."""


class EncoderTask:
    """Steps, losses and nDCG of a bi-encoder, for the loop."""

    unit = "pairs"

    def __init__(
        self,
        learner: BiEncoderLearner,
        pairs: Pairs,
        targets: EncoderTargets,
        config: EncoderConfig,
        *,
        max_list: int,
        click_weight: float = 1.0,
    ) -> None:
        """
        Args:
            learner: everything that is trained.
            pairs: all pairs of the artifact.
            targets: the teacher's scores and the base's vectors.
            config: weights of the losses, widths and the loop's hyperparameters.
            max_list: most documents of a query in one step.
            click_weight: weight of grades that rest on clicks, from 0 to 1.

        Raises:
            ConfigError: a weight that no loss term has, or the similarity term without the base's vectors.
        """
        self.learner, self.pairs, self.config, self.max_list = learner, pairs, config, max_list
        self.weights = BiEncoderWeights.of_config(config)
        self.click_weight = click_weight if pairs.clicked is not None else 1.0
        if self.weights.similarity and targets.base_vectors is None:
            raise ConfigError("the loss similarity needs the base's vectors; set encoder.similarity_weight to 0")
        self.device = learner.log_scale.device
        self.train = pairs.indices("train")
        self.valid = scoring.valid_indices(pairs, config.loop.valid_pairs, config.loop.seed)
        self.within_query_std = within_query_std(targets.scores[self.train], pairs.query[self.train])
        self.scores = targets.scores / self.within_query_std
        """(pairs,) the teacher's scores with differences of about 1, so weights mean the same for any teacher."""
        self.base_vectors = targets.base_vectors
        judged = ~targets.hard
        own = np.array(list(pairs.own_documents.items()), dtype=np.int64).reshape(-1, 2)
        self.known_keys = np.unique(
            np.concatenate([self._keys(pairs.query[judged], pairs.document[judged]), self._keys(own[:, 0], own[:, 1])])
        )
        model = learner.encoder
        special = len(model.document_template.before) + len(model.document_template.after)
        self.query_lengths = np.minimum(pairs.queries.lengths + special, model.query_template.max_tokens)
        self.document_lengths = np.minimum(pairs.documents.lengths + special, model.document_template.max_tokens)

    def plan(self, epoch: int) -> list[Step[BiEncoderChunk]]:
        """Each training query once, with at most `max_list` of its pairs."""
        query, document = self.pairs.query[self.train], self.pairs.document[self.train]
        # A query is encoded once for all its documents, so each of its pairs counts a part of its tokens.
        shared = -(-self.query_lengths[query] // np.minimum(np.bincount(query)[query], self.max_list))
        planned = batches.plan(
            self.document_lengths[document] + shared, query, self.config.loop, max_list=self.max_list, epoch=epoch
        )
        return [self._step([self.train[rows] for rows in chunks]) for chunks in planned]

    def _step(self, chunks: Sequence[Ints]) -> Step[BiEncoderChunk]:
        lengths = [self._lengths(*self._numbers(chunk)[:2]) for chunk in chunks]
        counts = BiEncoderCounts(
            documents=sum(map(len, chunks)),
            answered=sum(self._answered(chunk) for chunk in chunks),
            texts=sum(map(len, lengths)),
        )
        return Step(
            [BiEncoderChunk(chunk, counts) for chunk in chunks],
            examples=counts.documents,
            tokens=sum(int(each.sum()) for each in lengths),
            padded=sum(batches.padded_tokens(each) for each in lengths),
        )

    def _answered(self, indices: Ints) -> float:
        """The number of queries with a document above grade 0; those that only clicks answer count by their weight."""
        relevant = indices[self.pairs.grades[indices] > 0]
        count = len(np.unique(self.pairs.query[relevant]))
        if self.click_weight == 1 or self.pairs.clicked is None:
            return count
        people = len(np.unique(self.pairs.query[relevant[~self.pairs.clicked[relevant]]]))
        return self.click_weight * count + (1 - self.click_weight) * people

    def loss(self, chunk: BiEncoderChunk) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The weighted sum of the terms, and each by itself. Contrast is with the documents of the chunk."""
        queries, documents, query, document = self._numbers(chunk.indices)
        vectors = self._encode(queries, documents)  # (queries + documents, dimensions)
        with torch.autocast(self.device.type, enabled=False):  # Cosines over a small temperature need their digits.
            known = (query.cpu(), document.cpu())
            positive, allowed = self._contrasts(queries, documents, *known, chunk.indices)
            by_people = None
            if self.click_weight != 1 and self.pairs.clicked is not None:
                people = ~self.pairs.clicked[chunk.indices]
                chosen = torch.from_numpy(people)
                by_people, _ = self._contrasts(
                    queries, documents, known[0][chosen], known[1][chosen], chunk.indices[people]
                )
            scales = self.learner.log_scale.exp() / self.within_query_std  # (widths,)
            encoded = [
                EncodedChunk(
                    queries=prefix(vectors[: len(queries)], width),
                    documents=prefix(vectors[len(queries) :], width),
                    query=query,
                    document=document,
                    scale=scale,
                    targets=torch.from_numpy(self.scores[chunk.indices]).to(self.device),
                    positive=positive,
                    allowed=allowed,
                    base_vectors=self._base_vectors(queries, documents),
                    counts=chunk.counts,
                    positive_by_people=by_people,
                    click_weight=self.click_weight,
                )
                for width, scale in zip(self.config.all_widths, scales, strict=True)
            ]
            terms = terms_at_widths(encoded, self.weights)
        weights = self.weights.active()
        return sum((weights[name] * value for name, value in terms.items()), vectors.sum() * 0), terms

    def _base_vectors(self, queries: Ints, documents: Ints) -> Tensor | None:
        if self.base_vectors is None:
            return None
        return torch.cat([self.base_vectors[0][queries], self.base_vectors[1][documents]]).to(self.device)

    def evaluate(self) -> float:
        """nDCG@10 of the valid queries by cosine."""
        cosines = scoring.cosines(
            self.learner.encoder, self.pairs, self.valid, precision=self.config.loop.precision, label="  valid"
        )
        return scoring.ndcg(self.pairs, self.valid, cosines)

    def _numbers(self, indices: Ints) -> tuple[Ints, Ints, Tensor, Tensor]:
        """Distinct queries and documents of these pairs, and each pair's index in the two, (n,) each."""
        queries, query = np.unique(self.pairs.query[indices], return_inverse=True)
        documents, document = np.unique(self.pairs.document[indices], return_inverse=True)
        return queries, documents, torch.from_numpy(query).to(self.device), torch.from_numpy(document).to(self.device)

    def _lengths(self, queries: Ints, documents: Ints) -> Ints:
        return np.concatenate([self.query_lengths[queries], self.document_lengths[documents]])

    def _encode(self, queries: Ints, documents: Ints) -> Tensor:
        """(queries + documents, dimensions), each text once; queries and documents of like length share a batch."""
        model = self.learner.encoder
        inputs = batches.text_inputs(self.pairs.queries, queries, model.query_template)
        inputs += batches.text_inputs(self.pairs.documents, documents, model.document_template)
        groups, parts = batches.length_groups(self._lengths(queries, documents)), []
        for group in groups:
            batch = batches.pad([inputs[index] for index in group], self.device)
            parts.append(model(batch.input_ids, batch.attention_mask))
        back = np.argsort(np.concatenate(groups))
        return torch.cat(parts)[torch.from_numpy(back).to(self.device)]

    def _contrasts(
        self, queries: Ints, documents: Ints, query: Tensor, document: Tensor, indices: Ints
    ) -> tuple[Tensor, Tensor]:
        """Masks (queries, documents) of positives and of documents that may be negatives.

        Positives are a query's documents of its highest grade. Negatives are documents that no judged pair joins with
        the query, its mined negatives among them; a query that is a document itself is not contrasted with that one.
        """
        grades = self.pairs.grades[indices]
        best = np.zeros(len(queries), dtype=np.int64)
        np.maximum.at(best, query.numpy(), grades)
        top = torch.from_numpy((grades == best[query.numpy()]) & (grades > 0))
        positive = torch.zeros(len(queries), len(documents), dtype=torch.bool)
        positive[query[top], document[top]] = True
        known = np.isin(self._keys(queries[:, None], documents[None, :]), self.known_keys)
        return positive.to(self.device), torch.from_numpy(~known).to(self.device)

    def _keys(self, query: Ints, document: Ints) -> Ints:
        return np.asarray(query * len(self.pairs.documents) + document)


def within_query_std(scores: NDArray[np.float32], groups: Ints) -> float:
    """Standard deviation of scores within their queries; 1 where no query has two different ones."""
    std = float(ranking.centred(torch.from_numpy(scores), torch.from_numpy(groups)).square().mean().sqrt())
    return std if std > 0 else 1.0


def prefix(vectors: Tensor, width: int) -> Tensor:
    """The first dimensions of unit vectors, scaled to unit length, (n, width)."""
    return vectors if width == vectors.shape[1] else F.normalize(vectors[:, :width], dim=1)


def first_scales(
    model: BiEncoder, pairs: Pairs, scores: NDArray[np.float32], widths: Sequence[int], seed: int
) -> list[float]:
    """The factor, for each width, that gives untrained cosines the teacher's standard deviation within queries."""
    train = pairs.indices("train")
    queries = np.unique(pairs.query[train])
    np.random.default_rng(seed).shuffle(queries)
    ends = np.cumsum(np.bincount(pairs.query[train])[queries])
    sample = train[np.isin(pairs.query[train], queries[: 1 + int(np.searchsorted(ends, SCALE_SAMPLE))])]
    queries, query = np.unique(pairs.query[sample], return_inverse=True)
    documents, document = np.unique(pairs.document[sample], return_inverse=True)
    label = "first scale"
    left = torch.from_numpy(scoring.vectors(model, pairs.queries, queries, model.query_template, label=label))
    right = torch.from_numpy(scoring.vectors(model, pairs.documents, documents, model.document_template, label=label))
    target, scales = within_query_std(scores[sample], pairs.query[sample]), []
    for width in widths:
        cosines = (prefix(left, width).numpy()[query] * prefix(right, width).numpy()[document]).sum(1)
        scales.append(target / max(1e-3, within_query_std(cosines, pairs.query[sample])))
    return scales
