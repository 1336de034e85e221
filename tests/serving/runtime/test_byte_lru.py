"""The bounded memory, against the one of a library."""

from cachetools import LRUCache
from hypothesis import given
from hypothesis import strategies as st

from serving.runtime.byte_lru import ByteLRU

KEYS = st.integers(0, 9).map(lambda number: bytes([number]))


@given(st.lists(st.tuples(KEYS, st.none() | st.integers(1, 12)), max_size=60))
def test_the_same_values_stay_as_in_another_lru(steps: list[tuple[bytes, int | None]]) -> None:
    """A step looks a key up, or keeps a value, which is its own size."""
    values: ByteLRU[int] = ByteLRU(20, lambda value: value)
    other: LRUCache[bytes, int] = LRUCache(20, getsizeof=lambda value: value)
    for key, value in steps:
        if value is None:
            assert values.get(key) == other.get(key)
        else:
            values.put(key, value)
            other[key] = value
        assert (values.bytes, len(values)) == (other.currsize, len(other))


def test_what_is_larger_than_all_is_not_kept() -> None:
    values: ByteLRU[int] = ByteLRU(20, lambda value: value)
    values.put(b"a", 20)
    values.put(b"b", 21)
    assert (values.get(b"a"), values.get(b"b"), values.evictions) == (20, None, 0)
    values.put(b"b", 1)
    assert (values.get(b"a"), values.get(b"b"), values.evictions) == (None, 1, 1)
