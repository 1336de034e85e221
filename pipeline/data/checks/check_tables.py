"""The report on judged data as tables for a terminal."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.data.checks.check import DataReport
from pipeline.text import counted

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

SHOWN_FAULTS = 20
"""Unusable rows that `render` lists; `DataReport.to_dict` has all."""


def render(report: DataReport) -> "RenderableType":
    """The report as tables for a terminal."""
    from rich.console import Group
    from rich.text import Text

    heading = Text(f"{report.path} ({report.format})", style="bold")
    counts = _grid("counts", "rows")
    for name, value in _counts(report):
        counts.add_row(name, value)
    grades = _grid("grade", "judgments", "share")
    for grade, count in report.grades.items():
        grades.add_row(grade, f"{count:,}", f"{count / max(sum(report.grades.values()), 1):.1%}")
    published = _grid("published split", "queries", "judgments")
    for split, of in report.splits.items():
        published.add_row(split, f"{of['queries']:,}", f"{of['judgments']:,}")
    parts: list[RenderableType] = [heading, counts, grades, published, _lengths(report), *_oddities(report)]
    spaced: list[RenderableType] = []
    for part in parts:
        spaced += [part, Text("")]
    return Group(*spaced[:-1])


def _counts(report: DataReport) -> Iterator[tuple[str, str]]:
    """The names and the values of a report's counts, those of its click logs after those of its tables."""
    for name in ("documents", "queries", "judged_queries", "judgments", "one_grade_queries"):
        yield name.replace("_", " "), f"{getattr(report, name):,}"
    for log in report.clicks:
        yield "rows of the log", f"{log['rows']:,}"
        for name in (
            "impressions",
            "impressions_at_positions_alone",
            "clicks",
            "pairs",
            "pairs_of_too_few_impressions",
        ):
            yield name.replace("_", " "), f"{log[name]:,}"
        yield "examined impressions that a judged pair needs", f"{log['min_examined']:g}"


def _lengths(report: DataReport) -> "Table":
    """The table of lengths: documents of a query, and characters and tokens of each kind of text."""
    lengths = _grid("lengths (tokens are estimated)", "least", "median", "mean", "95 %", "most")
    distributions = {"documents of a query": report.list_lengths}
    for name in report.characters:
        distributions |= {f"{name}, characters": report.characters[name], f"{name}, tokens": report.tokens[name]}
    for name, lengths_of in distributions.items():
        if lengths_of:
            numbers = (lengths_of.least, lengths_of.median, lengths_of.mean, lengths_of.most_95, lengths_of.most)
            lengths.add_row(name, *(f"{number:,.1f}".removesuffix(".0") for number in numbers))
    return lengths


def _oddities(report: DataReport) -> Iterator["RenderableType"]:
    """Yields a table of what is worth a look and one of the rows that cannot be used, where there are any."""
    from rich.text import Text

    if report.noticed:
        odd = _grid("worth a look", "how often", "for example")
        odd.columns[2].justify = "left"
        for name, notice in report.noticed.items():
            odd.add_row(name, f"{notice.count:,}", Text("; ".join(notice.examples)))
        yield odd
    if report.faults:
        wrong = _grid("cannot be used", "where", "reason")
        wrong.columns[2].justify = "left"
        for fault in report.faults[:SHOWN_FAULTS]:
            wrong.add_row(fault.table, fault.where, Text(fault.reason))
        yield wrong
        if len(report.faults) > SHOWN_FAULTS:
            yield Text(f"… and {counted(len(report.faults) - SHOWN_FAULTS, 'more row')}; --json lists all")


def _grid(title: str, *columns: str) -> "Table":
    """A table without lines whose first column has the title as its heading."""
    from rich.table import Table

    grid = Table(box=None, padding=(0, 2, 0, 0))
    for number, column in enumerate((title, *columns)):
        grid.add_column(column, justify="right" if number else "left", overflow="fold")
    return grid
