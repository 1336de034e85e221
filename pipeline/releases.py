"""Releases: immutable folders that hold all that serving needs, and one pointer that says which is live.

    <workspace>/artifacts/release/<fingerprint>/    an artifact like any other; one sub-folder a part
    <workspace>/releases/live.json                  replaced atomically; carries a generation number
    <workspace>/releases/history.jsonl              every change of the pointer, appended

A pointer is moved only by a publisher that names the generation it saw. Of two that saw the same one, the
second is told that it lost. Rolling back is pointing at the release that was live before.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline import artifacts
from pipeline.artifacts import Artifact, Staging
from pipeline.errors import ArtifactError, ConflictError, MissingError
from pipeline.text import read_text, split_lines

VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Pointer:
    """Which release is live."""

    release: str
    """Its fingerprint, and the name of its folder."""
    generation: int
    """Grows by one at every change."""
    previous: str | None
    """The release that was live before; what a rollback returns to."""
    changed: str
    """When, in UTC."""
    action: str
    """promote or rollback."""
    reason: str


@dataclass(frozen=True, slots=True)
class Releases:
    """The releases of one workspace."""

    workspace: Path

    @property
    def root(self) -> Path:
        return self.workspace / "releases"

    def publish(self, parts: Mapping[str, Artifact], metrics: Mapping[str, Any], config: Mapping[str, Any]) -> Artifact:
        """A release made of these artifacts, each in a sub-folder of its name; not yet live.

        The files are hard links where the file system has them, so a release costs no second copy.
        """

        def build(staging: Staging) -> Mapping[str, Any]:
            for name, part in parts.items():
                for file in [*part.manifest.files, artifacts.MANIFEST]:
                    target = staging.folder / name / file
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _link(part.path / file, target)
            return metrics

        return artifacts.make(
            self.workspace, "release", version=VERSION, config=config, inputs=dict(parts), build=build
        )

    def ids(self) -> list[str]:
        """Fingerprints of all finished releases, oldest first."""
        folder = self._folder()
        found = [path for path in folder.iterdir() if (path / artifacts.MANIFEST).is_file()] if folder.exists() else []
        return [path.name for path in sorted(found, key=lambda path: (path / artifacts.MANIFEST).stat().st_mtime_ns)]

    def resolve(self, name: str) -> str:
        """The fingerprint that `name` means: live, previous, or the first digits of one.

        Raises:
            MissingError: none, or more than one, is meant.
        """
        if name in ("live", "previous"):
            pointer = self.live()
            found = pointer and (pointer.release if name == "live" else pointer.previous)
            if not found:
                raise MissingError(f"{self.root}: there is no {name} release; run `relevance retrain` first")
            return found
        matches = [known for known in self.ids() if known.startswith(name)]
        if len(matches) != 1:
            known = ", ".join(item[:12] for item in self.ids()) or "none"
            what = "no release" if not matches else f"{len(matches)} releases"
            raise MissingError(f"{self.root}: {what} called '{name}'; there are: {known}")
        return matches[0]

    def open(self, name: str = "live", *, verify: bool = True) -> Artifact:
        """The release called `name` (see `resolve`), its files checked."""
        return artifacts.load(self._folder() / self.resolve(name), "release", verify=verify)

    def live(self) -> Pointer | None:
        """The pointer, or None before the first promotion.

        Raises:
            ArtifactError: the pointer cannot be read.
        """
        path = self.root / "live.json"
        try:
            return Pointer(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, OSError) as error:
            raise ArtifactError(
                f"{path}: not a readable pointer ({error}); restore it from the last line of history.jsonl"
            ) from error

    def promote(self, name: str, *, reason: str, expected: int | None = None) -> Pointer:
        """Makes a release live.

        Args:
            expected: the generation that the caller saw; 0 for none yet. Without it the pointer moves whatever it is.

        Raises:
            ConflictError: the pointer has moved since.
        """
        release = self.resolve(name)
        artifacts.load(self._folder() / release, "release")
        return self._move(release, "promote", reason, expected)

    def rollback(self, *, reason: str, expected: int | None = None) -> Pointer:
        """Makes the release live that was live before; a second time, the one before that.

        Raises:
            MissingError: there was none.
            ConflictError: the pointer has moved since.
        """
        seen = self.live()
        if seen is None or seen.previous is None:
            raise MissingError(f"{self.root}: no earlier release to roll back to; see `relevance releases list`")
        artifacts.load(self._folder() / seen.previous, "release")
        expected = seen.generation if expected is None else expected
        return self._move(seen.previous, "rollback", reason, expected)

    def history(self) -> list[Pointer]:
        """Every change of the pointer, oldest first.

        Raises:
            ArtifactError: a line cannot be read.
        """
        path = self.root / "history.jsonl"
        lines = split_lines(read_text(path)) if path.exists() else []
        try:
            return [Pointer(**json.loads(line)) for line in lines if line.strip()]
        except (ValueError, TypeError) as error:
            raise ArtifactError(f"{path}: has a line that is no pointer ({error}); remove that line") from error

    def _move(self, release: str, action: str, reason: str, expected: int | None) -> Pointer:
        self.root.mkdir(parents=True, exist_ok=True)
        with artifacts.locked(self.root / "live.json"):
            seen = self.live()
            generation = seen.generation if seen else 0
            if expected is not None and expected != generation:
                raise ConflictError(
                    f"{self.root / 'live.json'}: is at generation {generation}, not {expected}; another publisher "
                    f"made {seen.release[:12] if seen else 'nothing'} live meanwhile, look at it and try again"
                )
            if seen and seen.release == release:
                return seen
            pointer = Pointer(
                release=release,
                generation=generation + 1,
                previous=self._before(release) if action == "rollback" else seen.release if seen else None,
                changed=datetime.now(UTC).isoformat(timespec="seconds"),
                action=action,
                reason=reason,
            )
            line = json.dumps(asdict(pointer), ensure_ascii=False)
            with (self.root / "history.jsonl").open("a", encoding="utf-8") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())
            artifacts.write_atomically(self.root / "live.json", line + "\n")
            return pointer

    def _before(self, release: str) -> str | None:
        """What was live before this release was promoted last."""
        return next((item.previous for item in reversed(self.history()) if item.release == release), None)

    def _folder(self) -> Path:
        return self.workspace / "artifacts" / "release"


def part(release: Artifact, name: str) -> Artifact:
    """One part of a release as an artifact of its own; its files were verified with the release."""
    return artifacts.load(release.path / name, verify=False)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
