"""Arrow's parser over a file of separated values: every error names the file and the line.

The first row and all others have one parser. A row ends at "\\n" or "\\r\\n"; an empty line is no row. Arrow also ends
a row at a lone carriage return, so those are hidden from it and put back:

    bytes of the file ─► lone CR → a control character that the file lacks ─► + "\\n" + mark of the end ─► Arrow
    columns ◄─ control character → CR ◄─ rows without the mark ◄───────────────────────────────────────────┘

A value that holds the mark of the end began with a quote that nothing closes. Where text follows a closing quote the
file is refused, as Arrow takes `"a \\"b\\" c"` for `a \\b" c"`.

Arrow gets the bytes in memory of its own. It reads ahead in a thread, and where that thread meets an object of Python,
such as a file or a buffer, while the command ends, the command aborts or never ends.
"""

import codecs
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from pipeline.data.formats import separated_lines
from pipeline.data.formats.text_files import STRING
from pipeline.errors import SchemaError
from pipeline.text import counted, printable, read_lines

BLOCK_BYTES = 1 << 26
"""Bytes that are parsed at once; also the longest row of a separated file."""

HEAD_BYTES = 1 << 20
"""Bytes that are parsed at first where only the first row is wanted; more if that row is longer."""

BEYOND = 16
"""Bytes beyond a part of a file that are read with it: more than a byte-order mark and a carriage return."""

SHOWN = 100
"""Most characters of a row in a message."""

MAX_COLUMNS = 4096
"""A first row of more fields is no row of names."""

_STAND_INS = [bytes([code]) for code in (*range(0x1A, 0x20), *range(1, 9), *range(0x0E, 0x1A), 0x7F)]
_NAMES = [f"f{number}" for number in range(MAX_COLUMNS)]
"""The names that Arrow itself gives to columns."""


class SeparatedReader:
    """Arrow's parser over one separated file, from which lone carriage returns are hidden and whose end is marked."""

    def __init__(self, path: Path, delimiter: str, quoted: bool, encoding: str) -> None:
        self.path, self.delimiter, self.quoted, self.encoding = path, delimiter, quoted, encoding
        self.mark = f"end of the file {secrets.token_hex(12)}"
        """The last row that the parser sees."""
        self.stand_in = b""
        """The character that the parser saw last for a lone carriage return; empty where there was none."""
        self.wrong_row: pacsv.InvalidRow | None = None
        """The last row of another width that the parser met; without threads it has its number."""

    def table(self) -> pa.Table:
        """All rows, the first included, as columns of text called f0, f1, …

        Raises:
            SchemaError: a row of another width, a quote that is wrong, or a byte that is not of the encoding.
        """
        try:
            return self._table()
        except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
            raise self._failure(error) from error

    def _table(self) -> pa.Table:
        table = pacsv.read_csv(self._seen(), **self._options(BLOCK_BYTES, threads=True))
        self._check_width(table)
        if table.num_columns == 1 and table.num_rows and table.column(0)[-1].as_py() == self.mark:
            table = table.slice(0, table.num_rows - 1)
        elif table.num_rows:
            self._check_last([column[-1].as_py() for column in table.columns])
        return pa.table([self._restore(column) for column in table.columns], names=table.column_names)

    def first_rows(self, count: int) -> list[list[str]]:
        """The fields of the first rows; fewer than `count` where the file has fewer or they are long.

        Raises:
            SchemaError: the first row cannot be parsed; a byte that is not of the encoding.
        """
        block = HEAD_BYTES
        while True:
            try:
                with self._rows_of(block) as stream:
                    batch = next((batch for batch in stream if batch.num_rows), None)
                    if batch is None:
                        return []
                    rows = [self._cells(batch.slice(row, 1)) for row in range(batch.num_rows)[:count]]
                    return [row for row in rows if row]
            except (pa.ArrowException, UnicodeDecodeError) as error:
                if block >= BLOCK_BYTES:
                    raise self._failure(error) from error
                block *= 8

    def _rows_of(self, block: int) -> pacsv.CSVStreamingReader:
        """The rows of the first `block` bytes; the parser fails where they hold no whole row."""
        seen = self._seen(block + BEYOND)  # So Arrow knows that the block is not the last one.
        return pacsv.open_csv(seen, **self._options(block, threads=False, skip_invalid=True))

    def _cells(self, row: pa.RecordBatch) -> list[str]:
        self._check_width(row)
        cells: list[str] = [self._restore(pa.chunked_array([column]))[0].as_py() for column in row.columns]
        if cells == [self.mark]:
            return []
        self._check_last(cells)
        return cells

    def _failure(self, error: Exception) -> SchemaError:
        """The error that says where: at a byte that is not text, an open quote, or a row of another width."""
        for _ in read_lines(self.path, self.encoding):
            pass
        self.wrong_row = None
        try:  # Without threads, Arrow counts the rows.
            pacsv.read_csv(self._seen(), **self._options(BLOCK_BYTES, threads=False))
        except (pa.ArrowException, UnicodeDecodeError, OSError) as numbered:
            error = numbered
        row = self.wrong_row
        if row is None or row.number is None:
            reason = " ".join(str(error).split())[:300]
            return SchemaError(f"{self.path}: cannot be read as separated values ({reason}); is the file cut off?")
        if self.mark in row.text:
            return self._open_quote()
        line = separated_lines.line_of_row(self._content()[0], self.delimiter, row.number, quoted=self.quoted)
        more = f"a value that holds {self.delimiter!r} stands in double quotes" if self.quoted else "take some away"
        if self.quoted and f'{self.delimiter} "' in row.text:
            more = f"a double quote opens a value right behind {self.delimiter!r} alone, so take the blanks there away"
        advice = more if row.actual_columns > row.expected_columns else "a value that is missing is written as empty"
        return SchemaError(
            f"{self.path}, line {line}: has {counted(row.actual_columns, 'field')} where the "
            f"first row has {row.expected_columns}; {advice}. The row: {printable(self._restored(row.text))[:SHOWN]}"
        )

    def _open_quote(self) -> SchemaError:
        """The error for a quote that nothing closes."""
        line, begin = separated_lines.open_quote(self._content()[0], self.delimiter)
        return SchemaError(
            f"{self.path}, line {line}: a quote is opened before {printable(begin)[:SHOWN]!r} and never closed; close "
            "it, or write a quote of the text twice, in a value in quotes"
        )

    def _seen(self, size: int = -1) -> pa.BufferReader:
        """The file as Arrow is to see it: UTF-8 without byte-order mark, lone carriage returns replaced, the mark last.

        Args:
            size: number of bytes to read, without a mark where the file is longer; -1 reads all.

        Raises:
            UnicodeDecodeError: a byte is not of the encoding; in a row of another width Arrow would go on after it.
        """
        content, is_all = self._content(size)
        if is_all and self.quoted and b'"' in content:
            self._check_quotes(content)
        seen = pa.BufferOutputStream()
        seen.write(content)
        if is_all:
            seen.write(f"\n{self.mark}\n".encode())
        return pa.BufferReader(seen.getvalue())

    def _content(self, size: int = -1) -> tuple[bytes, bool]:
        """The bytes of the file, or its first ones, as Arrow is to see them, and whether they are all; see `_seen`."""
        with self.path.open("rb") as file:
            content = file.read(size)
            is_all = not file.read(1)
        content = self._as_utf8(content.removeprefix(codecs.BOM_UTF8), is_all)
        # A carriage return at the end of a part is followed by nobody knows what.
        return self._without_lone_returns(content if is_all else content.removesuffix(b"\r")), is_all

    def _without_lone_returns(self, content: bytes) -> bytes:
        """The content with a character that it lacks in the place of each lone carriage return."""
        self.stand_in = b""
        if content.count(b"\r") == content.count(b"\r\n"):
            return content
        self.stand_in = next((character for character in _STAND_INS if character not in content), b"")
        if not self.stand_in:
            raise SchemaError(
                f"{self.path}: has lone carriage returns and every control character; is it a text file at all?"
            )
        return separated_lines.LONE_RETURN.sub(self.stand_in, content)

    def _check_quotes(self, content: bytes) -> None:
        """Raises SchemaError where a quoted value goes on after the quote that closes it."""
        if wrong := separated_lines.text_after_quote(content, self.delimiter):
            line, near = wrong
            raise SchemaError(
                f"{self.path}, line {line}: text goes on after the quote that closes a value, in {printable(near)}; "
                "double a quote inside of a value, or write the table as JSON lines or Parquet"
            )

    def _as_utf8(self, content: bytes, is_all: bool) -> bytes:
        """The content in UTF-8, after a check of every byte, without a last character of a part that is cut off.

        Arrow shows each row of another width to `_invalid_row` as text, the last one of a part too.
        """
        decoder = codecs.getincrementaldecoder(self.encoding)()
        is_utf8 = codecs.lookup(self.encoding).name == "utf-8"
        parts = []
        for start in range(0, len(content), HEAD_BYTES):
            end = start + HEAD_BYTES
            text = decoder.decode(content[start:end], final=is_all and end >= len(content))
            if not is_utf8:
                parts.append(text.encode())
        cut_off = len(decoder.getstate()[0])
        return content[: len(content) - cut_off] if is_utf8 else b"".join(parts)

    def _options(self, block: int, *, threads: bool, skip_invalid: bool = False) -> dict[str, Any]:
        return {
            "read_options": pacsv.ReadOptions(autogenerate_column_names=True, block_size=block, use_threads=threads),
            "parse_options": pacsv.ParseOptions(
                delimiter=self.delimiter,
                quote_char='"' if self.quoted else False,
                newlines_in_values=self.quoted,
                invalid_row_handler=self._invalid_row(skip_invalid),
            ),
            "convert_options": pacsv.ConvertOptions(
                column_types=dict.fromkeys(_NAMES, STRING), strings_can_be_null=False
            ),
        }

    def _invalid_row(self, skip: bool) -> Callable[[pacsv.InvalidRow], str]:
        def handle(row: pacsv.InvalidRow) -> str:
            if skip or row.text == self.mark:
                return "skip"
            self.wrong_row = row
            return "error"

        return handle

    def _check_width(self, rows: pa.Table | pa.RecordBatch) -> None:
        if rows.num_columns > MAX_COLUMNS:
            raise SchemaError(
                f"{self.path}: its first row has {counted(rows.num_columns, 'field')}, more than {MAX_COLUMNS:,}; is "
                f"{self.delimiter!r} what separates them?"
            )

    def _check_last(self, cells: Sequence[str]) -> None:
        if any(self.mark in cell for cell in cells):
            raise self._open_quote()

    def _restored(self, text: str) -> str:
        return text.replace(self.stand_in.decode(), "\r") if self.stand_in else text

    def _restore(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        return pc.replace_substring(column, self.stand_in.decode(), "\r") if self.stand_in else column
