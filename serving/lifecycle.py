"""Which release answers: loaded at the start, replaced when the pointer moves, kept when the new one is not sound.

The pointer file is looked at each second. A new release is loaded and checked in the background while the old one
answers; then one reference changes. A request holds the reference it began with, so it ends with the release it began
with, and the old one leaves memory when its last request does. A release that cannot be loaded, or does not give the
scores its exporter saw, is refused: the old one goes on, the log and `/readyz` say why.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipeline.errors import RelevanceError
from pipeline.releases import Releases
from serving.engine import has_cuda, runners
from serving.errors import NotReadyError
from serving.reranker import Caches
from serving.scheduler import Scheduler
from serving.searcher import Searcher
from serving.settings import Settings
from serving.shared_cache import SharedCache

log = logging.getLogger(__name__)

Load = Callable[[Path], Searcher]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A release that was not taken."""

    release: str
    reason: str
    when: str
    """UTC."""


class Lifecycle:
    """The release that answers now, and the thread that keeps it up to date."""

    def __init__(self, settings: Settings, load: Load | None = None) -> None:
        self.settings = settings
        self.shared = SharedCache(settings.redis_url, ttl_s=settings.redis_ttl_s) if settings.redis_url else None
        self.caches = Caches.of(settings.cache_bytes, self.shared)
        on_cuda = settings.precision not in ("int8", "w8") and has_cuda()
        self.scheduler = Scheduler(runners("cuda") if on_cuda else settings.threads or runners("cpu"))
        """Runs the models of every release that is loaded."""
        self.refused: Refusal | None = None
        """The last release that was refused, until another one is taken."""
        self.swaps = 0
        self.refusals = 0
        self._load = load or self._open
        self._releases = Releases(settings.workspace)
        self._current: Searcher | None = None
        self._seen: tuple[int, int, int] | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def loaded(self) -> Searcher | None:
        """What answers now, or None before the first release."""
        return self._current

    @property
    def current(self) -> Searcher:
        """What a request that begins now is answered by.

        Raises:
            NotReadyError: no release was loaded yet.
        """
        current = self._current
        if current is None:
            why = f" ({self.refused.reason})" if self.refused else ""
            raise NotReadyError(f"no release is loaded yet{why}; run `relevance retrain`, or look at /readyz")
        return current

    def start(self) -> None:
        """Loads the release that the settings name, then follows the pointer if that name is live.

        Raises:
            RelevanceError: it is missing, damaged or not what its exporter saw.
        """
        self._seen = self._stamp()
        self._current = self._load(self._folder(self._releases.resolve(self.settings.release)))
        self.watch()

    def watch(self) -> None:
        """Follows the pointer in the background, if the release's name is live; also without a first release."""
        if self.settings.release == "live" and self._thread is None:
            self._thread = threading.Thread(target=self._follow, name="release-watch", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stops following; the release goes on answering."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def close(self) -> None:
        """Stops following and ends the runners: nothing is answered any more."""
        self.stop()
        self.scheduler.stop()
        if self.shared is not None:
            self.shared.stop()

    def poll(self) -> None:
        """Looks at the pointer once, and takes the release that it names if that is another one and sound."""
        stamp = self._stamp()
        if stamp is None or stamp == self._seen:
            return
        self._seen = stamp
        name = "live"
        try:
            name = self._releases.resolve("live")
            if self._current is not None and name == self._current.release:
                self.refused = None
                return
            log.info("release %s: the pointer names it, loading", name[:12])
            began = time.monotonic()
            fresh = self._load(self._folder(name))
        except Exception as error:
            reason = str(error) if isinstance(error, RelevanceError) else f"{type(error).__name__}: {error}"
            self.refused = Refusal(name, reason, datetime.now(UTC).isoformat(timespec="seconds"))
            self.refusals += 1
            kept = self._current.release[:12] if self._current else "none"
            log.error(
                "release %s: refused, %s goes on: %s",
                name[:12],
                kept,
                reason,
                exc_info=not isinstance(error, RelevanceError),
            )
            return
        self._current, self.refused = fresh, None
        self.swaps += 1
        log.info("release %s: answers from now on, after %.1f s of loading", name[:12], time.monotonic() - began)

    def _follow(self) -> None:
        while not self._stop.wait(self.settings.poll_s):
            self.poll()

    def _stamp(self) -> tuple[int, int, int] | None:
        """Changes whenever the pointer file is replaced; one stat, no reading."""
        try:
            found = (self._releases.root / "live.json").stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size

    def _folder(self, release: str) -> Path:
        return self.settings.workspace / "artifacts" / "release" / release

    def _open(self, path: Path) -> Searcher:
        return Searcher(path, precision=self.settings.precision, caches=self.caches, scheduler=self.scheduler)
