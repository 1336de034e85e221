"""Values of a database as the columns of a table.

The type of a column is decided once, from all of its values: one kind of value keeps its type, whole numbers beside
floats are floats, beside decimals decimals, and any other mixture is text, each value as a person would type it.
"""

import datetime
import decimal
import json
import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipeline.data.formats.text_files import STRING
from pipeline.errors import SchemaError


def texts_of(values: Sequence[Any], column: str, shown: str) -> list[str]:
    """Values as texts; NULL is an empty one.

    Raises:
        SchemaError: a value is bytes.
    """
    for row, value in enumerate(values):
        if isinstance(value, (bytes, memoryview)):
            raise SchemaError(f"{shown}: row {row} of column {column} holds bytes, not text; cast it in a view")
    return ["" if value is None else plain(value) for value in values]


def typed(values: Sequence[Any]) -> pa.Array:
    """One column of one type that all values fit; nulls stay null. See the head of this module for the rule."""
    kinds = {_kind(value) for value in values if value is not None}
    if not kinds:
        return pa.nulls(len(values), STRING)
    try:
        if kinds <= {"int", "float"} and "float" in kinds:
            return pa.array([None if value is None else float(value) for value in values], pa.float64())
        if kinds == {"int"}:
            return pa.array(values, pa.int64())
        if kinds <= {"int", "decimal"} and "decimal" in kinds:
            return _decimals(values)
        known = {"bool": pa.bool_(), "date": pa.date32(), "instant": pa.timestamp("us", "UTC"), "time": pa.time64("us")}
        if len(kinds) == 1 and (kind := next(iter(kinds))) in (*known, "moment"):
            return pa.array(values, known.get(kind, pa.timestamp("us")))
    except (pa.ArrowException, OverflowError):
        pass  # A number beyond every numeric type is kept as text.
    return pa.array([None if value is None else plain(value) for value in values], STRING)


def _decimals(values: Sequence[Any]) -> pa.Array:
    """Exact decimals of one scale, the largest that a value has."""
    numbers = [None if value is None else decimal.Decimal(value) for value in values]
    scale = max((max(0, -int(number.as_tuple().exponent)) for number in numbers if number is not None), default=0)
    return pa.array(numbers, pa.decimal128(38, scale))


def _kind(value: Any) -> str:  # noqa: PLR0911 - a table of types
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int"
    if isinstance(value, float):
        return "float"
    if isinstance(value, decimal.Decimal):
        return "decimal" if value.is_finite() else "other"
    if isinstance(value, datetime.datetime):
        return "moment" if value.tzinfo is None else "instant"
    if isinstance(value, datetime.date):
        return "date"
    return "time" if isinstance(value, datetime.time) and value.tzinfo is None else "other"


def is_set(flag: Any) -> bool:
    """Whether the value of a flag says that its row is deleted: it is not NULL, 0, false or empty."""
    return flag is not None and plain(flag).strip().casefold() not in ("", "0", "false", "f", "no", "n")


def plain(value: Any) -> str:  # noqa: PLR0911 - a table of types
    """A value as a person would type it; bytes in hex, lists and objects as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.0f}" if math.isfinite(value) and value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, (bytes, memoryview)):
        return bytes(value).hex()
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (list, tuple, dict)):
        return json.dumps(value, ensure_ascii=False, sort_keys=True, default=plain)
    return str(value)
