"""Checks that several sections of a recipe share, and helpers that declare their fields."""

import dataclasses
import re
from collections.abc import Sequence
from typing import TypeVar

from pydantic import ConfigDict

from pipeline.errors import ConfigError

DOCUMENTED = ConfigDict(use_attribute_docstrings=True)
"""Config of a section's dataclass that makes the text below each field its description in the JSON Schema."""

ADDED = "added"
"""Key in the metadata of a dataclass field that `added` declared."""

SEEDS = 2**31
"""Number of seeds, from 0: Faiss takes 31 bits."""

T = TypeVar("T")


def added(default: T) -> T:
    """A field that a section got after artifacts had been made from it.

    Manifests and fingerprints leave it out while it has its default, so the artifacts made before are used again. A
    later change of the default must raise the version of the stages that read it.
    """
    return dataclasses.field(default=default, metadata={ADDED: True})


def check_positive(section: str, **values: float) -> None:
    """Raises `ConfigError` if a value is not above 0.

    Args:
        section: the section of the recipe, for the message.
        values: key of the section → value.
    """
    for name, value in values.items():
        if value <= 0:
            raise ConfigError(f"{section}.{name} is {value}; it must be above 0")


def check_not_negative(section: str, zero: str = "", **values: float) -> None:
    """Raises `ConfigError` if a value is below 0; arguments as for `check_positive`.

    Args:
        zero: what 0 stands for, such as `no bound`; empty where it is a number like any other.
    """
    least = f"0, for {zero}," if zero else "0"
    for name, value in values.items():
        if value < 0:
            raise ConfigError(f"{section}.{name} is {value}; it must be {least} or more")


def check_seed(section: str, seed: int) -> None:
    """Raises `ConfigError` if a generator of random numbers cannot take the seed."""
    if not 0 <= seed < SEEDS:
        raise ConfigError(f"{section}.seed is {seed}; it must be from 0 to {SEEDS - 1}")


def check_weights(section: str, **values: float) -> None:
    """Raises `ConfigError` if the weight of a loss is below 0, or all are 0; arguments as for `check_positive`."""
    check_not_negative(section, "none", **values)
    if not any(values.values()):
        raise ConfigError(f"{section}: every loss has weight 0, so there is nothing to learn; give one a weight")


def check_shares(section: str, **values: float) -> None:
    """Raises `ConfigError` if a value is not between 0 and 1; arguments as for `check_positive`."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ConfigError(f"{section}.{name} is {value}; it is a share, between 0 and 1")


def check_fields(names: Sequence[str], *, vectors: bool) -> None:
    """Checks the fields of documents that get a BM25 score, or a vector, of their own besides that of the document.

    Args:
        names: `index.fields`.
        vectors: `index.field_vectors`; true needs at least one name.

    Raises:
        ConfigError: a name has other characters than letters, digits and _, a name stands there twice, or vectors are
            wanted without names.
    """
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ConfigError(
                f"index.fields has '{name}'; the name of such a field has only letters A to Z, digits and _, and does "
                "not begin with a digit: store the column under such a name, with a key of data.sources[].columns"
            )
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"index.fields names {repeated[0]} twice; name each field once")
    if vectors and not names:
        raise ConfigError("index.field_vectors is true and index.fields names no field; name them, or leave it out")


def check_watermark(*, watermark: str, deletions: str, deleted: str, overlap: float, query: str) -> None:
    """Checks the keys of a database source by which a re-index finds what changed since the last one.

    Args:
        watermark: column that grows whenever a row is written, such as updated_at; empty for none.
        deletions: the way in which deleted rows are found: flag, table, scan or none.
        deleted: column of the flag, or table of the deleted ids.
        overlap: distance below the last watermark at which reading begins.
        query: the SQL query of the source; empty where it reads a table.

    Raises:
        ConfigError: the keys do not fit together.
    """
    if watermark and not deletions:
        raise ConfigError(
            f"watermark is {watermark}, and deletions does not say how rows that are gone are found; set it to "
            '"flag", "table" or "scan", or to "none" where rows never go'
        )
    if not watermark and (deletions or deleted or overlap):
        raise ConfigError("deletions, deleted and overlap need a watermark; name its column, or leave them out")
    if (deletions in ("flag", "table")) != bool(deleted):
        raise ConfigError(
            f"deletions is {deletions!r} and deleted is {deleted!r}; deleted is the column of a flag for "
            "'flag', and the table of deleted ids for 'table': name that one, and leave deleted out otherwise"
        )
    if overlap < 0:
        raise ConfigError(f"overlap is {overlap:g}; it must be 0 or more")
    if watermark and query:
        raise ConfigError("a watermark needs a table or a view, not a query; make a view of the query")


def check_path(path: str) -> None:
    """Raises `ConfigError` if the path of a source is empty, which would mean the working folder."""
    if not path.strip():
        raise ConfigError("a source of data has an empty path; name its file or folder, or the address of a database")
