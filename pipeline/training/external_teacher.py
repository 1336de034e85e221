"""The external teacher: scores from a file or a causal language model, as `teacher_scores` for the students.

The scores may have any scale. A fit to the grades of the training pairs brings them to the scale of our own teacher,
where P(grade ≥ k) = sigmoid(score − b_k).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import Artifact, Input, Staging
from pipeline.config import ExternalTeacherConfig
from pipeline.errors import ConfigError, MissingError
from pipeline.evaluation import metrics
from pipeline.models import base_models
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.models.cross_encoder_head import CrossEncoderHead
from pipeline.outside import OutsideFile
from pipeline.recipe import to_dict
from pipeline.stage import Stage
from pipeline.training import external_scores, score_files, score_scale
from pipeline.training.loop import pair_passages, scoring
from pipeline.training.loop.batches import Ints
from pipeline.training.loop.pair_passages import PassagePairs
from pipeline.training.loop.pair_tokens import PairTexts, read_pairs, read_texts
from pipeline.training.tasks import causal_lm_judge

STAGE = Stage(
    "teacher_scores",
    version=1,
    inputs={"data": "data", "pairs": "pairs", "teacher": "teacher"},
    section="external_teacher",
    title="external teacher scores",
)

Floats = NDArray[np.float64]


@STAGE
def make(
    workspace: Path,
    config: ExternalTeacherConfig,
    *,
    data: Artifact,
    pairs: Artifact,
    layers: Sequence[int],
    teacher: Artifact | None = None,
) -> Artifact:
    """The `teacher_scores` artifact of an external teacher, without states.

    scores.parquet   row_id, score (float32)
    head.json        {"thresholds": [b_1 < … < b_G]}, mean zero
    passages.npy     as of our own teacher (`teacher_scores`), where a language model reads long documents in passages

    The metrics have the `slope` of the fit, for one standard deviation of the scores as they came, and what the scores
    reach on the valid split.

    Args:
        layers: teacher layers whose states the students' losses need; there are none, so any is an error.
        teacher: our own, from which the students are cut. Where it reads long documents in passages, a language model
            judges each of those passages alone, because students read no others.

    Raises:
        ConfigError: states are needed, or the language model cannot be used as configured.
        MissingError: no such file or model.
        SchemaError: the file lacks a column or pairs, or has a score that is no number or is given twice.
        TrainingError: higher scores go with lower grades.
    """
    if layers:
        raise ConfigError(
            f"the students' losses need states of the teacher's layers {list(layers)}, and an external teacher gives "
            "only scores; set the weights of those losses to 0, such as ranker.hidden_weight"
        )
    source = _ScoreFile.of(config) if config.scores else _LanguageModel.of(config, teacher)
    inputs: dict[str, Input] = {"outside": source.outside, "data": data, "pairs": pairs}
    if source.reader is not None:
        inputs["teacher"] = source.reader

    def build(staging: Staging) -> Mapping[str, Any]:
        texts = read_texts(data, pairs)
        raw, counts = source.scores(texts, data, pairs, staging)
        grades = texts.table.column("grade").to_numpy().astype(np.int64)
        split = np.array(texts.table.column("split").to_pylist(), dtype=np.str_)
        scale = score_scale.fit(raw, grades, np.flatnonzero(split == "train"))
        scores = scale.scores(raw).astype(np.float32)
        score_files.write_scores(staging.folder, texts.table.column("row_id").to_numpy(), scores)
        score_files.write_thresholds(staging.folder, scale.thresholds)
        return {"pairs": len(scores), "slope": round(scale.slope, 4), **_valid(texts, grades, split, scores), **counts}

    return STAGE.make(workspace, config=source.settings, inputs=inputs, build=build)


@dataclass(frozen=True, slots=True)
class _ScoreFile:
    """An external teacher whose scores of the pairs are in a Parquet file."""

    outside: OutsideFile
    reader: None = None

    @classmethod
    def of(cls, config: ExternalTeacherConfig) -> "_ScoreFile":
        """The file of `external_teacher.scores`, with its content as it is now.

        Raises:
            MissingError: there is none.
        """
        path = Path(config.scores)
        if not path.is_file():
            raise MissingError(f"external_teacher.scores: {path} is no file; give a Parquet file with a column score")
        return cls(OutsideFile.at(path))

    @property
    def settings(self) -> dict[str, Any]:
        """The part of the config that changes the scores: the file's content is an input, so none."""
        return {"outside": True}

    def scores(
        self, texts: PairTexts, _data: Artifact, pairs: Artifact, _staging: Staging
    ) -> tuple[Floats, Mapping[str, Any]]:
        """(pairs,) the scores of the pairs on the file's scale, and figures for the metrics."""
        return external_scores.read(self.outside.path, texts.table, pairs)


@dataclass(frozen=True, slots=True)
class _LanguageModel:
    """An external teacher that is a causal language model, asked whether a document answers a query."""

    config: ExternalTeacherConfig
    model: base_models.StartingModel
    reader: Artifact | None
    """The teacher whose passages the language model judges; None where it judges whole documents."""

    @classmethod
    def of(cls, config: ExternalTeacherConfig, teacher: Artifact | None) -> "_LanguageModel":
        """The model of `external_teacher.causal_lm`.

        Raises:
            MissingError: it cannot be had.
        """
        model = base_models.StartingModel.of(config.causal_lm)
        return cls(config, model, None if teacher is None else _reader_of_passages(teacher))

    @property
    def outside(self) -> Input:
        """The model as an input of the stage."""
        return self.model.input

    @property
    def settings(self) -> dict[str, Any]:
        """The part of the config that changes the scores."""
        settings = {"outside": True, **to_dict(self.config)}
        # The first two are paths, whose contents are an input; the last changes only the speed.
        for name in ("scores", "causal_lm", "batch_tokens"):
            del settings[name]
        return settings

    def scores(
        self, texts: PairTexts, data: Artifact, pairs: Artifact, staging: Staging
    ) -> tuple[Floats, Mapping[str, Any]]:
        """(pairs,) the model's log odds of the pairs, and figures for the metrics; writes the best passages."""
        with self.model.opened(staging) as folder:
            if self.reader is None:
                return causal_lm_judge.score(folder, self.config, texts, staging.checkpoint), {}
            cut, parts = _passages(self.reader, data, pairs, texts)
            odds = causal_lm_judge.score(folder, self.config, parts, staging.checkpoint).astype(np.float32)
            score_files.write_best_passages(staging.folder, cut, odds)
            return cut.joined(odds).astype(np.float64), cut.stats


def _reader_of_passages(teacher: Artifact) -> Artifact | None:
    """The teacher, if it reads long documents in passages."""
    return teacher if CrossEncoderHead.read(teacher.path).template.passages is not None else None


def _passages(teacher: Artifact, data: Artifact, pairs: Artifact, texts: PairTexts) -> tuple[PassagePairs, PairTexts]:
    """The passages in which our teacher reads the pairs, in its tokens and as texts."""
    model = CrossEncoder.load(teacher.path)
    template = model.template
    table = read_pairs(
        data, pairs, model.tokenizer, max_query_tokens=template.max_query_tokens, max_tokens=template.document_tokens
    )
    cut = pair_passages.cut(table, template)
    return cut, pair_passages.texts_of(cut, texts, model.tokenizer)


def _valid(texts: PairTexts, grades: Ints, split: NDArray[np.str_], scores: scoring.Floats) -> dict[str, float]:
    valid = split == "valid"
    if not valid.any():
        return {}
    by_query = metrics.by_query(texts.query[valid], grades[valid], scores[valid], (scoring.MEASURE,))
    return {scoring.MEASURE: round(float(by_query[scoring.MEASURE].mean()), 4)}
