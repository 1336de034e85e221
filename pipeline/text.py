"""Rules for texts that every part shares: reading files and their lines, cleaning, normalising, joining fields.

Training, indexing and serving all call these functions, so a pair that was learned is the pair that
is scored. A line ends at "\\n" or "\\r\\n" and nowhere else: `str.splitlines` also ends one at U+2028, NEL and
form feed, which JSON and people write inside a line.
"""

import codecs
import json
import math
import re
import shlex
import string
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote

from pipeline import regular_files
from pipeline.errors import MissingError, SchemaError

HEAD_BYTES = 1 << 20
"""Bytes at the head of a file by which its line ends are told."""
YES, NO = frozenset(("true", "t", "yes", "y", "是")), frozenset(("false", "f", "no", "n", "否"))
"""Texts of a cell, in lower case, that say yes and no."""
MAX_CHARS = 1_000_000
"""Maximum number of characters of a title, text or query; a longer one is refused on import."""


def split_lines(text: str) -> list[str]:
    """The lines of a text without their ends; an end of line at the very end starts no further line."""
    *ended, last = text.split("\n")
    return [line.removesuffix("\r") for line in ended] + ([last] if last else [])


def read_text(path: Path) -> str:
    """The content of a UTF-8 file as it is, less a byte-order mark at its head.

    Raises:
        OSError: the file is not there or cannot be read.
        SchemaError: the path is a folder, a device or a named pipe.
        UnicodeDecodeError: the file is not UTF-8.
    """
    regular_files.refuse_special(path, pipes=True)
    return path.read_bytes().decode("utf-8-sig")


def refuse_old_line_ends(path: Path) -> None:
    """Raises SchemaError for a text file whose lines end in a carriage return alone, so that all are one line."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if b"\r" in head.rstrip(b"\r") and b"\n" not in head and not other_format(path, head):
        raise SchemaError(
            f"{path}: its lines end in a carriage return alone, which old programs write; convert it with "
            f"`tr '\\r' '\\n' < {shlex.quote(str(path))} > {beside(path, f'unix-{path.name}')}`"
        )


def beside(path: Path, name: str) -> str:
    """The path of a new file in the folder of another, as a shell takes it: a command that is shown harms no file."""
    new = path.with_name(name)
    while new.exists():
        new = new.with_name(f"new-{new.name}")
    return shlex.quote(str(new))


def read_lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) of each line that is not blank; a byte-order mark is dropped.

    The file is read as a stream, so it may be larger than memory.

    Args:
        encoding: an encoding in which the byte 0x0A is always the end of a line, such as UTF-8, Latin-1 or GB18030.

    Raises:
        MissingError: no such file.
        SchemaError: a byte that is not of the encoding; the message has its position in the file.
    """
    start = 0
    for number, raw in enumerate(_raw_lines(path), start=1):
        body = raw.removesuffix(b"\n").removesuffix(b"\r") if raw.endswith(b"\n") else raw
        mark = len(codecs.BOM_UTF8) if number == 1 and body.startswith(codecs.BOM_UTF8) else 0
        try:
            line = body[mark:].decode(encoding)
        except UnicodeDecodeError as error:
            raise wrong_byte(path, start + mark + error.start, f"line {number}, ") from error
        start += len(raw)
        if line.strip():
            yield number, line


_WIDE = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""Byte-order mark → the encoding it stands for; the longer marks first, as UTF-32's begins with UTF-16's."""


def wide_encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32 if a file with these first bytes is written so, as spreadsheets and Windows tools do."""
    named = next((name for mark, name in _WIDE.items() if head.startswith(mark)), None)
    if named or len(head) < 4:
        return named
    zeros = [head[offset::2].count(0) / max(len(head[offset::2]), 1) for offset in (0, 1)]
    if min(zeros) < 0.05 and max(zeros) > 0.5:
        return "UTF-16LE" if zeros[1] > zeros[0] else "UTF-16BE"
    return None


GIT_LFS = b"version https://git-lfs"
"""First bytes of the pointer that Git leaves in the place of a large file which was not fetched."""
_FORMATS = {
    b"\x1f\x8b": ("gzip", "unpack it with `gzip -dc {file} > {unpacked}`"),
    b"BZh": ("bzip2", "unpack it with `bzip2 -dc {file} > {unpacked}`"),
    b"\xfd7zXZ\x00": ("xz", "unpack it with `xz -dc {file} > {unpacked}`"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unpack it with `zstd -dc {file} > {unpacked}`"),
    b"PK\x03\x04": ("zip, or of a spreadsheet", "unpack it, or save the sheet as CSV UTF-8"),
    b"PAR1": ("Parquet", "give it a name that ends in .parquet"),
    b"SQLite format 3\x00": ("SQLite", "name it as an address: sqlite:///FILE?table=TABLE"),
    GIT_LFS: ("Git LFS, a pointer in place of the data", "fetch the data with `git lfs pull`"),
}
"""First bytes of a file → the format that they mean, and what to do to have a text file."""
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
"""File name endings of compressed files."""


def other_format(path: Path, head: bytes) -> SchemaError | None:
    """The error for a file with these first bytes that is of another format than text; None for any other file."""
    name, advice = next((known for mark, known in _FORMATS.items() if head.startswith(mark)), ("", ""))
    if name == "SQLite" and (known := _tables(path)):
        addresses = [shlex.quote(f"sqlite:///{path}?table={address_part(table)}") for table in known[:20]]
        advice = f"name one of its tables by an address: {', '.join(addresses)}"
    unpacked = path.stem if path.suffix.lower() in COMPRESSED else f"unpacked-{path.name}"
    advice = advice.replace("{file}", shlex.quote(str(path))).replace("{unpacked}", beside(path, unpacked))
    return SchemaError(f"{path}: is a file of {name}, not a text file; {advice}") if name else None


def _tables(path: Path) -> list[str]:
    """The tables of a SQLite file, which is not written to; none where they cannot be read."""
    import sqlite3

    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True)) as connection:
            names = "select name from sqlite_master where type in ('table', 'view') and name not like 'sqlite_%'"
            return sorted(name for (name,) in connection.execute(names))
    except sqlite3.Error:
        return []


def address_part(name: str) -> str:
    """A name as an address takes it, percent-encoded but for letters and digits of any script, so it can be read."""
    return "".join(mark if mark.isalnum() else quote(mark) for mark in name)


_LETTERS = string.ascii_letters.encode()
_BEYOND_ASCII = re.compile(rb"[\x80-\xff]+")
_FREQUENT_CHINESE = re.compile(rb"[\xb0-\xd7][\xa1-\xfe]")
_OTHER_SCRIPTS = (
    *("BIG5", "SHIFT_JIS", "EUC-JP", "EUC-KR", "GB18030", "WINDOWS-1251", "KOI8-R"),
    *("WINDOWS-1253", "WINDOWS-1255", "WINDOWS-1256", "CP874"),
)
"""Encodings of scripts other than the Latin one whose readings a message shows, as a person sees which is right."""
MOST_SIGNS = 0.15
"""Share of characters beyond ASCII in a reading that may be something else than letters and kana."""
WORD_OF_LETTERS = 2.5
"""Mean number of bytes beyond ASCII in a row, from which a text is most likely of another script than the Latin one."""
WORD_BYTES, SHOWN_BYTES = 20, 24
"""Bytes before and after one that is not UTF-8 that a message shows, in the likely encoding."""


def wrong_byte(path: Path, position: int, where: str) -> SchemaError:
    """The error for a byte that is not UTF-8, with the byte itself and how to convert the file."""
    with path.open("rb") as file:
        head = file.read(1024)
        begin = max(position - WORD_BYTES, 0)
        file.seek(begin)
        near = file.read(HEAD_BYTES)
    other = other_format(path, head)
    if other:
        return other
    wide = wide_encoding(head)
    if wide:
        return SchemaError(
            f"{path}: is written in {wide}, not in UTF-8; convert it with `{_convert(wide, path)}`, or save it as CSV "
            "UTF-8"
        )
    before, after = near[: position - begin], near[position - begin :]
    likely = _likely_encoding(after)
    around = before[len(before.rstrip(_LETTERS)) :] + after[:SHOWN_BYTES].split(b"\n")[0]
    reading = printable(around.decode(likely, "replace")).rstrip("\ufffd ")
    return SchemaError(
        f"{path}, {where}byte {position}: 0x{after[:1].hex()} is not UTF-8; convert the file from its encoding, for "
        f"example with `{_convert(likely, path)}`, by which this place reads {reading!r}{_readings(after, likely)}"
        + (", or save it as CSV UTF-8" if path.suffix.lower() == ".csv" else "")
    )


def _likely_encoding(content: bytes) -> str:
    """GB18030 where the bytes beyond ASCII are pairs that stand for frequent Chinese characters, else WINDOWS-1252."""
    beyond = sum(len(run) for run in _BEYOND_ASCII.findall(content))
    frequent = 2 * len(_FREQUENT_CHINESE.findall(content))
    return "GB18030" if frequent > beyond / 2 else "WINDOWS-1252"


def _readings(content: bytes, likely: str) -> str:
    """The text as it reads by each other encoding of `_OTHER_SCRIPTS` that it may be in; empty for a Western one.

    Of those, letters beyond ASCII stand alone among others; other scripts have whole words of them.
    """
    runs = _BEYOND_ASCII.findall(content)
    if sum(map(len, runs)) < WORD_OF_LETTERS * len(runs):
        return ""
    readings = []
    for encoding in _OTHER_SCRIPTS:
        with suppress(UnicodeDecodeError):
            text = codecs.getincrementaldecoder(encoding)().decode(content)  # The last character may be cut off.
            marks = [mark for mark in text if not mark.isascii()]
            signs = sum(not unicodedata.category(mark).startswith(("L", "M")) for mark in marks)
            if encoding != likely and signs <= MOST_SIGNS * len(marks):
                readings.append(f"{encoding} {printable(text.split(chr(10))[0][:SHOWN_BYTES]).rstrip()!r}")
    return f" (by {', by '.join(readings)})" if readings else ""


def _convert(encoding: str, path: Path) -> str:
    """The command that writes a file anew in UTF-8, under another name."""
    return f"iconv -f {encoding} -t UTF-8 {shlex.quote(str(path))} > {beside(path, f'utf8-{path.name}')}"


def _raw_lines(path: Path) -> Iterator[bytes]:
    regular_files.refuse_special(path)
    try:
        with path.open("rb") as file:
            yield from file
    except FileNotFoundError as error:
        raise MissingError(f"{path}: no such file") from error
    except OSError as error:
        raise SchemaError(f"{path}: cannot be read ({error})") from error


def key_values(values: Mapping[str, object], prefix: str = "") -> str:
    """Values as `name=value` words for a log line; the names of nested objects are joined by dots.

    A value with white space, a quote or an equals sign stands in double quotes, as JSON writes it.
    """
    words = []
    for name, value in values.items():
        label = f"{prefix}{name}".replace(" ", "_")
        if isinstance(value, Mapping):
            words.append(key_values(value, f"{label}.") or f"{label}=none")
            continue
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        quoted = not shown or any(character.isspace() or character in "=\"'" for character in shown)
        words.append(f"{label}={json.dumps(shown, ensure_ascii=False) if quoted else shown}")
    return " ".join(words)


def printable(text: str) -> str:
    """The text on one line: a space in the place of each line end and other character that cannot be printed."""
    return "".join(mark if mark.isprintable() else " " for mark in text)


def fault(text: str) -> str | None:
    """The reason for which this text cannot be used; None when it can."""
    if len(text) > MAX_CHARS:
        return f"has {len(text):,} characters; the limit is {MAX_CHARS:,}"
    if "\x00" in text:
        return "contains a NUL character"
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        return "contains a lone surrogate, so it is not valid Unicode"
    return None


def clean(text: str) -> str:
    """The text with NUL as a space and lone surrogates as U+FFFD; the service cleans texts of clients so."""
    if text.isascii():
        return text.replace("\x00", " ")
    return text.replace("\x00", " ").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def normalise(text: str) -> str:
    """The text in NFKC, case folded, white space collapsed: queries that look the same to a reader become equal."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def document_text(title: str, text: str) -> str:
    """A document as the models read it: the title, a line break, the text; either may be empty."""
    return f"{title}\n{text}" if title and text else title or text


_SINGULAR = {"are": "is", "were": "was", "have": "has", "do": "does"}


def counted(count: int, noun: str, verb: str = "") -> str:
    """A count before its noun, and the verb of both: "1 query is", "1,234 judged queries are".

    Args:
        noun: the noun in the singular; words may stand before it.
        verb: the verb in the plural; without one the noun stands last.
    """
    if count != 1:
        noun = f"{noun[:-1]}ies" if re.search("[^aeiou]y$", noun) else f"{noun}s"
    elif verb:
        verb = _SINGULAR.get(verb, f"{verb}s")
    return " ".join(filter(None, (f"{count:,}", noun, verb)))


def exact(number: float) -> str:
    """The number as `:g` writes it where that is all of it, else with each digit that it takes: 4, 0.5, 1.0000001."""
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


def signed(number: float | None, digits: int = 3) -> str:
    """The number with this many decimals and a sign; a true minus, none on a zero, a dash where it is not defined."""
    if number is None or not math.isfinite(number):
        return "–"
    shown = f"{number:+.{digits}f}".replace("-", "−")
    return shown[1:] if float(shown[1:]) == 0 else shown
