"""A study of compression: what each method to make the ranker small keeps, what it costs, and a verdict.

    keeps    nDCG and pairwise accuracy on the test queries, and the share of the gap from the plain student to the
             teacher that is closed
    costs    pairs per second of one core and bytes of the exported model, seconds of training
    verdict  from the valid queries; the test queries of the table take no part in it

A row is on the front if no row that is at least as fast and as small has a better mean on the valid queries. Otherwise
it is tied with the best such row or surely below it, by a paired test over queries, corrected by Holm for the number of
rows. Rows that lack a seed take no part.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import disk
from pipeline.artifacts import Artifact, Staging
from pipeline.config import EvaluationConfig
from pipeline.evaluation import ablation, page, plots, report_stats, significance, text_tables
from pipeline.evaluation.ablation import SURE, AblationRun
from pipeline.evaluation.metrics import RANGE
from pipeline.evaluation.per_query import measures
from pipeline.evaluation.per_query import settings as per_query_settings
from pipeline.evaluation.report_summary import finite
from pipeline.stage import Stage
from pipeline.text import counted

if TYPE_CHECKING:
    from rich.console import RenderableType

STAGE = Stage(
    "study",
    version=1,
    inputs={"data": "data", "pool": "pool", "speeds": "speeds", "references": "scores", "students": "scores"},
    section="study",
)

VERDICT = "verdict on valid queries"
"""Heading of the last column."""

SLACK = 0.02
"""Relative difference up to which two rows count as equally fast or small."""


@dataclass(frozen=True, slots=True)
class StudentCost:
    """The trained and the exported model of one seed, whose metrics give training time, speed and size."""

    model: Artifact
    bundle: Artifact


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
    refused: Mapping[str, str] = field(default_factory=dict)
    """Known methods that cannot apply to the recipe's models, with the reason."""

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
        rows = _rows(trained, plan, speeds, valid, config)
        study = finite(
            {
                "title": plan.title,
                "ceiling": plan.ceiling,
                **ablation.compared(frames["test"], references, students, plan.ceiling, config),
                "rows": rows,
                "valid_queries": len(next(iter(valid.values()))),
                "incomplete": plan.incomplete(),
                "refused": dict(plan.refused),
            }
        )
        _write(staging.folder, study)
        ablation.write_per_query(frames, staging.folder / "per_query.parquet")
        return {"front": [name for name, row in rows.items() if row.get("front")], "incomplete": plan.incomplete()}

    settings = {
        **per_query_settings(config, data),
        "trials": [[trial.kind, trial.seed] for trial in trials],
        "rows": [[row.name, row.summary, row.source, row.precision, len(row.costs)] for row in plan.rows],
        "ceiling": plan.ceiling,
        "seeds": plan.seeds,
        "title": plan.title,
        "refused": dict(plan.refused),
    }
    return STAGE.make(workspace, config=settings, inputs=inputs, build=build)


COSTS = {"speed": "pairs per CPU-second", "bytes": "bytes"}
"""Costs that a front is drawn over, with the labels of their axes."""
CHEAPER: Mapping[str, Callable[[float, float], bool]] = {
    "speed": lambda rate, rival: rate >= rival * (1 - SLACK),
    "bytes": lambda size, rival: size <= rival * (1 + SLACK),
}
"""Whether a row is at least as good in a cost as another, within the noise of measuring it."""


def _write(folder: Path, study: Mapping[str, Any]) -> None:
    """Writes a study as JSON and as a table, and its fronts as plots where two rows or more are complete."""
    text = json.dumps(study, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    disk.write_atomically(folder / "study.json", text, json.loads)
    disk.write_atomically(folder / "table.md", markdown(study), str)
    if len(set(study["rows"]) - set(study["incomplete"])) > 1:
        for cost, label in COSTS.items():
            disk.write_atomically(folder / f"{cost}.svg", front_plot(study, cost, label), str)


def _rows(
    trained: Sequence[StudyRow],
    plan: StudyTable,
    speeds: Artifact,
    valid: Mapping[str, ablation.Floats],
    config: EvaluationConfig,
) -> dict[str, dict[str, Any]]:
    """Name of a row → its costs, its mean on the valid queries and its verdict.

    Args:
        trained: the rows that have a trained student.
        valid: name of a row → (queries, 1) values.
    """
    means = {name: float(ablation.means_of(table)[0]) for name, table in valid.items()}
    rows = {row.name: _costs(row, speeds) | {"valid": means[row.name]} for row in trained}
    complete = {name: row for name, row in rows.items() if name not in plan.incomplete()}
    judged = verdicts(complete, valid, config)
    return {name: row | judged.get(name, {"verdict": "incomplete"}) for name, row in rows.items()}


def _costs(row: StudyRow, speeds: Artifact) -> dict[str, Any]:
    """Speed and size of the exported model of the first seed, and the mean training time over the seeds."""
    rates = json.loads(speeds.file("speeds.json").read_text(encoding="utf-8"))
    first = row.costs[0].bundle
    seconds = [item.model.metrics["seconds"] for item in row.costs if "seconds" in item.model.metrics]
    return {
        "summary": row.summary,
        "source": row.source,
        "precision": row.precision,
        "seeds": len(row.costs),
        "speed": rates[first.fingerprint][row.precision],
        "bytes": report_stats.bundle(first)["precisions"][row.precision]["bytes"],
        "training_seconds": float(np.mean(seconds)) if seconds else None,
    }


def verdicts(
    rows: Mapping[str, Mapping[str, Any]], valid: Mapping[str, ablation.Floats], config: EvaluationConfig
) -> dict[str, dict[str, Any]]:
    """The verdict on each row: on the front, tied with a row that costs no more, or surely below one.

    Args:
        rows: name → `speed`, `bytes` and `valid`, the mean on the valid queries.
        valid: name → (queries, 1) values.
    """
    rivals: dict[str, str] = {}
    for name, row in rows.items():
        better = [
            other
            for other, item in rows.items()
            if item["valid"] > row["valid"]
            and all(costs_no_more(item[cost], row[cost]) for cost, costs_no_more in CHEAPER.items())
        ]
        if better:
            rivals[name] = max(better, key=lambda other: rows[other]["valid"])
    p_values = [
        significance.difference(
            valid[rival][:, 0], valid[name][:, 0], resamples=config.bootstrap, seed=config.seed, bounds=RANGE
        ).p
        for name, rival in rivals.items()
    ]
    corrected = dict(zip(rivals, significance.holm(p_values), strict=True)) if rivals else {}
    judged: dict[str, dict[str, Any]] = {}
    for name in rows:
        if name not in rivals:
            judged[name] = {"front": True, "verdict": "front"}
            continue
        below = corrected[name] < SURE
        text = f"below {rivals[name]}" if below else f"tied with {rivals[name]}"
        judged[name] = {"front": False, "verdict": text, "rival": rivals[name], "p": corrected[name]}
    return judged


def cells(study: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the table as texts: references first, then the rows by nDCG."""
    shown = ablation.tabled(study)
    heads = ["method"]
    for measure in shown:
        heads += [f"{page.label(measure)} [95 %]", "gap closed"]
    heads += [f"less {study['ceiling']}", "pairs per CPU-s", "MB", "training, s", VERDICT]
    order = sorted(study["kinds"], key=lambda name: -study["systems"][name]["measures"][shown[0]]["mean"])
    lines = []
    for name in [*study["references"], *order]:
        system, row = study["systems"][name], study["rows"].get(name)
        line = [name]
        for measure in shown:
            closed = system.get("closed", {}).get(measure)
            line += [page.interval(system["measures"][measure], digits=4), "" if closed is None else f"{closed:.0%}"]
        if row is not None:
            seconds = row["training_seconds"]
            line += [
                page.interval(system["ceiling"][shown[0]], digits=4),
                f"{row['speed']:,.0f}",
                f"{row['bytes'] / 1e6:,.1f}",
                "" if seconds is None else f"{seconds:,.0f}",
                row["verdict"],
            ]
        lines.append(line + [""] * (len(heads) - len(line)))
    return heads, lines


def remarks(study: Mapping[str, Any]) -> list[str]:
    """Sentences below the table: how sure it is, what is missing, and what could not apply."""
    complete = [name for name in study["rows"] if name not in study["incomplete"]]
    sentences = [
        f"Verdicts come from {counted(study['valid_queries'], 'valid query')}, the other columns from "
        f"{counted(study['queries'], 'test query')}. {counted(len(complete), 'row', 'were')} compared."
    ]
    if study["incomplete"]:
        sentences.append(
            f"Incomplete, without a verdict and not on the front: {', '.join(study['incomplete'])}. Run the study "
            "again to complete it."
        )
    sentences += [f"{name} cannot apply: {reason}." for name, reason in study["refused"].items()]
    return sentences


def markdown(study: Mapping[str, Any]) -> str:
    """The table for a README."""
    heads, rows = cells(study)
    about = [[name, row["summary"], row["source"]] for name, row in study["rows"].items()]
    table, key = text_tables.markdown(heads, rows), text_tables.markdown(["method", "what it is", "source"], about)
    return "\n".join([f"**{study['title']}**", "", *table, "", *key, "", *remarks(study), ""])


def card(study: Mapping[str, Any]) -> "RenderableType":
    """The table for a terminal.

    Args:
        study: the content of study.json.
    """
    from rich.console import Group
    from rich.text import Text

    table = text_tables.terminal(*cells(study), texts=(VERDICT,))
    return Group(Text(study["title"]), table, *(Text(sentence) for sentence in remarks(study)))


def front_plot(study: Mapping[str, Any], cost: str, label: str) -> str:
    """nDCG on the test queries over a cost, as SVG: a numbered dot for each complete row, this cost's front joined.

    A row is on the front if no row that costs no more has a better mean on the valid queries. The dots show test
    queries, so one may lie above the line of the front.

    Args:
        study: the content of study.json.
        cost: key of a row, such as `speed`.
        label: label of the axis of the cost.
    """
    rows = {name: row for name, row in study["rows"].items() if name not in study["incomplete"]}
    points = [
        plots.Point(
            name=name,
            x=float(row[cost]),
            y=float(study["systems"][name]["measures"][study["headline"]]["mean"]),
            marked=not any(
                other["valid"] > row["valid"] and CHEAPER[cost](other[cost], row[cost]) for other in rows.values()
            ),
        )
        for name, row in rows.items()
    ]
    ceiling = float(study["systems"][study["ceiling"]]["measures"][study["headline"]]["mean"])
    axes = plots.Axes(
        x=label,
        y=f"{page.label(study['headline'])}, test queries; full: front on the valid queries",
        rule=ceiling,
        rule_name=study["ceiling"],
    )
    return str(plots.scatter(points, axes))
