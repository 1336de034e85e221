"""The tables of an ablation and its verdict, for a README and for a terminal."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.evaluation import page, text_tables
from pipeline.text import counted

if TYPE_CHECKING:
    from rich.console import RenderableType

PAIRWISE = "pairwise"
"""The measure that is shown beside the headline where it is measured."""


def tabled(ablation: Mapping[str, Any]) -> list[str]:
    """The measures that get a table: the headline, and pairwise accuracy, which tells short lists apart."""
    return [ablation["headline"], *([PAIRWISE] if PAIRWISE in ablation["measures"] else [])]


def _cells(ablation: Mapping[str, Any], measure: str) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of one measure's table, as texts."""
    first, ceiling = ablation["kinds"][0], ablation["ceiling"]
    heads = [
        "system",
        f"{page.label(measure)} [95 %]",
        "seeds ±",
        f"less {first}",
        "p",
        "gap closed",
        f"less {ceiling}",
    ]
    rows = []
    for name, system in ablation["systems"].items():
        seeds = system["seeds"][measure]
        row = [name, page.interval(system["measures"][measure], digits=4)]
        row.append(f"{np.std(seeds, ddof=1):.4f}" if len(seeds) > 1 else "")
        if name in ablation["kinds"]:
            over, under, closed = system["first"][measure], system["ceiling"][measure], system["closed"][measure]
            gain = [page.interval(over, digits=4), page.p_value(over["p"]), "–" if closed is None else f"{closed:.0%}"]
            row += [*(gain if name != first else ["", "", ""]), page.interval(under, digits=4)]
        rows.append(row + [""] * (len(heads) - len(row)))
    return heads, rows


def gap_remarks(content: Mapping[str, Any]) -> list[str]:
    """A sentence on each measure whose gap is not surely above 0 on the test queries, so that shares of it say little.

    Args:
        content: what ablation.json or study.json holds.
    """
    first, ceiling = content["kinds"][0], content["ceiling"]
    remarks = []
    for measure in tabled(content):
        behind, label = (
            content["systems"][first]["ceiling"][measure],
            page.label(measure),
        )  # The first, less the ceiling.
        if behind["mean"] is None or behind["high"] < 0:
            continue
        if behind["mean"] >= 0:
            remarks.append(
                f"{ceiling} is no better than {first} in {label} here, so there is no gap that could be closed."
            )
        else:
            interval = f"[{-behind['high']:.4f}, {-behind['low']:.4f}]"
            remarks.append(
                f"{ceiling} leads {first} by {-behind['mean']:.4f} {interval} in {label}, not surely above 0, so "
                "shares of that gap say little."
            )
    return remarks


def verdict(ablation: Mapping[str, Any]) -> str:
    """The result of the choice, in a sentence or two."""
    choice = ablation["choice"]
    sentence = (
        f"On {counted(choice['queries'], 'valid query')} {choice['best']} has the best {page.label(choice['measure'])}"
    )
    if not choice["tied"]:
        return f"{sentence}, surely better than every other: it is the default that this supports."
    tied = ", ".join(choice["tied"])
    return f"{sentence}, in a tie with {tied}; the simplest of them, {choice['supported']}, is what this supports."


def markdown(ablation: Mapping[str, Any]) -> str:
    """The tables for a README."""
    lines = [f"**{ablation['title']}** ({counted(ablation['queries'], 'test query')})", ""]
    for measure in tabled(ablation):
        heads, rows = _cells(ablation, measure)
        lines += [*text_tables.markdown(heads, rows), ""]
    return "\n".join([*lines, *gap_remarks(ablation), verdict(ablation), ""])


def card(ablation: Mapping[str, Any]) -> "RenderableType":
    """The tables for a terminal.

    Args:
        ablation: what ablation.json holds.
    """
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(f"{ablation['title']}, {counted(ablation['queries'], 'test query')}")]
    for measure in tabled(ablation):
        parts += [text_tables.terminal(*_cells(ablation, measure)), Text()]
    return Group(*parts, *map(Text, gap_remarks(ablation)), Text(verdict(ablation)))
