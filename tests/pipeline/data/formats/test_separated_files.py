"""Separated files are parsed by one rule from first row to last; a slow parser written here is the reference."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.data.formats import separated_files, separated_reader
from pipeline.errors import MissingError, SchemaError


def parse_slowly(content: str, delimiter: str, quoted: bool) -> list[list[str]] | None:
    """Rows of fields, one character at a time.

    None where a quote stays open, text follows a closing quote, or rows differ in width.
    """
    rows: list[list[str]] = []
    fields = [""]
    position, inside, at_start, empty = 0, False, True, True
    while position < len(content):
        character = content[position]
        following = content[position + 1 : position + 2]
        position += 1
        if inside:
            if character != '"' or following == '"':
                fields[-1] += character
                position += character == '"'
            elif following and not content[position:].startswith((delimiter, "\n", "\r\n")):
                return None
            else:
                inside = False
            continue
        if character == "\n" or (character == "\r" and following == "\n"):
            position += character == "\r"
            if not empty:
                rows.append(fields)
            fields, at_start, empty = [""], True, True
            continue
        empty = False
        if character == delimiter:
            fields.append("")
            at_start = True
        elif quoted and character == '"' and at_start:
            inside, at_start = True, False
        else:
            fields[-1] += character
            at_start = False
    if inside:
        return None
    if not empty:
        rows.append(fields)
    return rows if len({len(row) for row in rows}) < 2 else None


PIECES = st.sampled_from(
    [
        "a",
        "b,",
        ",",
        '"',
        '""',
        '"x"',
        "\n",
        "\r\n",
        "\r",
        "a,b\n",
        "1,2\r\n",
        " ",
        "é",
        "\x1a",
        "\u2028",
        "\x85",
        "\x0c",
    ]
)


@settings(deadline=None)
@given(st.lists(PIECES, max_size=16), st.booleans(), st.sampled_from([",", "\t"]), st.booleans())
@example(["a,b", "\r", "c\n", "1,2\n"], True, ",", False)
@example(["\n", "a,b\n", "1,2\n"], True, ",", True)
@example(["a,b\n", '1,"2'], True, ",", False)
@example(["\r\n", "\r"], False, ",", False)
def test_rows_are_those_of_a_slow_parser_from_the_first_to_the_last(
    pieces: list[str], quoted: bool, delimiter: str, marked: bool
) -> None:
    content = "".join(pieces).replace(",", delimiter)
    expected = parse_slowly(content, delimiter, quoted)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        path.write_bytes(b"\xef\xbb\xbf" * marked + content.encode())
        if expected is None:
            with pytest.raises(SchemaError, match=r"table\.csv"):
                separated_files.titled(path, (), delimiter=delimiter, quoted=quoted)
            return
        assert separated_files.header(path, delimiter, quoted=quoted) == (expected[0] if expected else [])
        table = separated_files.titled(path, (), delimiter=delimiter, quoted=quoted)
        assert table.column_names == (expected[0] if expected else [])
        rows = [list(row) for row in zip(*(column.to_pylist() for column in table.columns), strict=True)]
        assert rows == expected[1:]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_rows_and_quotes_may_cross_the_blocks_that_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(separated_reader, "BLOCK_BYTES", 128)
    monkeypatch.setattr(separated_reader, "HEAD_BYTES", 16)
    content = "".join(f'{number},"a{end}b ""{number}"" \r c"{end}' for number in range(500))
    (tmp_path / "table.csv").write_bytes(f"number,{'n' * 40}{end}{content}".encode())
    expected = parse_slowly((tmp_path / "table.csv").read_bytes().decode(), ",", True)
    assert expected is not None
    assert len(expected) == 501
    table = separated_files.titled(tmp_path / "table.csv", ("number",))
    assert [list(row.values()) for row in table.to_pylist()] == expected[1:]
    assert separated_files.header(tmp_path / "table.csv", ",") == expected[0]


def test_a_first_row_may_be_longer_than_any_limit_of_another_parser(tmp_path: Path) -> None:
    name = "n" * 3_000_000
    (tmp_path / "table.csv").write_text(f"{name},b\n1,2\n")
    assert separated_files.header(tmp_path / "table.csv", ",") == [name, "b"]
    assert separated_files.titled(tmp_path / "table.csv", ("b",))["b"].to_pylist() == ["2"]


@pytest.mark.parametrize("shift", range(3))
def test_the_head_of_a_file_may_end_within_a_character(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: int
) -> None:
    """Arrow shows the row that is cut off as text; what it cannot decode it would print as an error of nobody's."""
    monkeypatch.setattr(separated_reader, "HEAD_BYTES", 64)
    (tmp_path / "table.csv").write_text("查询,标题\n" + "a" * shift + "糖尿病,饮食\n" + "高血压能喝茶吗,可以喝\n" * 9)
    assert separated_files.header(tmp_path / "table.csv", ",") == ["查询", "标题"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\n1\n", r"line 3: has 1 field where the first row has 2; a value that is .*: 1$"),
        (
            b'\xef\xbb\xbfa,b\r\n\r\n"1\r\n\r\n""",2\r\n3,4,5\r\n',
            r"line 6: has 3 fields where the first row has 2; a value that holds ',' .*: 3,4,5$",
        ),
        (b'a,b\n1,"2\n3,4\n', r"line 2: a quote is opened before '2' and never closed; close it, or write"),
        (b'a,b\n"1\n2",3\n"c\nd,e\nf,g\n', r"line 4: a quote is opened before 'c' and never closed"),
        (b'a,b\n1 "2"\r3,4\n5 "\r6"\n', r"line 3: has 1 field where .*: 5 \" 6\"$"),
        (b"a,b,b\n1,2,3\n", "two columns are called 'b'"),
        (b"a\n1\n", r"has no column 'b'; its first line has \['a'\]"),
        (b"", r"has no column 'b'; its first line has \[\]"),
        (b'a,b\n1,"x \\"y\\" z"\n', r"line 2: text goes on after the quote that closes a value"),
        (b'a,b\n1,"x\n\n",""y\n', r"line 4: text goes on after the quote"),
        (b"a,b\n1,\xff\n", "line 2, byte 6: 0xff is not UTF-8"),
        (b"," * 5000 + b"\n", "first row has 5,001 fields"),
        (bytes(range(32)) + b"\x7f", "every control character"),
    ],
)
def test_what_cannot_be_parsed_is_one_error_that_names_the_place(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(SchemaError, match=r"table\.csv.*" + message):
        separated_files.titled(tmp_path / "table.csv", ("b",))


def test_a_table_without_names_keeps_its_first_row_unless_it_is_one_of_names(tmp_path: Path) -> None:
    path = tmp_path / "collection.tsv"
    path.write_bytes(b'\n\npid\ttext\n1\ta "quoted" \r word\n')
    assert separated_files.untitled(path, ("id", "text"), heads=("pid",)).to_pylist() == [
        {"id": "1", "text": 'a "quoted" \r word'}
    ]
    assert separated_files.untitled(path, ("id", "text")).num_rows == 2
    with pytest.raises(SchemaError, match="Expected 3 columns, got 2 in the first row"):
        separated_files.untitled(path, ("id", "text", "more"))
    with pytest.raises(MissingError, match="no such file"):
        separated_files.untitled(tmp_path / "absent.tsv", ("id",))


def test_a_command_that_ends_after_the_first_row_ends_with_its_own_code(tmp_path: Path) -> None:
    """Arrow's reading thread met Python while it ended: one process in ten aborted, or never ended."""
    path = tmp_path / "long.csv"
    path.write_text("query,title\n" + "a query,a title\n" * 250_000, encoding="utf-8")
    script = (
        "import sys; from pathlib import Path; from pipeline.data.formats import separated_files; "
        "separated_files.header(Path(sys.argv[1]), ','); raise SystemExit(2)"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script, str(path)]) for _ in range(12)]
    assert [process.wait(timeout=120) for process in processes] == [2] * 12
