"""The report: how good several systems are on the same judged queries, for people and for machines.

report.json        everything that is said, as plain values
per_query.parquet  query_id, slice, system, and a column for each measure; what the gate reads
report.html        the same for a reader; one page without outside parts
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import artifacts
from pipeline.artifacts import Artifact, Staging
from pipeline.config import EvaluationConfig
from pipeline.errors import ConfigError
from pipeline.evaluation import definitions, examples, page, runs, significance
from pipeline.evaluation.metrics import RANGE
from pipeline.evaluation.per_query import judged, measures, per_query, ranking, settings
from pipeline.stage import Stage

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from rich.console import RenderableType

STAGE = Stage(
    "report",
    version=2,
    inputs={"data": "data", "systems": "systems", "pool": ("pairs", "pool")},
    section="evaluation",
)
OF_RUN = Stage("report", version=2, inputs={"data": "data"}, section="evaluation", title="report on run files")

log = logging.getLogger(__name__)


@STAGE
def make(
    workspace: Path,
    config: EvaluationConfig,
    *,
    data: Artifact,
    systems: Artifact | Mapping[str, Path],
    baseline: str,
    title: str,
    split: str = "test",
    subject: str | None = None,
    pool: Artifact | None = None,
    facts: Mapping[str, Any] | None = None,
    measured: Mapping[str, Any] | None = None,
) -> Artifact:
    """A report artifact on systems that ranked the judged queries of one split.

    Args:
        systems: a `systems` artifact, or name → file. Either way the order is the order of appearance. A file is a
            run (query_id, doc_id, score; of several systems the rows whose column `system` is the name), or scores
            (row_id, score) of all rows of `pool`.
        baseline: name of the system that the others are compared with.
        subject: name of the system that the page is about; the last one without it.
        facts: label → number or text, or a group: label → {label → number or text}. A group of groups is shown as
            a table, a row for each.
        measured: more facts, which differ from run to run (seconds, rates): shown alike, but not in the fingerprint.

    Raises:
        ConfigError: an unknown baseline or subject, or no system.
        SchemaError: a file that is no run, faulty scores, no judged queries.
    """
    about = _About(baseline=baseline, subject=subject, title=title, split=split)
    return _make(workspace, config, data, systems, about, pool, facts or {}, measured or {})


@OF_RUN
def make_from_run(
    workspace: Path,
    config: EvaluationConfig,
    *,
    data: Artifact,
    systems: Mapping[str, Path],
    title: str,
    baseline: str | None = None,
    split: str | None = None,
) -> Artifact:
    """A report artifact on run files that came from anywhere, with the judgments of a data artifact.

    Args:
        systems: name → TREC run file, or Parquet with query_id, doc_id, score.
        baseline: the first system without it; the report is about the last.
        split: whose judged queries are used; all without it.

    Raises:
        ConfigError: an unknown baseline, or no system.
        SchemaError: a file that is no run, faulty scores, no judged queries.
    """
    about = _About(baseline=baseline or next(iter(systems), ""), subject=None, title=title, split=split)
    return _make(workspace, config, data, systems, about, None, {}, {})


@dataclass(frozen=True, kw_only=True, slots=True)
class _About:
    baseline: str
    subject: str | None
    title: str
    split: str | None


def _make(
    workspace: Path,
    config: EvaluationConfig,
    data: Artifact,
    systems: Artifact | Mapping[str, Path],
    about: _About,
    pool: Artifact | None,
    facts: Mapping[str, Any],
    measured: Mapping[str, Any],
) -> Artifact:
    inputs: dict[str, Artifact | str] = {"data": data}
    if isinstance(systems, Artifact):
        inputs["systems"] = systems
        files = {str(name): systems.file("run.parquet") for name in systems.metrics["systems"]}
    else:
        files = dict(systems)
        digests = {path: artifacts.sha256(path) for path in set(files.values()) if path.is_file()}
        inputs |= {f"system:{name}": digests.get(path, "") for name, path in files.items()}
    if pool is not None:
        inputs["pool"] = pool
    baseline, subject, split = about.baseline, about.subject or next(reversed(files), ""), about.split
    for role, name in (("baseline", baseline), ("subject", subject)):
        if name not in files:
            raise ConfigError(f"report: the {role} '{name}' is none of the systems {', '.join(files) or '(none)'}")

    def build(staging: Staging) -> Mapping[str, Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        judgments, others = judged(data, split, clicks=config.clicks)
        ranked = {name: ranking(runs.read(path, name, pool), data, others) for name, path in files.items()}
        frame = per_query(data, ranked, judgments, config)
        found = {
            "title": about.title,
            "split": split or "all",
            "subject": subject,
            "baseline": baseline,
            "data": data.fingerprint,
            "pool": pool.fingerprint if pool else None,
            "facts": {**facts, **measured},
            **summary(frame, baseline, config),
        }
        for name, counts in _counts(ranked, judgments).items():
            found["systems"][name] |= counts
        values = frame.pivot(index="query_id", columns="system", values=found["headline"])
        found["examples"] = examples.make(
            data, ranked, judgments, values, subject=subject, baseline=baseline, count=config.examples
        )
        found = finite(found)
        text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        (staging.folder / "report.json").write_text(text, encoding="utf-8")
        values_only = pa.Table.from_pandas(frame.drop(columns=["missed", "unanswerable"]), preserve_index=False)
        pq.write_table(values_only, staging.folder / "per_query.parquet", compression="zstd")
        gaps = (values[subject] - values[baseline]).to_numpy()
        (staging.folder / "report.html").write_text(page.render(found, gaps), encoding="utf-8")
        return {
            "measure": found["headline"],
            "queries": found["queries"]["judged"],
            "systems": {name: item["measures"][found["headline"]] for name, item in found["systems"].items()},
        }

    return STAGE.make(
        workspace,
        config={
            **settings(config, data),
            "split": split,
            "baseline": baseline,
            "subject": subject,
            "title": about.title,
            "systems": list(files),
            "facts": finite(dict(facts)),
        },
        inputs=inputs,
        build=build,
    )


def summary(frame: "pd.DataFrame", baseline: str, config: EvaluationConfig) -> dict[str, Any]:
    """What `per_query` comes to: intervals and differences to the baseline, by slice too; counts; definitions."""
    names = list(dict.fromkeys(frame["system"]))
    parts = {name: frame[frame["system"] == name].reset_index(drop=True) for name in names}
    first = parts[names[0]]
    headline = measures(config)[0]
    systems = _compared(parts, baseline, config)
    unanswerable = first["unanswerable"].to_numpy()
    for name, part in parts.items():
        systems[name]["missed"] = int(part["missed"].sum())
        answerable = part.loc[~unanswerable, headline]
        systems[name]["answerable_mean"] = float(answerable.mean()) if len(answerable) else math.nan
    slices = {}
    known = sorted(set(first["slice"])) if first["slice"].nunique() > 1 else []
    for slice_name in known:
        here = {name: part[part["slice"] == slice_name] for name, part in parts.items()}
        slices[slice_name or "(none)"] = {
            "queries": len(here[names[0]]),
            "systems": _compared(here, baseline, config),
        }
    return {
        "headline": headline,
        "cutoff": config.cutoff,
        "measures": list(measures(config)),
        "queries": {"judged": len(first), "without_relevant": int(unanswerable.sum())},
        "systems": systems,
        "slices": slices,
        "definitions": definitions.of(config),
    }


def _compared(
    parts: Mapping[str, "pd.DataFrame"], baseline: str, config: EvaluationConfig
) -> dict[str, dict[str, Any]]:
    """Of each system its intervals and its differences to the baseline; p values corrected over the systems."""
    columns = list(measures(config))
    tables = {name: part[columns].to_numpy(dtype=np.float64) for name, part in parts.items()}
    spans = significance.intervals(
        np.hstack(list(tables.values())), resamples=config.bootstrap, seed=config.seed, bounds=RANGE
    )
    found: dict[str, dict[str, Any]] = {}
    for place, name in enumerate(tables):
        own = spans[place * len(columns) : (place + 1) * len(columns)]
        found[name] = {
            "measures": {column: asdict(span) for column, span in zip(columns, own, strict=True)},
            "difference": None,
        }
    others = [name for name in tables if name != baseline]
    if others:
        gaps = significance.differences(
            np.hstack([tables[name] for name in others]),
            np.hstack([tables[baseline]] * len(others)),
            resamples=config.bootstrap,
            seed=config.seed,
            bounds=RANGE,
        )
        for place, name in enumerate(others):
            own_gaps = gaps[place * len(columns) : (place + 1) * len(columns)]
            found[name]["difference"] = {column: asdict(gap) for column, gap in zip(columns, own_gaps, strict=True)}
        for column in columns:
            cells = [found[name]["difference"][column] for name in others]
            for cell, corrected in zip(cells, significance.holm([cell["p"] for cell in cells]), strict=True):
                cell["p_holm"] = corrected
    return found


def _counts(ranked: Mapping[str, "pa.Table"], judgments: "pa.Table") -> dict[str, dict[str, int]]:
    """Documents a query at most, and queries without judgments, of each run."""
    known = set(judgments.column("query_id").unique().to_pylist())
    found = {}
    for name, run in ranked.items():
        lengths = run.column("query_id").value_counts().to_pylist()
        found[name] = {
            "depth": max((item["counts"] for item in lengths), default=0),
            "unjudged_queries": sum(item["values"] not in known for item in lengths),
        }
    return found


def finite(value: Any) -> Any:
    """The same plain values with None for every float that is not finite, as JSON has none."""
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, Mapping):
        return {str(name): finite(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [finite(item) for item in value]
    return value


def card(report: Mapping[str, Any]) -> "RenderableType":
    """The report's headline table for a terminal.

    Args:
        report: what report.json holds.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    headline, baseline = report["headline"], report["baseline"]
    shown = [name for name in report["measures"] if name != headline]
    table = Table(title=Text(report["title"]), title_justify="left", box=None, pad_edge=False)
    table.add_column("system")
    for name in (f"{headline} [95 %]", f"vs {baseline}", "p", *shown):
        table.add_column(Text(name), justify="right")
    for name, system in report["systems"].items():
        value, gap = system["measures"][headline], (system["difference"] or {}).get(headline)
        cells = [
            page.interval(value),
            page.signed(gap["mean"]) if gap else "·",
            page.p_value(gap["p"]) if gap else "·",
            *(page.value(system["measures"][column]["mean"]) for column in shown),
        ]
        style = "bold" if name == report["subject"] else ""
        table.add_row(Text(name), *map(Text, cells), style=style)
    queries = report["queries"]
    foot = f"{queries['judged']:,} judged queries ({report['split']})"
    if queries["without_relevant"]:
        foot += f", {queries['without_relevant']:,} of them without a relevant document, which count 0"
    return Group(table, Text(foot, style="dim"))
