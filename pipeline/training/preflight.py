"""Checks a recipe before its first training: everything that the recipe, its files and the models' configs can tell.

    check(recipe)       models can be cut, taught, exported and held in memory; texts fit; files are there
    check_data(data)    every split has queries, and relevant documents

`relevance retrain --check` runs both alone; every retraining begins with them.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from pipeline import machine_memory
from pipeline.artifacts import Artifact
from pipeline.config import GateConfig, Recipe
from pipeline.data.checks.check import few_test_queries
from pipeline.errors import ConfigError, MissingError, SchemaError
from pipeline.machine_memory import MemoryLimit
from pipeline.models import base_models, model_files, model_folders, tokenizers
from pipeline.models.families import family_of
from pipeline.recipe import named
from pipeline.text import counted
from pipeline.training import augmentation, encoder, pretrain, ranker, ranker_chain, ranker_shape
from pipeline.training.preflight_texts import check_lengths, check_passages, check_vocabularies

COPIES = 4
"""Copies of a model's weights that training holds at least: the weights, their gradients and two moments of Adam."""


def check(recipe: Recipe) -> list[str]:
    """Checks all that can be told without data; returns a line for each thing that was checked.

    Raises:
        ConfigError: a model cannot be cut, taught, exported or held in memory as the recipe says.
        MissingError: a model, a file or an optional package is not there.
    """
    check_bases(recipe)
    check_rankers(recipe)
    check_encoder(recipe)
    check_exports(recipe)
    check_lengths(recipe)
    check_passages(recipe)
    check_vocabularies(recipe)
    memory = check_memory(recipe)
    check_files(recipe)
    check_loads(recipe)
    return [
        "teacher, assistants and ranker can be cut from their bases and learn from each other",
        "the encoder can be cut from its base",
        "ranker and encoder can be exported",
        "texts and passages fit the models' positions",
        memory,
        "files that the recipe names are there",
    ]


def check_data(data: Artifact, gate: GateConfig, *, clicks: bool = False) -> list[str]:
    """Checks that training, choice of weights and judgment each have queries, and relevant documents for some.

    Args:
        gate: says on how many test queries a live release is replaced.
        clicks: whether judgments made from clicks count in the report.

    Raises:
        SchemaError: a split has none, or none that is relevant, or the report's are all of clicks, which do not count.
    """
    import pyarrow.parquet as pq

    from pipeline.evaluation import per_query

    judgments = data.file("judgments.parquet")
    relevant = set(pq.read_table(judgments, columns=["split"], filters=[("grade", ">", 0)])["split"].to_pylist())
    counts = {name: split["queries"] for name, split in data.metrics["splits"].items()}
    for name in ("train", "valid", "test"):
        if not counts.get(name):
            raise SchemaError(
                f"{data.path}: there are no {name} queries ({counts}); each split needs some: give more "
                "judged queries, or set data.splits, data.valid_share and data.test_share"
            )
        if name not in relevant:
            raise SchemaError(
                f"{data.path}: no {name} query has a document of a grade above 0, so nothing is relevant to it; look "
                "at the column of grades, and at labels and grade_scale of the sources"
            )
    per_query.judged(data, "test", clicks=clicks)
    alone = {name: not per_query.people_judged(data, name) for name in ("valid", "test")}
    notes = []
    if alone["valid"]:
        notes.append("no person judged a valid query: grades made from clicks choose checkpoints and the fusion")
    if alone["test"]:
        notes.append("no person judged a test query: the gate decides by grades made from clicks")
    if counts["test"] < gate.min_queries:
        notes.append(few_test_queries(counts["test"], gate))
    return [*(counted(count, f"{name} query") for name, count in counts.items()), *notes]


def check_bases(recipe: Recipe) -> None:
    """Checks that the base models' folders can be read: no code, weights as safetensors, a tokenizer that fits.

    Raises:
        ConfigError, MissingError: the message names the key of the base.
    """
    _check_each_base(recipe, model_files.check_files)


def check_loads(recipe: Recipe) -> None:
    """Checks that the base models load: a tokenizer, and all weights that config.json describes.

    Raises:
        ConfigError, MissingError: the message names the key of the base.
    """

    def load(folder: Path) -> None:
        tokenizers.load_tokenizer(folder)
        base_models.check_loads(folder)

    _check_each_base(recipe, load)


def _check_each_base(recipe: Recipe, check: Callable[[Path], None]) -> None:
    bases = {"teacher.base": recipe.teacher.base, "ranker.base": recipe.ranker.base}
    bases["encoder.base"] = recipe.encoder.base
    bases |= {f"assistants[{number}].base": student.base for number, student in enumerate(recipe.assistants)}
    done = {pretrain.SCRATCH, ranker.FROM_TEACHER, ranker.FROM_BASE, encoder.FROM_BASE}
    for key, base in bases.items():
        if base in done:
            continue
        done.add(base)
        try:
            check(model_folders.folder(base))
        except ConfigError as error:
            raise ConfigError(f"{key} {base}: {error}") from error
        except MissingError as error:
            other = f", or `{pretrain.SCRATCH}` trains a new one" if key == "teacher.base" else ""
            raise MissingError(f"{key} {base}: {error}{other}") from error


def check_exports(recipe: Recipe) -> None:
    """Checks that an ONNX graph is known for the models that will be served.

    Raises:
        ConfigError: the message names the key of the base.
    """
    from pipeline.export import traced
    from pipeline.export.graph_shape import GraphShape

    if recipe.ranker.int8_share and "int8" not in recipe.export.precisions:
        raise ConfigError(
            f"ranker.int8_share is {recipe.ranker.int8_share:g}: it trains for the int8 export, which "
            "export.precisions lacks; add int8 there, or set it to 0"
        )
    for key, base in ranker_chain.served_bases(recipe).items():
        if base != pretrain.SCRATCH:
            try:
                config = _config(base)
                if family_of(config).has_graph:
                    GraphShape.of(config)
                else:
                    traced.check(config)
            except ConfigError as error:
                raise ConfigError(f"{key} {base}: {error}") from error


def check_memory(recipe: Recipe) -> str:
    """Checks that the teacher's weights can be trained in the memory there is, by a lower bound from their file.

    Returns both in a line, as activations, the libraries and the export come on top of the bound.

    Raises:
        ConfigError: the weights alone, with gradients and moments, take more than the device or machine has.
    """
    there = _memory()
    room = f"{there.bytes / 2**30:.1f} GiB of memory ({there.name})"
    if recipe.teacher.base == pretrain.SCRATCH:
        return f"there are {room}"
    folder = model_folders.folder(recipe.teacher.base)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    layers = base_models.shape(folder).layers
    share = (recipe.teacher.layers or layers) / layers
    needed = int(COPIES * size * share)
    if needed > there.bytes:
        raise ConfigError(
            f"teacher.base {recipe.teacher.base}: training it takes at least {needed / 2**30:.1f} GiB, and there are "
            f"{room}; take a smaller base, or fewer layers with teacher.layers"
        )
    return f"the teacher's weights, gradients and moments take {needed / 2**30:.1f} GiB, and there are {room}"


def check_files(recipe: Recipe) -> None:
    """Checks that files and packages which later stages need are there.

    Raises:
        MissingError: one is not.
    """
    named_files = {
        "external_teacher.scores": recipe.external_teacher.scores,
        "candidates.unlabelled_queries": recipe.candidates.unlabelled_queries,
    }
    for key, value in named_files.items():
        if value and not Path(value).is_file():
            raise MissingError(f"{key}: {value} is no file")
    if recipe.external_teacher.causal_lm:
        model_folders.folder(recipe.external_teacher.causal_lm)


def _config(base: str) -> PreTrainedConfig:
    config: PreTrainedConfig = base_models.config(model_folders.folder(base))
    return config


def _memory() -> MemoryLimit:
    """The memory of the device that trains, all of it; on a CPU what this process may take of it."""
    if torch.cuda.is_available():
        return MemoryLimit(int(torch.cuda.get_device_properties(0).total_memory), "all of the GPU's")
    return machine_memory.tightest()


def check_rankers(recipe: Recipe) -> None:
    """Checks that teacher, assistants and ranker can be cut from their bases and learn from each other.

    Raises:
        ConfigError: texts cannot be augmented, or teacher, an assistant or the ranker cannot be had from its base, or
            learn from whom it should.
        MissingError: a base model cannot be had.
    """
    students = (*recipe.assistants, recipe.ranker)
    if recipe.candidates.augmented and any(student.fused_teacher for student in students):
        raise ConfigError(
            "ranker.fused_teacher: the changed documents of candidates.augmented are in no index, so BM25 and the "
            "encoder cannot score them; set candidates.augmented to 0, or fused_teacher to false"
        )
    if recipe.candidates.augmented and any(student.bm25_teacher for student in students):
        raise ConfigError(
            "ranker.bm25_teacher: the changed documents of candidates.augmented are in no index, so BM25 cannot score "
            "them; set candidates.augmented or bm25_teacher to 0"
        )
    if recipe.candidates.augmented and recipe.teacher.base != pretrain.SCRATCH:
        augmentation.check(recipe.candidates, tokenizers.load_tokenizer(model_folders.folder(recipe.teacher.base)))
    for path, config, source, teacher in ranker_chain.cuts(recipe):
        with named("ranker", path):
            ranker_shape.cut(config, source, teacher)
    if recipe.ranker.plain:
        ranker_chain.check_plain(recipe)


def check_students(recipe: Recipe, *, checked: Recipe) -> None:
    """Checks the students of a recipe that shares its teacher with a recipe checked before.

    Args:
        recipe: its base models, rankers and exports are checked, and the files that it names.
        checked: the recipe checked before; base models that both name are not read again.

    Raises:
        ConfigError: a student cannot be cut, taught or exported, or its texts are too long for its model.
        MissingError: a base model or a file is not there.
    """
    if _new_bases(recipe, checked):
        check_bases(recipe)
    check_rankers(recipe)
    if _new_bases(recipe, checked):
        check_loads(recipe)
    check_exports(recipe)
    check_lengths(recipe)
    check_passages(recipe)
    check_vocabularies(recipe)
    check_files(recipe)


def _new_bases(recipe: Recipe, checked: Recipe) -> bool:
    """Whether the students of a recipe name base models that those of another one do not."""
    new, known = ({student.base for _, student in ranker_chain.students(item)} for item in (recipe, checked))
    return bool(new - known)


def check_encoder(recipe: Recipe) -> None:
    """Checks that the encoder can be cut from its base.

    Raises:
        ConfigError: the encoder cannot be had from its base.
        MissingError: the base model cannot be had.
    """
    if recipe.encoder.base == encoder.FROM_BASE:
        shape = ranker_chain.base_shape(recipe)
    else:
        shape = base_models.shape(model_folders.folder(recipe.encoder.base))
    encoder.check(recipe.encoder, shape)
