"""Exporting again: what it makes, tells and refuses."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows import export as flow
from flows.cli.command import app
from pipeline import artifacts, release_parts
from pipeline.errors import ConfigError, MissingError, WrongKindError
from pipeline.releases import Releases
from serving.runtime.engine import Engine
from tests.flows.conftest import Trained


def test_a_release_is_exported_again_and_stays_as_it_is(copied: Trained) -> None:
    registry = Releases(copied.workspace)
    before = registry.ids(), registry.live()
    arguments = ["export", "--workspace", str(copied.workspace), "--precisions", "w8,int8"]
    outcome = CliRunner().invoke(app, [*arguments, "--set", "export.golden=3", "--json"])
    assert outcome.exit_code == 0, outcome.output
    answer = json.loads(outcome.stdout)
    assert answer["release"] == copied.outcome.release.fingerprint
    assert [bundle["role"] for bundle in answer["bundles"]] == ["ranker", "encoder"]
    opened = registry.open("live")
    for bundle in answer["bundles"]:
        assert list(bundle["precisions"]) == ["fp32", "int8", "w8"]
        assert {"embeddings", "layer.0"} <= set(bundle["precisions"]["w8"]["sensitivity"])
        assert len(json.loads((Path(bundle["path"]) / "golden.json").read_text())) == 3
        old = release_parts.part(opened, bundle["role"])
        again, live = Engine(Path(bundle["path"]), precision="fp32"), Engine(old.path, precision="fp32")
        if bundle["role"] == "ranker":
            assert again.scores("red knife", ["a blue lawn", "a knife"]) == live.scores(
                "red knife", ["a blue lawn", "a knife"]
            )
        else:
            assert (again.embed(["a knife"], "document") == live.embed(["a knife"], "document")).all()
    assert (registry.ids(), registry.live()) == before
    shown = CliRunner().invoke(app, [*arguments, "--set", "export.golden=3"])
    for word in ("ranker, on", "encoder, on", "texts per CPU-second", "w8 alone in a part changes: ", "largest change"):
        assert word in shown.stdout


def test_one_trained_model_is_exported_by_the_defaults(copied: Trained) -> None:
    ranker = next((copied.workspace / "artifacts" / "ranker").glob(f"*/{artifacts.MANIFEST}")).parent
    answer = flow.export(copied.workspace, model=ranker, precisions=["w8"])
    assert answer["release"] is None
    (bundle,) = answer["bundles"]
    assert artifacts.load(Path(bundle["path"]), "bundle").manifest.inputs["model"] == ranker.name
    assert list(bundle["precisions"]) == ["fp32", "w8"]


def test_what_cannot_be_exported_is_told(copied: Trained) -> None:
    with pytest.raises(ConfigError, match=r"--set ranker\.layers=2: only values of export can be set here"):
        flow.export(copied.workspace, overrides=["ranker.layers=2"])
    with pytest.raises(ConfigError, match=r"--precisions: 'bf16' is not one of fp32, fp16, int8, w8"):
        flow.export(copied.workspace, precisions=["int8", "bf16"])
    with pytest.raises(MissingError, match="no release called 'zzz'"):
        flow.export(copied.workspace, release="zzz")
    shutil.rmtree(copied.workspace / "artifacts" / "pairs")
    again = f"`relevance retrain RECIPE --workspace {copied.workspace}` makes it again"
    with pytest.raises(MissingError, match=rf"the pairs it was made from is not in .*; {again}"):
        flow.export(copied.workspace, precisions=["w8"])


def test_a_folder_of_another_kind_is_refused_by_its_kind(copied: Trained) -> None:
    (pairs,) = (copied.workspace / "artifacts" / "pairs").glob("*/manifest.json")
    with pytest.raises(WrongKindError, match=r"ranker or teacher or encoder artifact as model; .* is a pairs artifact"):
        flow.export(copied.workspace, model=pairs.parent)
