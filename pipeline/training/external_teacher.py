"""The external teacher: scores from a file or a causal language model, as `teacher_scores` for the students.

The scores may have any scale. A fit to the grades of the training pairs brings them to the scale of our own teacher,
where P(grade ≥ k) = sigmoid(score − b_k).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline.artifacts import Artifact, Input, Staging
from pipeline.config import ExternalTeacherConfig
from pipeline.errors import ConfigError, MissingError, SchemaError, TrainingError
from pipeline.evaluation import metrics
from pipeline.models import base_models
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.models.cross_encoder_head import CrossEncoderHead
from pipeline.outside import OutsideFile
from pipeline.recipe import to_dict
from pipeline.stage import Stage
from pipeline.training import score_files
from pipeline.training.loop import pair_passages, scoring
from pipeline.training.loop.batches import Ints
from pipeline.training.loop.pair_passages import PassagePairs
from pipeline.training.loop.pair_tokens import PairTexts, read_pairs, read_texts
from pipeline.training.losses import ranking
from pipeline.training.tasks import causal_lm_judge

STAGE = Stage(
    "teacher_scores",
    version=1,
    inputs={"data": "data", "pairs": "pairs", "teacher": "teacher"},
    section="external_teacher",
    title="external teacher scores",
)

Floats = NDArray[np.float64]

SLOPE_DEVIATION = 10.0
"""Standard deviation of the normal prior on the slope, for scores of unit deviation. It keeps the slope finite where
the scores separate the grades completely; with many pairs it has no effect."""

PRIOR_PAIRS = 0.5
"""Pairs of each grade added at the mean score, so that a grade that never occurs has a threshold."""

PAIR_KEYS = ("query_id", "doc_id")


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
        scale = fit(raw, grades, np.flatnonzero(split == "train"))
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
        return read_scores(self.outside.path, texts.table, pairs)


@dataclass(frozen=True, slots=True)
class _LanguageModel:
    """An external teacher that is a causal language model, asked whether a document answers a query."""

    config: ExternalTeacherConfig
    model: base_models.StartingModel
    reader: Artifact | None
    """Our own teacher, where it reads long documents in passages: the language model then judges each of them."""

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


def read_scores(path: Path, table: pa.Table, pairs: Artifact) -> tuple[Floats, dict[str, int]]:
    """(pairs,) the scores that a file has for the rows of a table of pairs, and how many of its rows no pair needs.

    Raises:
        SchemaError: not Parquet, a column missing, a score that is no number or is given twice, a pair without one.
    """
    given, keys = _read_file(path)
    wanted = table.select(["row_id", *PAIR_KEYS]).to_pandas()
    if "queries.parquet" in pairs.manifest.files:  # Unlabelled lists, under names that are known here only.
        lists = pq.read_table(pairs.file("queries.parquet"), columns=["query_id", "asked"]).to_pandas()
        original_ids = wanted["query_id"].map(lists.set_index("query_id")["asked"])
        wanted = wanted.assign(query_id=original_ids.fillna(wanted["query_id"]))
    joined = wanted.merge(given, on=keys, how="left", validate="m:1")
    lost = np.flatnonzero(joined["score"].isna())
    if len(lost):
        raise SchemaError(
            f"{path}: no score for {len(lost):,} of {len(wanted):,} pairs, {_named(wanted.iloc[lost[0]], keys)} for "
            f"one; score every row of {pairs.path / 'pairs.parquet'}"
        )
    used = given.merge(wanted[keys].drop_duplicates(), on=keys)
    return joined["score"].to_numpy(dtype=np.float64), {"unused rows": len(given) - len(used)}


def _read_file(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """The file's scores with the columns that name a pair, and the names of these columns; each pair stands once.

    Raises:
        SchemaError: not Parquet, a column missing, a score that is no number or is given twice.
    """
    try:
        given = pq.read_table(path).to_pandas()
    except (pa.ArrowException, OSError) as error:
        raise SchemaError(f"{path}: not a readable Parquet file ({error}); write it again") from error
    by_name = set(PAIR_KEYS) <= set(given)  # Names say more than the number of a row, which another table has too.
    keys = ["row_id"] if "row_id" in given and not by_name else list(PAIR_KEYS)
    missing = [name for name in (*keys, "score") if name not in given]
    if missing:
        raise SchemaError(
            f"{path}: has no column {missing[0]}; needed are score and either row_id or query_id and doc_id, "
            f"it has {', '.join(map(str, given.columns))}"
        )
    numbers = pd.to_numeric(given["score"], errors="coerce").to_numpy(dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
        value = given["score"].iloc[bad[0]]
        raise SchemaError(f"{path}, row {bad[0]}: score {value} is no finite number ({len(bad)} rows of {len(given)})")
    given = _typed_keys(path, given, keys).assign(score=numbers)
    twice = np.flatnonzero(given.duplicated(keys))
    if len(twice):
        raise SchemaError(
            f"{path}, row {twice[0]}: a second score for {_named(given.iloc[twice[0]], keys)} ({len(twice)} such "
            "rows); keep one"
        )
    return given, keys


def _typed_keys(path: Path, given: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The columns that name a pair: row numbers as integers, ids as text.

    Raises:
        SchemaError: a row number that is no whole number.
    """
    kind = np.int64 if keys == ["row_id"] else str
    try:
        named = given[keys].astype(kind)
    except (TypeError, ValueError) as error:
        raise SchemaError(f"{path}: column {keys[0]} holds a value that is no whole number ({error})") from error
    if kind is np.int64 and len(cut := np.flatnonzero(pd.to_numeric(given["row_id"]) != named["row_id"])):
        value = given["row_id"].iloc[cut[0]]
        raise SchemaError(f"{path}, row {cut[0]}: row_id {value} is no whole number ({len(cut)} such rows)")
    return named


def _named(row: "pd.Series[Any]", keys: Sequence[str]) -> str:
    return ", ".join(f"{key} {row[key]!r}" for key in keys)


@dataclass(frozen=True, slots=True)
class ScoreScale:
    """The map from an external score to our scale: slope · (score − mean) / deviation − shift."""

    mean: float
    deviation: float
    slope: float
    shift: float
    thresholds: tuple[float, ...]
    """Mean zero."""

    def scores(self, raw: Floats) -> Floats:
        return self.slope * (raw - self.mean) / self.deviation - self.shift


def fit(raw: Floats, grades: Ints, indices: Ints) -> ScoreScale:
    """The ordinal model of the grades by one number, of greatest likelihood on these pairs.

    Args:
        raw: (pairs,) scores, higher is better.
        grades: (pairs,); the highest of all says how many thresholds there are.
        indices: the pairs to learn from.

    Raises:
        TrainingError: no pair has a grade above 0, all scores are equal, or higher ones go with lower grades.

    Source: McCullagh, Regression models for ordinal data, JRSS B 1980.
    """
    top = int(grades.max(initial=0))
    if top < 1 or not len(indices):
        raise TrainingError("external scores: no training pair has a grade above 0, so they cannot be brought to scale")
    mean, deviation = float(raw[indices].mean()), float(raw[indices].std())
    if not deviation > 0:
        raise TrainingError(
            f"external scores: all {len(indices)} training pairs have the score {mean}; nothing to learn"
        )
    slope, thresholds = _most_likely((raw[indices] - mean) / deviation, grades[indices], top)
    if not slope > 0:
        raise TrainingError(
            f"external scores: higher scores go with lower grades (slope {slope:.3f} on "
            f"{len(indices)} training pairs); "
            "turn their sign, or exchange external_teacher.positive and external_teacher.negative"
        )
    shift = float(thresholds.mean())
    return ScoreScale(mean, deviation, slope, shift, tuple((thresholds - shift).tolist()))


def _most_likely(standardised: Floats, grades: Ints, top: int) -> tuple[float, Tensor]:
    """The slope and the ascending thresholds, (top,), of the ordinal model of these grades, with the priors above.

    Args:
        standardised: (pairs,) scores of mean 0 and deviation 1.
        grades: (pairs,) from 0 to `top`.
        top: the highest grade.
    """
    scores, wanted = torch.from_numpy(standardised), torch.from_numpy(grades)  # (n,) float64, (n,)
    every, none = torch.arange(top + 1), scores.new_zeros(top + 1)
    slope = scores.new_ones(1).requires_grad_()
    counts = np.bincount(grades, minlength=top + 1) + PRIOR_PAIRS
    below = np.cumsum(counts)[:-1]
    start = torch.from_numpy(np.log(below / (counts.sum() - below)))
    first = start[:1].clone().requires_grad_()
    gaps = torch.log(torch.expm1(start.diff())).requires_grad_()

    def thresholds() -> Tensor:
        return torch.cat([first, first + F.softplus(gaps).cumsum(0)])

    def loss() -> Tensor:
        levels = thresholds()
        likely = ranking.ordinal_loss(slope * scores, wanted, levels, total=1)
        prior = PRIOR_PAIRS * ranking.ordinal_loss(none, every, levels, total=1)
        return (likely + prior + (slope / SLOPE_DEVIATION).square().sum() / 2) / len(scores)

    search = torch.optim.LBFGS(
        [slope, first, gaps], max_iter=200, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def step() -> Tensor:
        search.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    search.step(step)  # type: ignore[no-untyped-call]
    return float(slope.detach()), thresholds().detach()
