"""Messages about the map of a table's columns: its faults, and the map to type in its place.

A person who maps a table sees what was guessed by the names of its columns, what could not be, the columns with a value
each, and the whole map as it is typed, in which everything that was right stays.
"""

import csv
import difflib
import io
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import pyarrow as pa

from pipeline.data.formats import column_map
from pipeline.errors import MissingError, SchemaError

Contents = Literal["judgments", "documents"]
"""Contents that a command needs of a table: graded pairs or clicks, or documents alone."""

NEEDS: Mapping[Contents, Mapping[str, tuple[str, ...]]] = {
    "judgments": {
        "query (what was searched for)": ("query", "query_id"),
        "title or text (of the document)": ("title", "text", "doc_id"),
        "grade (how well the document answers the query)": ("grade", "clicked"),
    },
    "documents": {"title or text (of the document)": ("title", "text")},
}
"""Contents → what a map must name, in words → the keys of which one suffices; the first is the usual one."""
SHOWN_COLUMNS = 40
SHOWN_VALUE = 30
"""Most characters of a column's value in a message."""
FIRST_LINE = "Its first line must name the columns: put one there if these are values"
"""A likely fault of a file none of whose columns has a usual name."""
_SEPARATORS = re.compile(r"[^\w\s'\"().-]")
_NO_USUAL_NAME = "no column has a usual name for:"
_BLANK = ", with the name of a column in place of COLUMN"


def guess(names: Sequence[str], contents: Contents | None) -> dict[str, str]:
    """The map that fits names best, of the keys that such contents have; None allows all keys."""
    best = column_map.suggest(names)
    kept = ("title", "text", "doc_id") if contents == "documents" else tuple(best)
    return {role: name for role, name in best.items() if role in kept}


def fault(columns: Mapping[str, str], samples: Mapping[str, str], contents: Contents, *, guessed: bool) -> str:
    """The faults of a map of columns, with the one to type; empty without any.

    Args:
        columns: the map, of which each key is known.
        samples: the table's columns, each with its first value.
        guessed: whether the map comes from the names of columns and not from a person.
    """
    absent = {role: name for role, name in columns.items() if name not in samples}
    lacking = {words: keys for words, keys in NEEDS[contents].items() if not set(keys) & set(columns)}
    if not absent and not lacking:
        return ""
    best = corrected(columns, samples, contents)
    lines = [
        *([f"has no column {', '.join(map(repr, absent.values()))}"] if absent else []),
        *([f"{_NO_USUAL_NAME if guessed else '--columns lacks:'} {'; '.join(lacking)}"] if lacking else []),
        *([f"guessed by the names: {option(columns)}"] if guessed and columns else []),
        *_corrections(absent, columns, samples),
        *[f"did you mean the key {right!r} in place of {key!r}?" for key, right in misspelt(columns, contents).items()],
        f"columns, each with its first value: {listed(samples)}",
        f"type: --columns {shlex.quote(option(best))}" + _BLANK * ("COLUMN" in best.values()),
    ]
    return "\n  ".join(lines)


def corrected(columns: Mapping[str, str], samples: Mapping[str, str], contents: Contents | None) -> dict[str, str]:
    """The map with its right entries as they are, near names for wrong ones, and COLUMN for what is not known."""
    right = {role: name for role, name in columns.items() if name in samples}
    free = [name for name in samples if name not in right.values()]
    best = guess(free, contents)
    fitting: dict[str, str] = {}
    keys_meant = misspelt(columns, contents) if contents else {}
    for role, name in columns.items():
        near = difflib.get_close_matches(name, free, 1, 0.6)
        fitting[keys_meant.get(role, role)] = name if role in right else near[0] if near else best.get(role, "COLUMN")
    for keys in (NEEDS[contents] if contents else {}).values():
        if not set(keys) & set(fitting):
            role = next((key for key in keys if key in best), keys[0])
            fitting[role] = best.get(role, "COLUMN")
    return fitting


def misspelt(columns: Mapping[str, str], contents: Contents) -> dict[str, str]:
    """The keys of a map that are none, each with the key that the contents need and the map lacks."""
    lacking = [keys for keys in NEEDS[contents].values() if not set(keys) & set(columns)]
    strange = [key for key in columns if key not in column_map.roles(columns)]
    near = {key: difflib.get_close_matches(key, [role for keys in lacking for role in keys], 1, 0.6) for key in strange}
    return {key: roles[0] for key, roles in near.items() if roles}


def listed(samples: Mapping[str, str]) -> str:
    """The columns of a table, each with its first value where that is known."""
    shown = [f"{name} ({_short(value)})" if value.strip() else name for name, value in samples.items()]
    return ", ".join(shown[:SHOWN_COLUMNS]) + (", …" if len(shown) > SHOWN_COLUMNS else "")


def option(columns: Mapping[str, str]) -> str:
    """A map as `--columns` takes it; a part with a comma of its own stands in double quotes."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow([f"{role}={name}" for role, name in columns.items()])
    return line.getvalue()


def written(columns: Mapping[str, str]) -> str:
    """A map as a person writes it, on the command line or in a recipe."""
    toml = ", ".join(f"{role} = {json.dumps(name, ensure_ascii=False)}" for role, name in columns.items())
    line = shlex.quote(option(columns))
    return f"--columns {line} on the command line, or columns = {{ {toml} }} in the recipe's source"


def missing(columns: Mapping[str, str], samples: Mapping[str, str]) -> str:
    """The message that a map names columns which a table lacks, with the one to write; empty where it names none.

    Args:
        columns: the map.
        samples: the table's columns, each with its first value.
    """
    absent = {role: name for role, name in columns.items() if name not in samples}
    if not absent:
        return ""
    if not any(name.strip() for name in samples):
        return f"has no column {', '.join(map(repr, absent.values()))}: it is empty, or its first line is"
    lines = [
        f"has no column {', '.join(map(repr, absent.values()))}",
        *_corrections(absent, columns, samples),
        f"columns: {listed(samples)}",
        f"write: {written(corrected(columns, samples, None))}",
    ]
    return "\n  ".join(lines)


def of_file(path: Path) -> str:
    """The columns of the table at a path and the map that would fit best, to be put behind a message; or nothing."""
    files = column_map.files_of(path)
    if not files:
        return ""
    try:
        samples = column_map.samples_of(files[0])
    except (SchemaError, MissingError, OSError, pa.ArrowException) as error:
        return f"\nA table could be read by a map of its columns, but {error}"
    names = list(samples)
    if not any(name.strip() for name in names):
        return f"\n{files[0].name} is empty, or its first line is; the first line names the columns"
    best = column_map.suggest(names)
    separated = separator(names)
    if separated:
        return f"\n{files[0].name} {separated}"
    if not best:
        return (
            f"\n{files[0].name} has the columns {listed(samples)}; none looks like a query, a title or a grade. "
            f"{FIRST_LINE}, or map them by hand: --columns query=COLUMN,title=COLUMN,grade=COLUMN"
        )
    return f"\n{files[0].name} has the columns {listed(samples)}. The map that fits best: {written(best)}"


def separator(names: Sequence[str]) -> str:
    """The advice on a table of one column whose name holds a sign that may separate columns; empty for any other."""
    marks = _SEPARATORS.findall(names[0]) if len(names) == 1 and not column_map.suggest(names) else []
    if not marks:
        return ""
    return (
        f"has one column, {names[0]}; if {marks[0]!r} separates its columns, write the file with a comma, a tab, ';' "
        "or '|' in its place"
    )


def _corrections(absent: Mapping[str, str], columns: Mapping[str, str], samples: Mapping[str, str]) -> list[str]:
    """A question for each absent column whose name is like that of a column which the map does not use."""
    free = [name for name in samples if name not in columns.values()]
    near = {name: difflib.get_close_matches(name, free, 1, 0.6) for name in absent.values()}
    return [f"did you mean {names[0]!r} in place of {name!r}?" for name, names in near.items() if names]


def _short(value: str) -> str:
    plain = " ".join("".join(mark if mark.isprintable() else " " for mark in value).split())
    return plain if len(plain) <= SHOWN_VALUE else plain[: SHOWN_VALUE - 1].rstrip() + "…"
