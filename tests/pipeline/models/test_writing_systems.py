"""The languages of a model, as its card spells them."""

from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.models import writing_systems
from pipeline.models.writing_systems import Readable

TOKENIZER = '{"model": {"vocab": {"deck": 0, "angle": 1}}}'


def model(folder: Path, languages: str) -> Readable:
    folder.mkdir()
    (folder / "README.md").write_text(f"---\nlanguage: {languages}\n---\n# A card\n", encoding="utf-8")
    return Readable(folder, TOKENIZER)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("en", "eng"),
        ("[en-US]", "English"),
        ("zh", "zh_Hans"),
        ("[chi, en]", "zho"),
        ("xx", "xx"),
        ("'no'", "nb"),
        ("[no]", "nb"),
        ("no", "no"),
    ],
)
def test_one_language_in_two_spellings_is_one(first: str, second: str, tmp_path: Path) -> None:
    writing_systems.check_one_language(model(tmp_path / "ranker", first), model(tmp_path / "encoder", second))


@pytest.mark.parametrize(("first", "second", "shown"), [("eng", "de-AT", "en .*de"), ("[fr, es]", "Chinese", "es, fr")])
def test_two_languages_are_refused_by_their_codes(first: str, second: str, shown: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"reads {shown}.*take two models of one language"):
        writing_systems.check_one_language(model(tmp_path / "ranker", first), model(tmp_path / "encoder", second))


def test_a_multilingual_card_names_no_language(tmp_path: Path) -> None:
    assert writing_systems.languages(model(tmp_path / "model", "[en, multilingual]").folder) == frozenset()


@pytest.mark.parametrize("written", ["", "null", "{en: 1}", "[[en, de]]", "[" * 3000, "!!python/name:os.system"])
def test_a_card_that_names_no_language_in_words_names_none(written: str, tmp_path: Path) -> None:
    assert writing_systems.languages(model(tmp_path / "model", written).folder) == frozenset()


def test_a_norwegian_model_is_none_of_another_language(tmp_path: Path) -> None:
    """To YAML an unquoted `no` is the value false."""
    with pytest.raises(ConfigError, match=r"reads no and .* reads de"):
        writing_systems.check_one_language(model(tmp_path / "ranker", "no"), model(tmp_path / "encoder", "de"))
