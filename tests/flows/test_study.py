"""The study of the tiny world: methods are trained once, refused by name, and judged beside each other."""

import dataclasses
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest

from flows import runner, study, study_plan
from pipeline import config
from pipeline import recipe as recipes
from pipeline.artifacts import Artifact
from pipeline.errors import ConfigError, InputError, TrainingError
from pipeline.evaluation import study_table
from pipeline.training.compression import METHODS

OF_LIST = ["listwise-kl", "depth-1", "feed-forward-50", "teachers-2", "low-rank-50"]
OF_LIST += ["low-rank-embeddings", "int8-aware", "augmented-words", "noisy-student"]
WAYS = json.dumps(OF_LIST)
VARIANT = '[{name = "one loss less", set = ["ranker.hidden_weight=0", "ranker.max_tokens=20"]}]'
OVERRIDES = [
    "ranker.layers=2",
    f"study.methods={WAYS}",
    f"study.variants={VARIANT}",
    'study.precisions=["fp32", "int8"]',
]


@pytest.fixture(scope="module")
def recipe(tiny_world: Path) -> config.Recipe:
    return recipes.load(tiny_world / "tiny.toml", [f"data.root={tiny_world}", *OVERRIDES])


@pytest.fixture(scope="module")
def studied(recipe: config.Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact]:
    workspace = tmp_path_factory.mktemp("studied")
    return workspace, study.study(recipe, workspace)


NO_GRADES = "ranker.plain=false\nranker.hard_ordinal_weight=0\nranker.hard_pairwise_weight=0"
NAMES = ["plain", "distilled", *OF_LIST, "one loss less"]


def test_each_way_has_a_row_in_each_precision(studied: tuple[Path, Artifact]) -> None:
    workspace, artifact = studied
    content = study.read(artifact)
    assert list(content["rows"]) == [row for name in NAMES for row in (name, f"{name} int8")]
    assert content["references"] == ["BM25", "teacher"]
    assert len(list((workspace / "artifacts" / "teacher").glob("*/manifest.json"))) == 2  # One method has two.
    assert len(manifests(workspace, "ranker")) == len(NAMES) + 1  # One method has an assistant.
    for row in content["rows"].values():
        assert row["speed"] > 0
        assert row["bytes"] > 0
        assert row["verdict"] == "front" or row["verdict"].startswith(("tied with", "below"))
    assert content["rows"]["depth-1"]["bytes"] < content["rows"]["distilled"]["bytes"]
    for method in ("feed-forward-50", "low-rank-50", "low-rank-embeddings"):
        assert content["rows"][method]["bytes"] < content["rows"]["distilled"]["bytes"]
    assert any(row["front"] for row in content["rows"].values())


def test_rankers_of_one_shape_have_one_speed(studied: tuple[Path, Artifact]) -> None:
    """The noise of measuring puts no row on the front."""
    _, artifact = studied
    rows = study.read(artifact)["rows"]
    for suffix in ("", " int8"):
        speeds = {name: rows[f"{name}{suffix}"]["speed"] for name in ("plain", "distilled", "depth-1", "one loss less")}
        assert speeds["plain"] == speeds["distilled"]
        assert len(set(speeds.values())) == 3  # Another depth, or another number of tokens, is another shape.


def manifests(workspace: Path, kind: str) -> list[dict[str, Any]]:
    paths = sorted((workspace / "artifacts" / kind).glob("*/manifest.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def test_every_way_trains_otherwise(studied: tuple[Path, Artifact]) -> None:
    workspace, _ = studied
    rankers = manifests(workspace, "ranker")
    # Two teachers of so little data hardly differ.
    rankers = [item for item in rankers if "teachers" not in item["config"]]
    assert len(rankers) == len(NAMES)
    models = [*manifests(workspace, "teacher"), *manifests(workspace, "ranker")]
    weights = {item["fingerprint"]: item["files"]["model/model.safetensors"]["sha256"] for item in models}
    # A noisy student that is no better than its teacher on the valid queries keeps the teacher's weights, so its own
    # student is the recipe's ranker again.
    trainings = {
        json.dumps([item["config"], item["inputs"]["pairs"], weights.get(item["inputs"].get("teacher", ""))])
        for item in rankers
    }
    assert len(trainings) >= len(rankers) - 1
    assert len({json.dumps(item["metrics"]["history"]) for item in rankers}) == len(trainings)
    (rounded,) = (item["metrics"] for item in rankers if "int8_share" in item["config"])
    steps = [step for step, _ in rounded["evaluations"]]
    assert steps == sorted(steps)
    assert rounded["steps"] == steps[-1]
    tables = [item["metrics"] for item in manifests(workspace, "pairs")]
    (labelled,) = (counts for counts in tables if "labelled" not in counts)
    (augmented,) = (counts for counts in tables if "augmented" in counts)
    assert augmented["augmented"] + augmented["unchanged"] == 4 * labelled["train"]["pairs"]


def test_the_table_and_the_drawings_name_every_row(studied: tuple[Path, Artifact]) -> None:
    _, artifact = studied
    table = artifact.file("table.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert f"| {name} |" in table
    for file in ("speed.svg", "bytes.svg"):
        texts = [item.text for item in ElementTree.fromstring(artifact.file(file).read_text()).iter() if item.text]
        assert any("one loss less" in text for text in texts)


def test_a_second_run_makes_nothing(studied: tuple[Path, Artifact], recipe: config.Recipe) -> None:
    workspace, artifact = studied
    before = sorted(workspace.rglob("manifest.json"))
    assert study.study(recipe, workspace).fingerprint == artifact.fingerprint
    assert sorted(workspace.rglob("manifest.json")) == before


def test_a_study_whose_time_ends_names_what_is_missing_and_the_next_run_adds_it(
    recipe: config.Recipe, studied: tuple[Path, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, _ = studied
    two_seeds = dataclasses.replace(recipe, study=dataclasses.replace(recipe.study, seeds=2, max_minutes=1.0))
    minutes = iter([0.0, *[0.5] * len(NAMES), 0.6, *[2.0] * len(NAMES)])
    monkeypatch.setattr(study, "minutes", lambda: next(minutes))
    content = study.read(study.study(two_seeds, workspace))
    assert content["incomplete"] == [row for name in NAMES[1:] for row in (name, f"{name} int8")]
    assert {row["verdict"] for name, row in content["rows"].items() if name in content["incomplete"]} == {"incomplete"}
    assert len(manifests(workspace, "ranker")) == len(NAMES) + 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ('study.methods=["initfirst"]', "no method is called 'initfirst'; known are plain, distilled"),
        ('study.methods=["depth-4"]', r"'depth-4': the model that the ranker is cut from has 2 layers"),
        ('study.methods=["int8-aware"]', r"'int8-aware': ranker.int8_share is 0.25: .* which study\.precisions lacks"),
        (
            'study.variants=[{name = "x", set = ["ranker.feed_forward_rank=22"]}]',
            r"'x': ranker.feed_forward_rank is 22",
        ),
        ('study.variants=[{name = "x", set = ["ranker.embedding_rank=32"]}]', r"'x': ranker.embedding_rank is 32"),
        ('study.variants=[{name = "x", set = ["teacher.layers=1"]}]', "'x': it changes more than ranker"),
        ('study.variants=[{name = "x", set = ["ranker.depth=1"]}]', "'x': unknown key ranker.depth"),
        (
            'study.variants=[{name = "plain", set = ["ranker.layers=1"]}]',
            "'plain': a known method or another row of the",
        ),
        (
            'study.variants=[{name = "teacher", set = ["ranker.max_tokens=9"]}]',
            "'teacher': a known method or another row of the",
        ),
        (
            'study.variants=[{name = "BM25", set = ["ranker.max_tokens=9"]}]',
            "'BM25': a known method or another row of the",
        ),
        ('study.variants=[{name = "x", set = ["ranker.layers=9"]}]', "'x': ranker.layers is 9"),
        ('study.variants=[{name = "x", set = ["ranker.layers=1"]}]', "'x': the recipe's ranker is trained in this way"),
        ('study.variants=[{name = "x", set = ["ranker.max_tokens=65"]}]', "'x': ranker.max_tokens 65: scratch has 64"),
        ('study.variants=[{name = "x", set = ["ranker.int8_share=0.5"]}]', "'x': .* which study.precisions lacks"),
        (
            'study.variants=[{name = "x", set = ["external_teacher.scores=/none"]}]',
            "'x': external_teacher.scores: /none is",
        ),
        ('study.variants=[{name = "x", set = ["ranker.base=/none"]}]', "study.variants 'x': .*/none: no such folder"),
        (
            'study.methods=["tokens-32"]\nteacher.max_tokens=40\n'
            'study.variants=[{name = "x", set = ["ranker.max_tokens=32"]}]',
            "'x': it trains the ranker as 'tokens-32' does",
        ),
        ('study.methods=["init-last"]', "'init-last': the recipe's ranker is cut to layers 2 already"),
        ('study.methods=["minilm-inner"]', "'minilm-inner': of the teacher's 2 layers the one at three quarters is"),
        ('study.methods=["augmented-beside"]', "'augmented-beside': the recipe has no unlabelled pairs"),
        ("teacher.max_tokens=65", "^teacher.max_tokens 65: scratch has 64"),
        ("teacher.base=/none", "^teacher.base /none: "),
        ("encoder.base=/none", "^encoder.base /none: "),
        ('study.methods=["patient-kd"]', "'patient-kd': the recipe's ranker has one layer"),
        (NO_GRADES, "every hard_…_weight is 0, and the plain student, which a study holds the others against"),
        *(
            (f'study.variants=[{{name = "x", set = ["candidates.{change}"]}}]', "'x': it changes more than ranker")
            for change in ("negatives=2", "max_list=5", "seed=1", "retrieve=7", "skip_top=1", "train_queries=9")
        ),
    ],
)
def test_what_cannot_apply_is_refused_before_any_work(
    tiny_world: Path, tmp_path: Path, override: str, message: str
) -> None:
    recipe = recipes.load(tiny_world / "tiny.toml", [f"data.root={tiny_world}", *override.split("\n")])
    with pytest.raises(InputError, match=message):
        study.study(recipe, tmp_path)
    assert not list(tmp_path.iterdir())


FOUND_ALREADY = "candidates.negatives=200\ncandidates.negatives_depth=200"
"""All documents that BM25 finds are labelled pairs, so none is left to stand in an unlabelled one."""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            f'{FOUND_ALREADY}\nstudy.methods=["unlabelled-16"]',
            "study, 'unlabelled-16': .* the search found no document",
        ),
        (
            f'{FOUND_ALREADY}\nstudy.variants=[{{name = "x", set = ["candidates.unlabelled=2"]}}]',
            "study, 'x': .* the search found no document",
        ),
        (
            'candidates.max_list=1\nstudy.methods=["listwise-kl"]',
            r"'listwise-kl': ranker\.listwise_weight: it compares",
        ),
        ('candidates.max_list=1\nstudy.methods=["infonce"]', r"'infonce': ranker\.infonce_weight: it compares"),
        ("ranker.hidden_weight=0\nexternal_teacher.scores=SCORES", "study, 'plain': .* no score for"),
    ],
)
def test_pairs_that_a_method_cannot_learn_from_are_told_before_the_first_training(
    tiny_world: Path, tmp_path: Path, overrides: str, message: str
) -> None:
    scores = tmp_path / "scores.parquet"
    pd.DataFrame({"query_id": ["q0"], "doc_id": ["d0"], "score": [1.0]}).to_parquet(scores)
    given = overrides.replace("SCORES", str(scores)).split("\n")
    recipe = recipes.load(tiny_world / "tiny.toml", [f"data.root={tiny_world}", *given])
    with pytest.raises(InputError, match=message):
        study.study(recipe, tmp_path / "workspace")
    kinds = {path.name for path in (tmp_path / "workspace" / "artifacts").iterdir()}
    assert not kinds & {"pretrained", "teacher", "ranker"}


def test_without_names_a_method_whose_pairs_cannot_be_had_is_left_out(tiny_world: Path, tmp_path: Path) -> None:
    given = [f"data.root={tiny_world}", *FOUND_ALREADY.split("\n"), "candidates.max_list=1"]
    recipe = recipes.load(tiny_world / "tiny.toml", given)
    planned = study_plan.plan(recipe)
    left = study_plan.with_pairs(recipe, planned, runner.Runner(tmp_path))
    without = {method.name for method in planned.methods} - {method.name for method in left.methods}
    assert without == {"unlabelled-16", "listwise-kl", "infonce", "margin-mse"} == left.refused.keys() - planned.refused


def test_without_names_all_that_apply_take_part_and_the_others_are_named(tiny_world: Path) -> None:
    recipe = recipes.load(tiny_world / "tiny.toml", [f"data.root={tiny_world}"])
    planned = study_plan.plan(recipe)
    assert {method.name for method in planned.methods} | set(planned.refused) == {method.name for method in METHODS}
    assert "depth-4" in planned.refused
    shared = json.loads(json.dumps([item["refused"] for item in study_plan.catalogue(recipe)]))
    assert sum(map(bool, shared)) == len(planned.refused)


@pytest.mark.parametrize(
    "names",
    [["distilled int8"], ["a int8", "a"], ["searched"], ["depth-4"], ["low-rank-25 int8"]],
    ids=lambda names: names[0],
)
def test_no_variant_has_the_name_of_another_row(tiny_world: Path, names: list[str]) -> None:
    variants = ", ".join(f'{{name = "{name}", set = ["ranker.max_tokens={9 + len(name)}"]}}' for name in names)
    given = [f"data.root={tiny_world}", "ranker.layers=2", 'study.precisions=["fp32", "int8"]', "study.search_cost=0.9"]
    with pytest.raises(ConfigError, match=f"'{names[0]}': a known method or another row of"):
        study_plan.plan(recipes.load(tiny_world / "tiny.toml", [*given, f"study.variants=[{variants}]"]))


@pytest.mark.parametrize("name", [" plain", "plain ", "a\\nb", "a\\u001bb", "\u202eab"])
def test_a_variant_has_a_name_that_can_be_told_from_others(tiny_world: Path, name: str) -> None:
    variant = f'study.variants=[{{name = "{name}", set = ["ranker.max_tokens=20"]}}]'
    with pytest.raises(ConfigError, match="a name is one line of characters that can be printed, without a space at"):
        recipes.load(tiny_world / "tiny.toml", [variant])


def test_a_list_of_the_methods_refuses_a_name_that_is_none(tiny_world: Path) -> None:
    recipe = recipes.load(tiny_world / "tiny.toml", [f"data.root={tiny_world}", 'study.methods=["depth1"]'])
    with pytest.raises(ConfigError, match="no method is called 'depth1'"):
        study_plan.catalogue(recipe)


def test_a_method_whose_training_fails_is_left_out_by_name_and_the_study_goes_on(
    tiny_world: Path, tmp_path: Path
) -> None:
    variants = 'study.variants=[{name = "too fast", set = ["ranker.loop.learning_rate=1e30"]}]'
    given = [f"data.root={tiny_world}", 'study.methods=["soft-T5"]', "study.seeds=2"]
    content = study.read(study.study(recipes.load(tiny_world / "tiny.toml", [*given, variants]), tmp_path))
    assert list(content["rows"]) == ["plain", "distilled", "soft-T5"]
    assert list(content["failed"]) == ["too fast"]
    assert "learning_rate (1e+30)" in content["failed"]["too fast"]
    assert not content["incomplete"]
    assert "too fast could not be trained, seed 1: " in study_table.markdown(content)
    everything = recipes.load(tiny_world / "tiny.toml", [*given, "ranker.loop.learning_rate=1e30"])
    with pytest.raises(TrainingError, match="study, 'plain', seed 1: "):
        study.study(everything, tmp_path)


def test_a_study_whose_time_ends_before_its_first_student_keeps_the_teacher_and_says_so(
    recipe: config.Recipe, studied: tuple[Path, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, _ = studied
    before = sorted(workspace.rglob("manifest.json"))
    short = dataclasses.replace(recipe, study=dataclasses.replace(recipe.study, max_minutes=1.0))
    minutes = iter([0.0, 2.0])
    monkeypatch.setattr(study, "minutes", lambda: next(minutes))
    with pytest.raises(ConfigError, match=r"study\.max_minutes is 1: it was over before the first student"):
        study.study(short, workspace)
    assert sorted(workspace.rglob("manifest.json")) == before


def test_a_method_that_needs_no_states_learns_from_the_scores_that_it_asks_for(
    tiny_world: Path, tmp_path: Path
) -> None:
    """Without the term over states all methods share stored states, but not the number of teachers or BM25."""
    variants = 'study.variants=[{name = "with BM25", set = ["ranker.bm25_teacher=5"]}]'
    changes = ["ranker.hidden_weight=0", 'study.methods=["teachers-2"]', variants]
    study.study(recipes.load(tiny_world / "tiny.toml", [f"data.root={tiny_world}", *changes]), tmp_path)
    assert len(manifests(tmp_path, "teacher")) == 2
    scores = {item["inputs"].get("teacher_scores") for item in manifests(tmp_path, "ranker")}
    assert len(scores) == 4  # None of the plain student, the teacher's, the mean, and those joined with BM25.


def test_the_baseline_is_the_plain_student_in_fp32_in_whatever_order_precisions_stand(
    studied: tuple[Path, Artifact], recipe: config.Recipe
) -> None:
    workspace, artifact = studied
    turned = dataclasses.replace(recipe, study=dataclasses.replace(recipe.study, precisions=("int8", "fp32")))
    assert study.study(turned, workspace).fingerprint == artifact.fingerprint
    assert study.read(artifact)["kinds"][0] == "plain"


def test_a_row_whose_training_gained_nothing_is_named(studied: tuple[Path, Artifact]) -> None:
    """Its model is the one that its student was cut to, whatever the method."""
    workspace, artifact = studied
    content = study.read(artifact)
    rankers = {item["fingerprint"]: item for item in manifests(workspace, "ranker")}
    bundles = {item["fingerprint"]: item["inputs"]["model"] for item in manifests(workspace, "bundle")}
    scores = {item["fingerprint"]: item["inputs"].get("ranker") for item in manifests(workspace, "scores")}
    for name, row in content["rows"].items():
        model = rankers[bundles[scores[artifact.manifest.inputs[f"{name} 0 valid"]]]]
        history = [value for _, value in model["metrics"]["evaluations"]]
        if "int8_share" not in model["config"]:
            assert row["unimproved"] == (history[0] > max(history[1:]))
    unimproved = ", ".join(name for name, row in content["rows"].items() if row["unimproved"])
    table = artifact.file("table.md").read_text(encoding="utf-8")
    assert (f"began as: {unimproved}. " in table) == bool(unimproved)


def test_the_time_of_a_row_is_that_of_all_its_trainings(studied: tuple[Path, Artifact]) -> None:
    """An assistant and a second teacher are trained for their row alone; the teacher is trained for all rows."""
    workspace, artifact = studied
    rows = study.read(artifact)["rows"]
    seconds = {
        item["fingerprint"]: item["metrics"]["training_seconds"]
        for kind in ("ranker", "teacher")
        for item in manifests(workspace, kind)
    }
    rankers = {item["fingerprint"]: item for item in manifests(workspace, "ranker")}
    (noisy,) = (item for item in rankers.values() if item["inputs"]["teacher"] in rankers)
    expected = seconds[noisy["fingerprint"]] + seconds[noisy["inputs"]["teacher"]]
    assert rows["noisy-student"]["training_seconds"] == pytest.approx(expected)
    (first,) = {item["inputs"]["teacher"] for item in rankers.values()} - rankers.keys()
    (second,) = {item["fingerprint"] for item in manifests(workspace, "teacher")} - {first}
    (student,) = (item for item in rankers.values() if "teachers" in item["config"])
    expected = seconds[student["fingerprint"]] + seconds[second]
    assert rows["teachers-2"]["training_seconds"] == pytest.approx(expected)
    plain = next(item for item in rankers.values() if "teacher_scores" not in item["inputs"])
    assert rows["plain"]["training_seconds"] == pytest.approx(seconds[plain["fingerprint"]])


def test_a_search_of_shapes_that_no_ranker_can_have_is_refused_before_any_work(tiny_world: Path) -> None:
    changes = ["pretrain.scratch.family=albert", "pretrain.scratch.layers=3", "ranker.layers=2"]
    changes += [f"data.root={tiny_world}", 'study.methods=["distilled"]']
    narrow = recipes.load(tiny_world / "tiny.toml", [*changes, "study.search_cost=1.5"])
    with pytest.raises(ConfigError, match=r"study\.search_cost, 3 layers × \d+ units: ranker\.intermediate"):
        study_plan.plan(narrow)
    in_depth = recipes.load(tiny_world / "tiny.toml", [*changes, "study.search_cost=2.0"])
    assert len(study_plan.plan(in_depth).methods) == 2  # Depth alone is searched, which shared layers allow.
