"""Tables of texts, as Markdown for a README and for a terminal."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from pipeline.text import printable

if TYPE_CHECKING:
    from rich.table import Table


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table; what ends a cell or a line of it is escaped."""
    head, *body = (
        "| " + " | ".join(printable(cell).replace("|", "\\|") for cell in row) + " |" for row in (heads, *rows)
    )
    return [head, "|---" * len(heads) + "|", *body]


def terminal(heads: Sequence[str], rows: Sequence[Sequence[str]], *, texts: Collection[str] = ()) -> "Table":
    """A table for a terminal, with names at the left and numbers to the right.

    Args:
        heads: headings of the columns; the first column holds names.
        rows: the cells.
        texts: headings of further columns that hold no numbers.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for number, head in enumerate(heads):
        table.add_column(Text(head), justify="right" if number and head not in texts else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
