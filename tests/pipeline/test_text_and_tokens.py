import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import text
from pipeline.errors import ConfigError
from pipeline.tokens import PairTemplate, TextTemplate

BERT = PairTemplate(before=(101,), between=(102,), after=(102,), max_tokens=16, max_query_tokens=6)
ROBERTA = PairTemplate(before=(0,), between=(2, 2), after=(2,), document_type=0, max_tokens=16, max_query_tokens=6)


def test_pair_of_each_family() -> None:
    assert BERT.assemble([7, 8], [9]) == ([101, 7, 8, 102, 9, 102], [0, 0, 0, 0, 1, 1])
    assert ROBERTA.assemble([7, 8], [9]) == ([0, 7, 8, 2, 2, 9, 2], [0] * 7)


@given(query=st.lists(st.integers(5, 9), max_size=30), document=st.lists(st.integers(10, 19), max_size=30))
def test_query_is_kept_and_document_gets_the_rest(query: list[int], document: list[int]) -> None:
    ids, types = BERT.assemble(query, document)
    assert len(ids) == len(types) <= BERT.max_tokens
    kept_query = [token for token in ids if 5 <= token <= 9]
    kept_document = [token for token in ids if 10 <= token <= 19]
    assert kept_query == query[:6]
    assert kept_document == document[: BERT.document_room(len(query))]
    if len(ids) < BERT.max_tokens:
        assert kept_document == document


def test_templates_survive_json_and_refuse_no_room() -> None:
    assert PairTemplate.from_dict({**BERT.to_dict(), "before": [101]}) == BERT
    single = TextTemplate(before=(101,), after=(102,), max_tokens=4)
    assert TextTemplate.from_dict(single.to_dict()) == single
    assert single.assemble([1, 2, 3]) == [101, 1, 2, 102]
    with pytest.raises(ConfigError, match="leave no room"):
        PairTemplate(before=(1,), between=(2,), after=(2,), max_tokens=9, max_query_tokens=6)


def test_clean_and_fault() -> None:
    assert text.clean("a\x00b") == "a b"
    assert text.clean("caf\u00e9 \ud800!") == "caf\u00e9 \ufffd!"
    assert text.clean("\U0001f600") == "\U0001f600"
    assert text.fault("fine") is None
    assert "NUL" in str(text.fault("a\x00"))
    assert "surrogate" in str(text.fault("\ud800"))
    assert "1,000,001" in str(text.fault("a" * 1_000_001))


@given(st.text())
def test_cleaned_text_is_valid_unicode_without_faults(value: str) -> None:
    cleaned = text.clean(value)
    cleaned.encode("utf-8")
    assert text.fault(cleaned) is None


def test_normalise() -> None:
    assert text.normalise("  \uff28\uff45llo\u3000 WORLD\n") == "hello world"
    assert text.normalise("Stra\u00dfe") == "strasse"


def test_document_text() -> None:
    assert text.document_text("t", "b") == "t\nb"
    assert text.document_text("", "b") == "b"
    assert text.document_text("t", "") == "t"
