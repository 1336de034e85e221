"""One SQLite file of a document store, read by threads in turn, and the lock that keeps its artifact from gc."""

import fcntl
import os
import sqlite3
import threading
import weakref
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipeline import artifacts, regular_files
from pipeline.command_line import typed, workspace_of
from pipeline.errors import ArtifactError, MissingError


class UseLock:
    """A shared lock on an artifact, held for as long as a process reads the artifact: until it is let go, or in `with`.

    `relevance releases gc` leaves such an artifact alone. The file that is locked is the manifest: other files, such as
    those of segments, may be shared by many artifacts.
    """

    def __init__(self, folder: Path) -> None:
        """Locks the manifest of the artifact in this folder.

        Raises:
            MissingError: no such folder.
            ArtifactError: no manifest.
        """
        try:
            handle = regular_files.opener(folder / artifacts.MANIFEST, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError) as error:
            artifacts.read_manifest(folder)  # Says what is not there.
            raise MissingError(f"{folder}: its manifest came or went just now; try again") from error
        self.let_go = weakref.finalize(self, os.close, handle)
        fcntl.flock(handle, fcntl.LOCK_SH)

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        self.let_go()


class StoreReader:
    """One connection to a store, which threads use in turn.

    Raises:
        ArtifactError: a damaged file, by name.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._turn = path, threading.Lock()
        try:
            # Nothing writes to an artifact, so SQLite needs no locks and makes no files beside it.
            self._connection = sqlite3.connect(
                f"file:{quote(str(path.resolve()))}?mode=ro&immutable=1", uri=True, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise damaged(path, error) from error

    def all(self, query: str, *values: int | str) -> list[tuple[Any, ...]]:
        """All rows of a query; none for a value that SQLite cannot hold, such as a lone surrogate.

        Raises:
            MissingError: the query reads the table `fields`, which stores had none of before filters were known.
            ArtifactError: the file is damaged.
        """
        try:
            with self._turn:
                return self._connection.execute(query, values).fetchall()
        except (UnicodeEncodeError, OverflowError):
            return []
        except sqlite3.DatabaseError as error:
            if "no such table: fields" in str(error):
                reindex = typed("reindex --documents DOCUMENTS", workspace_of(self._path))
                raise MissingError(
                    f"the documents of this release were stored before filters were known; run `{reindex}`"
                ) from error
            raise damaged(self._path, error) from error

    def first(self, query: str, value: int | str) -> tuple[Any, ...] | None:
        """The first row of a query, or None; raises as `all` does."""
        return next(iter(self.all(query, value)), None)

    def close(self) -> None:
        """Closes the connection once the thread that uses it is done."""
        with self._turn:
            self._connection.close()


def damaged(path: Path, error: Exception) -> ArtifactError:
    """The error for a store that cannot be read: names the file and says how to make it again."""
    return ArtifactError(f"{path}: not a readable document store ({error}); {artifacts.remedy(path)}")
