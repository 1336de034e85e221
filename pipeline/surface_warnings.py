"""Warnings about the paths of a service whose order is surely worse than that of the cheaper stage before it."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.text import counted, signed

if TYPE_CHECKING:
    from rich.text import Text


def advice(system: str) -> str:
    """The advice to callers of a path whose order is that of this system, where it is surely worse."""
    if system == "fused":
        return "the fused order is fitted on the valid queries; judge more of them and retrain"
    return 'for the fused order send "fused": true, or call /search'


def surface_warnings(surfaces: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence for each path that is surely worse than its first stage, with what to do; empty for none.

    Args:
        surfaces: path → its worth, as `pipeline.evaluation.surfaces.worth` gives it and a release's metrics hold it.
    """
    return [
        f"{path} is surely worse than {worth['first_stage']}: {worth['measure']} {signed(worth['mean'])} "
        f"[{signed(worth['low'])}, {signed(worth['high'])}] on {counted(worth['queries'], 'query')}; "
        f"{advice(worth['system'])}"
        for path, worth in surfaces.items()
        if worth["verdict"] == "worse"
    ]


def marked(warnings: Iterable[str]) -> "list[Text]":
    """The warnings as lines that stand out in a terminal."""
    from rich.text import Text

    return [Text(f"Warning: {warning}", style="bold yellow") for warning in warnings]
