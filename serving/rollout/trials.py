"""The releases on trial beside the live one, in one small file that every process of a workspace reads.

    canary    answers a share of the requests, and is withdrawn when it breaks one of its bounds
    shadow    gets copies of a share of the requests, after they were answered

    <workspace>/releases/trials.json    replaced atomically, like the pointer to the live release

Each trial has a number of its own, so that a process that ends one cannot end another that was begun meanwhile.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pipeline import disk, locks, regular_files
from pipeline.errors import ArtifactError, ConfigError

Kind = Literal["canary", "shadow"]
"""Kind of a trial; also the field of `Trials` that holds it."""

Stamp = tuple[int, int, int]
"""Time of change, inode and size of a file: another one whenever the file is replaced."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """The bounds of a canary, which is withdrawn when it breaks one of them; each process counts its own requests.

    A pair is the question of one request, put by the service itself to both the canary and the live release, after the
    request was answered and past the caches. A canary is withdrawn too when a run of its model does not come back, see
    `ActiveTrials.end_stalled`.
    """

    min_requests: int = 100
    """Number of requests, or of pairs, on which a rate of errors is taken at least. With fewer, a canary is withdrawn
    only for more errors than are allowed on this number."""
    max_errors: float = 0.01
    """Largest share of the canary's requests on which its model alone failed, less the share of the live release's
    requests on which the live model alone failed. Also the largest share of pairs that the canary alone did not answer
    within `Settings.deadline_s`, less the share that the live release alone did not."""
    max_latency: float = 1.5
    """Largest median, over the pairs that both answered, of the canary's seconds divided by the live release's."""
    compare: float = 0.2
    """Share of the canary's requests that become pairs, besides late ones and searches for judged queries. Pairs run in
    the batch class, behind live requests."""
    min_compared: int = 30
    """Number of pairs that both answered before overlap counts, and on which the median of latency is taken at least.
    With fewer, a canary is withdrawn only for more slow pairs than half of this number."""
    min_overlap: float = 0.5
    """Smallest mean share of the first results that both releases have in common."""
    min_judged: int = 20
    """Number of different judged queries among the pairs before nDCG counts."""
    max_ndcg_drop: float = 0.02
    """Largest loss of mean nDCG@10 on the judged queries, compared with the live release."""

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
    """The release's fingerprint."""
    share: float
    """Share of the requests that it gets, from 0 to 1. At 0 a canary still answers those that ask for it."""
    number: int = 0
    """Number of this trial among those of its workspace, from 1; 0 before it begins."""
    since: str = ""
    """Time of its beginning, in UTC; empty before it begins."""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"share is {self.share}; it must be between 0 and 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Canary(Trial):
    """A release that answers its share of the requests while it stays within its bounds."""

    bounds: Bounds


@dataclass(frozen=True, kw_only=True, slots=True)
class Withdrawal:
    """The end of a trial whose release did not become the live one."""

    kind: Kind
    release: str
    """The release's fingerprint."""
    reason: str
    when: str
    """Time of the end, in UTC."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trials:
    """The canary, the shadow and the last withdrawal."""

    count: int = 0
    """Trials begun so far."""
    canary: Canary | None = None
    shadow: Trial | None = None
    withdrawn: Withdrawal | None = None
    """The trial that was withdrawn last; None before the first."""

    @classmethod
    def from_json(cls, text: str) -> "Trials":
        """The trials in the content of `trials.json`; `TrialFile.read` turns the errors of a damaged one into one."""
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
        """The file's stamp, by which a process sees that the trials changed; None where there is no file."""
        return stamp(self.path)

    def read(self) -> Trials:
        """Reads the trials; without a file there are none.

        Raises:
            ArtifactError: the file cannot be read.
        """
        try:
            return Trials.from_json(regular_files.read(self.path).decode())
        except FileNotFoundError:
            return Trials()
        except (OSError, ValueError, TypeError, KeyError, AttributeError, ConfigError) as error:
            raise ArtifactError(
                f"{self.path}: not readable ({error!r}); restore it from a copy, or move it "
                "elsewhere, which ends all trials"
            ) from error

    def begin(self, kind: Kind, trial: Trial) -> Trials:
        """Puts a release on trial, in place of another of the same kind; returns the trials after it.

        Raises:
            ArtifactError: the file could not be read, or written.
        """

        def edit(seen: Trials) -> Trials:
            begun: dict[str, Any] = {kind: replace(trial, number=seen.count + 1, since=now())}
            return replace(seen, count=seen.count + 1, **begun)

        return self._change(edit)

    def end(self, kind: Kind, number: int, reason: str | None) -> Trials:
        """Ends the trial with this number, and changes nothing where another one runs; returns the trials after it.

        Args:
            kind: canary or shadow.
            number: number of the trial.
            reason: why it is withdrawn, kept in the file; None where its release became the live one.

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
        """Replaces the trials in the file by what `edit` makes of them, while no other process can write it."""
        try:
            with locks.locked(self.path):
                seen = self.read()
                changed = edit(seen)
                if changed != seen:
                    text = json.dumps(asdict(changed), ensure_ascii=False) + "\n"
                    disk.write_atomically(self.path, text, Trials.from_json)
                return changed
        except OSError as error:
            raise ArtifactError(
                f"{self.path}: could not be written ({error}); {disk.writing_advice(error)} and try again"
            ) from error


def stamp(path: Path) -> Stamp | None:
    """The stamp of a file, which costs one call of `stat` and reads nothing; None where there is no file."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino, stat.st_size


def now() -> str:
    """The present time in UTC, in ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
