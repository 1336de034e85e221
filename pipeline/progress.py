"""Progress that a person can follow: a live bar on a terminal, a line every few seconds elsewhere."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_S = 15.0
"""Seconds between lines where there is no terminal."""

log = logging.getLogger(__name__)

Advance = Callable[..., None]
"""advance(amount, note="", total=None): adds `amount` to the work done, shows the note, such as "loss 0.41", beside it,
and corrects the total where one is given."""


def duration(seconds: float) -> str:
    """Seconds as a person reads them: 0.3 s, 48 s or 7.2 minutes."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} minutes"


@contextmanager
def bar(label: str, total: float, unit: str, done: float = 0.0) -> Iterator[Advance]:
    """Shows how much of `total` is done, the rate in `unit`/s of this run, and the time left.

    Args:
        label: what is being done, in a few words.
        total: the amount of work, in `unit`.
        unit: plural, such as pairs or documents.
        done: what an earlier, interrupted run has done already.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    began = time.monotonic()
    reached, all_units, shown, last_note = done, total, began, ""

    def rate() -> float:
        return (reached - done) / max(time.monotonic() - began, 1e-9)

    def words() -> str:
        speed = rate()
        text = f"{speed:,.1f}" if speed < 100 else f"{speed:,.0f}"
        return f"{text} {unit}/s" + (f", {last_note}" if last_note else "")

    if console.is_terminal:
        columns = (TextColumn("{task.description:<28}"), BarColumn(24), TextColumn("{task.percentage:>3.0f} %"))
        with Progress(*columns, TextColumn("{task.fields[words]}"), TimeRemainingColumn(), console=console) as live:
            task = live.add_task(label, total=max(total, 1e-9), words="")
            live.update(task, completed=done)

            def advance(amount: float, note: str = "", total: float | None = None) -> None:
                nonlocal reached, last_note
                reached, last_note = reached + amount, note or last_note
                live.update(task, completed=reached, total=total, words=words())

            yield advance
        return

    def line(amount: float, note: str = "", total: float | None = None) -> None:
        nonlocal reached, shown, last_note, all_units
        reached, last_note, all_units = reached + amount, note or last_note, total or all_units
        if time.monotonic() - shown >= LINE_S:
            shown = time.monotonic()
            left = (all_units - reached) / max(rate(), 1e-9)
            log.info("%s: %3.0f %%, %s, %.0f s left", label, 100 * reached / max(all_units, 1e-9), words(), left)

    yield line
    # Work of a few seconds is part of a stage, which has a line of its own.
    level = logging.INFO if shown > began else logging.DEBUG
    log.log(level, "%s: %s %s in %.1f s", label, f"{reached - done:,.0f}", unit, time.monotonic() - began)
