"""The life cycle of releases in one process.

A release is loaded at the start, replaced when the pointer moves, and kept when the new one is not sound.

The pointer file is looked at each second. A new release is loaded and checked in the background while the old one
answers; then one reference changes. A request holds the reference it began with, so it ends with the release it began
with. The old one stays in memory for a rollback without loading, `kept_releases` of them; those before leave with their
last request. A release that cannot be loaded, or does not give the scores its exporter saw, is refused: the old one
goes on, the log, `/readyz` and the metrics say so.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.command_line import typed
from pipeline.releases import Releases
from pipeline.surface_warnings import surface_warnings
from pipeline.text import counted
from serving.errors import NotFoundError, NotReadyError
from serving.rollout import trials
from serving.rollout.arrival import RETRY_S, check_complete
from serving.rollout.refusals import Refusal, Refusals
from serving.rollout.traffic import Rollout
from serving.runtime.processor import has_cuda, runners
from serving.runtime.scheduler import Scheduler
from serving.scoring.process_caches import Caches
from serving.scoring.redis_cache import SharedCache
from serving.scoring.searcher import Searcher
from serving.scoring.sharded import ShardClient, ShardedSearcher
from serving.settings import Settings

LOOKS = 15
"""Looks for a run that does not come back, in the time after which the worker is replaced; if `poll_s` is shorter,
there are more."""

log = logging.getLogger(__name__)

Load = Callable[[Path], Searcher]

Role = Literal["live", "canary", "shadow", "kept", "compared"]


@dataclass(frozen=True, slots=True)
class HeldRelease:
    """A release that this process holds, and the reasons why."""

    searcher: Searcher
    roles: tuple[Role, ...]


class Lifecycle:
    """The release that answers now, those kept and those on trial, and the thread that keeps all up to date."""

    def __init__(self, settings: Settings, load: Load | None = None) -> None:
        self.settings = settings
        self.shared = SharedCache(settings.redis_url, ttl_s=settings.redis_ttl_s) if settings.redis_url else None
        self.caches = Caches.of(settings.cache_bytes, self.shared)
        on_cuda = settings.precision not in ("int8", "w8") and has_cuda()
        self.scheduler = Scheduler(runners("cuda") if on_cuda else settings.threads or runners("cpu"))
        """Runs the models of every release that is loaded."""
        self.shards = ShardClient(settings.shards, settings.shards_key) if settings.shards else None
        """Asks the services that hold the documents; None where the releases hold them."""
        self.rollout = Rollout(settings, self.scheduler)
        self.releases = Releases(settings.workspace)
        self.refusals = Refusals(self._folder)
        self.swaps = 0
        self._load = load or self._open
        self._current: Searcher | None = None
        self._held: dict[str, Searcher] = {}
        """All loaded releases by fingerprint: the live one, the kept ones, those on trial."""
        self._before: list[str] = []
        """The kept ones, the latest first."""
        self._compared = ""
        """Fingerprint of the release that the settings name for comparison."""
        self._polling = threading.RLock()
        self._seen: trials.Stamp | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def loaded(self) -> Searcher | None:
        """The live release, or None before the first one."""
        return self._current

    @property
    def current(self) -> Searcher:
        """The live release.

        Raises:
            NotReadyError: no release was loaded yet.
        """
        current = self._current
        if current is None:
            why = f" ({self.refused.reason})" if self.refused else ""
            listing = typed("releases list", self.settings.workspace)
            raise NotReadyError(f"no release is loaded yet{why}; `{listing}` shows those that there are")
        return current

    @property
    def refused(self) -> Refusal | None:
        """The last release that was refused, until another one is taken."""
        return self.refusals.last

    @property
    def kept(self) -> list[str]:
        """Fingerprints of the releases that were live and are still in memory, the latest first."""
        return list(self._before)

    @property
    def held(self) -> list[HeldRelease]:
        """The releases that are loaded: the live one, those on trial, those kept and the compared one."""
        canary, shadow, known = self.rollout.active.canary, self.rollout.active.shadow, self._held
        holders: list[tuple[Role, list[Searcher | None]]] = [
            ("live", [self._current]),
            ("canary", [canary.searcher if canary else None]),
            ("shadow", [shadow.searcher if shadow else None]),
            ("kept", [known.get(name) for name in self._before]),
            ("compared", [known.get(self._compared)]),
        ]
        roles: dict[str, HeldRelease] = {}
        for role, searchers in holders:
            for searcher in filter(None, searchers):
                before = roles[searcher.release].roles if searcher.release in roles else ()
                roles[searcher.release] = HeldRelease(searcher, (*before, role))
        return list(roles.values())

    def loaded_as(self, name: str) -> Searcher:
        """The loaded release whose fingerprint begins so.

        Raises:
            NotFoundError: none does, or several do.
        """
        searchers = [release.searcher for release in self.held]
        fitting = [searcher for searcher in searchers if name and searcher.release.startswith(name)]
        if len(fitting) != 1:
            known = ", ".join(searcher.release[:12] for searcher in searchers)
            how_many = "several loaded releases begin" if fitting else "no loaded release begins"
            raise NotFoundError(f"{how_many} with {name[:64]!r}; loaded are {known}")
        return fitting[0]

    def loaded_with(self, collection: str) -> Searcher:
        """A loaded release that holds a shard of this collection, the live one first.

        Raises:
            NotFoundError: none does.
        """
        searchers = [release.searcher for release in self.held]
        for searcher in searchers:
            if searcher.collection_id == collection:
                return searcher
        known = ", ".join(f"{item.release[:12]} of {item.collection_id[:12] or 'none'}" for item in searchers)
        raise NotFoundError(f"no loaded release holds a shard of collection {collection[:12]}; loaded are {known}")

    def start(self) -> None:
        """Loads the release that the settings name, then follows the pointer, if that name is live, and the trials.

        Where the live release is not sound, the one that was live before it answers, as it would if this process had
        been running when the pointer moved.

        Raises:
            RelevanceError: it is missing, damaged or not what its exporter saw, and so is the one before; or so is the
                release to compare with.
        """
        self._seen = self._stamp()
        name = self.releases.resolve(self.settings.release)
        try:
            first = self._load(self._folder(name))
        except Exception as error:
            if self.settings.release != "live":
                raise
            first = self._previous(error)
            self.refusals.refuse(name, error, kept=first)
        self._current = first
        self._held = {first.release: first}
        if self.settings.compare:
            self._compared = self.releases.resolve(self.settings.compare)
            if self._searcher(self._compared) is first:
                log.warning("release %s answers already; there is no other to compare it with", first.release[:12])
        _announce(first)
        self.rollout.active.begin_settings(first, self.releases.resolve)
        self._follow_trials()
        self.watch()

    def watch(self) -> None:
        """Follows the pointer, if the release's name is live, and the trials in the background; also without a first
        release."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._follow, name="release-watch", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stops following; the release goes on answering."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
        self.rollout.stop()

    def close(self) -> None:
        """Stops following and ends the runners: nothing is answered any more."""
        self.stop()
        self.scheduler.stop()
        if self.shared is not None:
            self.shared.stop()
        if self.shards is not None:
            self.shards.close()

    def poll(self) -> None:
        """Looks at the pointer and the trials once, and takes what they name if that is another release and sound."""
        with self._polling:
            if self.settings.release == "live":
                self._follow_pointer()
            self._follow_trials()

    def stats(self) -> dict[str, Any]:
        """The releases that are refused, kept and on trial, as JSON."""
        return {
            "refused": asdict(self.refused) if self.refused else None,
            "kept": self.kept,
            **self.rollout.stats(),
        }

    def _follow_pointer(self) -> None:
        again = self.refusals.retry_is_due()
        while (stamp := self._stamp()) is not None and (stamp != self._seen or again):
            again = False
            self._seen = stamp
            self.refusals.retry_at = None
            name = "live"
            try:
                name = self.releases.resolve("live")
                if self._current is not None and name == self._current.release:
                    self.refusals.last = None
                    return
                fresh = self._searcher(name)
                reason = self._shards_behind(fresh)
            except Exception as error:
                self.refusals.refuse(name, error, kept=self._current)
                continue
            if reason:
                self.refusals.wait(name, reason, kept=self._current, poll_s=self.settings.poll_s)
                continue
            if self._stamp() != stamp:
                continue  # The pointer moved while this release was loading, perhaps away from it.
            self._swap(fresh)
            _announce(fresh)
        if stamp is None and self._seen is not None and self._current is not None:
            self._seen = None
            gone, kept = self.releases.root / "live.json", self._current.release[:12]
            log.warning("%s is gone; release %s answers on, and no other is loaded until the file is back", gone, kept)

    def _shards_behind(self, fresh: Searcher) -> str:
        """The reason why a release must wait: fewer shards answer it than the live one; empty where it need not."""
        if self._current is None:
            return ""
        ready = fresh.probe_shards()
        if not ready.missing:
            return ""
        answering = self._current.probe_shards().answered
        if ready.answered >= answering:
            return ""
        first = ready.missing[0]
        return (
            f"{ready.answered} of its {counted(ready.of, 'shard')} answer, and {answering} of the live release's; it "
            f"is taken within {RETRY_S:.0f} s once no fewer do ({first.shard}: {first.reason})"
        )

    def _swap(self, fresh: Searcher) -> None:
        old, self._current = self._current, fresh
        self.refusals.last = None
        self.swaps += 1
        self._held[fresh.release] = fresh
        before = ([old.release] if old else []) + self._before
        predecessors = [name for name in dict.fromkeys(before) if name != fresh.release]
        self._before = predecessors[: self.settings.kept_releases]
        self._let_go()

    def _previous(self, error: Exception) -> Searcher:
        """The release that was live before, in place of one that raised `error`; raises that when there is none."""
        try:
            return self._load(self._folder(self.releases.resolve("previous")))
        except Exception as second:
            log.error("the release before it is not there either: %s", second)
            raise error from None

    def _follow_trials(self) -> None:
        if self._current is not None:
            self.rollout.active.follow(self._current, self._trial_searcher)
            self._let_go()

    def _searcher(self, name: str) -> Searcher:
        """The release with this fingerprint, loaded and checked now, unless it is held already."""
        if name not in self._held:
            log.info("release %s: loading", name[:12])
            self._held[name] = self._load(self._folder(name))
        return self._held[name]

    def _trial_searcher(self, name: str) -> Searcher:
        """The release as `_searcher` gives it; raises IncompleteReleaseError while some of its files are missing."""
        if name not in self._held:
            check_complete(self._folder(name))
        return self._searcher(name)

    def _let_go(self) -> None:
        """Forgets the releases that nothing needs any more; requests that they answer still hold them."""
        needed = {*self._before, self._compared, *self.rollout.active.needed()}
        if self._current is not None:
            needed.add(self._current.release)
        if self.refused is not None:
            needed.add(self.refused.release)  # One that is loaded waits for its shards.
        self._held = {name: held for name, held in self._held.items() if name in needed}

    def _follow(self) -> None:
        pause_s = min(self.settings.poll_s, self.settings.silent_s / LOOKS)
        polled = time.monotonic()
        while not self._stop.wait(pause_s):
            try:
                self.rollout.active.end_stalled()
                if time.monotonic() - polled >= self.settings.poll_s:
                    polled = time.monotonic()
                    self.poll()
            except Exception:
                log.exception("following the releases failed; it is tried again")

    def _stamp(self) -> trials.Stamp | None:
        return trials.stamp(self.releases.root / "live.json")

    def _folder(self, release: str) -> Path:
        return self.settings.workspace / "artifacts" / "release" / release

    def _open(self, path: Path) -> Searcher:
        precision = self.settings.precision
        if self.shards is not None:
            return ShardedSearcher(path, self.shards, precision=precision, caches=self.caches, scheduler=self.scheduler)
        return Searcher(path, precision=precision, caches=self.caches, scheduler=self.scheduler)


def _announce(searcher: Searcher) -> None:
    """Logs that a release answers from now on, and of which searches its report warns."""
    log.info("release %s: answers from now on", searcher.release[:12])
    for warning in surface_warnings(searcher.surfaces):
        log.warning("release %s: %s", searcher.release[:12], warning)
