import pytest

from pipeline import progress


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (48.2, "48 s"), (119.0, "119 s"), (432.0, "7.2 minutes")]
)
def test_durations_are_written_as_a_person_reads_them(seconds: float, words: str) -> None:
    assert progress.duration(seconds) == words
