"""An ablation of losses: many students, trained alike but for their losses, compared on the same queries.

Students that differ in their seed alone are of one kind; a kind's value for a query is the mean over its seeds. So an
interval says how sure a difference is over queries for these seeds; how much the seeds themselves differ stands beside
it.

The winner is found on the valid queries, by a paired test against each other kind, corrected for all pairs of kinds.
The table shows test queries, which took no part in that.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline import disk
from pipeline.artifacts import Artifact, Staging
from pipeline.config import EvaluationConfig
from pipeline.errors import ConfigError, SchemaError
from pipeline.evaluation import ablation_table, plots, runs, significance
from pipeline.evaluation.metrics import RANGE
from pipeline.evaluation.per_query import judged, measures, per_query
from pipeline.evaluation.per_query import settings as per_query_settings
from pipeline.evaluation.report_summary import finite
from pipeline.stage import Stage
from pipeline.text import exact

if TYPE_CHECKING:
    import pandas as pd

STAGE = Stage(
    "ablation",
    version=4,
    inputs={"data": "data", "pool": "pool", "references": "scores", "students": "scores"},
    section="ablation",
)

SURE = 0.05
"""A corrected p below this is a difference."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class AblationRun:
    """One system's scores of the pool, on the valid and on the test queries."""

    kind: str
    """Students of one kind differ in their seed alone."""
    seed: int
    terms: int
    """Number of losses in use; of tied kinds the one with fewest is the simplest."""
    scores: Mapping[str, Artifact]
    """Split → scores artifact."""
    line: str = ""
    """Line on which this kind is a point, in the plot over the ratio of unlabelled pairs; empty for none."""
    unlabelled_ratio: float = 0.0


@STAGE
def make(
    workspace: Path,
    config: EvaluationConfig,
    *,
    data: Artifact,
    pool: Artifact,
    references: Sequence[AblationRun],
    students: Sequence[AblationRun],
    ceiling: str,
    measure: str = "",
    title: str,
) -> Artifact:
    """The `ablation` artifact: ablation.json, table.md, and per_query.parquet with a row for each trial and query.

    Where students stand on lines, doses-MEASURE.svg draws them over the ratio of unlabelled pairs, with a rule at the
    ceiling.

    Args:
        pool: the pairs that were scored.
        references: systems that are shown beside the students and take no part in the choice.
        students: trained students, at least one of each kind; the first kind is what the others are held against.
        ceiling: the reference whose lead over the first kind is the gap to be closed.
        measure: the measure that decides on the winner; the headline of `config` when empty.

    Raises:
        ConfigError: an unknown measure, or no student.
        SchemaError: no judged query in a split, or none for which the measure is defined.
    """
    decisive = decisive_measure(measure, config)
    if not students:
        raise ConfigError("an ablation needs students; name some in ablation.sets")
    trials = [*references, *students]
    inputs: dict[str, Artifact | str] = {"data": data, "pool": pool}
    for trial in trials:
        inputs |= {f"{trial.kind} {trial.seed} {split}": scores for split, scores in trial.scores.items()}

    def build(staging: Staging) -> Mapping[str, Any]:
        frames = {split: values_per_query(config, data, pool, trials, split) for split in ("valid", "test")}
        ablation = finite(
            {
                "title": title,
                "ceiling": ceiling,
                **compared(frames["test"], references, students, ceiling, config),
                "choice": _choice(frames["valid"], students, decisive, config),
            }
        )
        text = json.dumps(ablation, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        disk.write_atomically(staging.folder / "ablation.json", text, json.loads)
        disk.write_atomically(staging.folder / "table.md", ablation_table.markdown(ablation), str)
        for name in ablation_table.tabled(ablation) if any(trial.line for trial in students) else []:
            drawn = ratio_curves(ablation, students, name)
            disk.write_atomically(staging.folder / f"doses-{name.replace('@', '-')}.svg", drawn, str)
        write_per_query(frames, staging.folder / "per_query.parquet")
        return {"choice": ablation["choice"]["supported"], "tied": ablation["choice"]["tied"]}

    settings = {
        **per_query_settings(config, data),
        "trials": [[trial.kind, trial.seed, trial.terms] for trial in trials],
        "ceiling": ceiling,
        "measure": decisive,
        "title": title,
    }
    return STAGE.make(workspace, config=settings, inputs=inputs, build=build)


def values_per_query(
    config: EvaluationConfig, data: Artifact, pool: Artifact, trials: Sequence[AblationRun], split: str
) -> "pd.DataFrame":
    """kind, seed, query_id, slice and the measures, for each trial and judged query of the split."""
    judgments, _ = judged(data, split, clicks=config.clicks)
    ranked = {
        f"{number}": runs.read(trial.scores[split].file("scores.parquet"), trial.kind, pool, split)
        for number, trial in enumerate(trials)
    }
    frame = per_query(data, ranked, judgments, config)
    who = [trials[int(number)] for number in frame["system"]]
    frame = frame.assign(kind=[trial.kind for trial in who], seed=[trial.seed for trial in who])
    return frame[["kind", "seed", "query_id", "slice", *measures(config)]]


def write_per_query(frames: Mapping[str, "pd.DataFrame"], path: Path) -> None:
    """Writes the values of `values_per_query` with the split of each query."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pd.concat([frame.assign(split=split) for split, frame in frames.items()], ignore_index=True)
    pq.write_table(pa.Table.from_pandas(rows, preserve_index=False), path)


def query_tables(frame: "pd.DataFrame", kinds: Sequence[str], names: Sequence[str]) -> dict[str, Floats]:
    """kind → (queries, measures), the mean over its seeds; queries in one order for all."""
    means = frame.groupby(["kind", "query_id"])[list(names)].mean()
    return {kind: means.loc[kind].sort_index().to_numpy(dtype=np.float64) for kind in kinds}


def means_of(table: Floats) -> Floats:
    """(measures,) the mean of each column over the queries that define it; NaN where none does.

    Args:
        table: (queries, measures) float; NaN where a measure is not defined for a query.
    """
    defined = ~np.isnan(table)
    counts = defined.sum(axis=0)
    totals = np.where(defined, table, 0.0).sum(axis=0)
    means: Floats = np.divide(totals, counts, out=np.full(table.shape[1], np.nan), where=counts > 0)
    return means


def compared(
    frame: "pd.DataFrame",
    references: Sequence[AblationRun],
    students: Sequence[AblationRun],
    ceiling: str,
    config: EvaluationConfig,
) -> dict[str, Any]:
    """The systems with their intervals, and the differences of each kind of student to the first kind and the ceiling.

    `closed` of a kind is the share of the gap between first kind and ceiling that it closes.
    """
    names = list(measures(config))
    shown = [trial.kind for trial in references]
    kinds = list(dict.fromkeys(trial.kind for trial in students))
    first = kinds[0]
    tables = query_tables(frame, [*shown, *kinds], names)
    systems = _intervals(frame, tables, config)
    means = {name: means_of(table) for name, table in tables.items()}
    gap = means[ceiling] - means[first]
    for kind in kinds:
        own_gain = means[kind] - means[first]
        closed = {name: float(own_gain[at] / gap[at]) if gap[at] > 0 else None for at, name in enumerate(names)}
        systems[kind]["closed"] = closed
        for against, other in (("first", first), ("ceiling", ceiling)):
            differences = significance.differences(
                tables[kind], tables[other], resamples=config.bootstrap, seed=config.seed, bounds=RANGE
            )
            systems[kind][against] = {name: asdict(item) for name, item in zip(names, differences, strict=True)}
    return {
        "headline": names[0],
        "measures": names,
        "queries": len(next(iter(tables.values()))),
        "references": shown,
        "kinds": kinds,
        "systems": systems,
    }


def _intervals(
    frame: "pd.DataFrame", tables: Mapping[str, Floats], config: EvaluationConfig
) -> dict[str, dict[str, Any]]:
    """Kind → the interval of each measure, and its mean by each seed.

    Args:
        frame: a row for each trial and query.
        tables: kind → (queries, measures) means over its seeds.
    """
    names = list(measures(config))
    spans = significance.intervals(
        np.hstack(list(tables.values())), resamples=config.bootstrap, seed=config.seed, bounds=RANGE
    )
    seeds = frame.groupby(["kind", "seed"])[names].mean()
    systems: dict[str, dict[str, Any]] = {}
    for number, kind in enumerate(tables):
        own = spans[number * len(names) : (number + 1) * len(names)]
        systems[kind] = {
            "measures": {name: asdict(span) for name, span in zip(names, own, strict=True)},
            "seeds": {name: seeds.loc[kind][name].round(6).tolist() for name in names},
        }
    return systems


def decisive_measure(measure: str, config: EvaluationConfig) -> str:
    """The measure that decides on the winner: the given one, or the first of all; raises ConfigError for an unknown."""
    names = measures(config)
    if measure and measure not in names:
        raise ConfigError(f"ablation.measure '{measure}' is none of {', '.join(names)}")
    return measure or names[0]


def _choice(
    frame: "pd.DataFrame", students: Sequence[AblationRun], measure: str, config: EvaluationConfig
) -> dict[str, Any]:
    """The best kind on these queries, those it does not surely beat, and the simplest of them.

    Raises:
        SchemaError: the measure is defined for none of these queries.
    """
    loss_counts = {trial.kind: trial.terms for trial in students}
    tables = query_tables(frame, list(loss_counts), [measure])
    means = {kind: float(means_of(table)[0]) for kind, table in tables.items()}
    if np.isnan(list(means.values())).all():
        raise SchemaError(
            f"ablation.measure '{measure}' is defined for none of the valid queries, whose documents have one grade "
            "each; take another measure, such as ndcg@10: no student is trained again"
        )
    best = max(means, key=lambda kind: means[kind])
    rivals = [kind for kind in loss_counts if kind != best]
    p_values = significance.chosen_differences(
        [(tables[best][:, 0], tables[kind][:, 0]) for kind in rivals],
        family=math.comb(len(loss_counts), 2),  # Each pair could have been the best and another.
        flips=config.bootstrap,
        seed=config.seed,
    )
    corrected = dict(zip(rivals, p_values, strict=True))
    tied = [kind for kind, p in corrected.items() if p >= SURE]
    return {
        "measure": measure,
        "queries": len(tables[best]),
        "means": means,
        "best": best,
        "p": corrected,
        "tied": tied,
        "supported": min([best, *tied], key=lambda kind: (loss_counts[kind], -means[kind])),
    }


def ratio_curves(ablation: Mapping[str, Any], students: Sequence[AblationRun], measure: str) -> Markup:
    """An SVG plot of a measure over the ratio of unlabelled pairs.

    It has a curve for each set of losses, and a horizontal line at the ceiling's value.
    """
    means = {name: system["measures"][measure]["mean"] for name, system in ablation["systems"].items()}
    curves: dict[str, dict[str, float]] = {}
    for trial in sorted(students, key=lambda trial: trial.unlabelled_ratio):
        curves.setdefault(trial.line, {})[f"{exact(trial.unlabelled_ratio)}×"] = means[trial.kind]
    ceiling = ablation["ceiling"]
    return plots.lines(curves, rule=means[ceiling], rule_name=ceiling, tick="{:.3f}", step=0.005)
