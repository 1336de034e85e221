"""The terms that the lexical index counts, from any text, for Chinese and English alike.

Scripts written without spaces give single characters and pairs of neighbours: pairs carry the meaning,
single characters find what a pair misses (nDCG@10 on 859 Chinese web queries: 0.814 with pairs alone, 0.821
with characters alone, 0.827 with both). Other words give their stem, when the recipe names a language.
Names and measures are kept whole and split as well, so that either way of asking finds them:

    DataFrame.groupby   data · frame · datafram (the stem of dataframe) · groupbi · dataframe.groupby
    read_csv            read · csv · read_csv
    Wi-Fi               wi · fi · wifi
    10mm, 3/4           10 · mm · 10mm, 3/4
"""

import re
import threading
import unicodedata
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import pairwise

from pipeline.errors import ConfigError

MAX_TERM = 64
"""Characters of a term; a longer run of letters (a hash, an encoded picture) is cut."""

MAX_WORD = 256
"""Characters of a run of letters and the signs that join them, all parts together."""

# Thai to Lao, Burmese, Khmer, Han with its radicals and marks, kana without the middle dot, bopomofo, Hangul.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3031-\u3035\u3041-\u30fa\u30fc-\u312f"
    "\u3131-\u318e\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
_BASIC_PLANE = re.sub(rf"[{_UNSPACED}]", "", "".join(map(chr, range(0x300, 0xD800))))
# Python's \w leaves out vowel signs, which would cut Hindi words at each of them.
_MARKS = "".join(sign for sign in _BASIC_PLANE if unicodedata.category(sign) in ("Mn", "Mc"))
_LETTERS = rf"(?:[^\W{_UNSPACED}]++|[{_MARKS}])++"

_RUN = re.compile(
    rf"(?P<unspaced>[{_UNSPACED}]+)"
    rf"|{_LETTERS}(?:(?:[.'\-]|(?<=\d)[,/:](?=\d)){_LETTERS})*(?:\+\+|\#)?"
)
_JOINTS = re.compile(r"[_\-]")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z]{2})")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_NUMBER_OR_UNIT = re.compile(r"\d+(?:[.,/:]\d+)*|\D+")


def analyser(language: str = "") -> Callable[[str], list[str]]:
    """A function from a text to its terms, in order, as often as the text has them; it may be used in threads.

    Args:
        language: of the Snowball stemmer for words of an alphabet, such as english; empty for none.

    Raises:
        ConfigError: there is no stemmer of this language.
    """
    stem = _stemmer(language)

    @lru_cache(maxsize=100_000)
    def of_word(word: str) -> tuple[str, ...]:
        of_one = _of_measure if word[0].isdigit() else _of_name
        return tuple(term[:MAX_TERM] for term in of_one(word, stem))

    def terms(text: str) -> list[str]:
        found: list[str] = []
        # As pipeline.text.normalise does, but case is folded term by term: it shows where names may be split.
        plain = text if text.isascii() else unicodedata.normalize("NFKC", text).replace("’", "'").replace("⁄", "/")
        for match in _RUN.finditer(plain):
            run = match.group()
            if match.lastgroup:
                found.extend(run)
                found.extend(first + second for first, second in pairwise(run))
            else:
                found.extend(of_word(run[:MAX_WORD]))
        return found

    return terms


def _stemmer(language: str) -> Callable[[str], str]:
    if not language:
        return lambda word: word
    import Stemmer

    if language not in Stemmer.algorithms():
        raise ConfigError(
            f"index.language is '{language}'; there are stemmers for {', '.join(sorted(Stemmer.algorithms()))}, "
            "and the empty word means none"
        )
    snowball, turn = Stemmer.Stemmer(language), threading.Lock()  # A stemmer serves one thread at a time.

    def stem(word: str) -> str:
        with turn:
            return str(snowball.stemWord(word))

    return stem


def _of_name(word: str, stem: Callable[[str], str]) -> Iterator[str]:
    """The parts of a word or a dotted name, then the whole of it where it is more than one part."""
    word = word.removesuffix("'s").removesuffix("'S")
    dotted = [part for part in word.split(".") if part]
    if len(dotted) > 1 and all(len(part) == 1 for part in dotted):
        yield "".join(dotted).casefold()  # U.S.A. is USA.
        return
    for part in dotted:
        yield from _of_part(part, stem)
    if len(dotted) > 1:
        folded = [part.casefold() for part in dotted]
        yield ".".join(folded)
        if len(dotted) > 2:  # A long path is asked for by its end, such as DataFrame.groupby.
            yield from map(".".join, pairwise(folded))


def _of_part(part: str, stem: Callable[[str], str]) -> Iterator[str]:
    pieces = [piece for piece in _JOINTS.split(part) if piece]
    for piece in pieces:
        humps = _CAMEL.split(piece)
        if len(humps) > 1:
            yield from (stem(hump.casefold()) for hump in humps if len(hump) > 1)
        yield stem(piece.casefold().replace("'", ""))
    if pieces and part != "".join(pieces):
        whole = part.casefold().replace("-", "")
        yield whole if "_" in whole else stem(whole)


def _of_measure(word: str, stem: Callable[[str], str]) -> Iterator[str]:
    """A number with its unit: both apart, then together."""
    whole = _THOUSANDS.sub("", word.casefold())
    pieces = [piece for piece in _JOINTS.split(whole) if piece]
    for piece in pieces:
        sides = _NUMBER_OR_UNIT.findall(piece)
        if len(sides) > 1:
            yield from map(stem, sides)
        yield piece
    if len(pieces) > 1:
        yield whole
