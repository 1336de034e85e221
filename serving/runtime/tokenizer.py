"""Token ids of texts by the Rust tokenizer, with a memory for the texts seen last.

Ids are made without special tokens, so those of a query serve all its documents and those of a document serve all
queries; `pipeline.tokens` joins them. They are the first ids of the whole text (`pipeline.prefixes`).
"""

import hashlib
import threading
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from pipeline import text
from pipeline.errors import ArtifactError
from pipeline.prefixes import PrefixTokenizer, TextTooLongError, definition_of
from serving.errors import InvalidRequestError
from serving.runtime.byte_lru import ByteLRU

ENTRY_BYTES = 240
"""Memory of a remembered text besides its ids: its key, the array's header and the cache's own links."""

MAX_BYTES = 32 * 2**20
"""Default memory for remembered ids."""

MAX_CHARS = 2 * text.MAX_CHARS + 1
"""No more characters of one text are tokenised: the longest title, a line break and the longest text of a document.

A text of two million spaces takes up to a second (BERT, one core of 2026); the deadline is checked between the pieces
of a text, each four times as long as the one before."""


class RuntimeTokenizer:
    """Ids of texts, with a memory for the texts seen last; safe to use from many threads."""

    def __init__(self, tokenizer: Tokenizer, *, max_bytes: int = MAX_BYTES, max_chars: int = MAX_CHARS) -> None:
        """
        Args:
            tokenizer: loses its truncation and padding; the templates cut, and nothing pads.
            max_bytes: memory for remembered ids; 0 remembers nothing.
            max_chars: no more characters of one text are tokenised.
        """
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # "[SEP]" in a text is text, as in training.
        self._tokenizer = tokenizer
        self._prefixes = PrefixTokenizer(self._encode, definition_of(tokenizer), max_chars=max_chars)
        self._known: ByteLRU[array[int]] = ByteLRU(max_bytes, lambda ids: len(ids) * ids.itemsize + ENTRY_BYTES)
        self._lock = threading.Lock()
        self.hits = 0
        self.misses = 0

    @classmethod
    def load(cls, path: Path, *, max_bytes: int = MAX_BYTES) -> "RuntimeTokenizer":
        """Reads a `tokenizer.json`.

        Raises:
            ArtifactError: no such file, or not a tokenizer.
        """
        try:
            return cls(Tokenizer.from_str(path.read_text(encoding="utf-8")), max_bytes=max_bytes)
        except Exception as error:  # The Rust library raises plain Exception.
            raise ArtifactError(f"{path}: not a readable tokenizer ({error}); export the model again") from error

    @property
    def bytes(self) -> int:
        """Memory that the remembered ids take, at most `max_bytes`."""
        return self._known.bytes

    def ids(
        self,
        texts: Sequence[str],
        max_tokens: int,
        *,
        remember: bool = True,
        check: Callable[[], None] | None = None,
    ) -> list[Sequence[int]]:
        """Token ids of each text, without special tokens and none longer than `max_tokens`.

        Any string is accepted: NUL counts as a space, a lone surrogate as U+FFFD, and an empty text has no ids.

        Args:
            remember: False neither reads remembered ids nor adds to them.
            check: called before each batch of pieces; raises when the request's deadline has passed.

        Raises:
            InvalidRequestError: the first `max_tokens` tokens of a text lie beyond its first `max_chars` characters.
        """
        cleaned = [text.clean(item) for item in texts]
        if not remember:
            return list(self._first_ids(cleaned, max_tokens, check))
        keys = [hashlib.blake2b(f"{max_tokens}\0{item}".encode(), digest_size=16).digest() for item in cleaned]
        with self._lock:
            ids_by_key = {key: ids for key in keys if (ids := self._known.get(key)) is not None}
        missing = {key: item for key, item in zip(keys, cleaned, strict=True) if key not in ids_by_key}
        if missing:
            fresh = self._first_ids(list(missing.values()), max_tokens, check)
            ids_by_key |= {key: array("I", ids) for key, ids in zip(missing, fresh, strict=True)}
        with self._lock:
            self.hits += len(keys) - len(missing)
            self.misses += len(missing)
            for key in missing:
                self._known.put(key, ids_by_key[key])
        return [ids_by_key[key] for key in keys]

    def characters(self, item: str, first: int, last: int) -> tuple[int, int]:
        """Where the tokens of a text from index `first` to before `last` begin and end, in characters.

        Raises:
            InvalidRequestError: see `ids`.
        """
        offsets = self.offsets(item, last)
        return offsets[first][0], offsets[last - 1][1]

    def offsets(self, item: str, max_tokens: int) -> list[tuple[int, int]]:
        """Start and end of each of the first `max_tokens` tokens of a text, in characters.

        Raises:
            InvalidRequestError: see `ids`.
        """
        try:
            (head,) = self._prefixes.heads([text.clean(item)], max_tokens)
        except TextTooLongError as error:
            raise InvalidRequestError(str(error)) from error
        offsets: list[tuple[int, int]] = self._tokenizer.encode(head, add_special_tokens=False).offsets
        return offsets[:max_tokens]

    def text(self, ids: Sequence[int]) -> str | None:
        """Returns the text that has exactly these ids; None when there is none, as for another tokenizer's ids."""
        try:
            decoded = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        except (OverflowError, TypeError):
            return None  # Below 0, or beyond 32 bits.
        return decoded if self._encode([decoded]) == [list(ids)] else None

    def _first_ids(self, texts: list[str], max_tokens: int, check: Callable[[], None] | None) -> list[list[int]]:
        try:
            return self._prefixes.ids(texts, max_tokens, check)
        except TextTooLongError as error:
            raise InvalidRequestError(str(error)) from error

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [item.ids for item in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
