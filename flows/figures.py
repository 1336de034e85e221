"""The figures of a command, as a table for a terminal."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def table(figures: Mapping[str, Any], title: str) -> "Table":
    """A two-column table of names and plain values."""
    from rich.table import Table

    table = Table(show_header=False, title=title, title_justify="left")
    for name, value in figures.items():
        table.add_row(name.replace("_", " "), _shown(value))
    return table


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return "none" if value in (None, "") else str(value)
