"""Turns the values of a database's column into one Arrow column.

The type of the column is decided once, from all of its values:

    values of one kind           their own type
    whole numbers and floats     float
    whole numbers and decimals   decimal
    any other mixture            text, each value as a person would type it
"""

import datetime
import decimal
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa

from pipeline.data.formats.text_files import STRING
from pipeline.errors import SchemaError
from pipeline.schema import row_name
from pipeline.text import NO

ValueKind = Literal["bool", "int", "float", "decimal", "date", "time", "moment", "instant", "other"]
"""Kind of a value: a moment is a date and time without a time zone, an instant has one; other is kept as text."""

DECIMAL_DIGITS = 38
"""Digits of the largest decimal that a column holds."""

_ARROW_TYPES: Mapping[ValueKind, pa.DataType] = {
    "bool": pa.bool_(),
    "int": pa.int64(),
    "float": pa.float64(),
    "date": pa.date32(),
    "time": pa.time64("us"),
    "moment": pa.timestamp("us"),
    "instant": pa.timestamp("us", "UTC"),
}
"""Type of a column whose values are all of one kind; that of decimals depends on their digits."""


def texts_of(values: Sequence[Any], column: str, shown: str) -> list[str]:
    """Values as texts; NULL becomes an empty text.

    Args:
        values: the values of one column.
        column: the column's name, for the message.
        shown: the database's address without its password, for the message.

    Raises:
        SchemaError: a value is bytes.
    """
    for row, value in enumerate(values):
        if isinstance(value, (bytes, memoryview)):
            raise SchemaError(f"{shown}: {row_name(row)} of column {column} holds bytes, not text; cast it in a view")
    return ["" if value is None else plain(value) for value in values]


def typed(values: Sequence[Any]) -> pa.Array:
    """The values as one column, typed by the rule at the head of this module; NULL stays null."""
    kinds = {_kind(value) for value in values if value is not None}
    if not kinds:
        return pa.nulls(len(values), STRING)
    try:
        if len(kinds) == 1 and (kind := next(iter(kinds))) in _ARROW_TYPES:
            return pa.array(values, _ARROW_TYPES[kind])
        if kinds == {"int", "float"}:
            return pa.array([None if value is None else float(value) for value in values], pa.float64())
        if kinds <= {"int", "decimal"} and "decimal" in kinds:
            return _decimals(values)
    except (pa.ArrowException, OverflowError):
        pass  # A number beyond every numeric type is kept as text.
    return pa.array([None if value is None else plain(value) for value in values], STRING)


def _decimals(values: Sequence[Any]) -> pa.Array:
    """Decimals, all with as many digits after the point as the longest of them has.

    Raises:
        OverflowError: more of them than a decimal of Parquet has.
    """
    numbers = [None if value is None else decimal.Decimal(value) for value in values]
    scale = max((max(0, -int(number.as_tuple().exponent)) for number in numbers if number is not None), default=0)
    if scale > DECIMAL_DIGITS:
        raise OverflowError(f"{scale} digits after the point")
    return pa.array(numbers, pa.decimal128(DECIMAL_DIGITS, scale))


def _kind(value: Any) -> ValueKind:  # noqa: PLR0911 - a table of types
    """The kind of a value that is not NULL."""
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
    """Whether a flag, such as the column that marks deleted rows, is set.

    NULL, 0, false and an empty value are not; nor are the texts that say no, in any case.
    """
    return flag is not None and plain(flag).strip().casefold() not in ("", "0", *NO)


def plain(value: Any) -> str:  # noqa: PLR0911 - a table of types
    """A value as a person would type it; bytes in hex, lists and objects as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.0f}" if math.isfinite(value) and value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, decimal.Decimal) and value.is_finite() and value == value.to_integral_value():
        return f"{value:.0f}"  # SQLite's driver gives the number 5 of a NUMERIC column as 5.0000000000.
    if isinstance(value, (bytes, memoryview)):
        return bytes(value).hex()
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (list, tuple, dict)):
        return json.dumps(value, ensure_ascii=False, sort_keys=True, default=plain)
    return str(value)
