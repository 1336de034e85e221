"""Maps as text: `--columns` and `--labels` of the command line, and the same keys in a recipe."""

import csv
import io
import json
import re
import shlex
from collections.abc import Mapping

from pipeline.errors import ConfigError
from pipeline.schema import MAX_GRADE, grade_of

_FULL_WIDTH = re.compile(r"＝|=[^，,=]*，[^，,=]*=")
"""A full-width = anywhere, or a full-width comma between one part's = and that of the next."""
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def parse_columns(text: str) -> dict[str, str]:
    """The map of columns in `query=search_term,title=name`; see `SourceConfig.columns`.

    Raises:
        ConfigError: it is not written so, or names a key twice.
    """
    columns: dict[str, str] = {}
    for part in _parts("columns", text):
        key, equals, name = (piece.strip() for piece in part.partition("="))
        if not (key and equals and name) or key in columns:
            raise ConfigError(
                f"--columns: '{part}' is not key=column, or its key is there twice; see query=search_term"
            )
        columns[key] = name
    return columns


def parse_labels(text: str) -> dict[str, int]:
    """The grades of words in `Exact=2,Partial=1,Irrelevant=0`; see `SourceConfig.labels`.

    Raises:
        ConfigError: it is not written so, a grade is no whole number from 0 on, or a word is there twice.
    """
    labels: dict[str, int] = {}
    for part in _parts("labels", text):
        word, equals, grade = (piece.strip() for piece in part.rpartition("="))
        word, equals = (word, equals) if equals else (part, "")
        number = grade_of(grade)
        if not (word and equals) or number is None or word in labels:
            raise ConfigError(
                f"--labels: '{part}' is not word=grade with a grade from 0 to {MAX_GRADE}, or its word is there twice; "
                "see Exact=2,Partial=1,Irrelevant=0"
            )
        labels[word] = number
    return labels


def option(values: Mapping[str, object]) -> str:
    """A map as its option takes it; a part with a comma of its own stands in double quotes."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow([f"{key}={value}" for key, value in values.items()])
    return line.getvalue()


def written(name: str, values: Mapping[str, str | int | None]) -> str:
    """A map as a person writes it, on the command line or in a recipe; GRADE in the place of a value that is None.

    Args:
        name: the option, and the key of a recipe's source: columns or labels.
    """
    toml = ", ".join(
        f"{toml_key(key)} = {'GRADE' if value is None else json.dumps(value, ensure_ascii=False)}"
        for key, value in values.items()
    )
    line = shlex.quote(option({key: "GRADE" if value is None else value for key, value in values.items()}))
    return f"--{name} {line} on the command line, or {name} = {{ {toml} }} in the recipe's source"


def toml_key(key: str) -> str:
    """A key as TOML takes it: bare if it may be, else in quotes."""
    return key if _BARE_KEY.fullmatch(key) else json.dumps(key, ensure_ascii=False)


def _parts(name: str, text: str) -> list[str]:
    """The parts between commas that are not empty; a part with a comma of its own stands in double quotes.

    Raises:
        ConfigError: signs between the parts are full-width, as a Chinese or Japanese keyboard types them.
    """
    if _FULL_WIDTH.search(text):
        typed = text.replace("＝", "=").replace("，", ",")
        raise ConfigError(
            f"--{name}: {text!r} has full-width signs between its parts; type {shlex.quote(typed)}, or where such a "
            f"sign belongs to a name, write {name} in a recipe's source"
        )
    return [part for part in next(csv.reader([text], skipinitialspace=True), []) if part]
