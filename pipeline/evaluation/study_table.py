"""The table of a study, for a README and for a terminal."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.evaluation import ablation_table, page, text_tables
from pipeline.text import counted

if TYPE_CHECKING:
    from rich.console import RenderableType

VERDICT = "verdict on valid queries"
"""Heading of the last column."""


def cells(study: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the table as texts: references first, then the rows by nDCG."""
    shown = ablation_table.tabled(study)
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
            line += [
                page.interval(system["ceiling"][shown[0]], digits=4),
                f"{row['speed']:,.0f}",
                f"{row['bytes'] / 1e6:,.1f}",
                f"{row['training_seconds']:,.0f}",
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
    sentences += ablation_table.gap_remarks(study)
    unimproved = [name for name, row in study["rows"].items() if row["unimproved"]]
    if unimproved:
        sentences.append(
            f"Trained without a gain on the valid queries, so equal to what they began as: {', '.join(unimproved)}. "
            "Give them more steps or another learning rate before you judge the method."
        )
    if study["incomplete"]:
        sentences.append(
            f"Incomplete, without a verdict and not on the front: {', '.join(study['incomplete'])}. Run the study "
            "again to complete it."
        )
    sentences += [f"{name} cannot apply: {reason}." for name, reason in study["refused"].items()]
    sentences += [f"{name} could not be trained, {reason}." for name, reason in study["failed"].items()]
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
