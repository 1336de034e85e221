"""Removes what no kept release needs: the commands `relevance releases gc` and `relevance index gc`.

    kept      the newest N releases, the live one, those that a rollback can return to next, the canary and the shadow,
              the shards of those that ask shards and the others of their collection, and every artifact that one of
              these was made from, directly or not
    kept too  what a process uses now, and work that belongs to no release yet, for UNCLAIMED_DAYS
    removed   all else below artifacts/, unfinished folders and temporary files of dead processes, lock files that
              nobody holds

`relevance index gc` keeps every release, and looks at the kinds of SEARCHABLE alone. Of these, one in REBUILT that no
release has and no process reads is removed whatever its age: a re-index makes it again without embedding anything.

Nothing is removed while a retraining, a re-index or another command makes artifacts in the workspace, or moves its
live pointer. A folder first gets the name of an unfinished one, so after a kill the next run goes on.
"""

import fcntl
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import artifacts, disk, locks, regular_files, temporary
from pipeline.command_line import typed
from pipeline.errors import ArtifactError, ConflictError, RelevanceError
from pipeline.manifest import Manifest
from pipeline.release_parts import models_digest
from pipeline.releases import Releases
from pipeline.text import counted
from serving.process.metrics_folder import remove_abandoned

if TYPE_CHECKING:
    from rich.console import RenderableType

UNCLAIMED_DAYS = 30.0
"""Age up to which artifacts and checkpoints are kept that no release needs yet, in days: a training to be resumed."""

SEARCHABLE = ("corpus", "documents", "index", "lexical", "vectors")
"""Kinds of artifacts that make documents searchable."""
REBUILT = ("documents", "index", "lexical")
"""Kinds of SEARCHABLE that are built in minutes. Vectors take hours, and the source of a corpus may be gone."""

TEMPORARY = "temporary"
"""The reason that the list of removals gives for lock files that nobody holds and temporary files of dead processes."""

_STORES = ("manifest.json", "documents/manifest.json", "documents/documents.sqlite")
"""Files of a release on which a service holds a shared lock: the second by services from before the release's own
lock, the third by those from before segments."""
_STORE = ("manifest.json",)
"""Files of a document store that is no part of a release, on which a reader holds a shared lock."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Removal:
    """One file or folder that nothing needs."""

    path: Path
    reason: str
    bytes: int


def gc(workspace: Path, *, keep: int | None, act: bool = False) -> dict[str, Any]:
    """Finds, and with `act` removes, what no kept release needs; returns what it found as plain values.

    Args:
        workspace: the folder of artifacts and releases.
        keep: number of the newest releases that are kept besides those in use. With None every release is kept, and
            only what makes documents searchable is looked at.
        act: remove; only list otherwise.

    Raises:
        ConflictError: another command makes artifacts in this workspace or moves its live pointer now.
        ArtifactError: the live pointer, the trials, or the manifest of a kept release or of what it was made from
            cannot be read, so that it is not known what is needed.
    """
    with _alone(workspace, act):
        removals = list(_plan(workspace, keep))
        if act:
            removals = [removal for removal in removals if _remove(removal.path)]
            remove_abandoned()  # Folders of metrics, whose services were killed; they lie outside the workspace.
    return {
        "removed": act,
        "bytes": sum(removal.bytes for removal in removals),
        "items": [
            {"path": str(item.path.relative_to(workspace)), "reason": item.reason, "bytes": item.bytes}
            for item in removals
        ],
    }


@contextmanager
def _alone(workspace: Path, act: bool) -> Iterator[None]:
    locks.let_go(workspace)
    with open(locks.use_file(workspace), "w", opener=regular_files.opener) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            busy = "another command makes artifacts here or moves the live pointer"
            if act:
                raise ConflictError(f"{workspace}: {busy}; run gc again when it has ended") from None
            log.warning("%s: %s; what it needs may be listed", workspace, busy)
        yield


def _plan(workspace: Path, keep: int | None) -> Iterator[Removal]:
    registry = Releases(workspace)
    known = registry.ids()
    kept = set(known) if keep is None else {*(known[-keep:] if keep > 0 else []), *_pointed(registry)}
    kept |= {release for release in known if _in_use(registry.path(release))}
    folders = {path.name: path for path in (workspace / "artifacts").glob("*/*") if artifacts.is_fingerprint(path.name)}
    manifests = _manifests(folders)
    divided = {_divided(manifests[name]) for name in kept & manifests.keys()} - {None}
    kept |= {name for name in known if name in manifests and _divided(manifests[name]) in divided}
    needed = _closure(kept, manifests)
    for name in sorted(needed & folders.keys() - manifests.keys()):
        artifacts.read_manifest(folders[name])  # Raises: what it needs is not known.
    claimed = _closure(set(known), manifests)
    root = workspace / "artifacts"
    for kind in sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []:
        if keep is None and kind.name not in SEARCHABLE:
            continue
        for path in sorted(kind.iterdir()):
            reason = _reason(path, needed, claimed, kind.name == "release")
            if not reason and keep is None and kind.name in REBUILT and path.name not in needed:
                reason = _unread(path)
            if reason:
                yield Removal(path, reason, _size(path))
    if keep is None:
        return
    state = [path for folder in (workspace, registry.root) if folder.is_dir() for path in sorted(folder.iterdir())]
    for path in state:
        if temporary.is_abandoned(path) or _free_lock(path):
            yield Removal(path, TEMPORARY, _size(path))


def _divided(release: Manifest) -> tuple[str, str] | None:
    """A key that all releases over the shards of one collection share: collection and models; None without shards."""
    collection = release.inputs.get("collection")
    return (collection, models_digest(release)) if collection else None


def _reason(path: Path, needed: set[str], claimed: set[str], is_release: bool) -> str:
    """Why nothing needs this entry of a kind's folder; empty where something may."""
    name, _, ending = path.name.partition(".")
    if artifacts.is_fingerprint(path.name):
        if path.name in needed:
            return ""
        if is_release or path.name in claimed:
            return "no kept release needs it"
        return "belongs to no release and is old" if _old(path) else ""
    if path.is_dir() and artifacts.is_fingerprint(name) and ending == "partial":
        return "" if _is_locked(path.with_name(name)) else "unfinished, and its process is dead"
    if path.is_dir() and artifacts.is_fingerprint(name) and ending == "checkpoint":
        done = path.with_name(name).is_dir() or _old(path)
        return "checkpoint of finished or abandoned work" if done and not _is_locked(path.with_name(name)) else ""
    return TEMPORARY if temporary.is_abandoned(path) or _free_lock(path) else ""


def _unread(path: Path) -> str:
    """The reason to remove a finished artifact of REBUILT that no release has; empty where a process reads it."""
    if not artifacts.is_fingerprint(path.name) or _in_use(path, _STORE):
        return ""
    return "belongs to no release and is read by nobody"


def _pointed(registry: Releases) -> set[str]:
    """Releases that the pointer, the trials or the next rollback name.

    Raises:
        ArtifactError: a state file cannot be read.
    """
    from serving.rollout.trials import TrialFile

    pointer = registry.live()
    trials = TrialFile(registry.workspace).read()
    names = {trial.release for trial in (trials.canary, trials.shadow) if trial is not None}
    if pointer is not None:
        names |= {pointer.release}
        for name in registry.pointer_file.earlier(pointer):
            if registry.path(name).is_dir():
                names.add(name)
                try:
                    artifacts.load(registry.path(name), "release", verify=False)
                    break  # The next rollback ends here; damaged ones on the way are kept to be mended.
                except RelevanceError:
                    continue
    elif registry.ids():
        raise ArtifactError(
            f"{registry.root / 'live.json'}: missing, but there are releases, and which of them was live is not known; "
            f"promote one first, see `{typed('releases list', registry.workspace)}`"
        )
    return names


def _manifests(folders: Mapping[str, Path]) -> dict[str, Manifest]:
    """Name → manifest of the artifacts in these folders, of those whose manifest can be read."""
    manifests = {}
    for name, path in folders.items():
        try:
            manifests[name] = artifacts.read_manifest(path)
        except RelevanceError as error:
            log.warning("%s", error)
    return manifests


def _closure(names: set[str], manifests: dict[str, Manifest]) -> set[str]:
    """These artifacts and all that they were made from."""
    needed: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += manifests[name].inputs.values() if name in manifests else ()
    return needed


def _in_use(folder: Path, names: Sequence[str] = _STORES) -> bool:
    """Whether a process serves this release, or reads this document store: an open store holds a shared lock."""
    for name in names:
        try:
            file = open(folder / name, "rb", opener=regular_files.opener)  # noqa: SIM115
        except OSError:
            continue
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return True  # Locked, or on a file system that cannot tell, such as NFS for a file opened to be read.
    return False


def _old(path: Path) -> bool:
    """Whether nothing in it was changed for UNCLAIMED_DAYS, since it was made or came from a backup."""
    state = path.stat()
    return time.time() - max(state.st_mtime, state.st_ctime) > UNCLAIMED_DAYS * 86_400


def _is_locked(path: Path) -> bool:
    lock = path.with_name(f".{path.name}.lock")
    return lock.exists() and not _free_lock(lock)


def _free_lock(path: Path) -> bool:
    if not (path.name.startswith(".") and path.name.endswith(".lock")):
        return False
    try:
        with open(path, "rb", opener=regular_files.opener) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _size(path: Path) -> int:
    """Bytes that a removal frees, as far as no other name leads to them; none for a link to a folder elsewhere."""
    if path.is_symlink():
        return 0
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _remove(path: Path) -> bool:
    """Removes one thing of the plan; returns False where a process has begun to use it since the plan was made."""
    if artifacts.is_fingerprint(path.name) and _in_use(path):
        return False
    if path.is_symlink():
        path.unlink()  # What it leads to, such as a folder on another disk, may be used from elsewhere.
    elif path.name.endswith(".tmp"):
        temporary.remove_if_abandoned(path)
        return not path.exists()
    elif path.is_dir():
        if artifacts.is_fingerprint(path.name):
            unfinished = path.with_name(f"{path.name}.partial")
            shutil.rmtree(unfinished, ignore_errors=True)
            path = path.rename(unfinished)
            disk.fsync(path.parent)
        shutil.rmtree(path)
    elif not path.name.endswith(".lock"):
        path.unlink()
    else:
        with open(path, "rb", opener=regular_files.opener) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            path.unlink()  # Whoever waits for it sees that it is gone; see `locks.locked`.
    return True


def render(result: dict[str, Any]) -> "RenderableType":
    """A table of what `gc` found, or a line that says that it found nothing."""
    from rich.table import Table
    from rich.text import Text

    if not result["items"]:
        return Text("nothing to remove")
    items = (
        f"{counted(len(result['items']), 'item')} ({result['bytes'] / 2**20:.1f} MiB, shared files counted each time)"
    )
    title = f"{items} were removed" if result["removed"] else f"{items} would be removed; --yes removes them"
    table = Table("path", "reason", "MiB", title=title, title_justify="left", box=None)
    temporaries = [item for item in result["items"] if item["reason"] == TEMPORARY]
    for item in result["items"]:
        if item["reason"] != TEMPORARY:
            table.add_row(item["path"], item["reason"], f"{item['bytes'] / 2**20:.2f}")
    if temporaries:
        size = sum(item["bytes"] for item in temporaries)
        table.add_row(f"{len(temporaries)} lock and temporary files", TEMPORARY, f"{size / 2**20:.2f}")
    return table
