"""Folders of ready-made models that are damaged, half there, or say of themselves what cannot be: each is refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pipeline.errors import ConfigError, InputError, MissingError
from pipeline.models import import_stage, model_files
from pipeline.models.ready_made_files import ReadyMadeOptions
from tests.pipeline.models.test_ready_made import body


def _without(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for path in folder.iterdir():
            if path.name.startswith(names):
                path.unlink()

    return change


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _config(**keys: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | keys))

    return change


def _modules(text: str) -> Callable[[Path], None]:
    """A modules.json, in which `x.` stands for the modules of sentence-transformers."""
    content = text.replace('"x.', '"sentence_transformers.models.')
    return lambda folder: (folder / "modules.json").write_text(content) and None


def _cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100]) and None


def _shards(folder: Path) -> None:
    """Weights in two files, of which the second is not there."""
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _written(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def _index(weight_map: Any) -> Callable[[Path], None]:
    """Weights in several files, by an index of them that is damaged."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return change


def _weights(change_weights: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        weights = {name: value.clone() for name, value in load_file(folder / "model.safetensors").items()}
        change_weights(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def _half_copied(folder: Path) -> None:
    """Weights of their full length of which the second half never came."""
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2].ljust(len(content), b"\0"))


def _tokenizer(change_content: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_text())
        change_content(content)
        (folder / "tokenizer.json").write_text(json.dumps(content))

    return change


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 90\n"

DAMAGE: dict[str, tuple[Callable[[Path], None], type[InputError], str]] = {
    "no weights": (_without("model.safetensors"), MissingError, "holds no model.safetensors"),
    "weights cut off": (_cut("model.safetensors"), ConfigError, "model.safetensors: cut off or damaged"),
    "one of two files of weights": (_shards, MissingError, "model-2.safetensors: no such file"),
    "a pointer of Git LFS": (_written("model.safetensors", POINTER), ConfigError, "model.safetensors: is a pointer"),
    "a tokenizer's pointer": (_written("tokenizer.json", POINTER), ConfigError, "fetch it with `git lfs pull`"),
    "a tokenizer cut off": (_cut("tokenizer.json"), ConfigError, "tokenizer.json: cut off or damaged"),
    "no config": (_without("config.json"), MissingError, "holds no config.json"),
    "no tokenizer": (_without("tokenizer", "vocab", "special"), MissingError, "tokenizer"),
    "pickled": (_pickled, ConfigError, r"pytorch_model.bin, a format that can run code.*save_pretrained"),
    "own code": (_config(auto_map={"AutoModel": "modeling.My"}), ConfigError, "auto_map names code"),
    "a kind that can only teach": (_config(model_type="xlnet"), ConfigError, r"take one of the kinds (?!.*xlnet)"),
    "another kind": (_config(model_type="t5"), ConfigError, "t5"),
    "modules that are none": (_modules("{"), ConfigError, "not a list of modules"),
    "a module of own code": (
        _modules('[{"type": "custom_st.Transformer", "path": ""}, {"type": "x.Pooling", "path": "1"}]'),
        ConfigError,
        "custom_st.Transformer is code that comes with the model",
    ),
    "an unknown module": (
        _modules('[{"type": "x.Transformer", "path": ""}, {"type": "x.WordWeights", "path": "1"}]'),
        ConfigError,
        "WordWeights",
    ),
    "an absurd width": (_config(hidden_size=10**9), ConfigError, "hidden_size is 1000000000, which the weights"),
    "an absurd depth": (_config(num_hidden_layers=10**9), ConfigError, "num_hidden_layers is 1000000000"),
    "labels without end": (_config(num_labels=10**9), ConfigError, "num_labels is 1000000000"),
    "no width": (_config(hidden_size=0), ConfigError, "hidden_size is 0"),
    "no layer": (_config(num_hidden_layers=0), ConfigError, "num_hidden_layers is 0"),
    "a layer too few": (_config(num_hidden_layers=1), ConfigError, "its weights have encoder.layer.1.* no such layer"),
    "a width that is a text": (_config(hidden_size="16"), ConfigError, "hidden_size is 16"),
    "a type that torch lacks": (_config(dtype="float99"), ConfigError, "not a config that transformers takes"),
    "labels without numbers": (_config(id2label={"x": "y"}), ConfigError, "not a config that transformers takes"),
    "a key of a wrong type": (_config(layer_norm_eps="x"), ConfigError, "not a config that transformers takes"),
    "padding beyond the vocabulary": (_config(pad_token_id=10**6), ConfigError, "not those that config.json describes"),
    "a part that the library cuts": (_config(chunk_size_feed_forward=3), ConfigError, "cannot be run as its config"),
    "widths that are none": (_config(matryoshka_dimensions=["a"]), ConfigError, "matryoshka_dimensions"),
    "a config nested too deep": (_written("config.json", "[" * 100_000), ConfigError, "config.json: not readable"),
    "modules nested too deep": (_modules("[" * 100_000), ConfigError, "not a list of modules"),
    "an index without files": (_index({}), ConfigError, "weight_map names no files"),
    "an index that is none": (_index(5), ConfigError, "weight_map is '5', and must be dict"),
    "an index to other folders": (_index({"a": "../model.safetensors"}), ConfigError, "weight_map names no files"),
    "weights half copied": (_half_copied, ConfigError, "holds nothing but zeros; the file was damaged"),
    "weights that are no numbers": (
        _weights(lambda weights: weights["encoder.layer.1.output.dense.bias"].fill_(float("nan"))),
        ConfigError,
        r"output\.dense\.bias holds numbers that are not finite",
    ),
    "one weight that is no number": (
        _weights(lambda weights: weights["embeddings.word_embeddings.weight"][3, 0].fill_(float("inf"))),
        ConfigError,
        r"word_embeddings\.weight holds numbers that are not finite",
    ),
    "weights beyond all bounds": (
        _weights(lambda weights: weights["encoder.layer.1.output.LayerNorm.weight"].fill_(3e38)),
        ConfigError,
        "the same answer to all inputs, or none that is a number",
    ),
    "weights quantised to whole numbers": (
        _weights(lambda weights: weights.update({name: value.to(torch.int8) for name, value in weights.items()})),
        ConfigError,
        "is of type I8, and weights are read as F64",
    ),
    "a tokenizer without its token for unknown words": (
        _tokenizer(lambda content: content["model"].update(unk_token="[NONE]")),
        ConfigError,
        r"its tokenizer cannot be used \(WordPiece error: Missing \[UNK\]",
    ),
    "a tokenizer without special tokens": (
        _tokenizer(lambda content: content.update(post_processor=None)),
        ConfigError,
        "no special token around a text",
    ),
    "a tokenizer of no length": (
        _written("tokenizer_config.json", '{"model_max_length": NaN}'),
        ConfigError,
        "model_max_length in tokenizer_config.json is nan",
    ),
    "a length that is no number": (
        _written("sentence_bert_config.json", '{"max_seq_length": "x"}'),
        ConfigError,
        "max_seq_length is 'x', and must be int",
    ),
    "prompts that are a list": (
        _written("config_sentence_transformers.json", '{"prompts": ["a"]}'),
        ConfigError,
        "prompts is .* and must be dict",
    ),
    "half of a character in a prompt": (
        _written("config_sentence_transformers.json", '{"prompts": {"query": "\\ud800"}}'),
        ConfigError,
        "the prompt for a query holds half of a surrogate pair",
    ),
    "vectors cut to nothing": (
        _written("config_sentence_transformers.json", '{"truncate_dim": -1}'),
        ConfigError,
        "truncate_dim is -1",
    ),
    "a module elsewhere": (
        _modules('[{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "../1"}]'),
        ConfigError,
        "outside the folder",
    ),
    "a projection of unit vectors": (
        _modules(
            '[{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "1"}, '
            '{"type": "x.Normalize", "path": "2"}, {"type": "x.Dense", "path": "3"}]'
        ),
        ConfigError,
        "Transformer, Pooling, Normalize, Dense; known is .* in this order",
    ),
    "no pooling stated": (
        _modules('[{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "1_Pooling"}]'),
        ConfigError,
        "pooling is not stated",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_model_is_refused_and_nothing_is_made(case: str, tmp_path: Path) -> None:
    change, error, message = DAMAGE[case]
    folder = body(tmp_path / "model", "bert")
    change(folder)
    with pytest.raises(error, match=message) as caught:
        import_stage.encoder(tmp_path / "workspace", str(folder), ReadyMadeOptions())
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "workspace").rglob("manifest.json"))


def test_what_converts_pickled_weights_keeps_the_head(tmp_path: Path) -> None:
    folder = body(tmp_path / "ranker", "bert", head=1)
    before = load_file(folder / "model.safetensors")
    torch.save(before, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError) as raised:
        model_files.check_files(folder)
    converted = re.search(
        r"transformers\.(\w+)\.from_pretrained\((\"[^\"]+\")\)\.save_pretrained\(\2\)", str(raised.value)
    )
    assert converted, raised.value
    where = json.loads(converted[2])
    getattr(transformers, converted[1]).from_pretrained(where).save_pretrained(where)
    model_files.check_files(folder)
    after = load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_pickled_weights_of_a_module_are_converted_by_sentence_transformers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"in_features": 4, "out_features": 2}')
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ConfigError, match=r'SentenceTransformer\(FOLDER\)\.save\("NEW"\) writes safetensors'):
        model_files.check_weights(tmp_path)
