"""Passages of long documents: nothing is cut off a passage, nothing falls between two, and one score joins them."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.passages import MAX_PASSAGES, Passages
from pipeline.tokens import PairTemplate

BERT = PairTemplate(before=(101,), between=(102,), after=(102,), max_tokens=48, max_query_tokens=12)
LONGEST_FIRST = replace(BERT, longest_first=True, max_query_tokens=44)


@st.composite
def rules(draw: st.DrawFn) -> Passages:
    """Passages that fit beside the longest query of both templates, which leaves 22 tokens at least."""
    tokens = draw(st.sampled_from([0, 2, 7, 22]))
    stride = draw(st.integers(0, (tokens or 22) - 1))
    most = draw(st.integers(2, 12))
    return Passages(most=most, tokens=tokens, stride=stride, best=draw(st.integers(1, most)))


@given(rules(), st.integers(0, 60), st.integers(0, 400), st.sampled_from([BERT, LONGEST_FIRST]))
def test_no_token_of_a_passage_is_cut_and_none_falls_between_two(
    passages: Passages, query_tokens: int, tokens: int, template: PairTemplate
) -> None:
    template = replace(template, passages=passages)
    room = template.passage_room(query_tokens)
    spans = passages.spans(tokens, room)
    read = min(tokens, passages.reach(room))
    document, query = list(range(1000, 1000 + tokens)), list(range(query_tokens))
    # By a slow loop over tokens: each one up to the reach stands in a passage, in order.
    assert sorted({token for start, end in spans for token in range(start, end)}) == list(range(read))
    assert 1 <= len(spans) <= passages.most
    assert all(second > first for (first, _), (second, _) in pairwise(spans))
    kept_query = template.lengths(query_tokens, template.max_tokens)[0]
    for start, end in spans:
        assert end - start == min(passages.window(room), read)
        ids, types = template.assemble(query, document[start:end])
        assert len(ids) == len(types) <= template.max_tokens
        assert [token for token in ids if token >= 1000] == document[start:end]
        assert ids[1 : 1 + kept_query] == query[:kept_query]


@given(rules(), st.integers(0, 60), st.sampled_from([BERT, LONGEST_FIRST]))
def test_the_first_passage_of_the_default_length_is_what_a_cut_document_shows(
    passages: Passages, query_tokens: int, template: PairTemplate
) -> None:
    room = template.passage_room(query_tokens)
    ((_, end), *_) = replace(passages, tokens=0, stride=0).spans(400, room)
    assert 0 <= template.lengths(query_tokens, 400)[1] - end <= 1  # One less where `longest_first` rounds.


@given(rules(), st.lists(st.floats(-50, 50), min_size=1, max_size=12))
def test_the_joined_score_is_the_mean_of_the_best(passages: Passages, scores: list[float]) -> None:
    assert passages.join(scores) == pytest.approx(np.sort(scores)[::-1][: passages.best].mean(), abs=1e-12)
    assert replace(passages, best=1).join(scores) == max(scores)


def test_a_bound_on_tokens_ends_the_reading_there() -> None:
    passages = Passages(most=9, max_document_tokens=100)
    assert passages.spans(5000, 40) == [(0, 40), (20, 60), (40, 80), (60, 100)]
    assert Passages(most=3).spans(5000, 40) == [(0, 40), (20, 60), (40, 80)]
    assert Passages(most=9).spans(70, 40) == [(0, 40), (20, 60), (30, 70)]


def test_a_template_without_passages_is_written_as_before_they_were_known() -> None:
    assert "passages" not in BERT.to_dict()
    template = replace(BERT, passages=Passages(most=4, tokens=20, stride=8, best=2))
    assert PairTemplate.from_dict(template.to_dict()) == template


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"most": 0}, "passages.most is 0; it must be from 2"),
        ({"most": 1}, "passages.most is 1"),
        ({"most": -3}, "passages.most is -3"),
        ({"most": MAX_PASSAGES + 1}, f"to {MAX_PASSAGES}"),
        ({"tokens": -1}, "passages.tokens is -1"),
        ({"tokens": 1}, "passages.tokens is 1"),
        ({"stride": -1}, "passages.stride is -1"),
        ({"tokens": 20, "stride": 20}, "the stride must be smaller"),
        ({"tokens": 20, "stride": 21}, "the stride must be smaller"),
        ({"best": 0}, "passages.best is 0"),
        ({"best": 5}, "passages.best is 5; it must be from 1 to passages.most, 4"),
    ],
)
def test_passages_that_cannot_be_are_refused(values: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Passages(**{"most": 4, **values})


@pytest.mark.parametrize(
    ("passages", "message"),
    [
        (Passages(most=4, tokens=34), "passages.tokens is 34; the longest query leaves 33 tokens"),
        (Passages(most=4, stride=33), "passages.stride is 33; the longest query leaves passages of 33 tokens"),
    ],
)
def test_a_passage_that_does_not_fit_beside_the_longest_query_is_refused(passages: Passages, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(BERT, passages=passages)
