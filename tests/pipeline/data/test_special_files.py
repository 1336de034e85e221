"""Pipes, devices, folders and line ends of old programs are one message wherever a file is read."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import ask, init
from pipeline import text
from pipeline.config import SourceConfig
from pipeline.data import convert, sources
from pipeline.data.formats import separated_files, text_files, trec_files
from pipeline.errors import InputError, SchemaError
from pipeline.evaluation import runs

COLUMNS = {"query": "query", "title": "title", "grade": "grade"}


def readers(path: Path) -> list[Callable[[], object]]:
    """Calls that each read a file at the path."""
    return [
        lambda: init.write(str(path), path.parent / "own.toml"),
        lambda: sources.find(SourceConfig(path=str(path)), Path()),
        lambda: sources.find(SourceConfig(path=str(path), columns=COLUMNS), Path()),
        lambda: convert.convert(path, "auto", path.parent / "out"),
        lambda: runs.read(path, "system"),
        lambda: separated_files.header(path, ","),
        lambda: list(text.read_lines(path)),
    ]


@pytest.mark.parametrize("name", ["pipe", "pipe.csv", "pipe.jsonl", "/dev/zero", "/dev/null"])
def test_a_pipe_or_a_device_is_not_waited_for(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if not path.exists():
        os.mkfifo(path)
    for read in readers(path):
        with pytest.raises(SchemaError, match=rf"{path}: is a pipe or a device, not a file; write what it gives"):
            read()
    assert not (tmp_path / "own.toml").exists()


def test_texts_may_come_from_a_pipe_but_not_from_a_device_or_a_folder(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, "größe\n".encode())
    os.close(writing)
    assert text.read_text(Path(f"/dev/fd/{reading}")) == "größe\n"
    os.close(reading)
    os.mkfifo(tmp_path / "named")  # Nobody has its other end.
    for path, words in (
        (Path("/dev/zero"), "a pipe or a device"),
        (tmp_path / "named", "a pipe or a device"),
        (tmp_path, "is a folder, not a file; name the file"),
    ):
        with pytest.raises(SchemaError, match=words):
            text.read_text(path)
    with pytest.raises(InputError):
        ask.rerank("query", tmp_path, tmp_path)


@pytest.mark.parametrize("read", [text_files.json_lines, lambda path: runs.read(path, "a"), trec_files.read_qrels])
def test_a_folder_in_place_of_a_file_is_named(read: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="is a folder, not a file; name the file in it"):
        list(read(tmp_path))  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("a.csv", ["query,title,grade", "knife,a knife,1", "knife,a fork,0"]),
        ("a.csv", ["query,title,grade", *(f"knife,a knife {number},1" for number in range(3000))]),
        ("a.tsv", ["query\ttitle\tgrade", "knife\ta knife\t1"]),
        ("a.jsonl", ['{"query": "knife", "title": "a", "grade": 1}', '{"query": "knife", "title": "b", "grade": 0}']),
    ],
)
def test_lines_that_end_in_a_carriage_return_alone_are_named_with_the_way_out(
    name: str, lines: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "my data" / name
    path.parent.mkdir()
    path.write_bytes("\r".join([*lines, ""]).encode())
    source = SourceConfig(path=str(path), columns=COLUMNS)
    for read in (lambda: sources.read(source, Path()), lambda: init.write(str(path), tmp_path / "own.toml")):
        with pytest.raises(SchemaError, match=r"carriage return alone.*`tr ") as refused:
            read()
    assert str(refused.value).startswith(f"{path}: ")
    subprocess.run(str(refused.value).split("`")[1], shell=True, check=True, cwd="/")
    path.with_name(f"unix-{name}").replace(path)
    assert sources.read(source, Path()).judgments.num_rows == len(lines) - (0 if name == "a.jsonl" else 1)


def test_a_run_with_such_line_ends_is_named_too(tmp_path: Path) -> None:
    (tmp_path / "run.txt").write_bytes(b"q1 Q0 d1 1 2.5 a\rq1 Q0 d2 2 1.5 a\r")
    with pytest.raises(SchemaError, match="carriage return alone"):
        runs.read(tmp_path / "run.txt", "a")


def test_a_file_whose_name_tells_no_format_is_not_answered_with_a_list_of_folders(tmp_path: Path) -> None:
    (tmp_path / "ratings.txt").write_text("query,title,grade\n")
    with pytest.raises(InputError, match=r"a table's name ends in \.csv, \.tsv") as raised:
        sources.find(SourceConfig(path="ratings.txt"), tmp_path)
    assert "beir" not in str(raised.value)
