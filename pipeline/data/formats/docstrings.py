"""Docstrings of the standard library and the installed packages under their public names, for `python_api`.

The sources are parsed with `ast`; no package is imported or run. A function that is defined in
`numpy/_core/fromnumeric.py` and exported by `numpy/__init__.py` is known as `numpy.sum`: such names are found by
following the imports of every `__init__.py`.
"""

import contextlib
import functools
import hashlib
import logging
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.formats import python_modules
from pipeline.data.formats.python_modules import SourceModule, source_files
from pipeline.text import counted

MAX_IMPORTS = 8
"""Number of re-exports that are followed from a public name to its definition."""

FileState = tuple[str, str, tuple[int, ...]]
"""Name of a module, path of its file, and what `stat` tells of its content."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Docstring:
    """The docstring of one module, class, function or method."""

    name: str
    """Dotted name, as users of the package write it."""
    text: str
    aliases: tuple[str, ...]
    """Other dotted names of the same object, that of its definition included."""


def installed() -> tuple[Path, ...]:
    """The standard library and the folders of installed packages of this Python."""
    paths = sysconfig.get_paths()
    return tuple(dict.fromkeys(Path(paths[kind]) for kind in ("stdlib", "purelib", "platlib")))


def read(roots: Sequence[Path]) -> list[Docstring]:
    """Every public docstring below the roots, sorted by name; the same for the same files.

    Files that are not valid Python (templates) are counted in the log and left out.
    """
    files = [(name, str(path)) for root in roots for name, path in source_files(root)]
    parsed = python_modules.parse_files(files)
    modules: dict[str, SourceModule] = {}
    for (name, _), module in zip(files, parsed, strict=True):
        if module is not None:
            modules.setdefault(name, module)
    docstrings = sorted(_named(modules), key=lambda docstring: docstring.name)
    read = counted(len(modules), "file")
    log.info("docstrings: %d in %s; files not readable: %d", len(docstrings), read, parsed.count(None))
    return docstrings


def digest(roots: Sequence[Path], salt: str) -> str:
    """32 hex digits that change with any file that `read` reads, with this Python's version and with the salt.

    A process reads the files once, and again when the size, inode or time of change of any of them differs.
    """
    return _digest(tuple(_file_states(roots)), salt)


def _file_states(roots: Sequence[Path]) -> Iterator[FileState]:
    for root in roots:
        for name, path in source_files(root):
            with contextlib.suppress(OSError):  # `read` leaves it out too.
                state = path.stat()
                yield name, str(path), (state.st_size, state.st_ino, state.st_mtime_ns, state.st_ctime_ns)


@functools.lru_cache(maxsize=1)
def _digest(files: tuple[FileState, ...], salt: str) -> str:
    total = hashlib.blake2b(f"{salt} {sys.version_info[:2]}".encode(), digest_size=16)
    for name, path, _ in files:
        with contextlib.suppress(OSError):
            total.update(name.encode() + hashlib.blake2b(Path(path).read_bytes(), digest_size=16).digest())
    return total.hexdigest()


def _definition(modules: dict[str, SourceModule], name: str, item: str, depth: int = 0) -> tuple[str, str] | None:
    """(module, name there) of the definition of `item`, found by following imports; None where it is unknown."""
    module = modules.get(name)
    if module is None or depth > MAX_IMPORTS:
        return None
    if item in module.defined:
        return name, item
    if item in module.imported:
        return _definition(modules, *module.imported[item], depth + 1)
    for star in reversed(module.stars):  # The last import wins.
        other = modules.get(star)
        if other and (other.public is None or item in other.public):
            definition = _definition(modules, star, item, depth + 1)
            if definition:
                return definition
    return None


def _exports(modules: dict[str, SourceModule], name: str, depth: int = 0) -> set[str]:
    """The public names of a module, its imports included; a module imported with `*` adds only those in `__all__`."""
    module = modules.get(name)
    if module is None or depth > MAX_IMPORTS:
        return set()
    names = {item for item in module.defined if "." not in item} | set(module.imported)
    for star in module.stars:
        names |= _exports(modules, star, depth + 1)
    if module.public and depth:
        names &= module.public
    return {item for item in names if not item.startswith("_")}


def _private(name: str) -> bool:
    return any(part.startswith("_") for part in name.split("."))


def _public_names(modules: dict[str, SourceModule]) -> dict[tuple[str, str], list[str]]:
    """(module, name there) → the dotted names under which packages export it."""
    names: dict[tuple[str, str], list[str]] = {}
    for package in modules.values():
        if package.package and not _private(package.name):
            for item in _exports(modules, package.name):
                definition = _definition(modules, package.name, item)
                if definition and definition[0].partition(".")[0] == package.name.partition(".")[0]:
                    names.setdefault(definition, []).append(f"{package.name}.{item}")
    return names


def _named(modules: dict[str, SourceModule]) -> Iterator[Docstring]:
    exported = _public_names(modules)
    taken: set[str] = set()
    for module in modules.values():
        for path, text in module.documented.items():
            top, _, member = path.partition(".")
            suffix = f".{member}" if member else ""
            names = [name + suffix for name in exported.get((module.name, top), ())]
            defined = f"{module.name}.{path}" if path else module.name
            public = [name for name in (*names, defined) if not _private(name)]
            if public:
                best = min(public, key=lambda name: (name.count("."), name))
                if best not in taken:
                    taken.add(best)
                    yield Docstring(best, text, tuple(sorted({*names, defined} - {best})))
    for module in modules.values():
        for name, text in module.attached:
            short = _short(modules, name)
            if short and short not in taken:
                taken.add(short)
                yield Docstring(short, text, (name,) if name != short else ())


def _short(modules: dict[str, SourceModule], name: str) -> str | None:
    """The public name of an object written in C: `numpy.ndarray.sort` for `numpy._core.multiarray.ndarray.sort`."""
    top, *parts = name.split(".")
    exports = modules[top].imported if top in modules else {}
    for start, part in enumerate(parts):
        if part in exports:
            return ".".join([top, *parts[start:]])
    return None if _private(name) else name
