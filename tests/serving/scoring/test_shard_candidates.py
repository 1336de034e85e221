"""A query to one shard: a vector that cannot be one of the encoder's is refused."""

import pytest

from serving.errors import InvalidRequestError
from serving.scoring import shard_candidates
from serving.scoring.shard_candidates import ShardQuery


@pytest.mark.parametrize("number", [1e300, -1e39, float("inf"), float("nan")])
def test_a_vector_with_a_number_beyond_its_type_is_refused_without_a_warning(number: float) -> None:
    request = ShardQuery(query="a", depth=1, vector=[0.5, number], filters={}, terms=False)
    with pytest.raises(InvalidRequestError, match="must be 2 finite numbers"):
        shard_candidates._vector(request, 2)
