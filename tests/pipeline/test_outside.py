"""Files and folders from outside that change while a stage reads them."""

from pathlib import Path

import pytest

from pipeline import artifacts
from pipeline.artifacts import Staging
from pipeline.errors import ConfigError, SchemaError
from pipeline.outside import OutsideFile, OutsideFolder, folder_digest


def test_folder_digest_sees_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1", encoding="utf-8")
    first = folder_digest(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    second = folder_digest(tmp_path)
    (tmp_path / "b").write_text("2", encoding="utf-8")
    assert len({first, second, folder_digest(tmp_path)}) == 3


def test_no_artifact_is_made_from_a_file_that_changed_while_it_was_read(tmp_path: Path) -> None:
    file = tmp_path / "queries.txt"
    file.write_text("one", encoding="utf-8")

    def build(staging: Staging) -> dict[str, int]:
        (staging.folder / "copy").write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
        file.write_text("two", encoding="utf-8")
        return {}

    inputs = {"file": OutsideFile.at(file)}
    with pytest.raises(SchemaError, match=f"{file}: changed while it was read"):
        artifacts.make(tmp_path, "thing", version=1, config={}, inputs=inputs, build=build)
    assert not artifacts.finished(tmp_path, "thing")
    file.unlink()
    with pytest.raises(SchemaError, match="changed"):
        inputs["file"].check()


def test_a_copy_holds_what_counts_and_names_the_rest(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    for name in ("config.json", "1_Pooling/config.json", "model.onnx"):
        (folder / name).write_text(name, encoding="utf-8")
    outside = OutsideFolder.at(folder, (".json",))
    (folder / "model.onnx").write_text("another", encoding="utf-8")  # Does not count.
    with outside.copied(tmp_path / "copy") as copy:
        assert sorted(path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()) == [
            "1_Pooling/config.json",
            "config.json",
            "model.onnx",
        ]
        assert not (copy / "config.json").is_symlink()
    assert not copy.exists()


def test_messages_name_the_folder_and_not_its_copy(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}", encoding="utf-8")
    outside = OutsideFolder.at(tmp_path / "model")
    with pytest.raises(ConfigError) as refused, outside.copied(tmp_path / "copy") as copy:
        raise ConfigError(f"{copy / 'config.json'}: no model_type")
    assert str(refused.value) == f"{tmp_path / 'model' / 'config.json'}: no model_type"


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "written"])
def test_a_folder_that_changed_is_not_copied(tmp_path: Path, change: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    file = folder / "config.json"
    file.write_text("{}", encoding="utf-8")
    outside = OutsideFolder.at(folder)
    if change == "added":
        (folder / "vocab.txt").write_text("a", encoding="utf-8")
    elif change == "removed":
        file.unlink()
    elif change == "renamed":
        file.rename(folder / "other.json")
    else:
        file.write_text("[]", encoding="utf-8")
    with pytest.raises(SchemaError, match=f"{folder}: changed while it was read"), outside.copied(tmp_path / "copy"):
        raise AssertionError("copied")
    assert not (tmp_path / "copy").exists()
