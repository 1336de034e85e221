"""Preflight finds from configs what a recipe's models cannot do, before anything is trained."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models
from transformers import BertConfig, BertTokenizer, PreTrainedTokenizerFast

from pipeline.config import (
    DataConfig,
    EncoderConfig,
    ExportConfig,
    GateConfig,
    PretrainConfig,
    RankerConfig,
    Recipe,
    ScratchConfig,
    SourceConfig,
    TeacherConfig,
    weights_of,
)
from pipeline.data import judgments
from pipeline.errors import ConfigError, MissingError, SchemaError
from pipeline.machine_memory import MemoryLimit
from pipeline.training import budget, preflight, preflight_texts
from tests.flows.world import write_tiny_world

SCRATCH = ScratchConfig(layers=4, hidden=32, heads=2, intermediate=64)
RECIPE = Recipe(
    pretrain=PretrainConfig(scratch=SCRATCH),
    teacher=TeacherConfig(base="scratch"),
    ranker=RankerConfig(layers=2),
    encoder=EncoderConfig(dimensions=16),
)


def changed(section: str, **values: Any) -> Recipe:
    return dataclasses.replace(RECIPE, **{section: dataclasses.replace(getattr(RECIPE, section), **values)})


def folder(path: Path, *, hidden: int = 32, heads: int = 2, layers: int = 4, words: str = "oak steel") -> str:
    """A base without weights: nothing here may read them."""
    listed = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words.split()]
    BertTokenizer(vocab={word: number for number, word in enumerate(listed)}).save_pretrained(path)
    sizes = {"hidden_size": hidden, "num_attention_heads": heads, "num_hidden_layers": layers}
    BertConfig(vocab_size=len(listed), **sizes).save_pretrained(path)
    return str(path)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("teacher", {"layers": 5}, r"teacher\.layers is 5: its base has 4"),
        ("teacher", {"layers": 1}, r"ranker\.layers is 2: the model that it is cut from has 1"),
        ("ranker", {"layers": 5}, r"ranker\.layers is 5: the model that it is cut from has 4"),
        ("ranker", {"base": "base", "layers": 5}, r"ranker\.layers is 5"),
        ("ranker", {"keep_layers": (2, 9)}, r"ranker\.keep_layers \[2, 9\]: .* has layers 1 to 4"),
        ("ranker", {"layer_map": (7,)}, r"ranker\.layer_map \[7\]: the teacher has layers 1 to 4"),
        ("ranker", {"layer_map": (1, 2, 3)}, r"ranker\.layer_map names 3 teacher layers; the student has 2"),
        ("ranker", {"relation_weight": 1.0, "relation_heads": 3}, r"ranker\.relation_heads: 3 do not divide"),
        ("ranker", {"relation_weight": 1.0, "relation_layer": 5}, r"ranker\.relation_layer is 5"),
        ("ranker", {"mutual_weight": 1.0, "layers": 4}, r"all 4 layers are kept"),
        ("ranker", {"feed_forward_rank": 22}, r"ranker\.feed_forward_rank is 22: .* 32 × 64 .* at most 21"),
        ("ranker", {"feed_forward_rank": 11, "intermediate": 16}, r"feed_forward_rank is 11: .* 32 × 16 .* at most 10"),
        ("ranker", {"embedding_rank": 32}, r"ranker\.embedding_rank is 32: the embeddings are 32 wide"),
    ],
)
def test_what_cannot_be_cut_or_taught_is_refused(section: str, values: dict[str, Any], message: str) -> None:
    preflight.check_rankers(RECIPE)
    with pytest.raises(ConfigError, match=message):
        preflight.check_rankers(changed(section, **values))


def test_an_assistant_is_held_against_the_one_before_and_named() -> None:
    row = (RankerConfig(layers=3), RankerConfig(layers=4))
    with pytest.raises(ConfigError, match=r"^assistants\[1\]\.layers is 4: the model that it is cut from has 3"):
        preflight.check_rankers(dataclasses.replace(RECIPE, assistants=row))
    preflight.check_rankers(dataclasses.replace(RECIPE, assistants=(RankerConfig(layers=4), RankerConfig(layers=3))))


def test_a_plain_student_that_the_teachers_base_cannot_give_is_refused(tmp_path: Path) -> None:
    """The ranker is cut from an assistant with more layers than the base that the plain student is cut from."""
    deep = RankerConfig(base=folder(tmp_path, layers=8), layers=8, hidden_weight=0.0)
    recipe = dataclasses.replace(changed("ranker", layers=6, hidden_weight=0.0), assistants=(deep,))
    with pytest.raises(
        ConfigError, match=r"the plain student, .* cut from teacher\.base: ranker\.layers is 6: .* has 4"
    ):
        preflight.check_rankers(recipe)
    alone = dataclasses.replace(recipe, ranker=dataclasses.replace(recipe.ranker, plain=False))
    preflight.check_rankers(alone)


@pytest.mark.parametrize("layer_map", [(), (2,)])
def test_a_student_of_one_layer_does_not_learn_from_states_alone(layer_map: tuple[int, ...]) -> None:
    weights = {name: 0.0 for name in weights_of(RankerConfig()) if name != "hidden_weight"}
    recipe = changed("ranker", layers=1, plain=False, layer_map=layer_map, **weights)
    if layer_map:
        preflight.check_rankers(recipe)
        return
    with pytest.raises(ConfigError, match=r"ranker\.hidden_weight is 0\.1 and all other losses have weight 0: the stu"):
        preflight.check_rankers(recipe)


def test_texts_of_a_general_distillation_fit_the_base(tmp_path: Path) -> None:
    base = model(tmp_path / "base")  # 64 positions
    recipe = dataclasses.replace(
        changed("ranker", base="base", general_tokens=100, max_tokens=64),
        teacher=TeacherConfig(base=base, max_tokens=64),
        encoder=EncoderConfig(dimensions=16, max_tokens=64),
    )
    with pytest.raises(ConfigError, match=r"^pretrain\.max_tokens 128: .* has 64 positions"):
        preflight_texts.check_lengths(recipe)
    preflight_texts.check_lengths(dataclasses.replace(recipe, pretrain=PretrainConfig(max_tokens=64)))


def test_a_vocabulary_that_cannot_be_pruned_is_refused(tmp_path: Path) -> None:
    base = folder(tmp_path)
    pieces = Tokenizer(models.WordLevel({"[UNK]": 0, "oak": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="[UNK]", pad_token="[UNK]").save_pretrained(base)
    teacher = TeacherConfig(base=base)
    for section in ("ranker", "encoder"):
        recipe = dataclasses.replace(changed(section, prune_vocabulary=True), teacher=teacher)
        with pytest.raises(ConfigError, match=rf"^{section}\.prune_vocabulary: .* a WordLevel tokenizer"):
            preflight_texts.check_vocabularies(recipe)
    preflight_texts.check_vocabularies(dataclasses.replace(RECIPE, teacher=teacher))


def test_a_base_of_its_own_is_held_against_the_teacher(tmp_path: Path) -> None:
    wide = folder(tmp_path / "wide", hidden=64, heads=4)
    narrow = folder(tmp_path / "narrow", hidden=16)
    with pytest.raises(ConfigError, match=r"ranker\.hidden_weight is 0\.1: the student is 64 wide and its teacher 32"):
        preflight.check_rankers(changed("ranker", base=wide))
    with pytest.raises(ConfigError, match=r"ranker\.attention_weight: the student has 4 attention heads"):
        preflight.check_rankers(changed("ranker", base=wide, hidden_weight=0.0, attention_weight=1.0))
    for fitting in ({"base": narrow}, {"base": wide, "hidden_weight": 0.0}, {"base": wide, "layers": 1}):
        preflight.check_rankers(changed("ranker", **fitting))
    with pytest.raises(MissingError, match="no such folder"):
        preflight.check_rankers(changed("ranker", base=str(tmp_path / "nowhere")))


def test_terms_over_tokens_need_the_teachers_tokenizer(tmp_path: Path) -> None:
    teacher = TeacherConfig(base=folder(tmp_path / "teacher"))
    same, other = folder(tmp_path / "same"), folder(tmp_path / "other", words="glass oak")
    ranker = RankerConfig(layers=2, base=other, cosine_weight=1.0)
    recipe = dataclasses.replace(RECIPE, teacher=teacher, ranker=ranker)
    with pytest.raises(ConfigError, match=r"another tokenizer than the teacher.*ranker\.cosine_weight"):
        preflight.check_rankers(recipe)
    for fitting in ({"base": same}, {"cosine_weight": 0.0}):
        preflight.check_rankers(dataclasses.replace(recipe, ranker=dataclasses.replace(ranker, **fitting)))


@pytest.mark.parametrize("base", ["base", "own"])
def test_an_encoder_that_its_base_cannot_give_is_refused(tmp_path: Path, base: str) -> None:
    base = folder(tmp_path) if base == "own" else base
    preflight.check_encoder(changed("encoder", base=base))
    with pytest.raises(ConfigError, match=r"encoder\.dimensions 33: the base model is 32 wide"):
        preflight.check_encoder(changed("encoder", base=base, dimensions=33))
    with pytest.raises(ConfigError, match=r"encoder\.layers 5: the base model has 4"):
        preflight.check_encoder(changed("encoder", base=base, layers=5))


def model(path: Path, **values: Any) -> str:
    """A folder with a model's config, and numbers in its file that are no weights of it."""
    sizes = {"model_type": "bert", "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 4}
    sizes |= {"intermediate_size": 64, "vocab_size": 30, "max_position_embeddings": 64}
    path.mkdir()
    (path / "config.json").write_text(
        json.dumps({name: value for name, value in (sizes | values).items() if value is not None}), encoding="utf-8"
    )
    save_file({"unused": np.zeros(10_000, np.float32)}, path / "model.safetensors")
    return str(path)


XLNET = {"model_type": "xlnet", "max_position_embeddings": None, "n_layer": 4, "d_model": 32, "n_head": 2}


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("encoder", {"hidden_act": "silu"}, r"^encoder\.base .*activation 'silu'"),
        ("ranker", {"hidden_act": "silu"}, r"^ranker\.base .*activation 'silu'"),
        ("encoder", {"position_embedding_type": "relative_key"}, r"^encoder\.base .*absolute positions"),
        ("encoder", {"model_type": "clip"}, "clip"),
        ("encoder", XLNET, r"^encoder\.base .*xlnet model of this kind can teach"),
        ("ranker", XLNET, r"ranker\.\w+: .*xlnet"),
        ("encoder", {"max_position_embeddings": 8}, r"encoder\.max_tokens 128: .* has 8 positions"),
        ("ranker", {"max_position_embeddings": 8}, r"ranker\.max_tokens 128: .* has 8 positions"),
        (
            "ranker",
            {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "a", "1": "b", "2": "c"}},
            "its head gives 3 labels",
        ),
    ],
)
def test_a_base_that_cannot_be_used_is_refused_before_the_first_training(
    tmp_path: Path, section: str, values: dict[str, Any], message: str
) -> None:
    base = model(tmp_path / "base", **values)
    blind = {"hidden_weight": 0.0} if section == "ranker" else {}
    with pytest.raises(ConfigError, match=message):
        preflight.check(changed(section, base=base, **blind))


def test_a_recipe_that_fits_passes_every_check() -> None:
    assert len(preflight.check(RECIPE)) == 6


def test_a_teacher_that_cannot_be_held_in_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = model(tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").write_bytes(bytes(1000))
    recipe = changed("teacher", base=base)
    monkeypatch.setattr(preflight, "_memory", lambda: MemoryLimit(4000, "a limit"))
    assert preflight.check_memory(recipe).endswith("and there are 0.0 GiB of memory (a limit)")
    monkeypatch.setattr(preflight, "_memory", lambda: MemoryLimit(3999, "a limit"))
    with pytest.raises(ConfigError, match=r"teacher\.base .* at least"):
        preflight.check_memory(recipe)
    preflight.check_memory(changed("teacher", base=base, layers=2))


@pytest.mark.parametrize("key", ["external_teacher.scores", "candidates.unlabelled_queries"])
def test_a_file_that_is_not_there_is_named_before_the_first_training(key: str) -> None:
    section, name = key.split(".")
    recipe = changed("ranker", hidden_weight=0.0)
    values = dataclasses.replace(getattr(recipe, section), **{name: "nowhere.parquet"})
    with pytest.raises(MissingError, match=rf"^{key}: nowhere\.parquet is no file"):
        preflight.check_files(dataclasses.replace(recipe, **{section: values}))


def test_training_for_int8_needs_an_int8_export() -> None:
    recipe = changed("ranker", int8_share=0.5)
    preflight.check_exports(recipe)
    fp32_alone = dataclasses.replace(recipe, export=ExportConfig(precisions=("fp32", "w8")))
    with pytest.raises(ConfigError, match=r"ranker\.int8_share is 0\.5: .* export\.precisions lacks"):
        preflight.check_exports(fp32_alone)
    with pytest.raises(ConfigError, match=r"ranker\.int8_share is 1\.5; it is a share"):
        RankerConfig(int8_share=1.5)


@pytest.mark.parametrize("family", ["albert", "modernbert"])
def test_shared_or_gated_matrices_are_not_factorised(family: Any) -> None:
    scratch = dataclasses.replace(SCRATCH, family=family)
    recipe = dataclasses.replace(changed("ranker", feed_forward_rank=4), pretrain=PretrainConfig(scratch=scratch))
    with pytest.raises(ConfigError, match=rf"ranker\.feed_forward_rank: .* {family} model are gated or shared"):
        preflight.check_rankers(recipe)


def test_all_dropout_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"ranker\.dropout is 1"):
        RankerConfig(dropout=1.0)


def test_a_test_split_on_which_no_live_release_is_replaced_is_said(tmp_path: Path) -> None:
    write_tiny_world(tmp_path / "tiny")
    data = judgments.make(tmp_path, DataConfig(sources=(SourceConfig(path=str(tmp_path / "tiny")),)))
    count = data.metrics["splits"]["test"]["queries"]
    few = preflight.check_data(data, GateConfig(min_queries=count + 1))
    enough = preflight.check_data(data, GateConfig(min_queries=count))
    assert few[: len(enough)] == enough
    assert few[-1].startswith(f"warning: {count} test queries are too few to replace a live release, which takes ")
    assert f" {count + 1} (gate.min_queries)" in few[-1]


def test_a_split_in_which_nothing_is_relevant_is_refused(tmp_path: Path) -> None:
    write_tiny_world(tmp_path / "tiny")
    source = SourceConfig(path=str(tmp_path / "tiny"), grades=(0,) * 11)
    data = judgments.make(tmp_path, DataConfig(sources=(source,)))
    with pytest.raises(SchemaError, match="no train query has a document of a grade above 0, so nothing is relevant"):
        preflight.check_data(data, GateConfig())


def test_the_time_of_a_retraining_is_told_where_each_training_is_bounded() -> None:
    bounded = dataclasses.replace(RECIPE.teacher.loop, max_seconds=90)
    recipe = dataclasses.replace(
        RECIPE,
        pretrain=dataclasses.replace(RECIPE.pretrain, loop=bounded),
        teacher=dataclasses.replace(RECIPE.teacher, loop=bounded),
        ranker=dataclasses.replace(RECIPE.ranker, loop=bounded, plain=False, teachers=2),
        encoder=dataclasses.replace(RECIPE.encoder, loop=bounded),
    )
    assert [name for name, _ in budget.trainings(recipe)] == ["pretrain", "teacher", "teacher", "ranker", "encoder"]
    assert budget.summary(recipe).startswith(
        "training takes at most 7.5 minutes (pretrain 90 s, teacher 90 s, teacher 90 s,"
    )
    student = dataclasses.replace(recipe.ranker, base="base", general_tokens=1_000)
    distilled = dataclasses.replace(recipe, ranker=student)
    assert [name for name, _ in budget.trainings(distilled)][3:5] == ["general distillation of ranker", "ranker"]
    assert "general distillation of ranker 1,000 tokens" in budget.summary(distilled)
    assert "without max_seconds no time can be told" in budget.summary(distilled)
    tokens = dataclasses.replace(bounded, max_seconds=0, max_tokens=5000)
    unbounded = dataclasses.replace(recipe, encoder=dataclasses.replace(recipe.encoder, loop=tokens))
    assert "encoder 5,000 tokens; without max_seconds no time can be told" in budget.summary(unbounded)
