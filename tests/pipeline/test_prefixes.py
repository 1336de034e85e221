"""Ids of a prefix of a text against those of the whole text, for each kind of tokenizer."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from pipeline import prefixes
from pipeline.prefixes import PrefixTokenizer, TextTooLongError

VOCABULARIES = Path(__file__).resolve().parents[3] / "shared" / "data" / "vocab"
WORDS = ["list", "sort", "in", "place", "##s", "##ed", "##ing", "the", "a", ".", "/", "+", "列", "表", "[UNK]"]
SMALL_VOCABULARY = {word: number for number, word in enumerate(WORDS)}
SENTENCES = [
    "sort a list in place",
    "the list is sorted",
    "对列表进行排序 返回一个新的列表",
    "caf\u00e9 na\u00efve 1234",
] * 8


def _bert(vocabulary: dict[str, int], *, lowercase: bool = True) -> Tokenizer:
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return backend


def _lines(name: str) -> dict[str, int]:
    lines = (VOCABULARIES / name).read_text(encoding="utf-8").split("\n")
    return {line.rstrip("\r"): number for number, line in enumerate(lines) if line.strip()}


def _words() -> Tokenizer:
    backend = Tokenizer(models.WordLevel(SMALL_VOCABULARY, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return backend


def _byte_level(*, add_prefix_space: bool) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    return backend


def _unigram() -> Tokenizer:
    backend = Tokenizer(models.Unigram())
    quotes, spaces = normalizers.Replace("``", '"'), normalizers.Replace(Regex(" {2,}"), " ")
    folded = (normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase())
    backend.normalizer = normalizers.Sequence([quotes, *folded, spaces])
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    backend.train_from_iterator(SENTENCES, trainers.UnigramTrainer(vocab_size=80, unk_token="<unk>"))
    return backend


def _metaspace_bpe() -> Tokenizer:
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), "\u2581")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>"]))
    return backend


def _roberta() -> Tokenizer:
    vocabulary = json.loads((VOCABULARIES / "roberta_vocab.json").read_text(encoding="utf-8"))
    lines = (VOCABULARIES / "roberta_gpt2_merges.txt").read_text(encoding="utf-8").split("\n")[1:]
    backend = Tokenizer(models.BPE(vocabulary, [(line.split(" ")[0], line.split(" ")[1]) for line in lines if line]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return backend


BUILDERS: dict[str, Callable[[], Tokenizer]] = {
    "wordpiece": lambda: _bert(SMALL_VOCABULARY),
    "wordpiece cased": lambda: _bert(SMALL_VOCABULARY, lowercase=False),
    "words": _words,
    "byte-level": lambda: _byte_level(add_prefix_space=False),
    "byte-level prefix space": lambda: _byte_level(add_prefix_space=True),
    "unigram": _unigram,
    "metaspace bpe": _metaspace_bpe,
    "real bert": lambda: _bert(_lines("bert_base_uncased_vocab.txt")),
    "real chinese bert": lambda: _bert(_lines("bert_base_chinese_vocab.txt")),
    "real roberta": _roberta,
}


@cache
def tokenizer(name: str) -> Tokenizer:
    return BUILDERS[name]()


SMALL = [name for name in BUILDERS if not name.startswith("real ")]
REAL = [name for name in BUILDERS if name.startswith("real ")]


def all_ids(name: str, text: str) -> list[int]:
    return list(tokenizer(name).encode(text, add_special_tokens=False).ids)


def reader(name: str, max_chars: int | None = None) -> PrefixTokenizer:
    backend = tokenizer(name)

    def encode(texts: list[str]) -> list[list[int]]:
        return [item.ids for item in backend.encode_batch_fast(texts, add_special_tokens=False)]

    return PrefixTokenizer(encode, json.loads(backend.to_str()), max_chars=max_chars)


WORD = st.sampled_from(
    [
        "sort",
        "lists",
        "The",
        "café",
        "don't",
        "x's",
        "1234",
        "a1b2",
        "naïve",
        "e\u0301\u0301",
        "列表",
        "排序，",
        "\ufdfa",
    ]
)
PIECE = st.one_of(
    WORD,
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12),
    st.builds(lambda mark, count: mark * count, st.sampled_from(" \t\n\r\u3000\u00a0\u2028\x85"), st.integers(1, 300)),
    st.builds(
        lambda mark, count: mark * count,
        st.sampled_from(["\u0301", "\u200b", "\u00ad", "\x01", "\ufe0f"]),
        st.integers(1, 300),
    ),
    st.builds(
        lambda mark, count: mark * count,
        st.sampled_from(["a", "ab", "-", ".", "列", "9", "'s", "``"]),
        st.integers(1, 300),
    ),
    st.text("ABCDEFabcdef0123456789+/=", min_size=1, max_size=200),
)
TEXT = st.lists(st.tuples(PIECE, st.sampled_from(["", " ", "\n", "  ", " \n\t "])), max_size=30).map(
    lambda parts: "".join(piece + space for piece, space in parts)
)


def check(name: str, text: str, max_tokens: int) -> None:
    expected = all_ids(name, text)[:max_tokens]
    (ids,) = reader(name).ids([text], max_tokens)
    assert ids == expected
    (head,) = reader(name).heads([text], max_tokens)
    assert text.startswith(head)
    assert all_ids(name, head)[:max_tokens] == expected


@pytest.mark.parametrize("name", SMALL)
@settings(max_examples=80, deadline=None)
@given(text=TEXT, max_tokens=st.integers(1, 8))
@example(text=" " * 2000 + "sort a list in place", max_tokens=8)
@example(text="a" * 5000 + " sort", max_tokens=3)
def test_ids_are_the_first_ids_of_the_whole_text(name: str, text: str, max_tokens: int) -> None:
    check(name, text, max_tokens)


@pytest.mark.data
@pytest.mark.usefixtures("shared_data")
@pytest.mark.parametrize("name", REAL)
@settings(max_examples=80, deadline=None)
@given(text=TEXT, max_tokens=st.integers(1, 8))
@example(text=" " * 2000 + "sort a list in place", max_tokens=8)
@example(text="data:image/png;base64," + "iVBORw0KGgoAAAANSUhEUgAAAAUA" * 400 + " sort a list", max_tokens=8)
def test_ids_are_the_first_ids_of_the_whole_text_by_real_vocabularies(name: str, text: str, max_tokens: int) -> None:
    check(name, text, max_tokens)


@pytest.mark.parametrize("name", SMALL)
@settings(max_examples=40, deadline=None)
@given(text=TEXT)
def test_ids_before_each_safe_cut_are_those_of_the_whole_text(name: str, text: str) -> None:
    cut = prefixes.safe_cut(json.loads(tokenizer(name).to_str()))
    assert cut is not None
    ids = all_ids(name, text)
    for match in list(cut.finditer(text))[:40]:
        before = all_ids(name, text[: match.start()])
        assert ids[: len(before)] == before, (text, match.start())


def test_a_long_text_is_read_only_as_far_as_needed() -> None:
    lengths: list[int] = []
    backend = tokenizer("wordpiece")

    def encode(texts: list[str]) -> list[list[int]]:
        lengths.extend(map(len, texts))
        return [item.ids for item in backend.encode_batch_fast(texts, add_special_tokens=False)]

    reader = PrefixTokenizer(encode, json.loads(backend.to_str()), max_chars=100_000)
    assert reader.ids(["sort a list " * 100_000], 16) == [[1, 8, 0] * 5 + [1]]
    assert sum(lengths) < 1000
    lengths.clear()
    assert reader.ids([" " * 50_000 + "sort " * 9], 4) == [[1] * 4]
    assert sum(lengths) < 50_045 * 7 / 3


@pytest.mark.parametrize("start", [" " * 2000, "a" * 2000])
def test_beyond_its_bound_a_text_is_refused_and_never_read_wrongly(start: str) -> None:
    with pytest.raises(TextTooLongError, match="a text of 2,020 characters: its first 4 tokens"):
        reader("wordpiece", max_chars=1000).ids([start + "sort a list in place"], 4)
    assert reader("wordpiece", max_chars=2020).ids([start + " sort a list in plac"], 3)[0][-2:] == (
        [8, 0] if start[0] == " " else [1, 8]
    )


def test_the_caller_is_asked_before_each_batch() -> None:
    calls: list[int] = []

    def stop() -> None:
        calls.append(len(calls))
        if len(calls) == 3:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        reader("wordpiece").ids([" " * 10_000], 4, stop)


def _added(token: AddedToken) -> Callable[[Tokenizer], None]:
    return lambda backend: backend.add_tokens([token]) and None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_added(AddedToken("[unused1]", special=False)), prefixes.BEFORE_SPACE),
        (_added(AddedToken("two words", special=False)), None),
        (_added(AddedToken("<x>", special=False, rstrip=True)), None),
        (lambda backend: setattr(backend, "normalizer", normalizers.Replace(" ", "")), None),
        (lambda backend: setattr(backend, "pre_tokenizer", pre_tokenizers.Digits()), None),
        (lambda backend: setattr(backend, "pre_tokenizer", pre_tokenizers.Metaspace(split=False)), None),
    ],
)
def test_a_tokenizer_that_may_join_words_is_never_cut(change: Callable[[Tokenizer], None], expected: object) -> None:
    backend = _bert(SMALL_VOCABULARY)
    change(backend)
    assert prefixes.safe_cut(json.loads(backend.to_str())) is expected
    assert prefixes.safe_cut(prefixes.definition_of(backend)) is expected


@pytest.mark.parametrize("name", SMALL)
def test_the_definition_without_vocabulary_says_the_same(name: str) -> None:
    full, short = json.loads(tokenizer(name).to_str()), prefixes.definition_of(tokenizer(name))
    for part in ("normalizer", "pre_tokenizer"):
        assert short[part] == full[part]
    assert short["added_tokens"] == [
        {key: token[key] for key in ("content", "special", "rstrip")} for token in full["added_tokens"]
    ]
