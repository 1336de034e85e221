"""Lines of a file of separated values at which a quote is wrong or a row begins, counted from 1."""

import codecs
import re
from itertools import islice

_QUOTED = rb'"[^"]*+(?:""[^"]*+)*+"'
_QUOTED_VALUE = re.compile(_QUOTED)

LONE_RETURN = re.compile(rb"\r(?!\n)")
"""A carriage return that ends no line."""


def text_after_quote(content: bytes, delimiter: str) -> tuple[int, str] | None:
    """The line at which text follows the quote that closes a value, and the text around it; None where none does."""
    begin = _end_of_good_rows(content, delimiter)
    closed = _QUOTED_VALUE.match(content, begin)
    if closed is None:
        return None
    near = content[max(closed.end() - 20, begin) : closed.end() + 10]
    return _line(content, closed.end()), near.decode(errors="ignore")


def open_quote(content: bytes, delimiter: str) -> tuple[int, str]:
    """The line of the quote that nothing closes, and the rest of that line."""
    begin = _end_of_good_rows(content, delimiter)
    return _line(content, begin), content[begin:].removeprefix(b'"').partition(b"\n")[0].decode(errors="ignore")


def line_of_row(content: bytes, delimiter: str, number: int, *, quoted: bool) -> int:
    """The first line of a row.

    Args:
        number: the row's number from 1, that of names included; an empty line is no row.
        quoted: whether values may stand in quotes, and span lines.
    """
    match = next(islice(_row(delimiter, quoted=quoted).finditer(content), number - 1, None))
    return _line(content, match.start())


def first_lines(content: bytes, delimiter: str, *, quoted: bool) -> list[int]:
    """The first line of each row of a file that can be read, that of names included; see `line_of_row`."""
    content = LONE_RETURN.sub(b" ", content.removeprefix(codecs.BOM_UTF8))
    lines, line, before = [], 1, 0
    for row in _row(delimiter, quoted=quoted).finditer(content):
        line += content.count(b"\n", before, row.start())
        before = row.start()
        lines.append(line)
    return lines


def _row(delimiter: str, *, quoted: bool) -> re.Pattern[bytes]:
    """The pattern of a row with the end of its last line; an empty line is no row."""
    value, mark = _value(delimiter) if quoted else rb"[^\r\n]*+", re.escape(delimiter.encode())
    return re.compile(rb"(?!\r?\n|\Z)%b(?:%b%b)*+(?:\r?\n|\Z)" % (value, mark, value))


def _value(delimiter: str) -> bytes:
    """The pattern of a value, which may stand in quotes."""
    mark = re.escape(delimiter.encode())
    return rb'(?:%b|[^"%b\r\n][^%b\r\n]*+)?+' % (_QUOTED, mark, mark)


def _end_of_good_rows(content: bytes, delimiter: str) -> int:
    """The position of the first value whose quotes are wrong; the end of the content without one."""
    mark = re.escape(delimiter.encode())
    good = re.match(rb"(?:%b(?:%b|\r?\n|\Z))*+" % (_value(delimiter), mark), content)
    return good.end() if good else 0


def _line(content: bytes, position: int) -> int:
    return content.count(b"\n", 0, position) + 1
