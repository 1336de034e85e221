import random
import time
import unicodedata
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.analyzer import MAX_TERM, analyser
from pipeline.errors import ConfigError

english = analyser("english")
plain = analyser()


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("三江有哪", ["三", "江", "有", "哪", "三江", "江有", "有哪"]),
        ("iPhone手机", ["phone", "iphone", "手", "机", "手机"]),
        ("第3章", ["第", "3", "章"]),
        ("ひらがな・カナ", ["ひ", "ら", "が", "な", "ひら", "らが", "がな", "カ", "ナ", "カナ"]),
        ("DataFrame.groupby", ["data", "frame", "dataframe", "groupby", "dataframe.groupby"]),
        ("read_csv", ["read", "csv", "read_csv"]),
        ("a.b1.c2", ["a", "b1", "c2", "a.b1.c2", "a.b1", "b1.c2"]),
        ("HTTPServer PDFs", ["http", "server", "httpserver", "pdfs"]),
        ("Wi-Fi", ["wi", "fi", "wifi"]),
        ("U.S.A. women's don’t", ["usa", "women", "dont"]),
        ("3/4 10mm 1,000.5 3-1/2", ["3/4", "10", "mm", "10mm", "1000.5", "3", "1/2", "3-1/2"]),
        ("½ １０ｍｍ", ["1/2", "10", "mm", "10mm"]),
        ("C++ or C#", ["c++", "or", "c#"]),
        ("मुश्किल كِتَاب", ["मुश्किल", "كِتَاب"]),
        ("Straße STRASSE", ["strasse", "strasse"]),
        ("__ -- .. '' ()", []),
        ("", []),
    ],
)
def test_terms_of_examples(text: str, terms: list[str]) -> None:
    assert plain(text) == terms


@pytest.mark.parametrize(
    ("query", "document"),
    [
        ("10 mm bolt", "bolt 10mm"),
        ("wifi", "Wi-Fi"),
        ("usa", "the U.S.A."),
        ("csv reading", "pandas.read_csv"),
        ("read_csv", "pandas.io.parsers.read_csv(path)"),
        ("DataFrame.groupby", "pandas.core.frame.DataFrame.groupby"),
        ("data frames", "DataFrame"),
        ("dataframe", "a DataFrame is"),
        ("logistic regression", "sklearn.linear_model.LogisticRegression"),
        ("init", "object.__init__"),
        ("woman's running shoe", "womans shoes run"),
        ("手机", "买手机壳"),
    ],
)
def test_every_term_of_the_query_is_in_the_document(query: str, document: str) -> None:
    assert set(english(query)) <= set(english(document))


def test_a_measure_is_found_by_its_parts() -> None:
    assert {"10", "mm"} <= set(english("10mm")) & set(english("10 mm"))


@given(st.text(max_size=60))
def test_any_text_gives_terms_that_are_short_folded_and_not_empty(text: str) -> None:
    # Surrogates, controls and unassigned characters are among what hypothesis draws.
    for term in english(text):
        assert 0 < len(term) <= MAX_TERM
        assert not term.isspace()
    assert plain(text) == plain(unicodedata.normalize("NFKC", text))


@given(st.text(alphabet="abcdXYZ01_.-", max_size=30))
def test_a_name_is_found_by_its_lower_case(text: str) -> None:
    assert set(english(text.lower())) <= set(english(text))


@given(st.lists(st.sampled_from(["run", "跑步", "read_csv", "10mm"]), max_size=6))
def test_words_apart_do_not_touch_each_other(words: list[str]) -> None:
    assert english(" ".join(words)) == [term for word in words for term in english(word)]


@pytest.mark.parametrize("unit", ["a", "中", "a.", "1,", "aB", "'", "a'", "\u0301", "1/", "-_", "๐ก"])
def test_a_million_characters_take_time_in_proportion(unit: str) -> None:
    def seconds(characters: int) -> float:
        began = time.process_time()
        english(unit * (characters // len(unit)))
        return time.process_time() - began

    # Ten times as many characters; work that grows with their square would take a hundred times as long.
    assert seconds(1_000_000) < 50 * max(seconds(100_000), 0.01)


def test_threads_share_one_analyser() -> None:
    texts = [f"running horses {number} Überläufe 中文{number}" for number in range(400)]
    analyse = analyser("german")
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(analyse, texts * 3))
    alone = analyser("german")
    assert together == [alone(text) for text in texts] * 3


def test_an_unknown_language_is_named_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'klingon'.*english"):
        analyser("klingon")


@settings(max_examples=20)
@given(st.text(max_size=20))
def test_no_language_means_no_stemming(text: str) -> None:
    assert plain("running " + text)[0] == "running"


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("Gesamt\u00adkonzept", "Gesamtkonzept"),
        ("İstanbul", "istanbul"),
        ("ISTANBUL", "istanbul"),
        ("ne\u200bver\ufeff mind", "never"),
        ("STRASSE", "straße"),
        ("ﬁnance", "FINANCE"),
        ("ΟΔΟΣ", "οδος"),
        ("love\ufe0f", "Love"),
    ],
)
def test_words_that_unicode_holds_equal_share_a_term(text: str, query: str) -> None:
    analyse = analyser()
    assert set(analyse(query)) & set(analyse(text))


def test_ignorable_code_points_change_no_term() -> None:
    """Seed 3. The code points are drawn from Unicode's list and put anywhere into words of several scripts."""
    rng = random.Random(3)
    ignorable = [chr(code) for code in (0xAD, 0x34F, 0x61C, 0x180E, 0x200B, 0x200D, 0x2060, 0xFE0F, 0xFEFF, 0xE0041)]
    analyse = analyser("english")
    for word in ("wheels", "read_csv", "10mm", "DataFrame.groupby", "数据库", "Größe", "हिन्दी"):
        for _ in range(20):
            where = rng.randrange(len(word) + 1)
            assert analyse(word[:where] + rng.choice(ignorable) + word[where:]) == analyse(word)


def test_an_index_from_before_is_searched_with_its_own_analysis() -> None:
    assert analyser(version=1)("Gesamt\u00adkonzept") == ["gesamt", "konzept"]
    assert analyser(version=2)("Gesamt\u00adkonzept") == ["gesamtkonzept"]
    assert analyser(version=2)("Wi\u2011Fi don\u02bct don’t") == ["wi", "fi", "donʼt", "dont"]
    assert analyser(version=3)("don\u00b4t don\u02bct") == ["don", "\u0301t", "dont"]
    for unknown in (0, 5):
        with pytest.raises(ConfigError, match="knows 1 to 4"):
            analyser(version=unknown)


DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d\u058a\u05be\u207b\u208b\ufe31\ufe32\u2e3a\u2e3b"
APOSTROPHES = "\u2019\u02bc\u2018\u201b\u02bb\u2032\uff07\u055a\u05f3\ua78c\u00b4\u1ffd\u0384\u1fbd\u1fbf"


@settings(max_examples=200)
@given(
    st.text(alphabet="abXY019.-' _,/手\u0301", max_size=24),
    st.sampled_from(DASHES),
    st.sampled_from(APOSTROPHES),
)
def test_every_dash_and_apostrophe_analyses_as_the_ascii_sign(text: str, dash: str, apostrophe: str) -> None:
    typeset = text.replace("-", dash).replace("'", apostrophe)
    assert english(typeset) == english(text)
    assert plain(typeset) == plain(text)


@pytest.mark.parametrize("dash", DASHES)
def test_a_name_with_a_dash_is_found_by_its_spellings(dash: str) -> None:
    assert set(plain("wifi")) <= set(plain(f"Wi{dash}Fi"))
    assert set(plain(f"Wi{dash}Fi")) == set(plain("Wi-Fi"))
    assert set(plain(f"3{dash}1/2")) == set(plain("3-1/2"))


def test_dashes_of_unicode_are_all_known() -> None:
    """A dash that joins no words is listed here: those of East Asian texts and of palaeography."""
    dashes = {chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) == "Pd"}
    apart = {"\u2e17", "\u2e1a", "\u2e40", "\u2e5d", "\u301c", "\u3030", "\u30a0", "\U00010ead"}
    assert {dash for dash in dashes if plain(f"Wi{dash}Fi") != ["wi", "fi", "wifi"]} <= apart


@pytest.mark.parametrize("word", ["हिन्दी", "தமிழ்", "ꯃꯤꯇꯩ"])
def test_a_vowel_sign_cuts_no_word(word: str) -> None:
    assert any(unicodedata.category(sign) in ("Mn", "Mc") for sign in word)
    assert analyser()(word) == [word]


def test_the_blocks_that_are_not_looked_through_hold_no_vowel_sign() -> None:
    codes = (*range(0x3400, 0xA000), *range(0xAC00, 0xD800))
    assert not [hex(code) for code in codes if unicodedata.category(chr(code)) in ("Mn", "Mc")]
