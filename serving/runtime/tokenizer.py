"""Token ids of texts, by the Rust tokenizer alone, each text once while it is remembered.

Ids are made without special tokens, so those of a query serve all its documents and those of a document all
queries; `pipeline.tokens` puts them together. What a model cannot read (see `text.head`) is cut off before.
"""

import hashlib
import threading
from array import array
from collections.abc import Sequence
from pathlib import Path

from cachetools import LRUCache
from tokenizers import Tokenizer

from pipeline import text
from pipeline.errors import ArtifactError

ENTRY_BYTES = 240
"""Memory of a remembered text besides its ids: its key, the array's head and the cache's own links."""

MAX_BYTES = 32 * 2**20
"""Memory for remembered ids, where nothing else is said."""


class RuntimeTokenizer:
    """Ids of texts, with a memory for the texts seen last; safe to use from many threads."""

    def __init__(self, tokenizer: Tokenizer, *, max_bytes: int = MAX_BYTES) -> None:
        """
        Args:
            tokenizer: loses its truncation and padding; the templates cut, and nothing pads.
            max_bytes: memory for remembered ids; 0 remembers nothing.
        """
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # "[SEP]" in a text is text, as in training.
        self._tokenizer = tokenizer
        self._known: LRUCache[bytes, array[int]] = LRUCache(
            max_bytes, getsizeof=lambda ids: len(ids) * ids.itemsize + ENTRY_BYTES
        )
        self._lock = threading.Lock()
        self.hits = 0
        self.misses = 0

    @classmethod
    def load(cls, path: Path, *, max_bytes: int = MAX_BYTES) -> "RuntimeTokenizer":
        """The tokenizer of a `tokenizer.json`.

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
        return int(self._known.currsize)

    def ids(self, texts: Sequence[str], max_tokens: int, *, remember: bool = True) -> list[Sequence[int]]:
        """Token ids of each text, without special tokens and none longer than `max_tokens`.

        Any string is taken: NUL counts as a space, a lone surrogate as U+FFFD, and an empty text has no ids.

        Args:
            remember: False neither looks at what is remembered nor adds to it.
        """
        heads = [text.clean(text.head(item, max_tokens)) for item in texts]
        if not remember:
            return [ids[:max_tokens] for ids in self._encode(heads)]
        keys = [hashlib.blake2b(f"{max_tokens}\0{head}".encode(), digest_size=16).digest() for head in heads]
        with self._lock:
            found = {key: ids for key in keys if (ids := self._known.get(key)) is not None}
        missing = {key: head for key, head in zip(keys, heads, strict=True) if key not in found}
        if missing:
            encoded = self._encode(list(missing.values()))
            found |= {key: array("I", ids[:max_tokens]) for key, ids in zip(missing, encoded, strict=True)}
        with self._lock:
            self.hits += len(keys) - len(missing)
            self.misses += len(missing)
            for key in missing:
                # A text that alone is larger than the memory is not remembered.
                if len(found[key]) * found[key].itemsize + ENTRY_BYTES <= self._known.maxsize:
                    self._known[key] = found[key]
        return [found[key] for key in keys]

    def text(self, ids: Sequence[int]) -> str | None:
        """The text that is written with exactly these ids; None when there is none, as for another tokenizer's ids."""
        try:
            found = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        except (OverflowError, TypeError):
            return None  # Below 0, or beyond 32 bits.
        return found if self._encode([found]) == [list(ids)] else None

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [item.ids for item in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
