"""Reading JSON bodies: limits before parsing, and lone surrogates, each against a slow reference."""

import json
import random
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.api import json_io, json_limits, lone_surrogates
from serving.api.rerank_request import RerankRequest
from serving.errors import BodyTooLargeError, RequestError
from serving.settings import Settings

texts = st.text(alphabet=st.sampled_from('a",[]{}\\\n列🙂'), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | texts,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=40,
)


def containers(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return isinstance(value, dict | list) + sum(map(containers, inner))


def commas(value: Any) -> int:
    inner = list(value.values() if isinstance(value, dict) else value if isinstance(value, list) else [])
    return max(len(inner) - 1, 0) + sum(map(commas, inner))


@given(value=values, chunk=st.integers(1, 40), ascii_only=st.booleans())
def test_values_are_counted_exactly_whatever_texts_hold(value: Any, chunk: int, ascii_only: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    lists, separators = containers(value), commas(value)

    def refused(max_containers: int, max_values: int) -> bool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(json_limits, "_CHUNK", chunk)
            patch.setattr(json_limits, "MAX_CONTAINERS", max_containers)
            patch.setattr(json_limits, "MAX_VALUES", max_values)
            try:
                json_limits.check_structure(body)
            except BodyTooLargeError:
                return True
            return False

    assert not refused(lists, lists + separators)
    if lists:
        assert refused(lists - 1, lists + separators)
    if lists + separators:
        assert refused(lists, lists + separators - 1)


pieces = st.sampled_from(
    ["\\ud800", "\\udbff", "\\udc00", "\\uDFFF", "\\u0041", "\\\\", "\\n", '\\"', "ud800", "a", "列"]
)


@given(parts=st.lists(pieces, max_size=30), chunk=st.integers(1, 20))
def test_lone_surrogates_are_replaced_as_python_would(parts: list[str], chunk: int) -> None:
    body = '{"query": "' + "".join(parts) + '"}'
    lone = json.loads(body)["query"]
    expected = lone.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_limits, "_CHUNK", chunk)
        assert json_io.load(body.encode())["query"] == expected


faults = st.sampled_from([", x: 1}", ', "\\u12zz": 1}', ', "a": 1', ', "\\q": 1}'])


@given(parts=st.lists(pieces, max_size=12), fault=faults)
def test_a_fault_is_told_at_its_place_in_the_body_as_it_was_sent(parts: list[str], fault: str) -> None:
    sound = "".join(part for part in parts if not part.lower().startswith("\\ud"))
    for lone in ("", "\\ud800"):
        with pytest.raises(RequestError, match="not valid JSON") as refused:
            json_io.load(f'{{"query": "{sound}{lone}"{fault}'.encode())
        same_length = "-" * len(lone)
        with pytest.raises(orjson.JSONDecodeError) as expected:
            orjson.loads(f'{{"query": "{sound}{same_length}"{fault}')
        assert str(expected.value) in str(refused.value)


@pytest.mark.parametrize("filler", ["a", "z", "\\\\", "\\ud83d\\ude00", "\\udc00"])
def test_a_large_body_with_a_lone_surrogate_lets_other_threads_run(
    filler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The body of hex digits once was one chunk, in which the interpreter's lock was kept until its end."""
    body = ('["\\ud800' + filler * (2**22 // len(filler)) + '"]').encode()
    ends: list[int] = []

    def recorded(content: bytes, start: int) -> int:
        ends.append(end_of_chunk(content, start))
        return ends[-1]

    end_of_chunk = json_limits.end_of_chunk
    monkeypatch.setattr(json_limits, "end_of_chunk", recorded)
    assert len(lone_surrogates.replaced(body)) == len(body)
    chunks = np.diff([0, *ends])
    assert ends[-1] == len(body)
    assert 0 < chunks.min() <= chunks.max() <= json_limits._CHUNK + 1


def test_depth_is_refused_before_parsing_and_after() -> None:
    for depth, wide in ((201, 0), (201, 60_000)):
        body = b'{"x": [' + b"[" * (depth - 2) + b"]" * (depth - 2) + b",[]" * wide + b"]}"
        with pytest.raises(RequestError, match="nested too deep"):
            json_io.load(body)
    deepest = b"[" * 200 + b"]" * 200
    assert json_io.load(deepest) == json.loads(deepest)


def test_text_full_of_brackets_is_text() -> None:
    body = json.dumps({"query": "q", "texts": ['[{,"\\' * 200_000]}).encode()
    assert json_io.load(body) == json.loads(body)


@pytest.mark.parametrize("seed", range(5))
def test_the_first_wrong_item_ends_the_validation(seed: int) -> None:
    draw = random.Random(seed)
    items = ["a"] * 1000
    wrong = sorted(draw.sample(range(1000), 50))
    for index in wrong:
        items[index] = draw.choice([1, None, True, [], {}])
    for name in ("texts", "documents"):
        given = [item if not (name == "documents" and isinstance(item, dict)) else 1 for item in items]
        with pytest.raises(RequestError) as refused:
            json_io.validate({"query": "q", name: given}, RerankRequest, Settings())
        assert str(refused.value).count(name) == 1
        assert f"{name}[{wrong[0]}]" in str(refused.value)


def test_a_byte_order_mark_before_a_body_is_left_out() -> None:
    assert json_io.load('\ufeff{"query": "\ufeffa"}'.encode()) == {"query": "\ufeffa"}
    with pytest.raises(RequestError, match="the body is empty"):
        json_io.load("\ufeff ".encode())


@pytest.mark.parametrize(
    ("body", "byte"),
    [
        ('{"query": "é"}'.encode("latin-1"), 11),
        ('{"query": "a"}'.encode("utf-16"), 0),
        (b'{"query": "\\u00e9\xff"}', 17),
    ],
)
def test_a_body_that_is_not_utf8_is_told_so(body: bytes, byte: int) -> None:
    with pytest.raises(RequestError, match=f"the body is not UTF-8 at byte {byte}; send the JSON as UTF-8"):
        json_io.load(body)
