"""Reads a folder of text and Markdown files as documents: each file is one, and its path in the folder is its id.

The title is the heading at the head of a file, or `title` of its front matter, or the file's name. Hidden files and
folders, such as `.git`, are left out.
"""

import hashlib
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from pipeline import disk, text
from pipeline.config import SourceConfig
from pipeline.data.formats import column_map, qrels_file, tables
from pipeline.data.formats.tables import FoundSource, Tables
from pipeline.errors import SchemaError

NAME = "text"
LOOKED_FOR = "a folder of .txt, .md, .markdown or .rst files; only when named where it holds tables too"
"""The files that this format needs, for a message."""
SUFFIXES = (".txt", ".md", ".markdown", ".rst")
"""Endings of files that are read as documents."""

log = logging.getLogger(__name__)

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?\n)?---[ \t]*(?:\n|\Z)", re.DOTALL)
_TITLE_KEY = re.compile(r"^title:[ \t]*(.+?)[ \t]*$", re.MULTILINE)
_HEADING = re.compile(r"\A\s*(?:#[ \t]+(?P<marked>[^\n]+?)[ \t#]*|(?P<underlined>[^\n]+)\n=+[ \t]*)(?:\n|\Z)")
"""The heading of the first level that Markdown marks with # and both Markdown and reStructuredText underline."""


def find(config: SourceConfig, root: Path) -> FoundSource | None:
    """The source of format `text`; see `tables.Format`."""
    folder = root / config.path
    if "://" in config.path or config.columns or not folder.is_dir():
        return None
    files = _visible_files(folder)
    is_named = config.format == NAME
    if not _texts(files) or not (is_named or _only_texts(files)):
        return None
    return FoundSource(tables.name_of(folder), str(folder), lambda: _digest(folder), lambda: read(folder))


def read(folder: Path) -> Tables:
    """The documents of a folder, in the order of their paths.

    Raises:
        SchemaError: a file that is not UTF-8 or cannot be read.
    """
    files = _visible_files(folder)
    texts = _texts(files)
    if len(files) > len(texts):
        other = text.counted(len(files) - len(texts), "file")
        log.info("%s: does not read %s of another name", folder, other)
    rows = [_title_and_text(file) for file in texts]
    names = [file.relative_to(folder).as_posix() for file in texts]
    columns = {"doc_id": names, "title": [row[0] for row in rows], "text": [row[1] for row in rows]}
    faults = []
    for column, values in columns.items():
        columns[column], more = tables.strings(values, "documents", column)
        faults += more

    def named(rows: Sequence[int]) -> list[str]:
        return [names[row] for row in rows]

    return Tables(documents=pa.table(columns, tables.DOCUMENTS), faults=tuple(faults), locations={"documents": named})


def _title_and_text(file: Path) -> tuple[str, str]:
    """The title of a file, and its text without the title."""
    try:
        content = text.read_text(file).replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise text.wrong_byte(file, error.start, "") from error
    except OSError as error:
        raise SchemaError(f"{file}: cannot be read ({error.strerror})") from error
    title = file.stem
    if front := _FRONT_MATTER.match(content):
        content = content[front.end() :]
        if key := _TITLE_KEY.search(front[0]):
            return key[1].strip("\"'") or title, content.strip()
    if heading := _HEADING.match(content):
        return heading["marked"] or heading["underlined"].strip(), content[heading.end() :].strip()
    return title, content.strip()


def _visible_files(folder: Path) -> list[Path]:
    """The files below a folder, by path, without those that are hidden or below a hidden folder."""
    files = tables.data_files(folder, "**/*")
    return [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]


def _texts(files: Sequence[Path]) -> list[Path]:
    return [file for file in files if file.suffix.lower() in SUFFIXES]


def _only_texts(files: Sequence[Path]) -> bool:
    """Whether no file is a table or qrels, which another format may want."""
    return not any(
        file.suffix.lower() in column_map.SUFFIXES or "qrel" in file.name or qrels_file.is_qrels(file) for file in files
    )


def _digest(folder: Path) -> str:
    """A hash of the paths and contents of the texts; a file that moves is another document."""
    lines = [f"{file.relative_to(folder).as_posix()} {disk.sha256(file)}" for file in _texts(_visible_files(folder))]
    return hashlib.blake2b(os.fsencode("\n".join([NAME, *lines])), digest_size=16).hexdigest()
