"""Documents that look wrong beside those they replace, and such as only look new. Seeds 1 to 3."""

import random
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from flows.plausibility import Replacement, implausible
from index import corpus_change, documents
from pipeline import release_parts
from pipeline.artifacts import Artifact
from tests.tables import stage

Row = tuple[str, str, str]
"""doc_id, title and text."""
Change = Callable[[list[Row], random.Random], list[Row]]


def _words(rng: random.Random, count: int) -> str:
    syllables = ["ba", "de", "ki", "lo", "mu", "ne", "ra", "so", "ti", "vu"]
    return " ".join("".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(count))


def _corpus(rng: random.Random, count: int, prefix: str = "d") -> list[Row]:
    return [(f"{prefix}{row}", _words(rng, 4), _words(rng, rng.randint(15, 60))) for row in range(count)]


def _store(workspace: Path, rows: list[Row]) -> Artifact:
    doc_id, title, text = (list(column) for column in zip(*rows, strict=True))
    table = pa.table({"doc_id": doc_id, "title": title, "text": text})
    return documents.make(workspace, data=stage(workspace, "corpus", {"documents": table}))


def _replaced(workspace: Path, change: Change, *, count: int = 300, seed: int = 1) -> list[str]:
    rng = random.Random(seed)
    before = _corpus(rng, count)
    return Replacement.of(_store(workspace, before), _store(workspace, change(before, rng))).reasons()


def _error_page(row: Row, rng: random.Random) -> str:
    return f"Access denied. You may not see /docs/{row[0]}/{row[1].split()[0]}. Reference #{rng.getrandbits(40):x}"


BROKEN_SOURCES: dict[str, tuple[Change, str]] = {
    "other ids": (lambda rows, rng: [(f"x{doc_id}", title, text) for doc_id, title, text in rows], "0% of the ids"),
    "ids of another corpus, more of them": (lambda rows, rng: _corpus(rng, 500, "other"), "0% of the ids"),
    "three of five ids gone": (
        lambda rows, rng: [row if number % 5 < 2 else (f"x{number}", *row[1:]) for number, row in enumerate(rows)],
        r"40% of the ids of before are there still \(at least 50%",
    ),
    "one page for all": (lambda rows, rng: [(row[0], "", "Page not found") for row in rows], "repeated documents"),
    "one page under each title": (
        lambda rows, rng: [(row[0], row[1], "Page not found, please go back to the start") for row in rows],
        "100% of the texts are nearly the same",
    ),
    "error pages with numbers of their own": (
        lambda rows, rng: [(row[0], "", _error_page(row, rng)) for row in rows],
        r"100% of the texts.*in place of 0% \(at most 20 points more",
    ),
    "error pages for a third": (
        lambda rows, rng: [row if n % 3 else (row[0], row[1], _error_page(row, rng)) for n, row in enumerate(rows)],
        "33% of the texts",
    ),
    "a third of each text": (
        lambda rows, rng: [(row[0], "", row[2][: len(row[2]) // 4]) for row in rows],
        r"100% of the documents that stay lost two thirds.*at most 20% may",
    ),
    "titles alone": (lambda rows, rng: [(row[0], row[1][:9], "") for row in rows], "lost two thirds"),
    "Chinese error pages": (
        lambda rows, rng: [(row[0], row[1], f"您没有权限访问此页面, 请先登录 {rng.random()}") for row in rows],
        "100% of the texts",
    ),
}

SOUND_SOURCES: dict[str, Change] = {
    "nothing changed": lambda rows, rng: rows,
    "another order": lambda rows, rng: rng.sample(rows, len(rows)),
    "every text edited": lambda rows, rng: [(row[0], row[1], f"{row[2]} {_words(rng, 5)}") for row in rows],
    "every text written anew": lambda rows, rng: [(row[0], _words(rng, 4), _words(rng, 30)) for row in rows],
    "doubled": lambda rows, rng: [*rows, *_corpus(rng, len(rows), "new")],
    "ten times as many": lambda rows, rng: [*rows, *_corpus(rng, 9 * len(rows), "new")],
    "a fifth gone": lambda rows, rng: rows[len(rows) // 5 :],
    "a fifth gone and as many new": lambda rows, rng: [*rows[len(rows) // 5 :], *_corpus(rng, len(rows) // 5, "n")],
    "a note under each text": lambda rows, rng: [(*row[:2], f"{row[2]} Prices include taxes.") for row in rows],
    "a tenth are error pages": lambda rows, rng: [
        row if number % 10 else (row[0], row[1], _error_page(row, rng)) for number, row in enumerate(rows)
    ],
}


@pytest.mark.parametrize("name", BROKEN_SOURCES)
def test_what_a_broken_source_gives_is_refused_with_figures_and_limits(name: str, tmp_path: Path) -> None:
    change, reason = BROKEN_SOURCES[name]
    reasons = _replaced(tmp_path, change)
    assert [item for item in reasons if re.search(reason, item)], reasons


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", SOUND_SOURCES)
def test_what_a_source_does_in_good_order_passes(name: str, seed: int, tmp_path: Path) -> None:
    for count in (8, 300):
        assert _replaced(tmp_path, SOUND_SOURCES[name], count=count, seed=seed) == [], count


def test_a_sample_finds_what_the_whole_corpus_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_change, "SAMPLE", 100)
    for change, _ in BROKEN_SOURCES.values():
        assert _replaced(tmp_path, change)
    for change in SOUND_SOURCES.values():
        assert _replaced(tmp_path, change) == []


def test_a_column_that_no_document_has_any_more_is_named_unless_it_is_left_out_on_purpose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    columns = {"doc_id": ["a", "b"], "title": ["", ""], "text": ["x", "y"]}
    before, after = (
        documents.make(tmp_path, data=stage(tmp_path, "corpus", {"documents": pa.table({**columns, **extra})}))
        for extra in ({"price": [1, 2], "shop": ["k", "l"]}, {"shop": ["k", "l"]})
    )
    assert Replacement.of(before, after).change.fields_gone == ("price",)
    monkeypatch.setattr(release_parts, "has_part", lambda *_: True)
    monkeypatch.setattr(release_parts, "part", lambda release, _: release)
    assert implausible(before, after, left_out=("price",)) == []
    assert not caplog.messages
    assert implausible(before, after, left_out=("shop",)) == []
    assert ["column price" in message for message in caplog.messages] == [True]
