"""The report as one self-contained HTML page: no scripts, no external files, every text escaped."""

import math
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation import plots, significance
from pipeline.surface_warnings import surface_warnings
from pipeline.text import signed

LABELS = {
    "ndcg": "nDCG",
    "ndcg_exp": "nDCG, 2^g − 1",
    "mrr": "MRR",
    "map": "MAP",
    "recall": "recall",
    "pairwise": "pairwise accuracy",
    "judged": "judged",
    "precision": "precision",
}
"""Name of a measure without its cutoff → its label."""


def label(measure: str) -> str:
    """A measure's name as people write it: `ndcg_exp@10` → nDCG@10, 2^g − 1."""
    name, _, cutoff = measure.partition("@")
    words = LABELS.get(name, name)
    if not cutoff:
        return "recall, whole list" if name == "recall" else words
    first, comma, rest = words.partition(",")
    return f"{first}@{cutoff}{comma}{rest}"


def value(number: float | None, digits: int = 3) -> str:
    """The number with this many decimals, or a dash where it is not defined."""
    return "–" if number is None or not math.isfinite(number) else f"{number:.{digits}f}"


def p_value(number: float | None) -> str:
    """A p value with two decimals, with three below 0.1, or `< 0.001`; a dash where it is not defined."""
    if number is None or not math.isfinite(number):
        return "–"
    return "< 0.001" if number < 0.001 else f"{number:.3f}" if number < 0.1 else f"{number:.2f}"


def interval(span: Mapping[str, Any], digits: int = 3) -> str:
    """The mean with the ends of its interval, such as 0.612 [0.590, 0.634]."""
    mean, low, high = (value(span[name], digits) for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def fact(item: Any) -> str:
    """A number or text of the facts table: thousands apart, four digits of a fraction, yes or no."""
    if item is None:
        return "–"
    if isinstance(item, bool):
        return "yes" if item else "no"
    if isinstance(item, int):
        return f"{item:,}"
    if isinstance(item, float):
        return f"{item:,.0f}" if abs(item) >= 1000 else f"{item:.4g}"
    return ", ".join(map(fact, item)) if isinstance(item, (list, tuple)) else str(item)


def words(key: str) -> str:
    """A key as words: index_build_seconds → index build seconds."""
    return re.sub(r"[_\s]+", " ", key).strip()


def verdict(gap: Mapping[str, Any] | None) -> str:
    """The verdict on a difference: better, worse, or no difference shown; interval and sign-flip test must agree."""
    if gap is None or gap["low"] is None:
        return ""
    sure = gap["p"] is not None and gap["p"] <= 1 - significance.CONFIDENCE + significance.TIE
    return "better" if sure and gap["low"] > 0 else "worse" if sure and gap["high"] < 0 else "no difference shown"


def render(report: Mapping[str, Any], gaps: NDArray[np.float64]) -> str:
    """The page of a report.

    Args:
        report: what report.json holds.
        gaps: (queries,) the subject's headline minus the baseline's.
    """
    headline, systems = report["headline"], report["systems"]
    spans = [system["measures"][headline] for system in systems.values()]
    scale = plots.AxisScale.over([span[end] for span in spans for end in ("low", "high")])
    differences = {name: system["difference"] and system["difference"][headline] for name, system in systems.items()}
    ends = [gap[end] for gap in differences.values() if gap for end in ("low", "high")]
    bars, edge = plots.sorted_bars(gaps)
    groups, single_facts = _grouped(report["facts"])
    return (
        _template()
        .render(
            report=report,
            warnings=surface_warnings(report["surfaces"]),
            subject=systems[report["subject"]],
            gap=differences[report["subject"]],
            gaps=differences,
            scale=scale,
            gap_scale=plots.AxisScale.over([*ends, 0.0], step=0.02),
            bars=bars,
            edge=edge,
            groups=groups,
            single_facts=single_facts,
        )
        .strip()
        + "\n"
    )


def _grouped(values: Mapping[str, Any]) -> tuple[dict[str, Mapping[str, Any]], dict[str, Any]]:
    """Facts that are groups, and those that stand alone."""
    groups = {name: item for name, item in values.items() if isinstance(item, Mapping)}
    return groups, {name: item for name, item in values.items() if name not in groups}


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.evaluation", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "label": label,
        "value": value,
        "signed": signed,
        "p": p_value,
        "fact": fact,
        "words": words,
        "verdict": verdict,
    }
    environment.globals |= {"interval": plots.interval}
    return environment.get_template("report.html")
