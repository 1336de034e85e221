"""Lone surrogates in the escapes of a JSON body: JSON can write them, but no text can hold one."""

import numpy as np
import numpy.typing as npt

from serving.api import json_limits

REPLACEMENT = b"fffd"
"""The digits of U+FFFD, the character that stands for what cannot be shown."""
ESCAPE = len("\\ud800")
"""Bytes of an escaped surrogate."""
_BACKSLASH, _U = b"\\u"
_NO_DIGIT = 2**16
_DIGITS = np.full(256, _NO_DIGIT, np.int32)
for _value, _digit in enumerate("0123456789abcdef"):
    _DIGITS[[ord(_digit), ord(_digit.upper())]] = _value


def replaced(body: bytes | bytearray) -> bytearray:
    """The JSON with U+FFFD in place of each lone surrogate.

    Every other byte keeps its place, so a position in an error of the parser is one in the client's body.
    """
    at, is_low = _surrogates(body)
    begins_pair = ~is_low[:-1] & is_low[1:] & (np.diff(at) == ESCAPE)
    is_lone = np.ones(len(at), bool)
    is_lone[:-1] &= ~begins_pair
    is_lone[1:] &= ~begins_pair
    mended = bytearray(body)
    data = np.frombuffer(mended, np.uint8)
    for offset, digit in enumerate(REPLACEMENT, start=2):
        data[at[is_lone] + offset] = digit
    return mended


def _surrogates(body: bytes | bytearray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The positions of the escaped surrogates, ascending, and whether each is a low one, the second of a pair.

    The body is read chunk by chunk, so that little memory is needed and other threads have their turns.
    """
    positions, lows = [np.empty(0, np.int64)], [np.empty(0, bool)]
    start = 0
    while start < len(body):
        end = json_limits.end_of_chunk(body, start)
        # An escaped backslash begins no escape. An escape that begins in this chunk may end in the next.
        chunk = body[start : end + ESCAPE - 1].replace(b"\\\\", b"  ")
        data = np.frombuffer(chunk, np.uint8)
        last = max(len(data) - ESCAPE + 1, 0)
        at = np.flatnonzero((data[:last] == _BACKSLASH) & (data[1 : last + 1] == _U))
        digits = _DIGITS[data[at[:, None] + np.arange(2, ESCAPE)]]
        code = digits @ np.array([4096, 256, 16, 1], np.int32)
        is_surrogate = (code >= 0xD800) & (code <= 0xDFFF)
        positions.append(at[is_surrogate] + start)
        lows.append(code[is_surrogate] >= 0xDC00)
        start = end
    return np.concatenate(positions), np.concatenate(lows)
