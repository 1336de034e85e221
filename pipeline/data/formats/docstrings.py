"""Docstrings of the standard library and the installed packages under their public names, for `python_api`.

The sources are parsed with `ast`; no package is imported or run. A function that is defined in
`numpy/_core/fromnumeric.py` and exported by `numpy/__init__.py` is known as `numpy.sum`: such names are found by
following the imports of every `__init__.py`.
"""

import ast
import contextlib
import gc
import hashlib
import inspect
import logging
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import progress

OWN = frozenset({"pipeline", "index", "serving", "flows"})
"""Our packages; a non-editable installation puts them beside the others."""

SKIPPED = frozenset(
    {
        # Not for users of the package.
        "test", "tests", "testing", "conftest", "benchmarks", "examples", "idlelib", "lib2to3", "turtledemo",
        "ensurepip", "pydoc_data", "distutils",
        "mypy", "mypyc", "torchgen",
        # Copies of other packages.
        "pip", "vendor", "vendored", "externals", "extern",
        # Tables and generated code.
        "locale", "locales", "lexers", "encodings", "function_libs",
    }
)  # fmt: skip
"""Folders and top-level modules without documents that a person would search for."""

SKIPPED_PATHS = frozenset(
    {"transformers/models", "onnxruntime/transformers", "dateparser/data", "apprise/plugins", "prefect/server"}
)
"""Folders of hundreds of similar modules, and the internals of a server; they would take half of the reading time."""

READ_ANYWAY = frozenset({"_core"})
"""Private folders that define public names of their package, as numpy's does."""

MAX_UNDOCUMENTED = 50_000
"""Bytes of a file above which one without triple quotes is not parsed: it is a table of data."""

MAX_IMPORTS = 8
"""Number of re-exports that are followed from a public name to its definition."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Docstring:
    """The docstring of one module, class, function or method."""

    name: str
    """Dotted name, as users of the package write it."""
    text: str
    aliases: tuple[str, ...]
    """Other dotted names of the same object, that of its definition included."""


@dataclass(slots=True)
class _Module:
    """The docstrings, definitions and imports of one source file."""

    name: str
    package: bool
    documented: dict[str, str] = field(default_factory=dict)
    """Dotted path inside the module, "" for the module itself → docstring."""
    defined: set[str] = field(default_factory=set)
    imported: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Name in this module → (module it comes from, name there)."""
    stars: list[str] = field(default_factory=list)
    public: set[str] | None = None
    """The constant names in `__all__`; None without it."""
    attached: list[tuple[str, str]] = field(default_factory=list)
    """(dotted name, docstring) of functions written in C, to which numpy and torch attach docstrings by a call."""


def installed() -> tuple[Path, ...]:
    """The standard library and the folders of installed packages of this Python."""
    paths = sysconfig.get_paths()
    return tuple(dict.fromkeys(Path(paths[kind]) for kind in ("stdlib", "purelib", "platlib")))


def read(roots: Sequence[Path]) -> list[Docstring]:
    """Every public docstring below the roots, sorted by name; the same for the same files.

    Files that are not valid Python (templates) are counted in the log and left out.
    """
    sources = [source for root in roots for source in _sources(root)]
    modules: dict[str, _Module] = {}
    broken = 0
    gc_was_on = gc.isenabled()
    gc.disable()  # Saves a quarter of the time: syntax trees have few cycles to collect.
    try:
        with warnings.catch_warnings(), progress.bar("reading docstrings", len(sources), "files") as advance:
            warnings.simplefilter("ignore")  # Invalid escapes in other people's sources.
            for name, path in sources:
                module = _parse(name, path)
                if module is None:
                    broken += 1
                else:
                    modules.setdefault(name, module)
                advance(1)
    finally:
        if gc_was_on:
            gc.enable()
    docstrings = sorted(_named(modules), key=lambda docstring: docstring.name)
    log.info("docstrings: %d in %d files, %d files not readable", len(docstrings), len(modules), broken)
    return docstrings


def digest(roots: Sequence[Path], salt: str) -> str:
    """32 hex digits that change with any file that `read` reads, with this Python's version and with the salt."""
    total = hashlib.blake2b(f"{salt} {sys.version_info[:2]}".encode(), digest_size=16)
    for root in roots:
        for name, path in _sources(root):
            with contextlib.suppress(OSError):  # `read` leaves it out too.
                total.update(name.encode() + hashlib.blake2b(path.read_bytes(), digest_size=16).digest())
    return total.hexdigest()


def _sources(root: Path, inside: str = "") -> Iterator[tuple[str, Path]]:
    """(module name, file) below a folder of packages, in the order of their names."""
    for path in sorted((root / inside).iterdir()):
        name = path.stem if path.suffix == ".py" else path.name
        if not name.isidentifier() or name in SKIPPED or (not inside and name in OWN):
            continue
        relative = f"{inside}/{name}" if inside else name
        if path.is_dir():
            if (not name.startswith("_") or name in READ_ANYWAY) and relative not in SKIPPED_PATHS:
                yield from _sources(root, relative)
        elif path.suffix == ".py" and (inside or not name.startswith("_")):
            yield (inside if name == "__init__" else relative).replace("/", "."), path


def _parse(name: str, path: Path) -> _Module | None:
    module = _Module(name, path.name == "__init__.py")
    try:
        source = path.read_bytes()
        if len(source) > MAX_UNDOCUMENTED and b'"""' not in source and b"'''" not in source:
            return module
        tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    _note(module, tree, "")
    _walk(module, tree.body, "")
    return module


def _note(module: _Module, node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, path: str) -> None:
    docstring = ast.get_docstring(node)
    if docstring:
        module.documented.setdefault(path, docstring)


def _walk(module: _Module, body: Sequence[ast.stmt], inside: str) -> None:
    """Adds the statements of a module or a class to the module's record."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            module.defined.add(inside + node.name)
            if not node.name.startswith("_"):
                _note(module, node, inside + node.name)
                if isinstance(node, ast.ClassDef):
                    _walk(module, node.body, f"{inside}{node.name}.")
        elif isinstance(node, ast.If | ast.Try):
            handlers = [handler.body for handler in node.handlers] if isinstance(node, ast.Try) else []
            for block in (node.body, *handlers, node.orelse):
                _walk(module, block, inside)
        elif not inside:
            _statement(module, node)


def _statement(module: _Module, node: ast.stmt) -> None:
    """Adds an import, `__all__` or a docstring attached by a call, at the top of a module."""
    if isinstance(node, ast.ImportFrom):
        origin = _origin(module, node)
        for alias in node.names:
            if alias.name == "*":
                module.stars.append(origin)
            else:
                module.imported[alias.asname or alias.name] = (origin, alias.name)
        return
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        _attached(module, node.value, None)
        return
    if isinstance(node, ast.Assign | ast.AugAssign):
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if not isinstance(target, ast.Name):
            return
        if target.id == "__all__":
            names = {item.value for item in ast.walk(node.value) if isinstance(item, ast.Constant)}
            module.public = (module.public or set()) | {name for name in names if isinstance(name, str)}
        elif isinstance(node.value, ast.Call):
            _attached(module, node.value, target.id)


def _origin(module: _Module, node: ast.ImportFrom) -> str:
    """The absolute name of the module that a `from … import` names."""
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    parts = parts[: len(parts) - node.level + module.package]
    return ".".join([*parts, node.module] if node.module else parts)


def _attached(module: _Module, call: ast.Call, target: str | None) -> None:
    """Adds a docstring that numpy or torch attaches to a function written in C.

    `add_docstr(torch.abs, "…")`, `conv1d = _add_docstr(torch.conv1d, "…")`,
    `add_newdoc("numpy._core.umath", "add", "…")` and `add_newdoc("numpy._core.multiarray", "ndarray", ("sort", "…"))`.
    """
    function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if function.lstrip("_") not in ("add_docstr", "add_newdoc") or len(call.args) < 2:
        return
    *owner, last = call.args
    if isinstance(last, ast.Tuple) and len(last.elts) == 2:
        owner, last = [*owner, last.elts[0]], last.elts[1]
    text = _literal(last)
    if not text:
        return
    parts = [part.value if isinstance(part, ast.Constant) else ast.unparse(part) for part in owner]
    name = f"{module.name}.{target}" if target else ".".join(map(str, parts))
    module.attached.append((name, inspect.cleandoc(text)))


def _literal(node: ast.expr) -> str:
    """The text of a string, a sum of strings or a `"…".format(…)`; empty where it is anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _literal(node.left) + _literal(node.right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        return _literal(node.func.value)  # Its placeholders stand for shared descriptions of parameters.
    return ""


def _definition(modules: dict[str, _Module], name: str, item: str, depth: int = 0) -> tuple[str, str] | None:
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


def _exports(modules: dict[str, _Module], name: str, depth: int = 0) -> set[str]:
    """The names that `from name import *` would import."""
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


def _public_names(modules: dict[str, _Module]) -> dict[tuple[str, str], list[str]]:
    """(module, name there) → the dotted names under which packages export it."""
    names: dict[tuple[str, str], list[str]] = {}
    for package in modules.values():
        if package.package and not _private(package.name):
            for item in _exports(modules, package.name):
                definition = _definition(modules, package.name, item)
                if definition and definition[0].partition(".")[0] == package.name.partition(".")[0]:
                    names.setdefault(definition, []).append(f"{package.name}.{item}")
    return names


def _named(modules: dict[str, _Module]) -> Iterator[Docstring]:
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


def _short(modules: dict[str, _Module], name: str) -> str | None:
    """The public name of an object written in C: `numpy.ndarray.sort` for `numpy._core.multiarray.ndarray.sort`."""
    top, *parts = name.split(".")
    exports = modules[top].imported if top in modules else {}
    for start, part in enumerate(parts):
        if part in exports:
            return ".".join([top, *parts[start:]])
    return None if _private(name) else name
