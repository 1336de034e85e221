"""Releases: immutable folders that hold all that serving needs, and one pointer that says which is live.

    <workspace>/artifacts/release/<fingerprint>/    an artifact like any other; one sub-folder a part
    <workspace>/releases/                           the pointer and its history; see `pipeline.pointer`

A pointer is moved only by a publisher that names the generation it saw. Of two that saw the same one, the
second is told that it lost, unless its own release is live. Rolling back is pointing at the nearest complete release
that was live before.

The files of a release are hard links to those of its parts; see `pipeline.artifacts` on what that means.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import artifacts, disk, locks
from pipeline.artifacts import Artifact, LinkedFile, Staging
from pipeline.command_line import typed
from pipeline.errors import ArtifactError, ConflictError, MissingError, RelevanceError
from pipeline.pointer import Move, Pointer, PointerFile
from pipeline.release_parts import check_parts, models_digest, verify
from pipeline.secrets import without_passwords
from pipeline.text import counted

VERSION = 1

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Releases:
    """The releases of one workspace."""

    workspace: Path

    @property
    def root(self) -> Path:
        return self.workspace / "releases"

    @property
    def pointer_file(self) -> PointerFile:
        return PointerFile(self.root)

    def publish(self, parts: Mapping[str, Artifact], metrics: Mapping[str, Any], config: Mapping[str, Any]) -> Artifact:
        """A release made of these artifacts, each in a sub-folder of its name; not yet live.

        The files are hard links where the file system has them, so a release costs no second copy.

        Raises:
            ArtifactError: the parts do not belong together, or the disk is full.
        """
        check_parts(self.workspace, {name: part.path for name, part in parts.items()})

        def build(staging: Staging) -> Mapping[str, Any]:
            for name, part in parts.items():
                for file in [*part.manifest.files, artifacts.MANIFEST]:
                    target = staging.folder / name / file
                    target.parent.mkdir(parents=True, exist_ok=True)
                    disk.link_or_copy(part.path / file, target)
                for file, record in part.manifest.files.items():
                    staging.linked[f"{name}/{file}"] = LinkedFile(part.path / file, record)
            return metrics

        return artifacts.make(
            self.workspace,
            "release",
            version=VERSION,
            config=without_passwords(config),
            inputs=dict(parts),
            build=build,
        )

    def ids(self) -> list[str]:
        """Fingerprints of all finished releases, the oldest first; damaged ones are among them."""
        return [path.name for path in artifacts.finished(self.workspace, "release")]

    def resolve(self, name: str) -> str:
        """The fingerprint that `name` means: live, previous, or the first digits of one.

        Raises:
            MissingError: no release, or more than one, is meant.
        """
        if name in ("live", "previous"):
            pointer = self.live()
            release = pointer and (pointer.release if name == "live" else pointer.previous)
            if not release:
                raise MissingError(f"{self.root}: there is no {name} release; {self._advice(pointer)}")
            return release
        ids = self.ids()
        matches = [known for known in ids if known.startswith(name)]
        if len(matches) != 1:
            known = _shortened(ids) or "none"
            what = "no release" if not matches else counted(len(matches), "release")
            raise MissingError(f"{self.root}: {what} called '{name}'; there are: {known}")
        return matches[0]

    def complete(self) -> list[str]:
        """Fingerprints of the releases whose files are all there, the newest first; their content is not looked at."""
        complete = []
        for release in reversed(self.ids()):
            try:
                self._checked(release, verify_files=False)
            except RelevanceError as error:
                log.warning("release %s cannot be made live: %s", release[:12], error)
                continue
            complete.append(release)
        return complete

    def _advice(self, pointer: Pointer | None) -> str:
        """Advice for when no release is live, or none was before: as little work as the releases present allow."""
        complete = self.complete()
        if not complete:
            return first_release(self.workspace)
        if pointer is not None:
            return f"name one of those that are complete: {_shortened(complete)}"
        recorded = self.pointer_file.recover()
        was_live = recorded is not None and recorded.release in complete
        best = recorded.release if recorded is not None and was_live else complete[0]
        which = "which was live last" if was_live else "the newest"
        choices = [release for release in complete if release != best]
        also = f"; complete too: {_shortened(choices)}" if choices else ""
        command = typed(f"releases promote {best[:12]}", self.workspace)
        return f"`{command}` makes one live, {which}{also}"

    def path(self, release: str) -> Path:
        """The folder of the release with this fingerprint, whether it exists or not."""
        return self.workspace / "artifacts" / "release" / release

    def open(self, name: str = "live", *, verify: bool = True) -> Artifact:
        """The release called `name` (see `resolve`), checked as `verify` does.

        Raises:
            MissingError: no such release.
            ArtifactError: the release is damaged.
        """
        return self._checked(self.resolve(name), verify_files=verify)

    def live(self) -> Pointer | None:
        """The pointer, or None before the first promotion.

        Raises:
            ArtifactError: the pointer cannot be read.
        """
        return self.pointer_file.read()

    def generation(self) -> int:
        """The generation of the live pointer, which whoever moves it names as `expected`; 0 before the first promotion.

        A pointer that is lost or cannot be read counts as the history has it, so that the next move can mend it.
        """
        pointer = self.pointer_file.recover()
        return pointer.generation if pointer else 0

    def promote(self, name: str, *, reason: str, expected: int | None = None) -> Pointer:
        """Makes a release live, if it passes `verify`.

        Args:
            name: see `resolve`.
            reason: kept in the history.
            expected: the `generation` that the caller saw. Without it the pointer moves whatever it is.

        Raises:
            ConflictError: the pointer has moved since, to another release than this.
            ArtifactError: the release is damaged; the pointer stays.
        """
        release = self.resolve(name)
        with locks.used(self.workspace):  # Else gc could remove it between the check and the move.
            return self._promote(release, reason, expected)

    def _promote(self, release: str, reason: str, expected: int | None) -> Pointer:
        self._checked(release)
        current = self.pointer_file.recover()
        earlier: tuple[str, ...] = ()
        rolled_back: dict[str, str] = {}
        if current is not None:
            chain = (current.release, *self.pointer_file.earlier(current))
            earlier = tuple(item for item in dict.fromkeys(chain) if item != release)
            rolled_back = {item: models for item, models in current.rolled_back.items() if item != release}
        move = Move(
            release=release,
            action="promote",
            reason=reason,
            expected=expected,
            earlier=earlier,
            rolled_back=rolled_back,
        )
        return self.pointer_file.move(move)

    def rollback(self, *, reason: str, expected: int | None = None) -> Pointer:
        """Makes the nearest complete release live that was live before; a second time, the one before that.

        Neither the history nor the live release need be readable. A damaged release on the way is passed over.

        Raises:
            MissingError: there is no earlier release that is complete; names the damaged ones.
            ConflictError: the pointer has moved since.
        """
        with locks.used(self.workspace):
            return self._rollback(reason, expected)

    def _rollback(self, reason: str, expected: int | None) -> Pointer:
        current = self.pointer_file.recover()
        generation = current.generation if current else 0
        if expected is not None and expected != generation:
            raise ConflictError(
                f"{self.pointer_file.path}: is at generation {generation}, not {expected}; it moved meanwhile, look at "
                "it and try again"
            )
        chain = self.pointer_file.earlier(current) if current else ()
        damaged = []
        for number, release in enumerate(chain):
            try:
                self._checked(release)
            except RelevanceError as error:
                log.warning("rollback: release %s is passed over: %s", release[:12], error)
                damaged.append(release[:12])
                continue
            assert current is not None
            move = Move(
                release=release,
                action="rollback",
                reason=reason,
                expected=generation,
                earlier=chain[number + 1 :],
                rolled_back={**current.rolled_back, current.release: self._models_digest(current.release)},
            )
            return self.pointer_file.move(move)
        also = f"; damaged or missing: {', '.join(damaged)}, restore one of them from a copy" if damaged else ""
        listing = typed("releases list", self.workspace)
        raise MissingError(f"{self.root}: no earlier release to roll back to{also}; see `{listing}`")

    def history(self) -> list[Pointer]:
        """Every readable change of the pointer, the oldest first; lines that cannot be read are logged and left out."""
        records, unreadable = self.pointer_file.history()
        if unreadable:
            lines = counted(unreadable, "line")
            log.warning("%s: leaves out %s that cannot be read", self.pointer_file.history_path, lines)
        return records

    def was_rolled_back(self, release: Artifact) -> bool:
        """Whether a person rolled back this release, or another one with the same models; only a person promotes it.

        Models that are live now are not meant: then it was the documents that were rolled back.
        """
        current = self.pointer_file.recover()
        if current is None:
            return False
        models = models_digest(release.manifest)
        live_models = self._models_digest(current.release)
        return release.fingerprint in current.rolled_back or (
            bool(models) and models != live_models and models in current.rolled_back.values()
        )

    def _models_digest(self, release: str) -> str:
        try:
            return models_digest(artifacts.read_manifest(self.path(release)))
        except RelevanceError:
            return ""  # A damaged release is rolled back by its fingerprint alone.

    def _checked(self, release: str, *, verify_files: bool = True) -> Artifact:
        artifact = (
            verify(self.path(release)) if verify_files else artifacts.load(self.path(release), "release", verify=False)
        )
        if artifact.fingerprint != release:
            raise ArtifactError(
                f"{artifact.path}: holds release {artifact.fingerprint}; give the folder its own name again, "
                f"or {artifacts.remedy(artifact.path)}"
            )
        return artifact


def _shortened(releases: list[str]) -> str:
    return ", ".join(release[:12] for release in releases)


def first_release(workspace: Path) -> str:
    """Advice on the commands that make the first release of a workspace."""
    quickstart = typed("quickstart DOCUMENTS", workspace)
    retrain, demo = typed("retrain RECIPE", workspace), typed("demo", workspace)
    return (
        f"`{quickstart}` makes a release without judgments, `{retrain}` one from judgments, and `{demo}` one of this "
        "machine's Python documentation"
    )
