"""API keys: a key matches its hash alone, and a file of hashes that cannot be trusted is refused."""

import hashlib
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, MissingError
from serving.api import keys
from serving.settings import Settings


def test_a_made_key_is_new_each_time_and_belongs_to_its_hash() -> None:
    (first, hashed), (second, _) = keys.make(), keys.make()
    assert first != second
    assert len(first) >= 43  # 256 bits in base64.
    assert hashed == hashlib.sha256(first.encode()).hexdigest()
    assert keys.matches(first, [bytes.fromhex(hashed)])
    assert not keys.matches(second, [bytes.fromhex(hashed)])
    assert not keys.matches(hashed, [bytes.fromhex(hashed)])  # The hash itself opens nothing.


def test_hashes_come_from_the_settings_and_the_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# clients\n\n{'B' * 64} search backend  # until spring\n{'c' * 64}\n")
    hashes = keys.hashes(Settings(api_keys=("a" * 64,), api_keys_file=str(file)))
    assert hashes == [bytes.fromhex(letter * 64) for letter in "abc"]
    assert keys.hashes(Settings()) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("plain-key\n", "line 1: does not begin with a SHA-256"),
        ("# nothing\n", "holds no hash"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_would_open_the_service_by_mistake_is_refused(
    tmp_path: Path, content: str | None, words: str
) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    with pytest.raises((ConfigError, MissingError), match=words):
        keys.hashes(Settings(api_keys_file=str(file)))
