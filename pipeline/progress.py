"""Progress that a person can follow: a live bar on a terminal, a line every few seconds elsewhere."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

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


@dataclass(slots=True)
class _Meter:
    """The amount of work done, and its rate in this run."""

    unit: str
    done: float
    """The amount that an earlier, interrupted run has done already."""
    reached: float
    note: str = ""
    began: float = field(default_factory=time.monotonic)

    def add(self, amount: float, note: str) -> None:
        """Adds to the work done; an empty note keeps the last one."""
        self.reached, self.note = self.reached + amount, note or self.note

    def rate(self) -> float:
        """Units per second."""
        return (self.reached - self.done) / max(time.monotonic() - self.began, 1e-9)

    def __str__(self) -> str:
        """The rate and the last note."""
        speed = self.rate()
        text = f"{speed:,.1f}" if speed < 100 else f"{speed:,.0f}"
        return f"{text} {self.unit}/s" + (f", {self.note}" if self.note else "")


@contextmanager
def bar(label: str, total: float, unit: str, done: float = 0.0) -> Iterator[Advance]:
    """Shows how much of `total` is done, the rate in `unit`/s of this run, and the time left.

    Args:
        label: what is being done, in a few words.
        total: the amount of work, in `unit`.
        unit: plural, such as pairs or documents.
        done: what an earlier, interrupted run has done already.
    """
    from pipeline import terminal

    console, meter = terminal.plain_console(stderr=True), _Meter(unit, done, done)
    with _live_bar(label, total, meter, console) if console.is_terminal else _lines(label, total, meter) as advance:
        yield advance


@contextmanager
def _live_bar(label: str, total: float, meter: _Meter, console: "Console") -> Iterator[Advance]:
    """A bar on a terminal."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    texts = [
        TextColumn(text, markup=False)  # A column reads markup whatever the console's own setting is.
        for text in ("{task.description:<28}", "{task.percentage:>3.0f} %", "{task.fields[words]}")
    ]
    columns = (texts[0], BarColumn(24), *texts[1:], TimeRemainingColumn())
    with Progress(*columns, console=console) as live:
        task = live.add_task(label, total=max(total, 1e-9), words="")
        live.update(task, completed=meter.done)

        def advance(amount: float, note: str = "", total: float | None = None) -> None:
            meter.add(amount, note)
            live.update(task, completed=meter.reached, total=total, words=str(meter))

        yield advance


@contextmanager
def _lines(label: str, total: float, meter: _Meter) -> Iterator[Advance]:
    """A log line every LINE_S seconds, and one at the end."""
    shown, all_units = meter.began, total

    def advance(amount: float, note: str = "", total: float | None = None) -> None:
        nonlocal shown, all_units
        meter.add(amount, note)
        all_units = total or all_units
        if time.monotonic() - shown >= LINE_S:
            shown = time.monotonic()
            left = (all_units - meter.reached) / max(meter.rate(), 1e-9)
            share = 100 * meter.reached / max(all_units, 1e-9)
            log.info("%s: %3.0f %%, %s, %.0f s left", label, share, str(meter), left)

    yield advance
    # Work of a few seconds is part of a stage, which has a line of its own.
    level = logging.INFO if shown > meter.began else logging.DEBUG
    amount = f"{meter.reached - meter.done:,.0f}"
    log.log(level, "%s: %s %s in %.1f s", label, amount, meter.unit, time.monotonic() - meter.began)
