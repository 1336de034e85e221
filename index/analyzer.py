"""Splits texts into the terms that the lexical index counts, for Chinese and English alike.

Scripts written without spaces give single characters and pairs of neighbours: pairs carry the meaning,
single characters find what a pair misses (nDCG@10 on 859 Chinese web queries: 0.814 with pairs alone, 0.821
with characters alone, 0.827 with both). Other words give their stem, when the recipe names a language.
Names and measures are kept whole and split as well, so that both spellings of a query find them:

    DataFrame.groupby   data · frame · datafram (the stem of dataframe) · groupbi · dataframe.groupby
    read_csv            read · csv · read_csv
    Wi-Fi               wi · fi · wifi, whichever of Unicode's hyphens and dashes stands in it
    10mm, 3/4           10 · mm · 10mm, 3/4

Letters and signs are compared as `index.folding` writes them. An index remembers the version of its analysis, so an
index from before a change is searched with the analysis that it was built with.
"""

import re
import threading
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from itertools import pairwise

from index import folding
from pipeline.errors import ConfigError

VERSION = folding.VERSION
"""Version of the analysis; see `index.folding`."""

MAX_TERM = 64
"""Maximum length of a term in characters; a longer run of letters (a hash, an encoded picture) is cut."""

MAX_WORD = 256
"""Maximum length in characters of a run of letters and the signs that join them, all parts together."""

# Thai to Lao, Burmese, Khmer, Han with its radicals and marks, kana without the middle dot, bopomofo, Hangul.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3031-\u3035\u3041-\u30fa\u30fc-\u312f"
    "\u3131-\u318e\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
# Python's \w leaves out vowel signs, which would cut Hindi words at each of them. The ideographs between the two ranges
# and the syllables after them have none; looking at all of them would take a start of the service 7 ms more.
_SIGNS = map(chr, (*range(0x300, 0x3400), *range(0xA000, 0xAC00)))
_MARKS = re.sub(f"[{_UNSPACED}]", "", "".join(sign for sign in _SIGNS if unicodedata.category(sign) in ("Mn", "Mc")))
_LETTERS = rf"(?:[^\W{_UNSPACED}]++|[{_MARKS}])++"

_RUN = re.compile(
    rf"(?P<unspaced>[{_UNSPACED}]+)"
    rf"|{_LETTERS}(?:(?:[.'\-]|(?<=\d)[,/:](?=\d)){_LETTERS})*(?:\+\+|\#)?"
)
_PART = re.compile(r"[^._\-]+")
_JOINTS = re.compile(r"[_\-]")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z]{2})")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_NUMBER_OR_UNIT = re.compile(r"\d+(?:[.,/:]\d+)*|\D+")


Fold = Callable[[str], str]


def analyser(language: str = "", version: int = VERSION) -> Callable[[str], list[str]]:
    """Returns a function from a text to its terms, in order and with repetitions; threads may share it.

    Args:
        language: language of the Snowball stemmer for words of an alphabet, such as english; empty for none.
        version: version of the analysis that the index was built with.

    Raises:
        ConfigError: there is no stemmer for this language, or this program does not know the version.
    """
    of_word = _of_word(language, version)

    def analyse(text: str) -> list[str]:
        terms: list[str] = []
        # Case is folded later, term by term, because it shows where names may be split.
        for match in _RUN.finditer(folding.plain(text, version)):
            run = match.group()
            if match.lastgroup:
                terms.extend(run)
                terms.extend(first + second for first, second in pairwise(run))
            else:
                terms.extend(of_word(run[:MAX_WORD]))
        return terms

    return analyse


def located(language: str = "", version: int = VERSION) -> Callable[[str], list[tuple[int, int, tuple[str, ...]]]]:
    """Returns a function from a text to its words: start and end in the text, in characters, and the terms of each.

    A character of a script without spaces is a word of its own here. A name of several parts is listed whole, with the
    terms that only the whole name gives, and part by part.

    Args:
        language, version: see `analyser`.

    Raises:
        ConfigError: see `analyser`.
    """
    of_word = _of_word(language, version)

    def locate(text: str) -> list[tuple[int, int, tuple[str, ...]]]:
        plain, starts = folding.aligned(text, version)
        words: list[tuple[int, int, tuple[str, ...]]] = []

        def add(start: int, end: int, terms: tuple[str, ...]) -> None:
            beyond = bisect_right(starts, starts[end - 1])  # The piece of the text that gave the last character.
            words.append((starts[start], starts[min(beyond, len(starts) - 1)], terms))

        for match in _RUN.finditer(plain):
            start, run = match.start(), match.group()
            if match.lastgroup:
                for number, sign in enumerate(run):
                    add(start + number, start + number + 1, (sign,))
                continue
            run = run[:MAX_WORD]
            terms = of_word(run)
            parts = [] if run[0].isdigit() else list(_PART.finditer(run))
            of_parts = [tuple(term for term in of_word(part.group()) if term in terms) for part in parts]
            own = {term for held in of_parts for term in held} if len(parts) > 1 else set()
            add(start, start + len(run), tuple(term for term in terms if term not in own))
            if own:
                for part, held in zip(parts, of_parts, strict=True):
                    add(start + part.start(), start + part.end(), held)
        return words

    return locate


@lru_cache(maxsize=64)
def _of_word(language: str, version: int) -> Callable[[str], tuple[str, ...]]:
    """A function from a word, name or measure to its terms; it remembers the last ones."""
    if not 1 <= version <= VERSION:
        raise ConfigError(f"the index was built with analysis {version}; this program knows 1 to {VERSION}, update it")
    stem, fold = _stemmer(language), partial(folding.fold_case, version=version)

    @lru_cache(maxsize=100_000)
    def of_word(word: str) -> tuple[str, ...]:
        split = _of_measure if word[0].isdigit() else _of_name
        return tuple(term[:MAX_TERM] for term in split(word, stem, fold))

    return of_word


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


def _of_name(word: str, stem: Fold, fold: Fold) -> Iterator[str]:
    """The parts of a word or a dotted name, then the complete name where it has more than one part."""
    word = word.removesuffix("'s").removesuffix("'S")
    dotted = [part for part in word.split(".") if part]
    if len(dotted) > 1 and all(len(part) == 1 for part in dotted):
        yield fold("".join(dotted))  # U.S.A. is USA.
        return
    for part in dotted:
        yield from _of_part(part, stem, fold)
    if len(dotted) > 1:
        folded = [fold(part) for part in dotted]
        yield ".".join(folded)
        if len(dotted) > 2:  # Queries name a long path by its end, such as DataFrame.groupby.
            yield from map(".".join, pairwise(folded))


def _of_part(part: str, stem: Fold, fold: Fold) -> Iterator[str]:
    pieces = [piece for piece in _JOINTS.split(part) if piece]
    for piece in pieces:
        humps = _CAMEL.split(piece)
        if len(humps) > 1:
            yield from (stem(fold(hump)) for hump in humps if len(hump) > 1)
        yield stem(fold(piece).replace("'", ""))
    if pieces and part != "".join(pieces):
        joined = fold(part).replace("-", "")
        yield joined if "_" in joined else stem(joined)


def _of_measure(word: str, stem: Fold, fold: Fold) -> Iterator[str]:
    """The number and the unit of a measure, then both together."""
    measure = _THOUSANDS.sub("", fold(word))
    pieces = [piece for piece in _JOINTS.split(measure) if piece]
    for piece in pieces:
        sides = _NUMBER_OR_UNIT.findall(piece)
        if len(sides) > 1:
            yield from map(stem, sides)
        yield piece
    if len(pieces) > 1:
        yield measure
