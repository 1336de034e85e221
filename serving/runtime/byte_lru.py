"""Values in memory that are bounded by their bytes; the least recently used one leaves first."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

V = TypeVar("V")


class ByteLRU(Generic[V]):
    """Values by key, as many as fit into a number of bytes; not safe to use from several threads at once."""

    def __init__(self, max_bytes: int, size: Callable[[V], int]) -> None:
        """
        Args:
            size: bytes of an entry with this value; always the same for the same value.
        """
        self.bytes = 0
        """Bytes of all entries, at most `max_bytes`."""
        self.evictions = 0
        """Entries that left to make room."""
        self._max_bytes, self._size = max_bytes, size
        self._values: OrderedDict[bytes, V] = OrderedDict()
        """The most recently used one last."""

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: bytes) -> V | None:
        """The value of a key, which counts as used now; None where there is none."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: bytes, value: V) -> None:
        """Keeps a value in place of the key's present one; a value that is larger than the whole is not kept."""
        size = self._size(value)
        if size > self._max_bytes:
            return
        replaced = self._values.pop(key, None)
        self.bytes += size if replaced is None else size - self._size(replaced)
        self._values[key] = value
        while self.bytes > self._max_bytes:
            _, oldest = self._values.popitem(last=False)
            self.bytes -= self._size(oldest)
            self.evictions += 1
