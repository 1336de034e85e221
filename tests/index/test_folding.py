"""The one table of equal letters and signs: spellings of words, and positions in texts that folding makes longer."""

import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st

from index import folding
from index.analyzer import analyser
from tests.index.test_analyzer import APOSTROPHES, DASHES

SIGNS = {"-": DASHES, "'": APOSTROPHES}
IGNORED = "\u00ad\u200b\u2060\ufe0f"
WORDS = ["wi-fi", "don't", "gesamtkonzept", "straße", "istanbul", "café", "3-1/2", "l'été", "größe", "οδος"]
ODD = [
    "™",
    "…",
    "½",
    "ﬁn",
    "İİ",
    "´",
    "¨",
    "e\u0301\u0323",
    "\u00ad\u00ad",
    "ﷺ",
    "手机",
    "한국",
    "각",
    " \u0301b",
    "ßßß",
]


@st.composite
def spellings(draw: st.DrawFn, word: str) -> str:
    """A spelling of a word with other dashes, apostrophes, case, ignorable code points, or combining marks apart."""
    signs = [draw(st.sampled_from(SIGNS[sign])) if sign in SIGNS else sign for sign in word]
    signs.insert(draw(st.integers(0, len(signs))), draw(st.sampled_from(["", *IGNORED])))
    cased = draw(st.sampled_from([str.lower, str.upper, str.capitalize]))("".join(signs))
    return unicodedata.normalize(draw(st.sampled_from(["NFC", "NFD"])), cased)


@settings(max_examples=300)
@given(st.sampled_from(WORDS).flatmap(lambda word: st.tuples(st.just(word), spellings(word))))
def test_a_word_and_its_spellings_fold_and_analyse_alike(spelled: tuple[str, str]) -> None:
    word, spelling = spelled
    assert folding.fold(spelling) == folding.fold(word)
    assert analyser()(spelling) == analyser()(word)


@settings(max_examples=300)
@given(st.lists(st.sampled_from([*WORDS, *ODD]), min_size=1, max_size=40), st.data())
def test_a_word_of_the_fold_is_found_at_its_place_in_the_text(words: list[str], data: st.DataObject) -> None:
    text = " ".join(words)
    number = data.draw(st.integers(0, len(words) - 1))
    start = len(" ".join([*words[:number], ""]))
    if text[start].isspace():
        return  # An odd word that begins with a space.
    position = folding.position_before(text, len(folding.fold(text[:start])))
    assert set(text[start:position]) <= set(IGNORED), "nothing but what is dropped lies between"
    assert position >= start


@given(st.text(max_size=50), st.integers(0, 60))
def test_every_position_of_a_fold_lies_in_the_text(text: str, position: int) -> None:
    assert 0 <= folding.position_before(text, position) <= max(len(text) - 1, position if text.isascii() else 0)
