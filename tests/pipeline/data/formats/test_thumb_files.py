"""Thumbs read as judgments, against a slow count by hand."""

import logging
import random
from pathlib import Path

import pytest

from pipeline.config import SourceConfig
from pipeline.data import sources
from pipeline.errors import SchemaError
from pipeline.thumbs import FILE, Thumb


def a_line(query: str, doc_id: str, thumb: str, voter: str) -> str:
    return Thumb(query=query, doc_id=doc_id, thumb=thumb, voter=voter, release="r", time="t").to_json() + "\n"  # type: ignore[arg-type]


def grades(folder: Path, **source: object) -> dict[tuple[str, str], int]:
    read = sources.read(SourceConfig(path=str(folder), **source), Path())  # type: ignore[arg-type]
    texts = dict(zip(*(read.queries[name].to_pylist() for name in ("query_id", "text")), strict=True))
    assert set(read.judgments["source"].to_pylist()) <= {"page"}
    assert read.format == "thumbs"
    return {(texts[row["query_id"]], row["doc_id"]): row["grade"] for row in read.judgments.to_pylist()}


def test_the_last_thumb_of_each_browser_counts_and_most_browsers_decide(tmp_path: Path) -> None:
    rng = random.Random(3)
    votes = [
        (
            rng.choice(["a b", "排序"]),
            f"d{rng.randrange(4)}",
            rng.choice(["up", "down", "none"]),
            f"voter-{rng.randrange(6)}",
        )
        for _ in range(150)
    ]
    (tmp_path / FILE).write_text("".join(a_line(*vote) for vote in votes), encoding="utf-8")
    expected = {}
    for pair in {vote[:2] for vote in votes}:
        last = [
            [vote[2] for vote in votes if vote[:2] == pair and vote[3] == voter][-1:] for voter in {v[3] for v in votes}
        ]
        ups, downs = last.count(["up"]), last.count(["down"])
        if ups != downs:
            expected[pair] = int(ups > downs)
    assert grades(tmp_path) == expected
    assert grades(tmp_path, grades=(0, 3)) == {pair: 3 * grade for pair, grade in expected.items()}
    assert 0 < len(expected) < len({vote[:2] for vote in votes})  # Ties are among them.


def test_a_torn_line_is_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [a_line("q", "d1", "up", "voter-1"), '{"query": "to\n', a_line("q", "d2", "down", "voter-1")]
    (tmp_path / FILE).write_text("".join(lines), encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert grades(tmp_path / FILE) == {("q", "d1"): 1, ("q", "d2"): 0}
    assert "leaves out 1 line without a thumb, the first is line 2" in caplog.text


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("no JSON", "line 1"),
        ("[1]", "a JSON list"),
        ('{"query": "q"}', "no text for doc_id"),
        (a_line("q", "d", "sideways", "v"), "thumb is 'sideways'"),
    ],
)
def test_a_file_without_thumbs_is_refused(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / FILE).write_text(line + "\n", encoding="utf-8")
    with pytest.raises(SchemaError, match=words):
        grades(tmp_path)


def test_a_judgment_of_thumbs_is_named_by_a_line_that_votes_for_it(tmp_path: Path) -> None:
    votes = [("a", "d1", "up", "v"), ("a", "d2", "up", "v"), ("b", "d1", "down", "w"), ("a", "d1", "down", "v")]
    (tmp_path / FILE).write_text("".join(a_line(*vote) for vote in votes), encoding="utf-8")
    for path, name in ((tmp_path, f"{FILE}, "), (tmp_path / FILE, "")):
        source = sources.read(SourceConfig(path=str(path)), Path())
        assert source.locations["judgments"]([0, 1, 2]) == [f"{name}line {line}" for line in (4, 2, 3)]
        assert source.locations["queries"]([1]) == [f"{name}line 3"]
