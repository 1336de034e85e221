"""The card of a report for a terminal: its headline table, and each service path's gain over its first stage."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline import surface_warnings
from pipeline.evaluation import page
from pipeline.text import counted, signed

if TYPE_CHECKING:
    from rich.console import RenderableType


def card(report: Mapping[str, Any]) -> "RenderableType":
    """Warnings, the headline table, the numbers of queries and a line for each service path, for a terminal.

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
            signed(gap["mean"]) if gap else "·",
            page.p_value(gap["p"]) if gap else "·",
            *(page.value(system["measures"][column]["mean"]) for column in shown),
        ]
        style = "bold" if name == report["subject"] else ""
        table.add_row(Text(name), *map(Text, cells), style=style)
    queries = report["queries"]
    foot = f"{counted(queries['judged'], 'judged query')} ({report['split']})"
    if queries["without_relevant"]:
        foot += f", {queries['without_relevant']:,} of them without a relevant document, which count 0"
    warnings = surface_warnings.marked(surface_warnings.surface_warnings(report.get("surfaces", {})))
    return Group(*warnings, table, Text(foot, style="dim"), *map(Text, surface_lines(report)))


def surface_lines(report: Mapping[str, Any]) -> list[str]:
    """One line for each service path with its gain and interval; empty for a report without `surfaces`.

    Args:
        report: values with the key `surfaces`, as report.json and a card have them.
    """
    lines = []
    for path, gap in report.get("surfaces", {}).items():
        ends = f"[{signed(gap['low'])}, {signed(gap['high'])}]"
        lines.append(
            f"{path}  {gap['system']} against {gap['first_stage']}: {signed(gap['mean'])} {ends}, {gap['verdict']}"
        )
    return lines
