"""Files and folders from outside the workspace, which others may change while a stage reads them.

An artifact's fingerprint holds the digest of what it was made from. That is true only if the digest is that of the
bytes that were read. A file is read soon and once, so `artifacts.make` hashes it again afterwards. A model's folder is
read lazily, for as long as its training takes (weights are mapped into memory), so a stage reads a private copy.
"""

import hashlib
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline import disk
from pipeline.errors import RelevanceError, SchemaError


@dataclass(frozen=True, slots=True)
class OutsideFile:
    """A file, and the sha256 that it had when it was named."""

    path: Path
    digest: str

    @classmethod
    def at(cls, path: Path) -> "OutsideFile":
        """The file as it is now.

        Raises:
            OSError: it cannot be read.
        """
        return cls(path, disk.sha256(path))

    def check(self) -> None:
        """Checks that the file still has the content that it had when it was named.

        Raises:
            SchemaError: it has not.
        """
        if not self.path.is_file() or disk.sha256(self.path) != self.digest:
            raise _changed(self.path)


@dataclass(frozen=True, slots=True)
class OutsideFolder:
    """A folder, and the digest that its files had when it was named. Its files are read in a copy alone."""

    path: Path
    digest: str
    endings: tuple[str, ...] = ()
    """Endings of the files that count, such as .json; all files when empty."""

    @classmethod
    def at(cls, path: Path, endings: tuple[str, ...] = ()) -> "OutsideFolder":
        """The folder as it is now.

        Raises:
            OSError: a file in it cannot be read.
        """
        return cls(path, folder_digest(path, endings), endings)

    @contextmanager
    def copied(self, to: Path) -> Iterator[Path]:
        """Yields a copy whose content has the digest; `to` is made for it and removed at the end.

        Links stand there for files that do not count. Messages name the folder itself.

        Raises:
            SchemaError: the folder was changed since it was named.
        """
        try:
            try:
                self._copy(to)
            except FileNotFoundError as error:
                raise _changed(self.path) from error
            if folder_digest(to, self.endings) != self.digest:
                raise _changed(self.path)
            yield to
        except RelevanceError as error:
            error.args = tuple(str(arg).replace(str(to), str(self.path)) for arg in error.args)
            raise
        finally:
            shutil.rmtree(to, ignore_errors=True)

    def _copy(self, to: Path) -> None:
        for file, target in with_targets(self.path, to):
            if not self.endings or file.suffix in self.endings:
                shutil.copyfile(file, target)
            else:
                target.symlink_to(file.resolve())


def folder_digest(folder: Path, endings: Collection[str] = ()) -> str:
    """A digest of names and contents of the files below a folder; the fingerprint of an outside source.

    Args:
        folder: the folder.
        endings: endings of the files that count, such as .json; all files when empty.
    """
    files = [path for path in files_below(folder) if not endings or path.suffix in endings]
    parts = [f"{path.relative_to(folder).as_posix()} {disk.sha256(path)}" for path in files]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()


def files_below(folder: Path) -> list[Path]:
    """The files of a folder and of those in it, in a fixed order, without an artifact's own manifest."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / "manifest.json")


def with_targets(folder: Path, to: Path) -> Iterator[tuple[Path, Path]]:
    """Yields each file below a folder and its path below another folder, where its own folder is made."""
    for file in files_below(folder):
        target = to / file.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        yield file, target


def _changed(path: Path) -> SchemaError:
    return SchemaError(f"{path}: changed while it was read; run again when nothing writes to it any more")
