"""The search of shapes: what fits the bound, which half goes on, and a winner that takes part in a study."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows import shape_search, study
from flows.shape_search import StudentShape
from pipeline import recipe as recipes
from pipeline.config import LoopConfig, RankerConfig, Recipe, StudyConfig
from pipeline.errors import ConfigError
from pipeline.models.base_models import ModelShape
from pipeline.training import compression, ranker_shape

SOURCE = ModelShape(6, 384, 12, shared=False, intermediate=1536)


def recipe(cost: float, **ranker: Any) -> Recipe:
    return Recipe(ranker=RankerConfig(**{"layers": 3, **ranker}), study=StudyConfig(search_cost=cost))


@pytest.mark.parametrize("cost", [0.5, 0.8, 1.0, 1.6, 1e308])
def test_the_shapes_are_the_widest_that_fit(cost: float) -> None:
    shapes = shape_search.shapes(recipe(cost), SOURCE)
    full_cost = ranker_shape.products(SOURCE, 3, 1536)
    assert [shape.layers for shape in shapes] == sorted({shape.layers for shape in shapes})
    for shape in shapes:
        assert ranker_shape.products(SOURCE, shape.layers, shape.units) == pytest.approx(shape.cost * full_cost)
        assert shape.cost <= cost or shape.units == 1536
        wider = shape.units + ranker_shape.MULTIPLE
        assert shape.units == 1536 or ranker_shape.products(SOURCE, shape.layers, wider) > cost * full_cost
    listed = {shape.layers for shape in shapes}
    for layers in range(2, 7):
        least = ranker_shape.products(SOURCE, layers, 96)
        assert (layers in listed) == (least <= cost * full_cost)


def test_a_layer_of_bert_has_twelve_squares_of_its_width() -> None:
    assert ranker_shape.products(SOURCE, 2, 4 * 384) == 12 * 384**2


def test_each_round_halves_the_shapes_and_doubles_the_training() -> None:
    """The worth of a depth is made up: the search must find the best, and give most of the time to few."""
    trainings: list[tuple[int, float]] = []
    own = dataclasses.replace(recipe(1.0), ranker=RankerConfig(layers=3, loop=LoopConfig(epochs=2.0, max_seconds=80.0)))
    count = len(shape_search.shapes(own, SOURCE))
    assert count == 5

    def train(config: RankerConfig, label: str) -> Any:
        assert f"{config.layers} layers" in label
        assert config.loop.epochs / 2.0 == config.loop.max_seconds / 80.0
        trainings.append((config.layers, config.loop.epochs / 2.0))
        return SimpleNamespace(metrics={"m": {2: 0.1, 3: 0.5, 4: 0.9, 5: 0.4, 6: 0.3}[config.layers]})

    best = shape_search.search(own, SOURCE, train, "m")
    assert best.layers == 4
    assert Counter(share for _, share in trainings) == {0.25: 5, 0.5: 3, 1.0: 2}
    assert {layers for layers, share in trainings if share == 0.5} == {3, 4, 5}


def test_of_equals_the_shallower_goes_on() -> None:
    shapes = [StudentShape(layers, 64, 1.0) for layers in (5, 2, 4)]
    assert [shape.layers for shape in shape_search._better_half(shapes, [0.3, 0.3, 0.3])] == [2, 4]


@pytest.mark.parametrize(
    ("cost", "ranker", "message"),
    [
        (0.1, {}, r"study\.search_cost is 0\.1: 0 depths of two layers or more fit"),
        (1.0, {"layers": 1}, "the recipe's ranker has one layer"),
    ],
)
def test_a_bound_that_leaves_nothing_to_search_is_refused(cost: float, ranker: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shape_search.shapes(recipe(cost, **ranker), SOURCE)
    with pytest.raises(ConfigError, match=r"study\.search_cost is -1"):
        StudyConfig(search_cost=-1.0)


def searching_seconds(workspace: Path, layers: int) -> float:
    """Seconds of the short trainings of a search and of the whole training of the depth that it found."""
    paths = (workspace / "artifacts" / "ranker").glob("*/manifest.json")
    rankers = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return sum(
        item["metrics"]["training_seconds"]
        for item in rankers
        if "teacher_scores" in item["inputs"]
        and not item["config"]["keep_layers"]
        and (item["config"]["loop"]["epochs"] < 2.0 or item["config"]["layers"] == layers)
    )


def test_the_winner_takes_part_in_the_study(tiny_world: Path, tmp_path: Path) -> None:
    changes = ["pretrain.scratch.layers=3", "ranker.layers=2", "study.search_cost=2.0", 'study.methods=["init-first"]']
    own = recipes.load(tiny_world / "tiny.toml", [f"data.root={tiny_world}", *changes])
    content = study.read(study.study(own, tmp_path))
    assert list(content["rows"]) == ["plain", "distilled", "init-first", "searched"]
    layers = int(content["rows"]["searched"]["summary"].partition(" layers")[0])
    assert content["rows"]["searched"]["training_seconds"] == pytest.approx(searching_seconds(tmp_path, layers))
    before = sorted(tmp_path.rglob("manifest.json"))
    study.study(own, tmp_path)
    assert sorted(tmp_path.rglob("manifest.json")) == before


def test_a_study_whose_time_ends_within_the_search_begins_no_further_student(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = ["pretrain.scratch.layers=3", "ranker.layers=2", "study.search_cost=2.0", "study.max_minutes=1"]
    own = recipes.load(tiny_world / "tiny.toml", [f"data.root={tiny_world}", *changes])
    minutes = iter([0.0, 0.5, 2.0])
    monkeypatch.setattr(study, "minutes", lambda: next(minutes))
    with pytest.raises(ConfigError, match="it was over before the search of the ranker's shape had ended; what was"):
        study.study(own, tmp_path)
    assert len(list((tmp_path / "artifacts" / "ranker").glob("*/manifest.json"))) == 1


def test_all_layers_cost_what_the_ranker_costs() -> None:
    changed = compression.by_name("all-layers").change(recipe(0.0), SOURCE).ranker
    assert changed.layers == 6
    own = ranker_shape.products(SOURCE, 3, 1536)
    step = ranker_shape.products(SOURCE, 6, ranker_shape.MULTIPLE) - ranker_shape.products(SOURCE, 6, 0)
    assert own - step < ranker_shape.products(SOURCE, 6, changed.intermediate) <= own


@pytest.mark.parametrize(("layers", "why"), [(6, "6 layers"), (1, "1 layers"), (2, "attention")])
def test_all_layers_need_a_ranker_whose_cost_leaves_units(layers: int, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        compression.by_name("all-layers").change(recipe(0.0, layers=layers), SOURCE)
