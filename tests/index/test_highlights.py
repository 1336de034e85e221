"""Terms of a query are marked_spans in texts where the index finds them. Seeds 1 to 4."""

import random
from itertools import pairwise

import pytest

from index import analyzer, folding
from index.analyzer import VERSION, analyser, located
from index.highlights import QueryTerms, joined

SIGNS = "abcABC  ..--'’ 019,/_é\u0301ñß\u00ad\u200bﬁ½Å列表排序ガㇰㅎ\u1112\u1161\u11ab한글ก็हिन्दी\u0301İ´´,,。🙂"


def spans(query: str, text: str, language: str = "", version: int = VERSION) -> list[str]:
    shares = dict.fromkeys(analyser(language, version)(query), 0.1)
    terms = QueryTerms(language=language, version=version, shares=shares)
    return [text[start:end] for start, end in terms.spans(text)]


@pytest.mark.parametrize(
    ("query", "text", "marked"),
    [
        ("sort", "Sorts, sorted and resort; a consort", ["Sorts", "sorted"]),
        ("wifi", "no Wi\u2011Fi, no wire", ["Wi\u2011Fi"]),
        ("groupby", "see DataFrame.groupby here", ["groupby"]),
        ("DataFrame.groupby", "see DataFrame.groupby here", ["DataFrame.groupby"]),
        ("frame", "DataFrame.groupby", ["DataFrame"]),
        ("10mm", "a 10mm bolt, 10 pieces", ["10mm", "10"]),
        ("列表", "对列表进行排序,系列", ["列表", "列"]),
        ("Straße", "die STRASSE ist lang 🙂 strasse", ["STRASSE", "strasse"]),
        ("fine", "🙂🙂 the ﬁne print, de\u00adfine, fi\u00adne", ["ﬁne", "fi\u00adne"]),
        ("don't", "I don´t and don’t", ["don´t", "don’t"]),
        ("cafe", "café cafe\u0301 cafe", ["cafe"]),
        ("café", "café cafe\u0301 cafe", ["café", "cafe\u0301"]),
    ],
)
def test_words_are_marked_as_the_index_compares_them(query: str, text: str, marked: list[str]) -> None:
    assert spans(query, text, "english") == marked


@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("version", range(1, VERSION + 1))
def test_what_is_marked_is_what_the_analysis_finds(seed: int, version: int) -> None:
    rng, analyse, locate = random.Random(seed), analyser("", version), located("", version)
    for _ in range(300):
        text = "".join(rng.choices(SIGNS, k=rng.randint(0, 40)))
        folded, starts = folding.aligned(text, version)
        assert folded == folding.plain(text, version)
        assert len(starts) == len(folded) + 1
        assert starts == sorted(starts)
        words = locate(text)
        held = set(analyse(text))
        assert {term for *_, terms in words for term in terms} == {term for term in held if not _is_pair(term)}
        for start, end, terms in words:
            assert 0 <= start < end <= len(text)
            assert set(terms) <= set(analyse(text[start:end])) | {term for term in terms if len(term) == 1}
        query = "".join(rng.choices(SIGNS, k=8))
        shared = held & set(analyse(query))
        marked_spans = QueryTerms(language="", version=version, shares=dict.fromkeys(analyse(query), 0.1)).spans(text)
        assert bool(marked_spans) == bool(shared)
        assert all(first[1] < second[0] for first, second in pairwise(marked_spans))


def _is_pair(term: str) -> bool:
    """Whether a term is a pair of neighbours of a script without spaces, whose characters are terms too."""
    run = analyzer._RUN.fullmatch(term)
    return len(term) == 2 and run is not None and run.lastgroup == "unspaced"


def test_a_term_of_most_documents_is_marked_only_alone() -> None:
    def marked(**shares: float) -> list[tuple[int, int]]:
        return QueryTerms(language="", version=VERSION, shares=shares).spans("the list of the day")

    assert marked(the=0.9, list=0.1) == [(4, 8)]
    assert marked(the=0.9, of=0.7) == [(0, 3), (9, 15)] or marked(the=0.9, of=0.7) == [(0, 3), (9, 11), (12, 15)]
    assert marked() == []


def test_the_terms_of_shards_are_joined() -> None:
    first = QueryTerms(language="english", version=3, shares={"list": 0.2})
    second = QueryTerms(language="english", version=3, shares={"sort": 0.1, "list": 0.2})
    assert joined([first, second]) == QueryTerms(language="english", version=3, shares={"list": 0.2, "sort": 0.1})
    assert joined([]) is None
