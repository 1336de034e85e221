"""A study of compression: what each method to make the ranker small keeps, what it costs, and a verdict.

    keeps    nDCG and pairwise accuracy on the test queries, and the share of the gap from the plain student to the
             teacher that is closed
    costs    pairs per second of one core and bytes of the exported model, seconds of all trainings that it takes
             beside the teacher's: those of assistants, further teachers, general distillation and a search too
    verdict  from the valid queries; the test queries of the table take no part in it

A row is on the front if no row that is at least as fast and as small has a better mean on the valid queries, or the
same mean and is faster or smaller. Otherwise it is tied with the best such row or surely below it, by a paired test
over queries, corrected by Holm for all pairs of rows that could be compared so. Rows that lack a seed take no part.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import disk
from pipeline.artifacts import Artifact, Staging
from pipeline.config import EvaluationConfig
from pipeline.evaluation import ablation, fronts, report_stats, study_table, training_costs
from pipeline.evaluation.ablation import AblationRun
from pipeline.evaluation.per_query import measures
from pipeline.evaluation.per_query import settings as per_query_settings
from pipeline.evaluation.report_summary import finite
from pipeline.stage import Stage

STAGE = Stage(
    "study",
    version=4,
    inputs={"data": "data", "pool": "pool", "speeds": "speeds", "references": "scores", "students": "scores"},
    section="study",
)


@dataclass(frozen=True, slots=True)
class StudentCost:
    """The trained and the exported model of one seed, whose metrics give training time, speed and size."""

    model: Artifact
    bundle: Artifact
    tried: tuple[Artifact, ...] = ()
    """Models that were trained to find this one's shape."""

    def seconds(self, workspace: Path, teacher: Artifact) -> float:
        """Seconds of all trainings that it takes beside the teacher's."""
        return training_costs.seconds_of(workspace, [self.model, *self.tried], [teacher])


@dataclass(frozen=True, slots=True)
class StudyRow:
    """One method to compress the ranker, in one precision (number format)."""

    name: str
    summary: str
    source: str
    precision: str
    costs: tuple[StudentCost, ...]
    """One entry a seed; fewer than the study asks for where its time ended early."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyTable:
    """The rows of a study and how they are shown."""

    title: str
    ceiling: str
    """The reference whose lead over the first row is the gap to be closed."""
    seeds: int
    """Number of seeds that each row should have."""
    rows: tuple[StudyRow, ...]
    """The rows, the first of which is the baseline."""
    shared: Artifact
    """The teacher, whose training is no cost of a row."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Known methods that cannot apply to the recipe's models, with the reason."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Methods whose training failed, with the reason; they have no row."""

    def incomplete(self) -> list[str]:
        """The rows that lack a seed."""
        return [row.name for row in self.rows if len(row.costs) < self.seeds]


def row_name(method: str, precision: str) -> str:
    """The name of a method in a precision; that of fp32 is left out."""
    return method if precision == "fp32" else f"{method} {precision}"


@STAGE
def make(
    workspace: Path,
    config: EvaluationConfig,
    *,
    data: Artifact,
    pool: Artifact,
    speeds: Artifact,
    references: Sequence[AblationRun],
    students: Sequence[AblationRun],
    plan: StudyTable,
) -> Artifact:
    """The `study` artifact: study.json, table.md, per_query.parquet, and the fronts as speed.svg and bytes.svg.

    Args:
        pool: the pairs that the scores are of.
        speeds: pairs per CPU-second of each bundle, measured by turns.
        references: systems that are shown beside the rows and get no verdict; `plan.ceiling` is one of them.
        students: the scores of every trained student; the kind is the name of its row.
        plan: the rows.

    Raises:
        SchemaError: no judged query in a split.
    """
    trials = [*references, *students]
    inputs: dict[str, Artifact | str] = {"data": data, "pool": pool, "speeds": speeds}
    for trial in trials:
        inputs |= {f"{trial.kind} {trial.seed} {split}": scores for split, scores in trial.scores.items()}

    def build(staging: Staging) -> Mapping[str, Any]:
        frames = {split: ablation.values_per_query(config, data, pool, trials, split) for split in ("valid", "test")}
        trained = [row for row in plan.rows if row.costs]
        valid = ablation.query_tables(frames["valid"], [row.name for row in trained], list(measures(config))[:1])
        costs = {row.name: _costs(workspace, row, plan.shared, speeds) for row in trained}
        rows = _rows(costs, plan, valid, config)
        study = finite(
            {
                "title": plan.title,
                "ceiling": plan.ceiling,
                **ablation.compared(frames["test"], references, students, plan.ceiling, config),
                "rows": rows,
                "valid_queries": len(next(iter(valid.values()))),
                "incomplete": plan.incomplete(),
                "refused": dict(plan.refused),
                "failed": dict(plan.failed),
            }
        )
        _write(staging.folder, study)
        ablation.write_per_query(frames, staging.folder / "per_query.parquet")
        return {"front": [name for name, row in rows.items() if row.get("front")], "incomplete": plan.incomplete()}

    settings = {
        **per_query_settings(config, data),
        "trials": [[trial.kind, trial.seed] for trial in trials],
        "rows": [[row.name, row.summary, row.source, row.precision, len(row.costs)] for row in plan.rows],
        "tried": sorted({item.fingerprint for row in plan.rows for cost in row.costs for item in cost.tried}),
        "ceiling": plan.ceiling,
        "seeds": plan.seeds,
        "title": plan.title,
        "refused": dict(plan.refused),
        "failed": dict(plan.failed),
        "shared": plan.shared.fingerprint,
    }
    return STAGE.make(workspace, config=settings, inputs=inputs, build=build)


def _write(folder: Path, study: Mapping[str, Any]) -> None:
    """Writes a study as JSON and as a table, and its fronts as plots where two rows or more are complete."""
    text = json.dumps(study, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    disk.write_atomically(folder / "study.json", text, json.loads)
    disk.write_atomically(folder / "table.md", study_table.markdown(study), str)
    if len(set(study["rows"]) - set(study["incomplete"])) > 1:
        for cost, label in fronts.COSTS.items():
            disk.write_atomically(folder / f"{cost}.svg", fronts.front_plot(study, cost, label), str)


def _rows(
    costs: Mapping[str, dict[str, Any]],
    plan: StudyTable,
    valid: Mapping[str, ablation.Floats],
    config: EvaluationConfig,
) -> dict[str, dict[str, Any]]:
    """Name of a row → its costs, its mean on the valid queries and its verdict.

    Args:
        costs: name of a row that has a trained student → its costs.
        valid: name of a row → (queries, 1) values.
    """
    means = {name: float(ablation.means_of(table)[0]) for name, table in valid.items()}
    rows = {name: row | {"valid": means[name]} for name, row in costs.items()}
    complete = {name: row for name, row in rows.items() if name not in plan.incomplete()}
    judged = fronts.verdicts(complete, valid, config)
    return {name: row | judged.get(name, {"verdict": "incomplete"}) for name, row in rows.items()}


def _costs(workspace: Path, row: StudyRow, teacher: Artifact, speeds: Artifact) -> dict[str, Any]:
    """Speed and size of the exported model of the first seed, and the mean training time over the seeds."""
    rates = json.loads(speeds.file("speeds.json").read_text(encoding="utf-8"))
    first = row.costs[0].bundle
    seconds = [item.seconds(workspace, teacher) for item in row.costs]
    return {
        "summary": row.summary,
        "source": row.source,
        "precision": row.precision,
        "seeds": len(row.costs),
        "speed": rates[first.fingerprint][row.precision],
        "bytes": report_stats.bundle(first)["precisions"][row.precision]["bytes"],
        "training_seconds": float(np.mean(seconds)),
        "unimproved": all(_unimproved(item.model) for item in row.costs),
    }


def _unimproved(model: Artifact) -> bool:
    """Whether no evaluation in a model's training was better than that before it, whose weights it has kept then."""
    return bool(model.metrics.get("evaluations")) and model.metrics.get("best_step") == 0
