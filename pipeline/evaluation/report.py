"""The report: how good several systems are on the same judged queries, for people and for machines.

report.json        all contents, as plain values
per_query.parquet  query_id, slice, system, and a column for each measure; what the gate reads
report.html        the same for a reader; one self-contained page
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Artifact, Input, Staging
from pipeline.config import EvaluationConfig
from pipeline.errors import ConfigError
from pipeline.evaluation import examples, page, queries_to_try, runs, surfaces, thresholds
from pipeline.evaluation.per_query import judged, measures, per_query, ranking, settings
from pipeline.evaluation.report_summary import finite, summary
from pipeline.evaluation.runs import RunFile
from pipeline.evaluation.systems import RANKER
from pipeline.outside import OutsideFile
from pipeline.stage import Stage

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

STAGE = Stage(
    "report",
    version=2,
    inputs={"data": "data", "systems": "systems", "pool": ("pairs", "pool")},
    section="evaluation",
)
OF_RUN = Stage("report", version=2, inputs={"data": "data"}, section="evaluation", title="report on run files")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportPlan:
    """The title of a report, the systems that it compares, and the split whose queries they are judged on."""

    title: str
    baseline: str = ""
    """Name of the system that the others are compared with; the first system when empty."""
    subject: str = ""
    """Name of the system that the report is about; the last system when empty."""
    split: str | None = "test"
    """The split whose judged queries are used; all judged queries without it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportStats:
    """Numbers and texts beside the measures: label → value, or a group label → {label → value}.

    A group of groups is shown as a table with a row for each.
    """

    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Facts that are part of the report's fingerprint."""
    measured: Mapping[str, Any] = field(default_factory=dict)
    """Seconds, rates and other values that differ from run to run; no part of the fingerprint."""


NO_STATS = ReportStats()


@STAGE
def make(
    workspace: Path,
    config: EvaluationConfig,
    *,
    data: Artifact,
    systems: Artifact | Mapping[str, Path],
    plan: ReportPlan,
    pool: Artifact | None = None,
    stats: ReportStats = NO_STATS,
) -> Artifact:
    """A report artifact on systems that ranked the judged queries of one split.

    Args:
        systems: a `systems` artifact, or name → file. Either way the order is the order of appearance. A file is a
            run (query_id, doc_id, score; of several systems the rows whose column `system` is the name), or scores
            (row_id, score) of all rows of `pool`.
        pool: the pairs that give a scores file its queries and documents.

    Raises:
        ConfigError: an unknown baseline or subject, or no system.
        SchemaError: a file that is no run, faulty scores, no judged queries.
    """
    rerank = RANKER
    if isinstance(systems, Artifact):
        rerank = str(systems.metrics.get("rerank", RANKER))
        files = {str(name): RunFile(systems.file("run.parquet"), str(name)) for name in systems.metrics["systems"]}
        inputs: dict[str, Input] = {"data": data, "systems": systems}
    else:
        files = {name: RunFile(path) for name, path in systems.items()}
        inputs = {"data": data, **_outside(files)}
    if pool is not None:
        inputs["pool"] = pool
    return _make(workspace, config, _Material(data, files, pool, stats, inputs, rerank), plan)


@OF_RUN
def make_from_run(
    workspace: Path, config: EvaluationConfig, *, data: Artifact, systems: Mapping[str, RunFile], plan: ReportPlan
) -> Artifact:
    """A report artifact on run files that came from anywhere, with the judgments of a data artifact.

    Raises:
        ConfigError: an unknown baseline or subject, or no system.
        SchemaError: a file that is no run, faulty scores, no judged queries.
    """
    return _make(workspace, config, _Material(data, systems, None, NO_STATS, {"data": data, **_outside(systems)}), plan)


@dataclass(frozen=True, slots=True)
class _Material:
    """The inputs of a report."""

    data: Artifact
    files: Mapping[str, RunFile]
    pool: Artifact | None
    stats: ReportStats
    inputs: Mapping[str, Input]
    rerank: str = RANKER
    """The system whose order `/rerank` gives."""


def _outside(files: Mapping[str, RunFile]) -> dict[str, Input]:
    """Name in a fingerprint → run file; one that is missing is reported when it is read."""
    labels = {name: name if file.system in ("", name) else f"{name} ({file.system})" for name, file in files.items()}
    return {
        f"system:{labels[name]}": OutsideFile.at(file.path) if file.path.is_file() else ""
        for name, file in files.items()
    }


def _make(workspace: Path, config: EvaluationConfig, material: _Material, plan: ReportPlan) -> Artifact:
    names = list(material.files)
    plan = replace(plan, baseline=plan.baseline or next(iter(names), ""), subject=plan.subject or "".join(names[-1:]))
    for role, name in (("baseline", plan.baseline), ("subject", plan.subject)):
        if name not in names:
            raise ConfigError(f"report: the {role} '{name}' is none of the systems {', '.join(names) or '(none)'}")

    def build(staging: Staging) -> Mapping[str, Any]:
        return _write(staging.folder, config, material, plan)

    about = {"split": plan.split, "baseline": plan.baseline, "subject": plan.subject, "title": plan.title}
    return STAGE.make(
        workspace,
        config={
            **settings(config, material.data),
            **about,
            "systems": names,
            "facts": finite(dict(material.stats.fixed)),
        },
        inputs=material.inputs,
        build=build,
    )


@dataclass(frozen=True, slots=True)
class _JudgedSystems:
    """The systems of a report, judged query by query."""

    ranked: Mapping[str, "pa.Table"]
    """Name of a system → the judged rows of its run; see `per_query.ranking`."""
    judgments: "pa.Table"
    """The judgments of the plan's split."""
    frame: "pd.DataFrame"
    """A row for each query and system, a column for each measure; see `per_query.per_query`."""
    headline: "pd.DataFrame"
    """The values of the first measure: a row for each query, a column for each system."""


def _run(name: str, file: RunFile, pool: Artifact | None) -> "pa.Table":
    return runs.read(file.path, file.system or name, pool, is_named=bool(file.system))


def _judged_systems(config: EvaluationConfig, material: _Material, plan: ReportPlan) -> _JudgedSystems:
    """Reads the runs and judges them on the queries of the plan's split."""
    judgments, other_queries = judged(material.data, plan.split, clicks=config.clicks)
    ranked = {
        name: ranking(_run(name, file, material.pool), material.data, other_queries)
        for name, file in material.files.items()
    }
    judged_ids = set(judgments["query_id"].unique().to_pylist())
    for name, run in ranked.items():
        runs.check_queries(name, run, judged_ids)
    frame = per_query(material.data, ranked, judgments, config)
    headline = frame.pivot(index="query_id", columns="system", values=measures(config)[0])
    return _JudgedSystems(ranked, judgments, frame, headline)


def _write(folder: Path, config: EvaluationConfig, material: _Material, plan: ReportPlan) -> Mapping[str, Any]:
    """Judges the systems, writes the three files of a report, and returns its metrics."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    systems = _judged_systems(config, material, plan)
    content = _content(config, material, plan, systems)
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / "report.json").write_text(text, encoding="utf-8")
    values_only = pa.Table.from_pandas(systems.frame.drop(columns=["missed", "unanswerable"]), preserve_index=False)
    pq.write_table(values_only, folder / "per_query.parquet", compression="zstd")
    gaps = (systems.headline[plan.subject] - systems.headline[plan.baseline]).to_numpy()
    (folder / "report.html").write_text(page.render(content, gaps), encoding="utf-8")
    measure = content["headline"]
    return {
        "measure": measure,
        "queries": content["queries"]["judged"],
        "systems": {name: item["measures"][measure] for name, item in content["systems"].items()},
        "surfaces": content["surfaces"],
    }


def _content(
    config: EvaluationConfig, material: _Material, plan: ReportPlan, systems: _JudgedSystems
) -> dict[str, Any]:
    """The content of report.json."""
    content = {
        "title": plan.title,
        "split": plan.split or "all",
        "subject": plan.subject,
        "baseline": plan.baseline,
        "data": material.data.fingerprint,
        "pool": material.pool.fingerprint if material.pool else None,
        "facts": {**material.stats.fixed, **material.stats.measured},
        **summary(systems.frame, plan.baseline, config),
    }
    content["surfaces"] = surfaces.worth(systems.headline, content["headline"], config, material.rerank)
    for name, counts in _counts(systems.ranked, systems.judgments).items():
        content["systems"][name] |= counts
    content["examples"] = examples.make(
        material.data,
        systems.ranked,
        systems.judgments,
        systems.headline,
        subject=plan.subject,
        baseline=plan.baseline,
        count=config.examples,
    )
    content["examples"]["to_try"] = queries_to_try.of_report(material.data, systems.headline[plan.subject])
    content["thresholds"] = thresholds.measure(systems.ranked, systems.judgments, config.relevant_from)
    plain: dict[str, Any] = finite(content)
    return plain


def _counts(ranked: Mapping[str, "pa.Table"], judgments: "pa.Table") -> dict[str, dict[str, int]]:
    """Name of a run → `depth`, its longest list, and `unjudged_queries`, the number of its queries without judgment."""
    known = set(judgments.column("query_id").unique().to_pylist())
    counts = {}
    for name, run in ranked.items():
        lengths = run.column("query_id").value_counts().to_pylist()
        counts[name] = {
            "depth": max((item["counts"] for item in lengths), default=0),
            "unjudged_queries": sum(item["values"] not in known for item in lengths),
        }
    return counts
