"""The encoder: a bi-encoder whose cosines follow the teacher's score differences within each query.

The stage reads `data`, `pairs`, the teacher's scores, and a base encoder or the encoder of an earlier round. Its output
is exported for the index and the service.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline import schema
from pipeline.artifacts import Artifact, Input, Staging
from pipeline.config import CandidatesConfig, EncoderConfig
from pipeline.data.candidates import MINED
from pipeline.errors import ConfigError
from pipeline.models import base_models, model_card, model_folders, pruning, surgery
from pipeline.models.bi_encoder import BiEncoder
from pipeline.recipe import to_dict
from pipeline.stage import Stage
from pipeline.training.loop import scoring, shards
from pipeline.training.loop.checkpoint import Progress
from pipeline.training.loop.loop import train
from pipeline.training.loop.pair_tokens import Pairs, read_pairs
from pipeline.training.tasks import judged_projection, projection
from pipeline.training.tasks.bi_encoder import BiEncoderLearner, EncoderTargets, EncoderTask, first_scales
from pipeline.training.tasks.teacher_targets import joined

STAGE = Stage(
    "encoder",
    version=3,
    inputs={
        "data": "data",
        "pairs": ("pairs", "hard_pairs"),
        "base": "pretrained",
        "teacher_scores": ("teacher_scores", "hard_pairs"),
        "start": "encoder",
    },
    section="encoder",
)

PROJECTION_SAMPLE = 2048
"""Number of texts whose principal directions become the first projection: 3/4 documents, 1/4 queries."""

FROM_BASE = "base"
"""Value of `encoder.base` by which the encoder starts from the teacher's base."""


@STAGE
def make(
    workspace: Path,
    config: EncoderConfig,
    candidates: CandidatesConfig,
    *,
    data: Artifact,
    pairs: Artifact,
    base: Artifact | str,
    teacher_scores: Artifact | None,
    start: Artifact | None = None,
) -> Artifact:
    """The `encoder` artifact: `model/` and `head.json` of a BiEncoder, with its metrics.

    Args:
        pairs: pairs, with or without mined negatives; see `training.negatives`.
        base: what the teacher started from; used where `config.base` says so.
        teacher_scores: a cross-encoder's scores of `pairs`; None where `config.train_body` is false and the encoder is
            made ahead of the teacher.
        start: the encoder of an earlier round, of the same config, to go on from.

    Raises:
        MissingError: the base model cannot be had.
        ConfigError: the base is no encoder, has too few layers or positions, or is narrower than `dimensions`, or its
            layers are to be trained without scores.
        ArtifactError: scores of other pairs.
        TrainingError: nothing to train on, or the loss is not a number.
    """
    if teacher_scores is None and config.train_body:
        raise ConfigError("encoder.train_body: the layers learn from a teacher's scores of the pairs; give them")
    origin: Artifact | str = base if config.base == FROM_BASE else config.base
    check(config, base_models.shape(model_folders.folder(origin)))
    beginning = base_models.StartingModel.of(origin)
    settings = {name: value for name, value in to_dict(config).items() if name != "mining"}
    inputs: dict[str, Input] = {"data": data, "pairs": pairs}
    inputs |= {"teacher_scores": teacher_scores} if teacher_scores else {}
    inputs |= {"base": beginning.input, **({"start": start} if start else {})}
    sources = _EncoderSources(data=data, pairs=pairs, teacher_scores=teacher_scores, start=start)

    def build(staging: Staging) -> Mapping[str, Any]:
        with beginning.opened(staging) as folder:
            model, metrics = _learned(config, candidates, sources, folder, staging)
            if config.prune_vocabulary:
                metrics["vocabulary"] = pruning.to_corpus(model, pruning.corpus_of(data))
            model.save(staging.folder)
        record = model_card.TrainingRecord(
            base=origin, inputs=inputs, config=settings, metrics=metrics, measure=scoring.MEASURE
        )
        model_card.write(staging.folder / "model", "encoder", model, record)
        return metrics

    return STAGE.make(workspace, config={**settings, **candidates.step_settings()}, inputs=inputs, build=build)


@dataclass(frozen=True, kw_only=True, slots=True)
class _EncoderSources:
    """The artifacts that an encoder learns from, besides its base."""

    data: Artifact
    pairs: Artifact
    teacher_scores: Artifact | None
    """A cross-encoder's scores of the pairs; None where the layers are not trained."""
    start: Artifact | None
    """The encoder of an earlier round that is trained on; None in the first round."""


def _learned(
    config: EncoderConfig, candidates: CandidatesConfig, sources: _EncoderSources, base: Path, staging: Staging
) -> tuple[BiEncoder, dict[str, Any]]:
    """The trained encoder and its metrics.

    The first round fits the projection; then the layers are trained, or only measured without `config.train_body`.

    Args:
        base: the folder of the base model.
    """
    first = sources.start is None
    model = untrained(config, base) if sources.start is None else BiEncoder.load(sources.start.path)
    model.to(scoring.device()).eval()
    table = read_pairs(
        sources.data,
        sources.pairs,
        model.tokenizer,
        max_query_tokens=config.max_query_tokens,
        max_tokens=config.max_tokens,
        split="" if config.train_body or config.projection == "directions" else "valid",
    )
    scores = None if sources.teacher_scores is None else joined(sources.teacher_scores, table.rows)[0]
    fitted = _fit_projection(config, model, table, sources.data, staging) if first else {}
    if scores is None or not config.train_body:
        return model, {**_measured(model, table, config), **fitted}
    learner = BiEncoderLearner(model, first_scales(model, table, scores, config.all_widths, config.loop.seed))
    targets = _targets(config, sources.pairs, table, scores, base, staging)
    task = EncoderTask(
        learner, table, targets, config, max_list=candidates.max_list, click_weight=candidates.click_weight
    )
    return model, {**_train_body(task, staging, first=first), **fitted}


def _fit_projection(
    config: EncoderConfig, model: BiEncoder, table: Pairs, data: Artifact, staging: Staging
) -> dict[str, float]:
    """Fits the projection as `encoder.projection` says, in place; returns the metrics of the fit."""
    if config.projection == "directions":
        return {"projection_keeps": round(model.fit_projection(_sample_of_texts(model, table, config.loop.seed)), 4)}
    fit = judged_projection.fit if config.projection == "judgments" else projection.fit
    return fit(model, data, config, staging.checkpoint)


def _targets(
    config: EncoderConfig, pairs: Artifact, table: Pairs, scores: NDArray[np.float32], base: Path, staging: Staging
) -> EncoderTargets:
    """The teacher's scores, which pairs are mined negatives and, with a similarity loss, the vectors of the base.

    Args:
        pairs: the artifact.
        table: tokens of the same pairs.
        scores: (pairs,) by the teacher.
        base: the folder of the base whose similarities are kept.
    """
    sources = schema.read(pairs.file("pairs.parquet"), "pairs").column("source").to_pylist()
    base_vectors = None
    if config.similarity_weight:
        base_model = untrained(dataclasses.replace(config, layers=0), base)
        base_vectors = _base_vectors(base_model, table, staging.checkpoint)
    return EncoderTargets(scores=scores, hard=np.array(sources) == MINED, base_vectors=base_vectors)


def _train_body(task: EncoderTask, staging: Staging, *, first: bool) -> dict[str, Any]:
    """Trains all layers of the task's model in place and returns the metrics.

    Args:
        first: whether this is the first round; a later one goes on with a projection that was trained before.
    """
    config, learner = task.config, task.learner
    progress = train(
        learner,
        task,
        config.loop if len(task.valid) else dataclasses.replace(config.loop, evaluations=0),
        label="encoder",
        checkpoint=staging.checkpoint,
        fresh=("encoder.dense", "log_scale") if first else ("log_scale",),
        began=staging.began,
    )
    scales = learner.log_scale.detach().exp().tolist()
    return {**progress.metrics(scoring.MEASURE, "pairs"), "scale": [round(scale, 3) for scale in scales]}


def _measured(model: BiEncoder, table: Pairs, config: EncoderConfig) -> dict[str, Any]:
    """The metrics of a model whose layers are not trained: nDCG of the valid queries alone."""
    valid = scoring.valid_indices(table, config.loop.valid_pairs, config.loop.seed)
    progress = Progress()
    if len(valid):
        cosines = scoring.cosines(model, table, valid, precision=config.loop.precision, label="  valid")
        progress.before = progress.best = scoring.ndcg(table, valid, cosines)
        progress.evaluations = [(0, round(progress.best, 5))]
    return progress.metrics(scoring.MEASURE, "pairs")


def check(config: EncoderConfig, base: base_models.ModelShape) -> None:
    """Checks that the base is large enough for the encoder.

    Raises:
        ConfigError: the base has too few layers, or is narrower than `dimensions`.
    """
    if config.dimensions > base.hidden:
        raise ConfigError(
            f"encoder.dimensions {config.dimensions}: the base model is {base.hidden} wide; take at most that"
        )
    if config.layers > base.layers:
        raise ConfigError(f"encoder.layers {config.layers}: the base model has {base.layers}; keep at most that many")


def untrained(config: EncoderConfig, folder: Path) -> BiEncoder:
    """The base in a folder with as many layers as the config keeps, and a projection that is still random."""
    model = BiEncoder.start(
        folder,
        dimensions=config.dimensions,
        widths=config.widths,
        max_tokens=config.max_tokens,
        max_query_tokens=config.max_query_tokens,
        seed=config.loop.seed,
    )
    if config.layers:
        depth = base_models.shape(folder).layers
        model.model = surgery.keep_layers(model.model, surgery.spaced(depth, config.layers))
    return model


def _sample_of_texts(model: BiEncoder, pairs: Pairs, seed: int) -> Tensor:
    """Pooled vectors of a sample of training documents and queries, (texts, inputs of the projection)."""
    train = pairs.indices("train")
    draw = np.random.default_rng(seed)
    documents = draw.permutation(np.unique(pairs.document[train]))[: PROJECTION_SAMPLE * 3 // 4]
    queries = draw.permutation(np.unique(pairs.query[train]))[: PROJECTION_SAMPLE // 4]
    parts = (
        scoring.vectors(model, pairs.documents, documents, model.document_template, label="projection", pooled=True),
        scoring.vectors(model, pairs.queries, queries, model.query_template, label="projection", pooled=True),
    )
    return torch.from_numpy(np.concatenate(parts)).to(model.dense.weight.device)


def _base_vectors(base: BiEncoder, pairs: Pairs, checkpoint: Path) -> tuple[Tensor, Tensor]:
    """The untrained base's vectors of all queries and all documents, at full width and of unit length.

    Finished parts are kept in `checkpoint`.
    """
    base.to(scoring.device()).eval()
    full_width = (
        shards.pooled_vectors(checkpoint, f"base-{name}", base, texts, template, label="full width")
        for name, texts, template in (
            ("queries", pairs.queries, base.query_template),
            ("documents", pairs.documents, base.document_template),
        )
    )
    queries, documents = (F.normalize(torch.from_numpy(vectors), dim=1) for vectors in full_width)
    return queries, documents
