"""The console that all output for a person goes through: it shows each text as it is."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def plain_console(**settings: Any) -> "Console":
    """A Rich console that takes no text for markup or for the name of an emoji.

    By default Rich leaves out `[old]` of the path `data/[old]/ratings.csv`, fails at `[/old]`, and draws `:key:`.
    Styles are set by `rich.text.Text` or by the `style` of a table.

    Args:
        settings: further settings of `rich.console.Console`.
    """
    from rich.console import Console

    return Console(markup=False, emoji=False, **settings)
