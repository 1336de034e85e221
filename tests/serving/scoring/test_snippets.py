"""Snippets of search results, and the bounds of their work."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.analyzer import analyser
from serving.errors import ClientGoneError
from serving.runtime.deadline import Deadline
from serving.scoring.snippets import MAX_WORDS, QUERY_CHARS, SNIPPET_CHARS, query_words, snippet, snippets
from tests.index.test_folding import WORDS, spellings


def snippet_of(body: str, query: str) -> str:
    return snippet(body, query_words(query))


def test_a_short_text_is_its_own_snippet() -> None:
    assert snippet_of("  two \n words ", "two") == "two words"
    assert snippet_of("", "two") == ""


def test_a_snippet_shows_the_first_word_of_the_query() -> None:
    text = "filler words " * 60 + "the Needle stands here " + "and more follows " * 60
    shown = snippet_of(text, "needle")
    assert "Needle stands" in shown
    assert shown.startswith("… ")
    assert shown.endswith(" …")
    assert len(shown) <= SNIPPET_CHARS + 4
    assert snippet_of(text, "absent").startswith("filler")


@settings(max_examples=200)
@given(
    st.sampled_from(WORDS).flatmap(lambda word: st.tuples(st.just(word), spellings(word), spellings(word))),
    st.lists(st.sampled_from(["filler", "™", "…", "½", "ßßß", "手机"]), min_size=100, max_size=200),
)
def test_a_snippet_shows_what_the_lexical_index_finds(spelled: tuple[str, str, str], filler: list[str]) -> None:
    _, query, written = spelled
    text = " ".join([*filler, written, *filler])
    assert set(analyser()(query)) <= set(analyser()(text))
    shown = snippet_of(text, query)
    assert written in shown
    assert len(shown) <= SNIPPET_CHARS + 4


@pytest.mark.parametrize("seed", range(5))
def test_a_snippet_is_always_a_part_of_its_text(seed: int) -> None:
    rng = np.random.default_rng(seed)
    text = "".join(rng.choice(list("ab İß字 "), size=int(rng.integers(1, 2000))))
    shown = snippet_of(text, "ab 字").removeprefix("… ").removesuffix(" …")
    assert shown.strip() in " ".join(text.split())
    assert len(shown) <= SNIPPET_CHARS


@given(st.lists(st.sampled_from(["ab", "needle", "字", "Filler", "x" * 500]), max_size=2000).map(" ".join))
def test_the_words_to_look_for_are_different_and_few(query: str) -> None:
    words = query_words(query)
    assert len(words) == len(set(words)) <= MAX_WORDS
    assert set(words) <= {"needle", "字", "filler", "x" * 500} | {word.lower() for word in query[:QUERY_CHARS].split()}


def test_a_query_of_a_million_words_looks_for_no_more_than_the_bound() -> None:
    assert len(query_words(" ".join(f"word{number}" for number in range(100_000)))) == MAX_WORDS


def test_snippets_stop_when_the_time_is_over() -> None:
    looked: list[int] = []

    class Texts(dict[int, str]):
        def items(self) -> Any:
            for key in range(5):
                looked.append(key)
                if key == 2:
                    deadline.cancel()
                yield key, "a text"

    deadline = Deadline.never()
    with pytest.raises(ClientGoneError):
        snippets(Texts(), "text", deadline)
    assert looked == [0, 1, 2]
