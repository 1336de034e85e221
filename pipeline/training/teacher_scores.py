"""The teacher scores stage: scores of every pair and first-token states of chosen layers, computed once.

`score` gives the scores of any cross-encoder without states, by which a report judges it. Both are the longest
inferences of the chain; `part_scorer` keeps finished parts, so a killed run goes on after them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline import compute, disk
from pipeline.artifacts import Artifact, Staging
from pipeline.compute import ComputeEngine
from pipeline.errors import ConfigError
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.stage import Stage
from pipeline.training import score_files
from pipeline.training.loop import pair_passages, scoring, shards
from pipeline.training.loop.pair_tokens import Pairs, read_pairs
from pipeline.training.part_scorer import PartScorer, ScoringRun, StateFile, score_in_parts
from pipeline.training.tasks.teacher_targets import joined

STAGE = Stage(
    "teacher_scores",
    version=1,
    inputs={"teacher": ("teacher", "ranker"), "data": "data", "pairs": ("pairs", "mined")},
)
SCORES = Stage("scores", version=1, inputs={"model": ("teacher", "ranker"), "data": "data", "pairs": ("pairs", "pool")})

MEAN = Stage(
    "teacher_scores",
    version=1,
    inputs={"first": "teacher_scores", "others": "teacher_scores"},
    title="mean of several teachers",
)

DIRECTIONS_SAMPLE = 4096
"""Number of pairs from whose states the principal directions are computed."""


@STAGE
def make(
    workspace: Path,
    *,
    teacher: Artifact,
    data: Artifact,
    pairs: Artifact,
    layers: Sequence[int],
    width: int,
    engine: ComputeEngine = compute.LOCAL,
) -> Artifact:
    """The `teacher_scores` artifact: the scores and states of all pairs.

    scores.parquet   row_id, score (raw, float32)
    states.npy       (rows, layers, width) float16, in the order of scores.parquet; absent without layers
    states.json      layers, width, share of the states' square that the projection keeps, for each layer
    passages.npy     (rows, 2) int32, where the teacher reads long documents in passages: first token, and the one
                     after the last, of the passage with the highest score; 0, 0 for a document that it read whole

    The score of a document in passages is joined from theirs; its states are those of the best passage.

    Args:
        workspace: the folder that holds `artifacts/`.
        teacher: the trained teacher.
        data: documents and queries.
        pairs: all pairs that students learn from.
        layers: teacher layers, from 1, whose first-token states are stored.
        width: the student's width; wider states are projected on their principal directions, which keep inner
            products best, so that a narrower student can be compared with them.
        engine: where the pairs are scored.

    Raises:
        ConfigError: a layer that the teacher does not have, or states narrower than `width`.
        TrainingError: a score is not a number.
    """

    def build(staging: Staging) -> Mapping[str, Any]:
        model, table = _opened(teacher, data, pairs)
        _check_states(model, layers, width)
        run = ScoringRun(staging.checkpoint, "teacher scores", engine)
        scores: scoring.Floats | None = None
        stats: dict[str, Any] = {"pairs": len(table)}
        if model.template.passages is not None:
            cut = pair_passages.cut(table, model.template)
            passage_scores = score_in_parts(PartScorer(teacher, loaded=model), cut.inputs, run, name="passages")
            best = score_files.write_best_passages(staging.folder, cut, passage_scores)
            scores, table = cut.joined(passage_scores), pair_passages.rows_of(cut.inputs, best)
            stats |= cut.stats
        if layers:
            project, kept = _projection(model, table, layers, width, staging.checkpoint)
            scorer = PartScorer(teacher, layers=layers, project=project, loaded=model)
            states = StateFile.opened(staging.checkpoint, (len(table), len(layers), width))
            scores_of_inputs = score_in_parts(scorer, table, run, states=states)
            scores = scores_of_inputs if scores is None else scores
            states.link(staging.folder)
            about_states = {"layers": list(layers), "width": width, "kept": [round(share, 4) for share in kept]}
            disk.write_atomically(staging.folder / "states.json", json.dumps(about_states) + "\n", json.loads)
            stats |= about_states
        elif scores is None:
            scores = score_in_parts(PartScorer(teacher, loaded=model), table, run)
        score_files.write_scores(staging.folder, table.rows, scores)
        return stats

    return STAGE.make(
        workspace,
        config={"layers": list(layers), "width": width},
        inputs={"teacher": teacher, "data": data, "pairs": pairs},
        build=build,
    )


def _check_states(model: CrossEncoder, layers: Sequence[int], width: int) -> None:
    """Checks that the teacher has states of these layers that a student of this width can be compared with.

    Raises:
        ConfigError: a layer that the teacher does not have, or states narrower than `width`.
    """
    if any(not 1 <= layer <= model.layers for layer in layers):
        raise ConfigError(f"ranker.layer_map {list(layers)}: the teacher has layers 1 to {model.layers}")
    if layers and model.hidden < width:
        raise ConfigError(
            f"the student is {width} wide and the teacher {model.hidden}; set ranker.hidden_weight to 0, as the "
            "states of a narrower teacher cannot be matched"
        )


@MEAN
def mean(workspace: Path, *, first: Artifact, others: Sequence[Artifact]) -> Artifact:
    """The `teacher_scores` artifact of several teachers: the mean of their scores, and the states of the first.

    Each other teacher's scores are brought to the mean and spread of the first's, whose thresholds they are read with.

    Args:
        workspace: the folder that holds `artifacts/`.
        first: scores and states of the first teacher.
        others: scores of the same pairs by the others; at least one.

    Raises:
        ArtifactError: the others lack a pair.
    """

    def build(staging: Staging) -> Mapping[str, Any]:
        table = pq.read_table(first.file("scores.parquet"))
        rows = table.column("row_id").to_numpy()
        own = table.column("score").to_numpy().astype(np.float64)
        scores = [own]
        for other in others:
            values = joined(other, rows)[0].astype(np.float64)
            spread = values.std() or 1.0
            scores.append((values - values.mean()) / spread * own.std() + own.mean())
        score_files.link_states_and_passages(first, staging.folder)
        score_files.write_scores(staging.folder, rows, np.mean(scores, axis=0).astype(np.float32))
        agreement = np.corrcoef(np.stack(scores))[0, 1:].round(4).tolist()
        return {"pairs": len(rows), "teachers": len(scores), "correlation_with_first": agreement}

    inputs: dict[str, Artifact | str] = {"scores": first, "teacher": first.manifest.inputs["teacher"]}
    inputs |= {f"others {number}": other for number, other in enumerate(others)}
    return MEAN.make(workspace, config={}, inputs=inputs, build=build)


@SCORES
def score(
    workspace: Path,
    *,
    model: Artifact,
    data: Artifact,
    pairs: Artifact,
    split: str,
    engine: ComputeEngine = compute.LOCAL,
) -> Artifact:
    """The `scores` artifact: scores.parquet (row_id, score) of any cross-encoder on one split of a table of pairs."""

    def build(staging: Staging) -> Mapping[str, Any]:
        loaded, table = _opened(model, data, pairs, split)
        cut = pair_passages.cut(table, loaded.template)
        run = ScoringRun(staging.checkpoint, f"scores of the {model.manifest.kind}", engine)
        scores = score_in_parts(PartScorer(model, loaded=loaded), cut.inputs, run)
        score_files.write_scores(staging.folder, table.rows, cut.joined(scores))
        return {"pairs": len(table), **cut.stats}

    inputs = {"model": model, "data": data, "pairs": pairs}
    return SCORES.make(workspace, config={"split": split}, inputs=inputs, build=build)


def _opened(model: Artifact, data: Artifact, pairs: Artifact, split: str = "") -> tuple[CrossEncoder, Pairs]:
    """The model, and its tokens of all pairs or of those of one split."""
    loaded = CrossEncoder.load(model.path).to(scoring.device())
    template = loaded.template
    table = read_pairs(
        data,
        pairs,
        loaded.tokenizer,
        max_query_tokens=template.max_query_tokens,
        max_tokens=template.document_tokens,
        split=split,
    )
    return loaded, table


def _projection(
    model: CrossEncoder, table: Pairs, layers: Sequence[int], width: int, checkpoint: Path
) -> tuple[Tensor | None, list[float]]:
    """The leading directions of each layer's states, (layers, hidden, width), and the share of their square kept.

    The directions are None where the states are not wider than `width`. They are kept in `checkpoint`.
    """
    if model.hidden <= width:
        return None, [1.0] * len(layers)
    arrays = shards.kept(checkpoint, "directions", lambda: _directions(model, table, layers, width))
    where = next(model.parameters()).device
    return torch.from_numpy(arrays["directions"].copy()).to(where), arrays["kept"].tolist()


def _directions(model: CrossEncoder, table: Pairs, layers: Sequence[int], width: int) -> shards.Arrays:
    """`directions` (layers, hidden, width) float32 and `kept` (layers,), from a sample of the pairs."""
    sample = np.sort(np.random.default_rng(0).permutation(len(table))[:DIRECTIONS_SAMPLE])
    parts: list[Tensor] = []
    scoring.cross_scores(
        model,
        table,
        sample,
        label="principal directions",
        layers=layers,
        keep_states=lambda _, states: parts.append(states.double().cpu()),
    )
    states = torch.cat(parts)  # (sample, layers, hidden)
    moments = torch.einsum("nlh,nlk->lhk", states, states)
    values, vectors = torch.linalg.eigh(moments)  # ascending
    kept = values[:, -width:].sum(1) / values.sum(1)
    return {"directions": vectors[:, :, -width:].flip(2).float().contiguous().numpy(), "kept": kept.numpy()}
