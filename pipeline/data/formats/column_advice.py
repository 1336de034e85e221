"""Messages about the map of a table's columns: its faults, and the map to type in its place.

A person who maps a table sees what was guessed by the names of its columns, what could not be, the columns with a value
each, and the whole map as it is typed, in which everything that was right stays.
"""

import difflib
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import pyarrow as pa

from pipeline.data.clicks import impressions
from pipeline.data.formats import column_map, document_lists, nested
from pipeline.data.formats.option_text import option, toml_key, written
from pipeline.errors import MissingError, SchemaError
from pipeline.secrets import secrets_as_variables
from pipeline.text import printable

Contents = Literal["judgments", "documents"]
"""Contents that a command needs of a table: graded pairs or clicks, or documents alone."""

NEEDS: Mapping[Contents, Mapping[str, tuple[str, ...]]] = {
    "judgments": {
        "query (what was searched for)": ("query", "query_id"),
        "title or text (of the document)": ("title", "text", "doc_id", "positive"),
        "grade (how well the document answers the query), or position and clicked of a click log, or positive (texts "
        "that are relevant)": ("grade", "clicked", "positive"),
    },
    "documents": {"title or text (of the document)": ("title", "text")},
}
"""Contents → what a map must name, in words → the keys of which one suffices; the first is the usual one."""
SHOWN_COLUMNS = 40
"""Most columns of a table in a message."""
SHOWN_VALUE = 30
"""Most characters of a column's value in a message."""
_FIRST_LINE = "Its first line must name the columns: put one there if these are values"
_SEPARATORS = re.compile(r"[^\w\s'\"().-]")
_NO_USUAL_NAME = "no column has a usual name for:"
_BLANK = ", with the name of a column in place of COLUMN"
MOST_TABLES = 20
"""Number of tables of a folder or a database that are looked at."""
PASSWORD = "DATABASE_PASSWORD"
"""Environment variable that a recipe names in the place of a database's password."""
_ID = re.compile(r"(?:^|[_.\s-]|(?<=[a-z])(?=I))id$", re.IGNORECASE)
_CLICKS, _POSITIONS = re.compile("clic|klick|点击", re.IGNORECASE), re.compile("pos|ran[kg]|slot|位", re.IGNORECASE)
"""Parts of the names of columns that may be the clicks and the positions of a log."""


def guess(names: Sequence[str], contents: Contents | None) -> dict[str, str]:
    """The map that fits names best, of the keys that such contents have; None allows all keys."""
    best = column_map.suggest(names)
    kept = ("title", "text", "doc_id") if contents == "documents" else tuple(best)
    return {role: name for role, name in best.items() if role in kept}


def contents_of(columns: Mapping[str, str]) -> Contents | None:
    """The contents that a map of columns seems to be meant for; None for a table of queries alone."""
    described = {"title", "text"} & set(columns)
    if column_map.JUDGED & set(columns) or ("query" in columns and described):
        return "judgments"
    if described:
        return "documents"
    return None if "query" in columns else "judgments"


def fitted(columns: Mapping[str, str], names: Sequence[str]) -> tuple[dict[str, str], Contents | None]:
    """The map of a table that may hold anything, and the contents that it must be complete for.

    A map that a person wrote stays as it is, unless the usual names complete one that is meant for judged pairs.
    """
    if not columns:
        best = guess(names, None)
        return best, contents_of(best)
    graded = column_map.JUDGED & set(columns)
    if graded or {"query", "query_id"} & set(columns):
        full = completed(columns, names, "judgments")
        if _lacking(columns, "judgments") and not _lacking(full, "judgments"):
            return full, "judgments"
    return dict(columns), "judgments" if graded else None


def completed(columns: Mapping[str, str], names: Sequence[str], contents: Contents) -> dict[str, str]:
    """The map with the columns of usual names for the keys that a person left out; what the person wrote stays.

    A key that looks mistyped is left to `fault`, as the guess would hide it.
    """
    if _misspelt(columns, _lacking(columns, contents)):
        return dict(columns)
    rest = guess([name for name in names if name not in columns.values()], contents)
    taken = {*columns, *_kept_apart(columns)}
    return {**columns, **{role: name for role, name in rest.items() if role not in taken}}


def _kept_apart(columns: Mapping[str, str]) -> tuple[str, ...]:
    """The keys that cannot stand in one map with those of a person: each way to judge has its own."""
    if "positive" in columns:
        return document_lists.KEPT_APART
    if "clicked" in columns:
        return ("grade", "split", *document_lists.ROLES)
    logged = impressions.ROLES if "grade" in columns else ()
    return (*logged, *(document_lists.ROLES if {"grade", "title", "text"} & set(columns) else ()))


def fault(
    columns: Mapping[str, str], samples: Mapping[str, str], contents: Contents | None = None, *, guessed: bool = False
) -> str:
    """The faults of a map of columns, with the one to type; empty without any.

    Args:
        columns: the map.
        samples: the table's columns, each with its first value.
        contents: what the map must name for a command; None asks only that the table has the columns of the map.
        guessed: whether the map comes from the names of columns and not from a person.
    """
    absent = {role: name for role, name in columns.items() if name not in samples}
    lacking = _lacking(columns, contents)
    if not absent and not lacking:
        return ""
    problem = f"has no column {', '.join(map(repr, absent.values()))}"
    if absent and not any(name.strip() for name in samples):
        return f"{problem}: it is empty, or its first line is"
    meant = _misspelt(columns, lacking)
    fitting = _fitting(columns, samples, guess(_free(columns, samples), contents), lacking, meant)
    logged = "clicked" in fitting and "clicked" not in columns
    lines = [
        *([problem] if absent else []),
        *([f"{_NO_USUAL_NAME if guessed else '--columns lacks:'} {'; '.join(lacking)}"] if lacking else []),
        *([f"guessed by the names: {option(columns)}"] if guessed and columns else []),
        *_corrections(absent, columns, samples),
        *[f"did you mean the key {right!r} in place of {key!r}?" for key, right in meant.items()],
        f"columns{', each with its first value' if any(samples.values()) else ''}: {listed(samples)}",
        *(["it looks like a click log, with a row for each time that a document was shown"] if logged else []),
        *_all_relevant(fitting),
        f"type: --columns {shlex.quote(option(fitting))}" if contents else f"write: {written('columns', fitting)}",
    ]
    return "\n  ".join(lines) + _blank(fitting)


def _all_relevant(columns: Mapping[str, str]) -> list[str]:
    """The line on pairs of a query and its answer without a grade; empty for other tables."""
    text = columns.get("text", "COLUMN")
    if columns.keys() != {"query", "text", "grade"} or columns["grade"] != "COLUMN" or text == "COLUMN":
        return []
    pairs = {"query": columns["query"], "positive": text}
    return [f"where each text is relevant to its query: --columns {shlex.quote(option(pairs))}"]


def _blank(columns: Mapping[str, str]) -> str:
    return _BLANK if "COLUMN" in columns.values() else ""


def _click_columns(columns: Mapping[str, str], samples: Mapping[str, str]) -> dict[str, str]:
    """The position and the clicks of a table without a known grade, if a column is named after clicks; else empty."""
    free = [name for name in samples if name not in columns.values()]
    clicked = next(filter(_CLICKS.search, free), "")
    if not clicked or columns.get("grade") != "COLUMN":
        return {}
    position = next((name for name in free if name != clicked and _POSITIONS.search(name)), "COLUMN")
    return {"position": position, "clicked": clicked}


def _lacking(columns: Mapping[str, str], contents: Contents | None) -> dict[str, tuple[str, ...]]:
    """The entries of `NEEDS` of these contents that a map does not name."""
    needs = NEEDS[contents] if contents else {}
    return {words: keys for words, keys in needs.items() if not set(keys) & set(columns)}


def _free(columns: Mapping[str, str], samples: Mapping[str, str]) -> list[str]:
    """The columns of a table that a map does not name."""
    return [name for name in samples if name not in columns.values()]


def _fitting(
    columns: Mapping[str, str],
    samples: Mapping[str, str],
    best: Mapping[str, str],
    lacking: Mapping[str, tuple[str, ...]],
    meant: Mapping[str, str],
) -> dict[str, str]:
    """The map with its right entries as they are, near names for wrong ones, and COLUMN for what is not known.

    Args:
        best: the likeliest map of the columns that are free.
        lacking: what the map must name and does not; see `NEEDS`.
        meant: the result of `_misspelt`.
    """
    free = _free(columns, samples)
    fitting: dict[str, str] = {}
    for role, name in columns.items():
        near = [name] if name in samples else _near(name, free)
        fitting[meant.get(role, role)] = near[0] if near else best.get(role, "COLUMN")
    for keys in lacking.values():
        if not set(keys) & set(fitting):
            role = next((key for key in keys if key in best), keys[0])
            fitting[role] = best.get(role, "COLUMN")
    logged = _click_columns(fitting, samples)
    return {key: name for key, name in fitting.items() if not (logged and key == "grade")} | logged


def _misspelt(columns: Mapping[str, str], lacking: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """The keys of a map that are none, each with the key that it lacks and most likely means."""
    strange = [key for key in columns if key not in column_map.roles(columns)]
    roles = [role for keys in lacking.values() for role in keys]
    near = {key: difflib.get_close_matches(key, roles, 1, 0.6) for key in strange}
    return {key: names[0] for key, names in near.items() if names}


def listed(samples: Mapping[str, str]) -> str:
    """The columns of a table, each with its first value where that is known."""
    shown = [f"{name} ({_short(value)})" if value.strip() else name for name, value in samples.items()]
    return ", ".join(shown[:SHOWN_COLUMNS]) + (", …" if len(shown) > SHOWN_COLUMNS else "")


def first_line(path: Path) -> str:
    """A likely fault of a text file none of whose columns has a usual name; empty for a file that names each value."""
    named = (*column_map.JSON_LINES, ".parquet")
    return "" if all(file.suffix.lower() in named for file in column_map.files_of(path)) else _FIRST_LINE


def of_file(path: Path) -> str:
    """The columns of the table at a path and the map that would fit best, to be put behind a message; or nothing.

    Several tables of different columns are shown as the sources of one collection, each with its map.
    """
    files = column_map.files_of(path)
    if len(files) > 1 and (blank := next(filter(column_map.is_blank, files[:MOST_TABLES]), None)):
        return f"\n{_of_table(blank)}; or take the file out of the folder"
    if len(files) > 1 and (apart := _as_sources(files)):
        return f"\nIts tables have different columns. Write those that belong together into a recipe:\n{apart}"
    return f"\n{_of_table(files[0])}" if files else ""


def _of_table(file: Path) -> str:
    """The columns of a table and the map that fits best, or why they cannot be told."""
    try:
        samples = column_map.samples_of(file)
    except (SchemaError, MissingError, OSError, pa.ArrowException) as error:
        return f"A table could be read by a map of its columns, but {error}"
    names = list(samples)
    if not any(name.strip() for name in names):
        return f"{file.name} is empty, or its first line is; the first line names the columns"
    best = column_map.suggest(names)
    separated = separator(names)
    if separated:
        return f"{file.name} {separated}"
    if not best:
        by_hand = written("columns", dict.fromkeys(("query", "title", "grade"), "COLUMN"))
        ways = ", or ".join(filter(None, (first_line(file), f"map them by hand: {by_hand}")))
        return (
            f"{file.name} has the columns {listed(samples)}; none looks like a query, a title or a grade. "
            f"{ways[0].upper()}{ways[1:]}"
        )
    return f"{file.name} has the columns {listed(samples)}. The map that fits best: {fitting(samples)}"


def _as_sources(files: Sequence[Path]) -> str:
    """Tables of different columns as a recipe names them; empty where all have the same columns, or none is known."""
    tables = {}
    for file in files[:MOST_TABLES]:
        with suppress(SchemaError, MissingError, OSError, pa.ArrowException):
            tables[file] = list(column_map.samples_of(file))
    if len({frozenset(names) for names in tables.values()}) < 2:
        return ""
    name = files[0].resolve().parent.name or "own"
    maps = {file: judged_or_described(names) for file, names in tables.items()}
    return sources([(str(file), name, columns) for file, columns in maps.items() if columns])


def judged_or_described(names: Sequence[str]) -> dict[str, str]:
    """The map of a table of a collection: that of its documents or queries, or of judgments with the ids of both."""
    columns = guess(names, None)
    free = [name for name in names if name not in columns.values()]
    of_document = next(filter(_ID.search, free), "")
    is_judged = {"grade", "clicked"} & set(columns) and not {"title", "text"} & set(columns)
    if is_judged and of_document and ("doc_id" not in columns or column_map.is_bare_id(columns["doc_id"])):
        columns["doc_id"] = of_document  # Beside it, a bare id numbers the judgments.
    return columns


def sources(tables: Iterable[tuple[str, str, Mapping[str, str]]]) -> str:
    """The lines of a recipe for tables, each given by its path, the name of its collection and its map; no password."""
    lines = []
    for path, name, columns in tables:
        hidden, _ = secrets_as_variables(path, PASSWORD)
        mapped = ", ".join(f"{toml_key(key)} = {_quoted(column)}" for key, column in columns.items())
        lines.append(f"      {{ path = {_quoted(hidden)}, name = {_quoted(name)}, columns = {{ {mapped} }} }},\n")
    return f"    [data]\n    sources = [\n{''.join(lines)}    ]" if lines else ""


def _quoted(words: str) -> str:
    return json.dumps(words, ensure_ascii=False)


def fitting(samples: Mapping[str, str]) -> str:
    """The map to write for a table of these columns, with COLUMN where no name tells what is needed."""
    best = guess(list(samples), None)
    complete = _fitting(best, samples, {}, _lacking(best, contents_of(best)), {})
    return written("columns", complete) + _blank(complete)


def separator(names: Sequence[str]) -> str:
    """The advice on a table of one column whose name holds a sign that may separate columns; empty for any other."""
    if names and names[0].casefold().startswith("sep="):
        return f"has the first line {names[0]!r} and a separator, which Excel writes; delete this line"
    if names and names[0].startswith("#") and not column_map.suggest(names):
        return (
            f"has the first line {names[0][:SHOWN_VALUE]!r}, a comment; delete it, so that the first names the columns"
        )
    mark = _SEPARATORS.search(names[0]) if len(names) == 1 and not column_map.suggest(names) else None
    if mark is None:
        return ""
    return (
        f"has one column, {names[0]}; if {mark[0]!r} separates its columns, write the file with a comma, a tab, ';' "
        "or '|' in its place"
    )


def _corrections(absent: Mapping[str, str], columns: Mapping[str, str], samples: Mapping[str, str]) -> list[str]:
    """A question for each absent column whose name is like that of a column which the map does not use.

    Of a path through a column that is there, a line says that this column has no such field.
    """
    free = _free(columns, samples)
    near = {name: _near(name, free) for name in absent.values()}
    lines = [f"did you mean {names[0]!r} in place of {name!r}?" for name, names in near.items() if names]
    holders = {name: next(filter(samples.__contains__, nested.parents(name)), "") for name in absent.values()}
    return lines + [
        f"{holder!r} has no field {name.removeprefix(f'{holder}.')!r}: a path such as {name!r} leads through objects "
        "of JSON lines and structs of Parquet, also those of a list"
        for name, holder in holders.items()
        if holder
    ]


def _near(name: str, free: Sequence[str]) -> list[str]:
    """The free column whose name is most like an absent one, if any is; no column that an absent path leads through."""
    return difflib.get_close_matches(name, [other for other in free if other not in nested.parents(name)], 1, 0.6)


def _short(value: str) -> str:
    plain = " ".join(printable(value).split())
    return plain if len(plain) <= SHOWN_VALUE else plain[: SHOWN_VALUE - 1].rstrip() + "…"
