"""The releases on trial beside the live one, in one small file that every process of a workspace reads.

    canary    answers a share of the requests, and is withdrawn when it falls out of its bounds
    shadow    gets copies of a share of the requests after their answers went out

    <workspace>/releases/trials.json    replaced atomically, like the pointer to the live release

Each trial has a number of its own, so who withdraws one cannot hit another that was begun meanwhile.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pipeline import disk, locks
from pipeline.errors import ArtifactError, ConfigError

Kind = Literal["canary", "shadow"]
Stamp = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """When a canary is withdrawn; each process counts its own requests.

    It is withdrawn too when a run of its model does not come back, see `ActiveTrials.end_stalled`.
    """

    min_requests: int = 100
    """Requests, or questions put to both releases, before rates of errors count. Errors that would be too many even
    then count at once."""
    max_errors: float = 0.01
    """Share of canary requests on which its model may fail where the live one does not, beyond the share of live
    requests with which it is the other way round; and, of the questions put to both, the share to which the canary
    alone may have no answer, or none within `Settings.deadline_s`."""
    max_latency: float = 1.5
    """Median of the canary's seconds over the live release's, on questions put to both past the caches."""
    compare: float = 0.2
    """Share of canary requests whose question is put to both releases, afterwards and at batch class."""
    min_compared: int = 30
    """Questions that both releases answered before overlap and latency count. Slow answers that would be too many even
    then count at once."""
    min_overlap: float = 0.5
    """Mean share of the first results that both have."""
    min_judged: int = 20
    """Different judged queries among the searches before nDCG counts; such a search is always compared."""
    max_ndcg_drop: float = 0.02
    """Mean nDCG@10 that the canary may lose on them."""

    def __post_init__(self) -> None:
        for name in ("min_requests", "min_compared", "min_judged"):
            if not getattr(self, name) >= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("max_errors", "compare", "min_overlap", "max_ndcg_drop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be between 0 and 1")
        if not (self.max_latency > 0 and math.isfinite(self.max_latency)):
            raise ConfigError(f"max_latency is {self.max_latency}; it must be a number above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A release that gets a share of the requests."""

    release: str
    """Its fingerprint."""
    share: float
    """Share of requests, from 0 to 1. At 0 a canary still answers those that ask for it."""
    number: int = 0
    """Number of this trial in its workspace; set when it begins."""
    since: str = ""
    """UTC; set when it begins."""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"share is {self.share}; it must be between 0 and 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Canary(Trial):
    """A release that answers a share of the requests."""

    bounds: Bounds


@dataclass(frozen=True, kw_only=True, slots=True)
class Withdrawal:
    """A trial that ended otherwise than by promotion."""

    kind: Kind
    release: str
    reason: str
    when: str
    """UTC."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trials:
    """The canary, the shadow and the last withdrawal."""

    count: int = 0
    """Trials begun so far."""
    canary: Canary | None = None
    shadow: Trial | None = None
    withdrawn: Withdrawal | None = None
    """The last one that was."""

    @classmethod
    def from_json(cls, text: str) -> "Trials":
        fields: dict[str, Any] = json.loads(text)
        canary, shadow, withdrawn = (fields.get(name) for name in ("canary", "shadow", "withdrawn"))
        return cls(
            count=int(fields["count"]),
            canary=Canary(**{**canary, "bounds": Bounds(**canary["bounds"])}) if canary else None,
            shadow=Trial(**shadow) if shadow else None,
            withdrawn=Withdrawal(**withdrawn) if withdrawn else None,
        )


class TrialFile:
    """The trials of one workspace, as all its processes see them."""

    def __init__(self, workspace: Path) -> None:
        self.path = workspace / "releases" / "trials.json"

    def stamp(self) -> Stamp | None:
        """Changes whenever the file is replaced; None where there is none."""
        return stamp(self.path)

    def read(self) -> Trials:
        """Reads the trials; without a file there are none.

        Raises:
            ArtifactError: the file cannot be read.
        """
        try:
            return Trials.from_json(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return Trials()
        except (OSError, ValueError, TypeError, KeyError, AttributeError, ConfigError) as error:
            raise ArtifactError(
                f"{self.path}: not readable ({error!r}); restore it from a copy, or move it "
                "elsewhere, which ends all trials"
            ) from error

    def begin(self, kind: Kind, trial: Trial) -> Trials:
        """Puts a release on trial, in place of another of the same kind.

        Raises:
            ArtifactError: the file could not be read, or written.
        """

        def edit(seen: Trials) -> Trials:
            begun: dict[str, Any] = {kind: replace(trial, number=seen.count + 1, since=now())}
            return replace(seen, count=seen.count + 1, **begun)

        return self._change(edit)

    def end(self, kind: Kind, number: int, reason: str | None) -> Trials:
        """Takes back the trial with this number; nothing if another one runs.

        Args:
            reason: kept for all to see; None after a promotion.

        Raises:
            ArtifactError: the file could not be read, or written.
        """

        def edit(seen: Trials) -> Trials:
            trial: Trial | None = getattr(seen, kind)
            if trial is None or trial.number != number:
                return seen
            ended: dict[str, Any] = {kind: None}
            if reason is not None:
                ended["withdrawn"] = Withdrawal(kind=kind, release=trial.release, reason=reason, when=now())
            return replace(seen, **ended)

        return self._change(edit)

    def _change(self, edit: Callable[[Trials], Trials]) -> Trials:
        try:
            with locks.locked(self.path):
                seen = self.read()
                changed = edit(seen)
                if changed != seen:
                    text = json.dumps(asdict(changed), ensure_ascii=False) + "\n"
                    disk.write_atomically(self.path, text, Trials.from_json)
                return changed
        except OSError as error:
            raise ArtifactError(f"{self.path}: could not be written ({error}); make room and try again") from error


def stamp(path: Path) -> Stamp | None:
    """Changes whenever a file is replaced; one stat, no reading. None where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino, stat.st_size


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
