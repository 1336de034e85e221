"""Limits on the structure of a JSON body, checked on its bytes before any Python object is built from them.

A parsed value takes far more memory than its text: `{}` is two bytes of JSON and 64 bytes of Python. So the number of
values is limited first. Counting commas and brackets with `bytes.count` gives an upper bound in a few milliseconds;
only a body whose bound is beyond the limits is scanned exactly, because texts hold commas and brackets too.
"""

import numpy as np

from serving.errors import BodyTooLargeError, RequestError

MAX_DEPTH = 200
"""The deepest nesting of lists and objects in a request; answers contain documents, and orjson writes at most 254."""

MAX_VALUES = 250_000
"""Values of any kind in one body: 2,048 texts of 122 token ids, or 1,000 documents of 250 fields."""

MAX_CONTAINERS = 50_000
"""Lists and objects in one body; each takes up to 232 bytes of memory."""

_CHUNK = 2**18
_QUOTE, _COMMA, _BRACKET, _BRACE, _END_BRACKET, _END_BRACE = b'",[{]}'


def check_structure(body: bytes | bytearray) -> None:
    """Checks a body that has not been parsed.

    Raises:
        BodyTooLargeError: it holds more values, or more lists and objects, than the limits.
        RequestError: a body that must be scanned is nested too deep; see `is_deep` for the others.
    """
    containers, commas = _bound(body)
    if containers <= MAX_CONTAINERS and containers + commas <= MAX_VALUES:
        return
    containers = commas = inside = start = level = 0
    while start < len(body):
        end = end_of_chunk(body, start)
        # Two spaces in place of an escape keep an escaped quote from counting as one.
        chunk = body[start:end].replace(b"\\\\", b"  ").replace(b'\\"', b"  ")
        data = np.frombuffer(chunk, np.uint8)
        in_text = np.bitwise_xor.accumulate((data == _QUOTE).view(np.uint8)) ^ np.uint8(inside)
        inside, start = int(in_text[-1]), end
        outside = in_text == 0
        opens = outside & ((data == _BRACKET) | (data == _BRACE))
        closes = outside & ((data == _END_BRACKET) | (data == _END_BRACE))
        levels = np.cumsum(opens.view(np.int8) - closes.view(np.int8), dtype=np.int32)
        if level + int(levels.max()) > MAX_DEPTH:
            raise too_deep()
        level += int(levels[-1])
        containers += int(np.count_nonzero(opens))
        commas += int(np.count_nonzero(outside & (data == _COMMA)))
        if containers > MAX_CONTAINERS:
            raise BodyTooLargeError(
                f"the body holds more than {MAX_CONTAINERS:,} lists and objects; send fewer in one request"
            )
        if containers + commas > MAX_VALUES:
            raise BodyTooLargeError(f"the body holds more than {MAX_VALUES:,} values; send fewer in one request")


def too_deep() -> RequestError:
    """The error for a body that is nested too deep."""
    return RequestError(f"the body is nested too deep; at most {MAX_DEPTH} lists and objects within each other")


def is_deep(body: bytes | bytearray, value: object) -> bool:
    """Whether a parsed body has more than `MAX_DEPTH` lists and objects within each other."""
    if _bound(body)[0] <= MAX_DEPTH:
        return False
    level = [value]
    for _ in range(MAX_DEPTH):
        below = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list))
        level = [inner for items in below for inner in items if isinstance(inner, dict | list)]
        if not level:
            return False
    return True


def _bound(body: bytes | bytearray) -> tuple[int, int]:
    """Upper bounds of the number of lists and objects, and of the commas between values."""
    return body.count(b"[") + body.count(b"{"), body.count(b",")


def end_of_chunk(body: bytes | bytearray, start: int) -> int:
    """The end of the chunk that begins at `start`; never between a backslash and what it escapes."""
    chunk = body[start : start + _CHUNK]
    backslashes = len(chunk) - len(chunk.rstrip(b"\\"))
    return start + len(chunk) + backslashes % 2
