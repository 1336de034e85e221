"""The numbers of the queries and documents that pairs name."""

import random
import tracemalloc

import numpy as np
import pyarrow as pa

from pipeline.training.loop.pair_tokens import _numbered

LETTERS = "ab0é中𐀀\ufffd"


def test_ids_are_numbered_in_the_order_of_their_code_points() -> None:
    draw = random.Random(5)
    for _ in range(50):
        ids = ["".join(draw.choices(LETTERS, k=draw.randint(1, 4))) for _ in range(draw.randint(0, 60))]
        middle = len(ids) // 2
        table = pa.table({"doc_id": pa.chunked_array([ids[:middle], ids[middle:]], pa.string())})
        names, numbers = _numbered(table, "doc_id")
        expected, indices = np.unique(np.array(ids, dtype=np.str_), return_inverse=True)
        assert names == expected.tolist()
        assert numbers.dtype == np.int64
        assert numbers.tolist() == indices.tolist()


def test_one_long_id_does_not_make_all_others_as_large() -> None:
    """An array of NumPy's holds four bytes for each character of the longest: 200 MB for these ids."""
    table = pa.table({"doc_id": [*map(str, range(5_000)), "x" * 10_000]})
    tracemalloc.start()
    try:
        _numbered(table, "doc_id")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
