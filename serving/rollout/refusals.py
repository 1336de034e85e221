"""The release that a process refused, and when it tries that again."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import RelevanceError
from serving.errors import NotReadyError
from serving.rollout import trials
from serving.rollout.arrival import RETRY_S, FolderStamp, folder_stamp, may_pass
from serving.scoring.searcher import Searcher

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A release that was not taken."""

    release: str
    reason: str
    when: str
    """UTC."""


class Refusals:
    """The last release that was refused, the number of refusals, and the time of the next attempt."""

    def __init__(self, folder: Callable[[str], Path]) -> None:
        """
        Args:
            folder: fingerprint of a release → the folder of its files.
        """
        self.last: Refusal | None = None
        """The last release that was refused, until another one is taken."""
        self.count = 0
        self.retry_at: float | None = None
        """Time of the next attempt, by the monotonic clock; None where no passing reason is known."""
        self.pause_s = 0.0
        """Seconds between the last two looks for the shards of a release that waits for them."""
        self._folder = folder
        self._files: FolderStamp = ()
        """The files of the release when it was refused."""
        self._latest_files: FolderStamp = ()
        """Its files at the last poll."""

    def refuse(self, name: str, error: Exception, *, kept: Searcher | None) -> None:
        """Counts and logs the refusal of a release; sets the next attempt where the error may pass.

        Args:
            kept: the release that goes on answering; None where there is none.
        """
        expected = isinstance(error, RelevanceError)
        reason = str(error) if expected else f"{type(error).__name__}: {error}"
        self.last = Refusal(name, reason, trials.now())
        self.count += 1
        self._files = self._latest_files = folder_stamp(self._folder(name))
        if may_pass(error):
            self.retry_at = time.monotonic() + RETRY_S
        goes_on = kept.release[:12] if kept else "none"
        log.error(
            "release %s: refused, %s goes on: %s", name[:12], goes_on, reason, exc_info=None if expected else error
        )

    def wait(self, name: str, reason: str, *, kept: Searcher | None, poll_s: float) -> None:
        """Refuses a release until its shards are there; logs that once, and looks again after pauses that double.

        Args:
            poll_s: the first pause, in seconds.
        """
        if self.last is None or self.last.release != name:
            self.refuse(name, NotReadyError(reason), kept=kept)
            self.pause_s = poll_s
        else:
            self.last = replace(self.last, reason=reason)
            self.pause_s = min(2 * self.pause_s, RETRY_S)
        self.retry_at = time.monotonic() + self.pause_s

    def retry_is_due(self) -> bool:
        """Whether to try the refused release again: some time after a passing reason, or when its files have changed.

        A pointer may arrive before the files that it names (rsync, NFS). Files that change between two polls are still
        arriving, so the release is tried when two polls in a row see the same.
        """
        if self.retry_at is not None and time.monotonic() >= self.retry_at:
            return True
        if self.last is None:
            return False
        files = folder_stamp(self._folder(self.last.release))
        settled, self._latest_files = files == self._latest_files, files
        return settled and files != self._files
