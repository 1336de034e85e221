"""The first token ids of long texts: exactly those of the whole text, mostly without tokenising all of it.

    text ─► piece up to a safe cut ─► ids ─► enough? done │ else a piece four times as long, up to the whole text

A number of characters says nothing about a number of tokens: BERT drops white space and control characters, and makes
one token of a word of any length. So a text is tokenised from its beginning in growing pieces until there are enough
ids. A piece ends only where the tokenizer's definition proves that what follows cannot change the ids before it, such
as between a letter and a space. All pieces of a text together have at most 7/3 of its characters.
"""

import json
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.errors import SchemaError

FIRST_CHARS_PER_TOKEN = 8
"""Number of characters of the first piece for each wanted token. English has about 4.5 and Chinese about 1.5, so the
first piece is mostly enough, and little more than that is tokenised."""
GROWTH = 4
"""Ratio of the lengths of two successive pieces."""

_SPACES = r"\t\n\r "
_PUNCTUATION = re.escape(string.punctuation)
_HAN = "\u4e00-\u9fa5"  # Letters in every version of Unicode that a tokenizer may be built with.

BEFORE_SPACE = re.compile(r"(?<=[!-~])(?= )")
"""Positions between a printable ASCII character and a space: the cut of every tokenizer that splits at spaces."""
BERT_CUT = re.compile(rf"(?<=[\s\S])(?=[{_SPACES}{_PUNCTUATION}])")
"""BertPreTokenizer ends a word before each white space and punctuation character."""
BERT_HAN_CUT = re.compile(rf"(?<=[\s\S])(?=[{_SPACES}{_PUNCTUATION}{_HAN}])")
"""BERT_CUT and each position before a Chinese character, where BertNormalizer puts spaces around these."""
BYTE_LEVEL_CUT = re.compile(
    rf"(?<=[!-~{_HAN}])(?=[{_SPACES}])"
    rf"|(?<=[A-Za-z{_HAN}])(?=[0-9{_PUNCTUATION}\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f])"
    rf"|(?<=[0-9])(?=[A-Za-z{_PUNCTUATION}])"
)
"""The pattern of GPT-2 never joins a non-space with a space after it, nor letters with digits or punctuation after
them."""

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLIT_PATTERNS = (_SPLIT % "{1,3}", _SPLIT % "")  # GPT-4 and Llama 3; Qwen 2 and 3.
"""Published patterns no match of which joins a non-space with a space after it."""

PLAIN_NORMALIZERS = frozenset(
    (
        *("BertNormalizer", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Strip"),
        *("Nmt", "Precompiled", "Prepend"),
    )
)
"""Normalizers that change the text before a BEFORE_SPACE cut independently of the text after it."""
METASPACE = "\u2581"
"""The character that stands for a space in SentencePiece tokenizers."""

Encode = Callable[[list[str]], Sequence[Sequence[int]]]
"""Token ids of each text, without special tokens and uncut."""


class TextTooLongError(SchemaError):
    """A text whose first tokens cannot be found within the bound on characters."""


class PrefixTokenizer:
    """Token ids of the beginnings of texts, equal to the first ids of the whole texts."""

    def __init__(self, encode: Encode, definition: Mapping[str, Any], *, max_chars: int | None = None) -> None:
        """Derives the safe cuts of a tokenizer from its definition.

        Args:
            encode: tokenises a batch; special tokens in a text are text to it.
            definition: see `safe_cut`; `definition_of` gives it.
            max_chars: no more characters of one text than this are tokenised; None sets no bound.
        """
        self._encode = encode
        self._cut = safe_cut(definition)
        self._max_chars = max_chars

    @classmethod
    def of(cls, tokenizer: Any, *, max_chars: int | None = None) -> "PrefixTokenizer":
        """Wraps a `tokenizers.Tokenizer` that neither truncates nor pads."""

        def encode(texts: list[str]) -> list[list[int]]:
            return [item.ids for item in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

        return cls(encode, definition_of(tokenizer), max_chars=max_chars)

    def ids(self, texts: Sequence[str], max_tokens: int, check: Callable[[], None] | None = None) -> list[list[int]]:
        """The first `max_tokens` ids of each text.

        Args:
            check: called before each batch; raises to stop, for instance when a deadline has passed.

        Raises:
            TextTooLongError: a text has fewer ids in its first `max_chars` characters, and more characters.
        """
        return [list(ids[:max_tokens]) for _, ids in self._read(texts, max_tokens, check)]

    def heads(self, texts: Sequence[str], max_tokens: int) -> list[str]:
        """A beginning of each text that has the same first `max_tokens` ids; raises as `ids` does."""
        return [text[:end] for text, (end, _) in zip(texts, self._read(texts, max_tokens, None), strict=True)]

    def _read(
        self, texts: Sequence[str], max_tokens: int, check: Callable[[], None] | None
    ) -> list[tuple[int, Sequence[int]]]:
        """The length of the piece that was enough for each text, and the ids of that piece."""
        results: list[tuple[int, Sequence[int]]] = [(0, ())] * len(texts)
        ends = {
            number: self._end(text, max(max_tokens, 1) * FIRST_CHARS_PER_TOKEN) for number, text in enumerate(texts)
        }
        while ends:
            if check is not None:
                check()
            pieces = [texts[number][:end] for number, end in ends.items()]
            longer = {}
            for (number, end), ids in zip(ends.items(), self._encode(pieces), strict=True):
                results[number] = end, ids
                if len(ids) < max_tokens and end < len(texts[number]):
                    longer[number] = self._longer(texts[number], end, max_tokens)
            ends = longer
        return results

    def _longer(self, text: str, end: int, max_tokens: int) -> int:
        """The end of the piece after one that ends at `end`."""
        longer = self._end(text, GROWTH * max(end, FIRST_CHARS_PER_TOKEN))
        if longer <= end:
            raise TextTooLongError(
                f"a text of {len(text):,} characters: its first {max_tokens} tokens cannot be told from its first "
                f"{self._max_chars:,} characters; remove white space, binary data or endless words from its beginning"
            )
        return longer

    def _end(self, text: str, size: int) -> int:
        """The end of a piece of about `size` characters: the first safe cut from there on, or the end of the text.

        Where `max_chars` allows neither, the last safe cut within it; 0 without any.
        """
        if len(text) <= size and (self._max_chars is None or len(text) <= self._max_chars):
            return len(text)
        bound = len(text) if self._max_chars is None else min(len(text), self._max_chars)
        if self._cut is None:
            return len(text) if bound == len(text) else 0
        if size < bound and (match := self._cut.search(text, size, bound + 1)):
            return match.start()
        if bound == len(text):
            return bound
        return max((match.start() for match in self._cut.finditer(text, 0, bound + 1)), default=0)


def definition_of(tokenizer: Any) -> Mapping[str, Any]:
    """The part of a `tokenizers.Tokenizer` that `safe_cut` reads, without the vocabulary of many megabytes."""

    def part(step: Any) -> Any:
        return None if step is None else json.loads(step.__getstate__())

    tokens = tokenizer.get_added_tokens_decoder().values()
    return {
        "normalizer": part(tokenizer.normalizer),
        "pre_tokenizer": part(tokenizer.pre_tokenizer),
        "added_tokens": [
            {"content": token.content, "special": token.special, "rstrip": token.rstrip} for token in tokens
        ],
    }


def safe_cut(definition: Mapping[str, Any]) -> re.Pattern[str] | None:
    """A pattern of the positions where this tokenizer may be cut: the ids before such a position are those of the
    whole text. None where the definition proves no such position.

    Args:
        definition: the parsed `tokenizer.json`, of which normalizer, pre-tokenizer and added tokens are read.
    """
    normalizers = _steps(definition.get("normalizer"), "normalizers")
    splitters = _steps(definition.get("pre_tokenizer"), "pretokenizers")
    added = [token for token in definition.get("added_tokens") or () if not token["special"]]
    if not all(_is_plain(step, splitters) for step in normalizers) or not all(map(_stays_within_words, added)):
        return None
    names = [step["type"] for step in normalizers]
    if len(splitters) == 1 and not added:
        if splitters[0]["type"] == "BertPreTokenizer" and names in ([], ["BertNormalizer"]):
            return BERT_HAN_CUT if names and normalizers[0]["handle_chinese_chars"] else BERT_CUT
        if splitters[0]["type"] == "ByteLevel" and splitters[0].get("use_regex", True) and names in ([], ["NFC"]):
            return BYTE_LEVEL_CUT
    return BEFORE_SPACE if any(map(_splits_at_spaces, splitters)) else None


def _steps(step: Mapping[str, Any] | None, name: str) -> list[Mapping[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, of which a Sequence has several."""
    if step is None:
        return []
    if step["type"] != "Sequence":
        return [step]
    return [inner for part in step[name] for inner in _steps(part, name)]


def _is_plain(normalizer: Mapping[str, Any], splitters: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a normalizer changes the text before a BEFORE_SPACE cut independently of the text after it, and keeps
    the space there."""
    if normalizer["type"] != "Replace":
        return normalizer["type"] in PLAIN_NORMALIZERS
    pattern, content = normalizer["pattern"], normalizer["content"]
    if pattern == {"Regex": " {2,}"}:
        return content == " " or (content == METASPACE and any(step["type"] == "Metaspace" for step in splitters))
    return bool(pattern.get("String")) and " " not in pattern["String"]


def _stays_within_words(added: Mapping[str, Any]) -> bool:
    """Whether a token that is looked for before all else cannot reach across a space."""
    return not (any(map(str.isspace, added["content"])) or added["rstrip"])


def _splits_at_spaces(step: Mapping[str, Any]) -> bool:
    if step["type"] == "ByteLevel":
        return bool(step.get("use_regex", True))
    if step["type"] == "Metaspace":
        return bool(step.get("split", True))
    if step["type"] == "Split":
        return step["pattern"].get("Regex") in SPLIT_PATTERNS and step["behavior"] == "Isolated"
    return step["type"] in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")
