"""Source files of Python packages: the docstrings, definitions and imports of each, read by all cores.

The files are parsed with `ast`; no package is imported or run.
"""

import ast
import contextlib
import dataclasses
import gc
import inspect
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import progress
from pipeline.cores import cores

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

FILES_OF_A_PROCESS = 1000
"""Number of files for each process; with fewer, the start of a further process takes longer than it saves."""

PROGRAM = "from pipeline.data.formats import python_modules; python_modules.parse_standard_input()"
"""Program of a further process."""

SourceFile = tuple[str, str]
"""Name of a module and path of its file."""


@dataclass(slots=True)
class SourceModule:
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

    def to_json(self) -> dict[str, Any]:
        """The fields, with lists in place of sets."""
        public = None if self.public is None else sorted(self.public)
        return {**dataclasses.asdict(self), "defined": sorted(self.defined), "public": public}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "SourceModule":
        """The module whose `to_json` this is."""
        pairs = {name: (origin, item) for name, (origin, item) in fields["imported"].items()}
        public = None if fields["public"] is None else set(fields["public"])
        attached = [(name, text) for name, text in fields["attached"]]
        return cls(
            **{**fields, "defined": set(fields["defined"]), "imported": pairs, "public": public, "attached": attached}
        )


def parse_files(files: Sequence[SourceFile]) -> list["SourceModule | None"]:
    """The module of each file, in order; None where a file is not valid Python (a template, say).

    Processes, at most one for each core, parse equal parts, the first of them in this process. A part whose process
    fails is parsed here.
    """
    count = max(1, min(cores(), len(files) // FILES_OF_A_PROCESS))
    parts = [files[start::count] for start in range(count)]  # Neighbours are alike, so all parts take as long.
    helpers = [_start(part) for part in parts[1:]]
    modules: list[SourceModule | None] = [None] * len(files)
    with progress.bar("reading docstrings", len(parts[0]), "files") as advance:
        modules[::count] = _parse_part(parts[0], advance)
    for start, (part, helper) in enumerate(zip(parts[1:], helpers, strict=True), start=1):
        written, _ = helper.communicate()
        modules[start::count] = (
            [fields and SourceModule.from_json(fields) for fields in json.loads(written)]
            if helper.returncode == 0
            else _parse_part(part)
        )
    return modules


def _start(files: Sequence[SourceFile]) -> "subprocess.Popen[bytes]":
    """A process that parses these files; unlike one of `multiprocessing` it never runs the caller's main module."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    helper = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert helper.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # It has failed already, which its exit status tells.
        helper.stdin.write(json.dumps(list(files)).encode())
        helper.stdin.close()
    helper.stdin = None  # `communicate` would flush it.
    return helper


def parse_standard_input() -> None:
    """Parses the files that standard input lists and writes their modules to standard output; see `parse_files`."""
    modules = _parse_part(json.load(sys.stdin))
    json.dump([module and module.to_json() for module in modules], sys.stdout)


def _parse_part(files: Sequence[SourceFile], advance: progress.Advance | None = None) -> list["SourceModule | None"]:
    modules = []
    gc_was_on = gc.isenabled()
    gc.disable()  # Saves a quarter of the time: syntax trees have few cycles to collect.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Invalid escapes in other people's sources.
            for name, path in files:
                modules.append(_parse(name, Path(path)))
                if advance:
                    advance(1)
    finally:
        if gc_was_on:
            gc.enable()
    return modules


def source_files(root: Path, inside: str = "") -> Iterator[tuple[str, Path]]:
    """(module name, file) below a folder of packages, in the order of their names."""
    for path in sorted((root / inside).iterdir()):
        name = path.stem if path.suffix == ".py" else path.name
        if not name.isidentifier() or name in SKIPPED or (not inside and name in OWN):
            continue
        relative = f"{inside}/{name}" if inside else name
        if path.is_dir():
            if (not name.startswith("_") or name in READ_ANYWAY) and relative not in SKIPPED_PATHS:
                yield from source_files(root, relative)
        elif path.suffix == ".py" and (inside or not name.startswith("_")):
            yield (inside if name == "__init__" else relative).replace("/", "."), path


def _parse(name: str, path: Path) -> SourceModule | None:
    module = SourceModule(name, path.name == "__init__.py")
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


def _note(
    module: SourceModule, node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, path: str
) -> None:
    docstring = ast.get_docstring(node)
    if docstring:
        module.documented.setdefault(path, docstring)


def _walk(module: SourceModule, body: Sequence[ast.stmt], inside: str) -> None:
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


def _statement(module: SourceModule, node: ast.stmt) -> None:
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


def _origin(module: SourceModule, node: ast.ImportFrom) -> str:
    """The absolute name of the module that a `from … import` names."""
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    parts = parts[: len(parts) - node.level + module.package]
    return ".".join([*parts, node.module] if node.module else parts)


def _attached(module: SourceModule, call: ast.Call, target: str | None) -> None:
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
