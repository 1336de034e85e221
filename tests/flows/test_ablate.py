"""The ablation of the tiny world: every kind and seed is trained once, and nothing twice."""

import dataclasses
import json
from pathlib import Path

import pytest
from transformers import BertConfig, BertModel, BertTokenizer
from typer.testing import CliRunner

from flows import ablate
from flows.cli import command
from pipeline import config
from pipeline import recipe as recipes
from pipeline.artifacts import Artifact
from pipeline.errors import ConfigError, InputError
from tests.flows.conftest import Trained

SETS = '["plain", "soft+margin", "hard=0+soft+margin+hidden"]'


@pytest.fixture(scope="module")
def recipe(tiny_world: Path) -> config.Recipe:
    return recipes.load(
        tiny_world / "tiny.toml", [f"data.root={tiny_world}", "ablation.seeds=2", f"ablation.sets={SETS}"]
    )


@pytest.fixture(scope="module")
def ablated(recipe: config.Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact]:
    workspace = tmp_path_factory.mktemp("ablated")
    return workspace, ablate.ablate(recipe, workspace)


def test_every_kind_is_trained_with_every_seed(ablated: tuple[Path, Artifact], recipe: config.Recipe) -> None:
    workspace, ablation = ablated
    content = ablate.read(ablation)
    assert content["kinds"] == ["plain", "soft+margin", "hard=0+soft+margin+hidden"]
    assert content["references"] == ["BM25", "teacher"]
    assert len(list((workspace / "artifacts" / "ranker").glob("*/manifest.json"))) == 6
    assert len(list((workspace / "artifacts" / "teacher").glob("*/manifest.json"))) == 1


def test_plain_is_the_plain_student_of_a_retraining(ablated: tuple[Path, Artifact], trained: Trained) -> None:
    """Same data, teacher, layers and losses: the first seed's weights are those of the retraining's plain student."""

    def heads(workspace: Path) -> set[bytes]:
        rankers = (path.parent for path in (workspace / "artifacts" / "ranker").glob("*/manifest.json"))
        return {(folder / "model" / "model.safetensors").read_bytes() for folder in rankers}

    assert heads(ablated[0]) & heads(trained.workspace)


def test_a_second_run_makes_nothing(ablated: tuple[Path, Artifact], recipe: config.Recipe) -> None:
    workspace, ablation = ablated
    before = sorted(workspace.rglob("manifest.json"))
    assert ablate.ablate(recipe, workspace).fingerprint == ablation.fingerprint
    assert sorted(workspace.rglob("manifest.json")) == before


def test_the_command_prints_the_verdict(ablated: tuple[Path, Artifact], tiny_world: Path) -> None:
    arguments = ["ablate", str(tiny_world / "tiny.toml"), "--workspace", str(ablated[0])]
    for override in (f"data.root={tiny_world}", "ablation.seeds=2", f"ablation.sets={SETS}"):
        arguments += ["--set", override]
    result = CliRunner().invoke(command.app, arguments)
    assert result.exit_code == 0, result.output
    assert "valid queries" in result.output
    assert "table.md" in result.output


def test_ratios_of_unlabelled_pairs_are_tried_one_by_one_and_drawn(copied: Trained, tiny_world: Path) -> None:
    with_ratios = recipes.load(
        tiny_world / "tiny.toml",
        [
            f"data.root={tiny_world}",
            "ablation.seeds=1",
            'ablation.sets=["plain", "soft"]',
            "ablation.unlabelled_ratios=[0, 1]",
        ],
    )
    rankers = copied.workspace / "artifacts" / "ranker"
    before = set(rankers.glob("*/manifest.json"))
    ablation = ablate.ablate(with_ratios, copied.workspace)
    assert ablate.read(ablation)["kinds"] == ["plain, 0×", "soft, 0×", "plain, 1×", "soft, 1×"]
    # The plain one asks no teacher, so it is there already.
    assert len(set(rankers.glob("*/manifest.json")) - before) == 2
    assert "doses-ndcg-10.svg" in ablation.manifest.files


def test_an_unknown_loss_is_refused_before_any_work(tiny_world: Path, tmp_path: Path) -> None:
    recipe = recipes.load(tiny_world / "tiny.toml", [f"data.root={tiny_world}", 'ablation.sets=["sofd"]'])
    with pytest.raises(ConfigError, match="no loss is called 'sofd'"):
        ablate.ablate(recipe, tmp_path)
    assert not list(tmp_path.iterdir())


def with_assistant(recipe: config.Recipe, folder: Path, hidden: int) -> config.Recipe:
    """One seed of a student that is cut from the base, 32 wide, and taught by an assistant of another width."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "knife", "kitchen"]
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 40}
    BertModel(BertConfig(vocab_size=len(words), hidden_size=hidden, **sizes)).save_pretrained(folder)
    assistant = dataclasses.replace(recipe.ranker, base=str(folder), layers=2, hidden_weight=0.0)
    return dataclasses.replace(
        recipe,
        assistants=(assistant,),
        ranker=dataclasses.replace(recipe.ranker, layers=2, plain=False),
        ablation=config.AblationConfig(sets=("soft+hidden=0.5@base",), seeds=1),
    )


def test_states_of_a_wider_assistant_fit_a_student_cut_from_the_base(copied: Trained, tmp_path: Path) -> None:
    recipe = with_assistant(copied.recipe, tmp_path / "wide", hidden=64)
    ablation = ablate.ablate(recipe, copied.workspace)
    assert ablate.read(ablation)["kinds"] == ["soft+hidden=0.5@base"]
    manifests = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in (copied.workspace / "artifacts" / "ranker").glob("*/manifest.json")
    ]
    (student,) = (manifest for manifest in manifests if manifest["config"].get("hidden_weight") == 0.5)
    scores = copied.workspace / "artifacts" / "teacher_scores" / student["inputs"]["teacher_scores"]
    assert json.loads((scores / "manifest.json").read_text(encoding="utf-8"))["config"] == {"layers": [1], "width": 32}
    assert "hidden" in student["metrics"]["history"][-1]


def test_states_of_a_narrower_assistant_are_refused_before_any_work(recipe: config.Recipe, tmp_path: Path) -> None:
    recipe = with_assistant(recipe, tmp_path / "narrow", hidden=16)
    message = r"ablation\.sets 'soft\+hidden=0\.5@base': ranker\.hidden_weight is 0\.5: .* 32 wide and its teacher 16"
    with pytest.raises(ConfigError, match=message):
        ablate.ablate(recipe, tmp_path / "workspace")
    assert not (tmp_path / "workspace").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ablation.measure=ndcg@7", r"ablation\.measure 'ndcg@7' is none of"),
        ('ablation.sets=["soft+margin", "margin+soft"]', r"'margin\+soft': trains as 'soft\+margin' does"),
        ('ablation.sets=["plain", "hard@base"]', "'hard@base': trains as 'plain' does"),
        ('ablation.sets=["hard", "hidden"]', "'hidden': the student has one layer, and hidden compares"),
        ('ablation.sets=["hard=0+hidden"]', "'hard=0"),
        ("teacher.base=/none", "^teacher.base /none: "),
    ],
)
def test_a_grid_that_cannot_be_is_refused_before_any_work(
    tiny_world: Path, tmp_path: Path, override: str, message: str
) -> None:
    recipe = recipes.load(tiny_world / "tiny.toml", [f"data.root={tiny_world}", 'ablation.sets=["soft"]', override])
    with pytest.raises(InputError, match=message):
        ablate.ablate(recipe, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["candidates.max_list=1", 'ablation.sets=["hard", "margin"]'],
            r"ranker\.margin_weight: it compares documents",
        ),
        (
            ["candidates.negatives=200", "candidates.negatives_depth=200", "ablation.unlabelled_ratios=[0, 2]"],
            "candidates.unlabelled 2.0: the search found no document",
        ),
    ],
)
def test_pairs_that_no_set_can_learn_from_are_told_before_the_first_training(
    tiny_world: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    given = [f"data.root={tiny_world}", 'ablation.sets=["soft"]', *overrides]
    with pytest.raises(ConfigError, match=message):
        ablate.ablate(recipes.load(tiny_world / "tiny.toml", given), tmp_path)
    assert not {path.name for path in (tmp_path / "artifacts").iterdir()} & {"pretrained", "teacher", "ranker"}


def test_ratios_that_differ_in_their_last_digit_are_not_one_kind(copied: Trained, tiny_world: Path) -> None:
    overrides = ["ablation.seeds=1", 'ablation.sets=["plain"]', "ablation.unlabelled_ratios=[1, 1.00000001]"]
    recipe = recipes.load(tiny_world / "tiny.toml", [f"data.root={tiny_world}", *overrides])
    content = ablate.read(ablate.ablate(recipe, copied.workspace))
    assert content["kinds"] == ["plain, 1×", "plain, 1.00000001×"]
