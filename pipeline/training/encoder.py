"""The encoder: a bi-encoder whose cosines follow the teacher's score differences within each query.

From `data`, `pairs`, a base encoder and the teacher's scores; exported for the index and the service.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline import artifacts
from pipeline.artifacts import Artifact, Staging
from pipeline.config import CandidatesConfig, EncoderConfig, to_dict
from pipeline.errors import ConfigError
from pipeline.models import surgery, texts, weights
from pipeline.models.bi_encoder import BiEncoder
from pipeline.training import batches, losses, scoring
from pipeline.training.batches import Ints, Pairs, read_pairs
from pipeline.training.cross_task import joined
from pipeline.training.loop import Step, train

VERSION = 2

PROJECTION_SAMPLE = 2048
"""Texts whose principal directions become the first projection: three quarters documents, one quarter queries."""

SCALE_SAMPLE = 1024
"""Pairs on which cosines are first brought to the width of the teacher's scores."""

FROM_BASE = "base"


def make(
    workspace: Path,
    config: EncoderConfig,
    candidates: CandidatesConfig,
    data: Artifact,
    pairs: Artifact,
    base: Artifact | str,
    teacher_scores: Artifact,
) -> Artifact:
    """The `encoder` artifact: `model/`, `dense.safetensors` and `head.json` of a BiEncoder, with its metrics.

    Args:
        base: what the teacher started from; used where `config.base` says so.
        teacher_scores: what a cross-encoder said about `pairs`.

    Raises:
        MissingError: the base model cannot be had.
        ConfigError: the base is no encoder, has too few layers or positions, or is narrower than `dimensions`.
        ArtifactError: scores of other pairs.
        TrainingError: nothing to train on, or the loss is not a number.
    """
    start: Artifact | str = base if config.base == FROM_BASE else config.base
    place = weights.folder(start)
    depth, hidden = weights.shape(place)
    if config.dimensions > hidden:
        raise ConfigError(f"encoder.dimensions {config.dimensions}: the base model is {hidden} wide; take at most that")

    def build(staging: Staging) -> Mapping[str, Any]:
        tokenizer = texts.plain_tokenizer(texts.load_tokenizer(place))
        table = read_pairs(
            data, pairs, tokenizer, max_query_tokens=config.max_query_tokens, max_tokens=config.max_tokens
        )
        targets, _ = joined(teacher_scores, table.rows)
        model = BiEncoder.start(
            place,
            dimensions=config.dimensions,
            max_tokens=config.max_tokens,
            max_query_tokens=config.max_query_tokens,
            seed=config.loop.seed,
        )
        if config.layers:
            model.model = surgery.keep_layers(model.model, surgery.spaced(depth, config.layers))
        model.to(scoring.device()).eval()
        kept = model.fit_projection(_sample_of_texts(model, table, config.loop.seed))

        learner = Learner(model, first_scale(model, table, targets, config.loop.seed))
        task = EncoderTask(learner, table, targets, config, max_list=candidates.max_list)
        loop = config.loop if len(task.valid) else dataclasses.replace(config.loop, evaluations=0)
        progress = train(
            learner, task, loop, label="encoder", checkpoint=staging.checkpoint, fresh=("encoder.dense", "log_scale")
        )
        model.save(staging.folder)
        return {
            **progress.metrics(scoring.MEASURE, "pairs"),
            "projection_keeps": round(kept, 4),
            "scale": round(float(learner.log_scale.detach().exp()), 3),
        }

    return artifacts.make(
        workspace,
        "encoder",
        version=VERSION,
        config={**to_dict(config), "max_list": candidates.max_list},
        inputs={"data": data, "pairs": pairs, "base": weights.digest(start), "teacher_scores": teacher_scores},
        build=build,
    )


class Learner(nn.Module):
    """The encoder and the factor between its cosines and the teacher's scores, which is thrown away at the end."""

    def __init__(self, encoder: BiEncoder, scale: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale), device=encoder.dense.weight.device))


@dataclass(frozen=True, slots=True)
class Chunk:
    """Pairs of whole queries, and what the whole step counts."""

    places: Ints
    documents: int
    answered: int
    """Queries with a document above grade 0."""


class EncoderTask:
    """Steps, losses and nDCG for the loop."""

    unit = "pairs"

    def __init__(
        self, learner: Learner, pairs: Pairs, targets: NDArray[np.float32], config: EncoderConfig, *, max_list: int
    ) -> None:
        self.learner = learner
        self.pairs = pairs
        self.config = config
        self.max_list = max_list
        self.device = learner.log_scale.device
        self.train = pairs.places("train")
        self.valid = scoring.valid_places(pairs, config.loop.valid_pairs, config.loop.seed)
        self.spread = spread(targets[self.train], pairs.query[self.train])
        self.targets = targets / self.spread
        """The teacher's scores with differences of about 1, so that the weights mean the same for any teacher."""
        self.judged = np.unique(self._keys(pairs.query, pairs.document))
        model = learner.encoder
        special = len(model.document_template.before) + len(model.document_template.after)
        self.query_lengths = np.minimum(pairs.queries.lengths + special, model.query_template.max_tokens)
        self.document_lengths = np.minimum(pairs.documents.lengths + special, model.document_template.max_tokens)

    def plan(self, epoch: int) -> list[Step[Chunk]]:
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
            steps.append(
                Step(
                    [Chunk(places, documents, answered) for places in chosen],
                    examples=documents,
                    tokens=sum(int(each.sum()) for each in lengths),
                    padded=sum(batches.padded(each) for each in lengths),
                )
            )
        return steps

    def loss(self, chunk: Chunk) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The weighted sum of the losses, and each by itself. Contrast is with the documents of the chunk."""
        queries, documents, query, document = self._numbers(chunk.places)
        vectors = self._encode(queries, documents)  # (queries + documents, dimensions)
        of_queries, of_documents = vectors[: len(queries)], vectors[len(queries) :]
        grades = self.pairs.grades[chunk.places]

        config = self.config
        terms: dict[str, tuple[float, Tensor]] = {}
        with torch.autocast(self.device.type, enabled=False):  # Cosines over a small temperature need their digits.
            if config.margin_weight:
                cosines = (of_queries[query] * of_documents[document]).sum(1)  # (n,)
                scores = cosines * self.learner.log_scale.exp() / self.spread
                targets = torch.from_numpy(self.targets[chunk.places]).to(self.device)
                margin = losses.margin_loss(scores, targets, query, total=chunk.documents)
                terms["margin"] = config.margin_weight, margin
            if config.in_batch_weight:
                positive, allowed = self._contrasts(queries, documents, query.cpu(), document.cpu(), grades)
                contrast = losses.contrast_loss(
                    of_queries @ of_documents.T, positive, allowed, config.temperature, total=chunk.answered
                )
                terms["contrast"] = config.in_batch_weight, contrast
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
        for places in batches.rectangles(self._lengths(queries, documents)):
            part = batches.rectangle([inputs[place] for place in places], self.device)
            order.append(places)
            parts.append(model(part.input_ids, part.attention_mask))
        back = np.argsort(np.concatenate(order))
        return torch.cat(parts)[torch.from_numpy(back).to(self.device)]

    def _contrasts(
        self, queries: Ints, documents: Ints, query: Tensor, document: Tensor, grades: Ints
    ) -> tuple[Tensor, Tensor]:
        """Positives: a query's documents of its highest grade. Negatives: documents no pair joins with the query."""
        best = np.zeros(len(queries), dtype=np.int64)
        np.maximum.at(best, query.numpy(), grades)
        top = torch.from_numpy((grades == best[query.numpy()]) & (grades > 0))
        positive = torch.zeros(len(queries), len(documents), dtype=torch.bool)
        positive[query[top], document[top]] = True
        known = np.isin(self._keys(queries[:, None], documents[None, :]), self.judged)
        return positive.to(self.device), torch.from_numpy(~known).to(self.device)

    def _keys(self, query: Ints, document: Ints) -> Ints:
        return np.asarray(query * len(self.pairs.documents) + document)


def spread(targets: NDArray[np.float32], groups: Ints) -> float:
    """Standard deviation of scores within their queries; 1 where no query has two."""
    found = float(losses.centred(torch.from_numpy(targets), torch.from_numpy(groups)).square().mean().sqrt())
    return found if found > 0 else 1.0


def first_scale(model: BiEncoder, pairs: Pairs, targets: NDArray[np.float32], seed: int) -> float:
    """The factor that gives untrained cosines the teacher's spread within queries."""
    places = pairs.places("train")
    queries = np.unique(pairs.query[places])
    np.random.default_rng(seed).shuffle(queries)
    ends = np.cumsum(np.bincount(pairs.query[places])[queries])
    sample = places[np.isin(pairs.query[places], queries[: 1 + int(np.searchsorted(ends, SCALE_SAMPLE))])]
    found = scoring.cosines(model, pairs, sample, label="first scale")
    return spread(targets[sample], pairs.query[sample]) / max(1e-3, spread(found, pairs.query[sample]))


def _sample_of_texts(model: BiEncoder, pairs: Pairs, seed: int) -> Tensor:
    """(texts, hidden) pooled vectors of training documents and queries."""
    places = pairs.places("train")
    draw = np.random.default_rng(seed)
    documents = draw.permutation(np.unique(pairs.document[places]))[: PROJECTION_SAMPLE * 3 // 4]
    queries = draw.permutation(np.unique(pairs.query[places]))[: PROJECTION_SAMPLE // 4]
    parts = (
        scoring.vectors(model, pairs.documents, documents, model.document_template, label="projection", pooled=True),
        scoring.vectors(model, pairs.queries, queries, model.query_template, label="projection", pooled=True),
    )
    return torch.from_numpy(np.concatenate(parts)).to(model.dense.weight.device)
