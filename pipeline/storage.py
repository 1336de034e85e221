"""Shared storage by fsspec addresses: `s3://bucket/folder` (extra `s3`), `gs://…`, `abfs://…`, `file:///folder`.

A folder or file there is copied to this machine before it is read, so what is hashed is what is read.
"""

import atexit
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import MissingError, UnavailableError
from pipeline.temporary import temporary_folder

SCHEMES = ("s3", "gs", "gcs", "abfs", "az", "file", "memory")
"""Schemes of addresses of shared storage; any other address is that of a database."""


def is_address(path: str) -> bool:
    """Whether a path is an address of shared storage; other addresses with :// are those of databases."""
    return path.partition("://")[0] in SCHEMES and "://" in path


@contextlib.contextmanager
def readable_errors(address: str) -> Iterator[None]:
    """Turns what storage raises into our errors, which name the address.

    Raises:
        MissingError: nothing is there, or the package for this kind of storage is not installed.
        UnavailableError: anything else; try again.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise MissingError(f"{address}: there is no such file or folder") from error
    except ImportError as error:
        raise MissingError(f"{address}: {error}; for s3:// install search-relevance[s3]") from error
    except (OSError, ValueError) as error:
        raise UnavailableError(f"{address}: cannot be read or written ({type(error).__name__}: {error})") from error
    except Exception as error:
        if type(error).__module__.split(".")[0] in ("botocore", "aiobotocore", "s3fs", "gcsfs", "adlfs", "aiohttp"):
            raise UnavailableError(f"{address}: {type(error).__name__}: {error}") from error
        raise


def opened(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it.

    Raises:
        MissingError, UnavailableError: see `readable_errors`.
    """
    with readable_errors(address):
        import fsspec

        system, path = fsspec.core.url_to_fs(address)
        system.invalidate_cache()  # What another machine wrote since must be seen.
        return system, path


def fetched(address: str) -> Path:
    """A copy of the file or folder at an address, under its own name; it is removed when this process ends.

    What a killed process left is removed by the next one of the same user that fetches something.

    Raises:
        MissingError, UnavailableError: see `readable_errors`.
    """
    system, path = opened(address)
    target = _private_folder() / (PurePosixPath(path.rstrip("/")).name or "source")
    with readable_errors(address):
        if system.isfile(path):
            system.get_file(path, str(target))
            return target
        files = system.find(path)
        if not files:
            raise FileNotFoundError(path)
        root = system._strip_protocol(path).rstrip("/")
        for file in files:
            copy = target / PurePosixPath(file).relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            system.get_file(file, str(copy))
    return target


def _private_folder() -> Path:
    """A new folder that only this user may read, removed at this process's end or, if it is killed, by the next."""
    stack = contextlib.ExitStack()
    folder = stack.enter_context(temporary_folder(Path(tempfile.gettempdir()) / "relevance-source"))
    atexit.register(stack.close)
    folder.chmod(0o700)
    return folder
