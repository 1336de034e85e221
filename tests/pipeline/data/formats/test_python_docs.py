"""The embedded default, on packages written here and against what Python itself says of the standard library."""

import inspect
import pydoc
import sysconfig
import textwrap
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import schema
from pipeline.data.formats import docstring_entries, docstrings, python_docs, python_modules
from pipeline.data.formats.docstrings import Docstring
from pipeline.data.formats.tables import Tables

LONG = "The rest says enough about what happens here to be a document of its own kind. " * 4

LIBRARY = {
    "lib/__init__.py": '''
        """A library of many things, kept small for a test.

        It holds sums and means and whatever else its authors thought of while they were writing the test that
        this is a part of, and it is not imported, as that would fail at once and with a loud noise, too.
        """
        from ._core import sum, mean
        from .frame import *
        raise RuntimeError("this must not be imported")
    ''',
    "lib/_core/__init__.py": "from .reductions import sum, mean",
    "lib/_core/reductions.py": f'''
        def sum(values):
            """Sum of values
            over an axis.  An extra sentence.

            {LONG}

            See Also
            --------
            mean : Arithmetic mean of the values.
            Frame.total

            Notes
            -----
            Kept after the section.
            """

        def mean(values):
            """
            Arithmetic mean of the values.

            {LONG} About :func:`~lib.sum` and ``axis``.
            """

        def hidden(values):
            """Not exported, so nobody knows it.

            {LONG}
            """
    ''',
    "lib/frame.py": f'''
        __all__ = ["Frame"]

        class Frame:
            """Table of rows and columns.

            {LONG}
            """

            def total(self):
                """Add everything up in a frame.

                {LONG} In frames.
                """

            def _private(self):
                """Nobody should see this private thing.

                {LONG} Private.
                """

        class Series:
            """Column of a table of rows.

            {LONG} One column.
            """

            def total(self):
                """Add everything up in a series.

                {LONG} In series.

                .. seealso::

                    :meth:`.Frame.total`
                        The same for frames.
                """
    ''',
    "lib/copies.py": f'''
        class One:
            def fit(self):
                """Fit the model One to data.

                {LONG} Copied for one.
                """

        class Two:
            def fit(self):
                """Fit the model Two to data.

                {LONG} Copied for two.
                """
    ''',
    "lib/tests/test_sum.py": f'"""Tests that nobody searches for.\n\n{LONG}"""',
    "lib/broken.py": "def (",
    "lib/templates/{{name}}.py": "also not Python {{",
    "index/__init__.py": f'"""Ours, so not a document of others.\n\n{LONG}"""',
}


@pytest.fixture
def library(tmp_path: Path) -> Path:
    return write(tmp_path / "site", LIBRARY)


def write(root: Path, files: Mapping[str, str]) -> Path:
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source), encoding="utf-8")
    return root


def grades(source: Tables) -> dict[str, dict[str, int]]:
    by_query: dict[str, dict[str, int]] = {}
    for row in source.judgments.to_pylist():
        by_query.setdefault(row["query_id"], {})[row["doc_id"]] = row["grade"]
    return by_query


def test_documents_bear_the_names_that_users_write(library: Path) -> None:
    titles = python_docs.read([library]).documents.column("title").to_pylist()
    assert titles == sorted(titles)
    assert set(titles) == {
        "lib",
        "lib.sum",
        "lib.mean",
        "lib.Frame",
        "lib.Frame.total",
        "lib.frame.Series",  # Not in __all__, so its public name is that of its definition.
        "lib.frame.Series.total",
        "lib.copies.One.fit",  # Two.fit is the same text but for its own name.
    }


def test_the_summary_is_the_query_and_not_in_the_document(library: Path) -> None:
    source = python_docs.read([library])
    texts = {row["doc_id"]: row["text"] for row in source.documents.to_pylist()}
    queries = {row["query_id"]: row["text"] for row in source.queries.to_pylist()}
    assert queries["lib.sum"] == "Sum of values over an axis"
    assert texts["lib.sum"].startswith("An extra sentence.")
    assert "Kept after the section." in texts["lib.sum"]
    assert "Arithmetic mean" not in texts["lib.sum"]  # From See Also: another query's words and answer.
    assert texts["lib.mean"].rstrip().endswith("About lib.sum and axis.")
    for query, query_text in queries.items():
        assert query_text not in texts[query]


def test_grades_are_the_authors(library: Path) -> None:
    by_query = grades(python_docs.read([library]))
    assert by_query["lib.sum"] == {"lib.sum": 3, "lib.mean": 2, "lib.Frame.total": 2}
    assert by_query["lib.mean"] == {"lib.mean": 3, "lib.sum": 1}
    assert by_query["lib.frame.Series.total"] == {"lib.frame.Series.total": 3, "lib.Frame.total": 2}
    assert by_query["lib.Frame.total"] == {"lib.Frame.total": 3, "lib.sum": 1, "lib.frame.Series.total": 1}


def test_tables_keep_the_contract_and_join(library: Path) -> None:
    source = python_docs.read([library])
    for kind in ("documents", "queries", "judgments"):
        assert not schema.column_faults(getattr(source, kind), kind)
    documents = set(source.documents.column("doc_id").to_pylist())
    assert documents.issuperset(source.judgments.column("doc_id").to_pylist())
    assert set(source.queries.column("query_id").to_pylist()) == set(source.judgments.column("query_id").to_pylist())


def test_same_packages_same_digest_and_another_text_another(tmp_path: Path) -> None:
    first = python_docs.read([write(tmp_path / "one", LIBRARY)])
    again = python_docs.read([write(tmp_path / "two", dict(reversed(LIBRARY.items())))])
    assert again.documents.equals(first.documents)
    assert again.judgments.equals(first.judgments)
    digest = python_docs.digest([tmp_path / "one"])
    assert python_docs.digest([tmp_path / "two"]) == digest
    changed = {**LIBRARY, "lib/copies.py": LIBRARY["lib/copies.py"].replace("model One", "model First")}
    assert python_docs.digest([write(tmp_path / "three", changed)]) != digest


def test_a_folder_that_changed_is_read_again(tmp_path: Path) -> None:
    folder = write(tmp_path / "one", LIBRARY)
    before = python_docs.read([folder]).documents
    assert python_docs.read([folder]).documents.equals(before)
    write(folder, {"lib/copies.py": LIBRARY["lib/copies.py"].replace("model One", "model First")})
    after = python_docs.read([folder]).documents
    assert "model First" in str(after["text"].to_pylist()) + str(after[python_docs.SUMMARY].to_pylist())
    assert "model First" not in str(before.to_pydict())


def test_a_summary_that_few_share_asks_for_all_of_them_and_one_that_many_share_for_none(tmp_path: Path) -> None:
    def functions(count: int, summary: str, stem: str) -> str:
        return "\n".join(
            f'def {stem}{"abcdefgh"[n]}():\n    """{summary}\n\n    {LONG} {"very " * n} different.\n    """'
            for n in range(count)
        )

    source = python_docs.read(
        [
            write(
                tmp_path,
                {
                    "few.py": functions(3, "Open a file for writing.", "few"),
                    "many.py": functions(4, "Close all open files.", "many"),
                },
            )
        ]
    )
    assert grades(source) == {"few.fewa": {"few.fewa": 3, "few.fewb": 3, "few.fewc": 3}}
    assert len(source.documents) == 7


@pytest.mark.parametrize(
    ("docstring", "summary", "start"),
    [
        ("abs(input, *, out=None) -> Tensor\n\nAbsolute value.\n\nMore.", "Absolute value", "More."),
        ("One thing, e.g. This or that. Then more.", "One thing, e.g. This or that", "Then more."),
        ("A :class:`~a.b.Class` of ``x`` and `y`.\n\nRest", "A a.b.Class of x and y", "Rest"),
        ("See [`Trainer`](../trainer) for **more**.\n\nRest", "See Trainer for more", "Rest"),
        ("Title\n=====\n\nText.", "Title", "Text."),
        ("Ends with a colon:\n\n  code", "Ends with a colon", "code"),
    ],
)
def test_summaries_are_taken_apart_without_markup(docstring: str, summary: str, start: str) -> None:
    entry = docstring_entries.take_apart(Docstring("a.b", docstring, ()))
    assert entry.summary == summary
    assert entry.body.startswith(start)


@pytest.mark.parametrize(
    "section",
    [
        "See Also\n--------\nmean, numpy.median : Others.\n    More of it.\n:func:`std`\n",
        "See Also:\n    :func:`mean`, :func:`numpy.median`\n    :obj:`std`\n",
        ".. seealso:: :func:`mean`\n\n    :func:`~numpy.median` and :func:`.std() <other>`\n",
    ],
)
def test_see_also_in_every_form(section: str) -> None:
    entry = docstring_entries.take_apart(Docstring("a.b", f"Sum.\n\nText.\n\n{section}\nNotes\n-----\nEnd.", ()))
    assert entry.see_also == ("mean", "numpy.median", "std")
    assert entry.body.split() == ["Text.", "Notes", "End."]


@pytest.mark.parametrize("program", ["", "raise SystemExit(3)"])
def test_several_processes_read_what_one_reads(library: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    alone = docstrings.read([library])
    monkeypatch.setattr(python_modules, "FILES_OF_A_PROCESS", 1)
    monkeypatch.setattr(python_modules, "cores", lambda: 3)
    monkeypatch.setattr(python_modules, "PROGRAM", program or python_modules.PROGRAM)
    assert docstrings.read([library]) == alone


def test_whole_documents_begin_with_their_summaries(library: Path) -> None:
    apart = python_docs.read([library]).documents
    joined = python_docs.with_summaries(apart.set_column(2, "text", apart["text"].cast(pa.large_string())))
    assert joined.column_names == ["doc_id", "title", "text"]
    for row, joined_row in zip(apart.to_pylist(), joined.to_pylist(), strict=True):
        assert joined_row["text"] == f"{row['summary']}.\n\n{row['text']}"


def test_docstrings_that_calls_attach_to_c_functions(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "num/__init__.py": "from ._core import zeros, array",
            "num/_core/__init__.py": "",
            "num/_core/_docs.py": '''
                add_newdoc("num._core.multi", "zeros", """Zeros.""")
                add_newdoc("num._core.multi", "array", ("sort", """Sort in place."""))
                add_newdoc("num._core.multi", "internal", """Not exported.""")
            ''',
            "net/__init__.py": "",
            "net/docs.py": 'add_docstr(net.abs, r"""Absolute """ + r"""value {of}.""".format(**common))',
            "net/functional.py": 'conv = _add_docstr(net.conv, """Convolution.""")',
        },
    )
    texts = {docstring.name: docstring.text for docstring in docstrings.read([tmp_path])}
    assert texts == {
        "num.zeros": "Zeros.",
        "num.array.sort": "Sort in place.",
        "net.abs": "Absolute value {of}.",
        "net.functional.conv": "Convolution.",
    }


def test_names_and_texts_are_those_that_python_itself_reports() -> None:
    """Against the imported modules of the standard library that are cheap to import."""
    wanted = {"heapq", "json", "email", "logging", "asyncio", "statistics", "textwrap", "urllib", "csv", "shutil"}
    stdlib = Path(sysconfig.get_path("stdlib"))
    own = [
        docstring
        for docstring in docstrings.read([stdlib])
        if docstring.name.partition(".")[0] in wanted and "windows" not in docstring.name
    ]
    assert len(own) > 400
    same = 0
    for docstring in own:
        thing = pydoc.locate(docstring.name)
        same += thing is not None and (inspect.getdoc(thing) or "").strip() == docstring.text.strip()
    assert same / len(own) > 0.97  # A few are replaced by C versions or live in `if` branches for other systems.
