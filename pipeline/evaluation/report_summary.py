"""The figures of a report: intervals, differences to a baseline and slices of a table with a row for each query."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.config import EvaluationConfig
from pipeline.evaluation import definitions, significance
from pipeline.evaluation.metrics import RANGE
from pipeline.evaluation.per_query import measures

if TYPE_CHECKING:
    import pandas as pd


def summary(frame: "pd.DataFrame", baseline: str, config: EvaluationConfig) -> dict[str, Any]:
    """The summary of a per-query table: intervals, differences to the baseline, slices, counts, definitions."""
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
    """Name of a system → its intervals and its differences to the baseline; p values corrected over the systems."""
    columns = list(measures(config))
    tables = {name: part[columns].to_numpy(dtype=np.float64) for name, part in parts.items()}
    spans = significance.intervals(
        np.hstack(list(tables.values())), resamples=config.bootstrap, seed=config.seed, bounds=RANGE
    )
    compared: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(tables):
        own = spans[number * len(columns) : (number + 1) * len(columns)]
        compared[name] = {
            "measures": {column: asdict(span) for column, span in zip(columns, own, strict=True)},
            "difference": None,
        }
    rivals = [name for name in tables if name != baseline]
    if rivals:
        gaps = significance.differences(
            np.hstack([tables[name] for name in rivals]),
            np.hstack([tables[baseline]] * len(rivals)),
            resamples=config.bootstrap,
            seed=config.seed,
            bounds=RANGE,
        )
        for number, name in enumerate(rivals):
            own_gaps = gaps[number * len(columns) : (number + 1) * len(columns)]
            compared[name]["difference"] = {column: asdict(gap) for column, gap in zip(columns, own_gaps, strict=True)}
        for column in columns:
            cells = [compared[name]["difference"][column] for name in rivals]
            for cell, corrected in zip(cells, significance.holm([cell["p"] for cell in cells]), strict=True):
                cell["p_holm"] = corrected
    return compared


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
