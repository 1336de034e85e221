"""The suite gives the same result each time, in any order and on the busiest machine."""

import random

import hypothesis
import numpy as np
import pytest
import torch

SEEN: list[tuple[float, float, float]] = []


@pytest.mark.parametrize("turn", range(3))
def test_random_numbers_do_not_depend_on_what_ran_before(turn: int) -> None:
    SEEN.append((random.random(), float(np.random.rand()), float(torch.rand(1))))
    assert SEEN[turn] == SEEN[0]


def test_no_property_test_has_a_time_limit() -> None:
    assert hypothesis.settings().deadline is None
    assert hypothesis.HealthCheck.too_slow in hypothesis.settings().suppress_health_check
