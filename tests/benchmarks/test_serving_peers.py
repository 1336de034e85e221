"""The engine beside what people rerank with on a CPU: the same model, the same pairs, one run, in CPU-seconds.

    python -m venv peers
    peers/bin/pip install torch sentence-transformers FlashRank infinity-emb
    peers/bin/pip install onnx onnxscript pyarrow pandas multiprocess xxhash httpx requests
    peers/bin/pip install --no-deps optimum optimum-onnx 'transformers<4.58' 'tokenizers<0.23' 'huggingface-hub<1' \\
        'datasets<4.4' 'numpy<2.4'
    PEERS_PYTHON=peers/bin/python pytest -m benchmark tests/benchmarks/test_serving_peers.py -s

The peers need an environment of their own, because optimum-onnx wants an older transformers than ours. Without
PEERS_PYTHON they are looked for in this one; a peer that is not installed is left out of the table, and the test is
skipped where none is. Each works in its own batches, held to one thread so that none pays for spinning; all take turns,
because a shared machine's speed drifts, and count by their best turn.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import artifacts, schema
from pipeline.artifacts import Artifact
from pipeline.config import ExportConfig
from pipeline.export import bundle as onnx
from serving.runtime.engine import Engine

pytestmark = pytest.mark.benchmark

QUERIES, DOCUMENTS, TURNS = 4, 16, 3
MAX_TOKENS, MAX_QUERY_TOKENS = 128, 32

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
INPUTS = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
PEERS = (
    "sentence-transformers torch",
    "sentence-transformers onnx",
    "sentence-transformers onnx int8",
    "FlashRank",
    "infinity torch",
)

Turn = Callable[[], tuple[float, list[float]]]
"""Scores all pairs once: processor seconds, and the scores in the order of the pairs."""


@dataclass(frozen=True)
class World:
    """A random model of 6 layers, 768 wide, in transformers' layout, and queries with documents of mixed lengths."""

    bundle: Path
    model: Path
    requests: dict[str, list[str]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from pipeline.models.cross_encoder import CrossEncoder

    rng = np.random.default_rng(2)
    words = sorted({"".join(rng.choice(list("aeioubdkmnrst"), size=rng.integers(3, 9))) for _ in range(9000)})
    torch.manual_seed(1)
    base = tmp_path_factory.mktemp("base")
    write_tokenizer(words, base)
    config = BertConfig(vocab_size=30_522, num_hidden_layers=6, num_labels=1, initializer_range=0.05)
    BertForSequenceClassification(config).save_pretrained(base)
    cross_encoder = CrossEncoder.start(
        base, thresholds=[0.0], max_tokens=MAX_TOKENS, max_query_tokens=MAX_QUERY_TOKENS, seed=1
    )

    def sentence(tokens: float) -> str:
        return " ".join(rng.choice(words, size=int(tokens)))

    # As of titles and first lines: most are short, some reach the limit; about 64 tokens with the query.
    lengths = np.clip(rng.lognormal(np.log(48), 0.6, (QUERIES, DOCUMENTS)), 6, 110)
    requests = {sentence(rng.integers(2, 8)): [sentence(length) for length in row] for row in lengths}

    workspace = tmp_path_factory.mktemp("peers")

    def stage(kind: str, write: Callable[[Path], None]) -> Artifact:
        def build(staging: Any) -> dict[str, Any]:
            write(staging.folder)
            return {}

        return artifacts.make(workspace, kind, version=1, config={}, inputs={}, build=build)

    model = stage("ranker", cross_encoder.save)
    data, pairs = judged(requests)
    bundle = onnx.make(
        workspace,
        ExportConfig(max_ndcg_drop=1.0, min_kendall_tau=-1.0, sample_tokens=500),
        model=model,
        data=stage("data", lambda folder: write_tables(folder, data)),
        pairs=stage("pairs", lambda folder: write_tables(folder, pairs)),
    )
    # The tokenizer's config as older transformers read it too; the rest of the folder is the same to both.
    theirs = tmp_path_factory.mktemp("theirs")
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy(model.path / "model" / name, theirs)
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": MAX_TOKENS, **INPUTS, **SPECIAL}
    (theirs / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    return World(bundle.path, theirs, requests)


def write_tokenizer(words: list[str], folder: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate([*SPECIAL.values(), *words])}
    raw = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=MAX_TOKENS, **INPUTS, **SPECIAL)
    tokenizer.save_pretrained(folder)


def judged(requests: dict[str, list[str]]) -> tuple[dict[str, pa.Table], dict[str, pa.Table]]:
    """The requests as the tables of a data and of a pairs artifact, for an export to be judged on."""
    texts = [document for documents in requests.values() for document in documents]
    rows = [(f"q{query}", f"d{query * DOCUMENTS + index}") for query in range(QUERIES) for index in range(DOCUMENTS)]
    columns = {
        "query_id": [query for query, _ in rows],
        "doc_id": [document for _, document in rows],
        "grade": [index % 2 for index in range(len(rows))],
        "split": ["valid"] * len(rows),
        "source": ["human"] * len(rows),
    }
    ids = [f"d{index}" for index in range(len(texts))]
    data = {
        "documents": pa.table({"doc_id": ids, "title": [""] * len(ids), "text": texts}),
        "queries": pa.table({"query_id": [f"q{index}" for index in range(QUERIES)], "text": list(requests)}),
        "judgments": pa.table(columns),
    }
    return data, {"pairs": pa.table({"row_id": range(len(rows)), **columns})}


def write_tables(folder: Path, tables: dict[str, pa.Table]) -> None:
    for name, table in tables.items():
        schema.write(table, folder / f"{name}.parquet", name)


def ours(world: World, precision: str) -> Turn:
    engine = Engine(world.bundle, precision=precision, threads=1, token_bytes=0)

    def turn() -> tuple[float, list[float]]:
        began = time.process_time()
        scores = [score for query, documents in world.requests.items() for score in engine.scores(query, documents)]
        return time.process_time() - began, scores

    return turn


@contextmanager
def peer(name: str, world: World, folder: Path) -> Iterator[Turn | None]:
    """A peer in a process of its own; None where it cannot be imported."""
    requests = folder / "requests.json"
    requests.write_text(json.dumps(world.requests), encoding="utf-8")
    command = [os.environ.get("PEERS_PYTHON", sys.executable), str(Path(__file__).with_name("peers.py"))]
    process = subprocess.Popen(
        [*command, name, str(world.model), str(requests), str(folder / "exported")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    to, answers = process.stdin, process.stdout

    def turn() -> tuple[float, list[float]]:
        to.write("\n")
        to.flush()
        answer = json.loads(answers.readline())
        return answer["seconds"], answer["scores"]

    try:
        try:
            turn()  # Warms it up.
            installed = True
        except (BrokenPipeError, json.JSONDecodeError):
            installed = False
            assert process.wait(60) == 3, f"{name} failed; its error is above"
        yield turn if installed else None
    finally:
        with suppress(BrokenPipeError):
            to.close()
        process.wait(60)
        answers.close()


def test_the_engine_is_faster_than_its_peers(
    world: World, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    turns = {f"ours {precision}": ours(world, precision) for precision in ("fp32", "w8", "int8")}
    with ExitStack() as stack:
        for name in PEERS:
            turn = stack.enter_context(peer(name, world, tmp_path))
            if turn:
                turns[name] = turn
        if len(turns) == 3:
            pytest.skip("no peer is installed; see the module's docstring")
        measured = {name: [] for name in turns}
        for _ in range(TURNS):
            for name, turn in turns.items():
                measured[name].append(turn())

    pairs = QUERIES * DOCUMENTS
    rates = {name: pairs / min(seconds for seconds, _ in measured_turns) for name, measured_turns in measured.items()}
    exact = np.array(measured["ours fp32"][0][1])
    for name, rate in rates.items():
        scores = np.array(measured[name][0][1])
        # FlashRank and infinity give the sigmoid only.
        wanted = 1 / (1 + np.exp(-exact)) if name.startswith(("FlashRank", "infinity")) else exact
        print(f"\n{name:32} {rate:6.1f} pairs per CPU-second; off by {np.abs(scores - wanted).max():.1e}", end="")
        record_property(name, rate)

    peers = {name: rate for name, rate in rates.items() if not name.startswith("ours")}
    theirs = peers.pop("sentence-transformers onnx int8", 0.0)
    assert rates["ours fp32"] > max(peers.values())  # By how much depends on the processor.
    assert rates["ours int8"] > max(theirs, *peers.values())
