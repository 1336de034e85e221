"""A tiny release with real parts: hand-made ONNX models that numpy can follow, a real BM25, Faiss and document store.

The ranker's score is a linear function of the mean of the input's token vectors, the encoder's vector a normalised
projection of it; so each test can know what the service should say without asking the service.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from index import documents, lexical_build, semantic_build, vectors
from index.vector_texts import TextChoice
from pipeline import artifacts, features, schema
from pipeline.artifacts import Artifact, Staging
from pipeline.config import IndexConfig
from pipeline.passages import Passages
from pipeline.releases import Releases
from pipeline.tokens import PairTemplate, TextTemplate
from serving.rollout.lifecycle import Lifecycle
from serving.runtime import offline
from serving.runtime.deadline import Deadline
from serving.runtime.engine import Engine
from tests.serving.patience import Clock, patient

WIDTH, DIMENSIONS, VOCAB = 16, 8, 400
CLS, SEP, UNKNOWN = 0, 1, 2
PAIR = PairTemplate(before=(CLS,), between=(SEP,), after=(SEP,), max_tokens=64, max_query_tokens=16)
TEXT = TextTemplate(before=(CLS,), after=(SEP,), max_tokens=64)

DOCUMENTS = [
    ("sorted", "Return a new sorted list from the items in iterable. The sort is stable and fast."),
    ("heapq.nlargest", "Find the n largest elements in a dataset."),
    ("open", "Open file and return a stream. The file is opened in text mode by default."),
    ("json.loads", "Deserialize a document with JSON to a Python object."),
    ("random.shuffle", "Shuffle list x in place, and return None."),
    ("<script>alert(1)</script>", "<img src=x onerror=alert(2)> A list that tries to be a program & fails."),
    ("", "A document without a title about sorting a list."),
    ("排序", "对列表进行排序,返回一个新的列表。"),
    ("time.sleep", "Delay execution for a given number of seconds. " + "The clock goes on. " * 80),
    *[
        (f"module.function_{number}", f"Document number {number} of a list, with words {number % 7}")
        for number in range(40)
    ],
]


KINDS = ("class", None)

SURFACES = {
    "/rerank": {
        "system": "distilled student",
        "first_stage": "BM25",
        "measure": "ndcg@10",
        "mean": -0.106,
        "low": -0.13,
        "high": -0.08,
        "p": 0.0005,
        "queries": 250,
        "verdict": "worse",
    }
}
"""The worth of a path as a release's metrics have it; see `pipeline.evaluation.surfaces`."""


class TinyModels:
    """The weights, and what they give, by numpy."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.seed = seed
        self.tokens = rng.normal(size=(VOCAB, WIDTH)).astype(np.float32)
        self.segments = rng.normal(size=(2, WIDTH)).astype(np.float32)
        self.head = rng.normal(size=(WIDTH, 1)).astype(np.float32)
        self.dense = rng.normal(size=(WIDTH, DIMENSIONS)).astype(np.float32)
        words = {"[CLS]": CLS, "[SEP]": SEP, "[UNK]": UNKNOWN}
        for title, text in DOCUMENTS:
            for word in pre_tokenizers.Whitespace().pre_tokenize_str(f"{title} {text}".lower()):
                if len(words) < VOCAB:
                    words.setdefault(word[0], len(words))
        self.tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
        self.tokenizer.normalizer = normalizers.Lowercase()
        self.tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def score(self, query: str, document: str) -> float:
        return self.score_ids(self.ids(query), self.ids(document))

    def score_ids(self, query: Sequence[int], document: Sequence[int]) -> float:
        ids, types = PAIR.assemble(query, document)
        return float(((self.tokens[ids] + self.segments[types]).mean(axis=0) @ self.head)[0])

    def vector(self, text: str) -> np.ndarray:
        vector = self.tokens[TEXT.assemble(self.ids(text))].mean(axis=0) @ self.dense
        return vector / np.linalg.norm(vector)

    def bundle(self, workspace: Path, role: str, *, lie: float = 0.0, passages: Passages | None = None) -> Artifact:
        """A bundle artifact; with `lie` its golden scores are off by that much, with `passages` its ranker reads so."""

        def write(staging: Staging) -> dict[str, float]:
            bundle_json = {
                "format": 1,
                "role": role,
                "digest": hashlib.md5(f"{role} {self.seed}".encode()).hexdigest(),
                "thresholds": [],
            }
            names = ["input_ids", "attention_mask"]
            if role == "ranker":
                names.append("token_type_ids")
                template = replace(PAIR, passages=passages).to_dict()
                bundle_json |= {"template": template, "output": "score", "dimensions": None}
                texts = [("a sorted list", text) for _, text in DOCUMENTS[:4]]
                golden = [
                    {"query": query, "document": text, "scores": {"torch": self.score(query, text) + lie}}
                    for query, text in texts
                ]
            else:
                bundle_json |= {"query_template": TEXT.to_dict(), "document_template": TEXT.to_dict()}
                bundle_json |= {"output": "embedding", "dimensions": DIMENSIONS, "widths": [4, DIMENSIONS]}
                golden = [
                    {"text": text, "role": "query", "vectors": {"torch": (self.vector(text) + lie).tolist()}}
                    for _, text in DOCUMENTS[:4]
                ]
            bundle_json |= {"inputs": names, "precisions": {"fp32": {"file": "model.fp32.onnx"}}}
            bundle_json |= {"chosen": {"cpu": "fp32", "cuda": "fp32"}, "parity": 0.0, "source": "0" * 32}
            (staging.folder / "bundle.json").write_text(json.dumps(bundle_json))
            (staging.folder / "golden.json").write_text(json.dumps(golden))
            self.tokenizer.save(str(staging.folder / "tokenizer.json"))
            onnx.save(self._graph(role, names), staging.folder / "model.fp32.onnx")
            return {}

        config = {"seed": self.seed, "role": role, "lie": lie, "passages": str(passages)}
        return artifacts.make(workspace, "bundle", version=1, config=config, inputs={}, build=write)

    def _graph(self, role: str, names: Sequence[str]) -> onnx.ModelProto:
        weights = {"tokens": self.tokens, "segments": self.segments, "head": self.head, "dense": self.dense}
        weights["one"] = np.array([1], np.int64)
        node = helper.make_node
        nodes = [node("Gather", ["tokens", "input_ids"], ["embedded"])]
        summed = "embedded"
        if role == "ranker":
            nodes += [
                node("Gather", ["segments", "token_type_ids"], ["typed"]),
                node("Add", ["embedded", "typed"], ["both"]),
            ]
            summed = "both"
        nodes += [
            node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            node("Unsqueeze", ["mask", "last"], ["wide"]),
            node("Mul", [summed, "wide"], ["seen"]),
            node("ReduceSum", ["seen", "one"], ["total"], keepdims=0),
            node("ReduceSum", ["wide", "one"], ["count"], keepdims=0),
            node("Div", ["total", "count"], ["mean"]),
        ]
        weights["last"] = np.array([-1], np.int64)
        if role == "ranker":
            nodes += [node("MatMul", ["mean", "head"], ["row"]), node("Squeeze", ["row", "one"], ["score"])]
            output = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch"])
        else:
            nodes += [
                node("MatMul", ["mean", "dense"], ["flat"]),
                node("LpNormalization", ["flat"], ["embedding"], axis=1, p=2),
            ]
            output = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", DIMENSIONS])
        inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"]) for name in names]
        used = {name for item in nodes for name in item.input}
        graph = helper.make_graph(
            nodes,
            role,
            inputs,
            [output],
            [numpy_helper.from_array(value, name) for name, value in weights.items() if name in used],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.checker.check_model(model)
        return model


class TinyWorkspace:
    """A workspace with releases that differ in their seed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.releases = Releases(path)
        self.models: dict[str, TinyModels] = {}

    def data(self) -> Artifact:
        def write(staging: Staging) -> dict[str, int]:
            table = pa.table(
                {
                    "doc_id": [f"d{row}" for row in range(len(DOCUMENTS))],
                    "title": [title for title, _ in DOCUMENTS],
                    "text": [text for _, text in DOCUMENTS],
                    "year": [2000 + row % 7 for row in range(len(DOCUMENTS))],
                    "kind": [KINDS[row % 2] for row in range(len(DOCUMENTS))],
                    "tags": [[f"t{row % 3}", f"u{row}"] for row in range(len(DOCUMENTS))],
                }
            )
            schema.write(table, staging.folder / "documents.parquet", "documents")
            return {"documents": table.num_rows}

        return artifacts.make(self.path, "data", version=1, config={}, inputs={}, build=write)

    def source(self, folder: Path, word: str = "", count: int | None = None) -> str:
        """Writes the documents, or the first `count`, to a folder to index, with `word` after each text if given."""
        folder.mkdir(exist_ok=True)
        table = pq.read_table(self.data().file("documents.parquet")).slice(0, count)
        if word:
            texts = pc.binary_join_element_wise(table["text"], pa.scalar(word), " ")
            table = table.set_column(table.column_names.index("text"), "text", texts)
        pq.write_table(table, folder / "documents.parquet")
        return str(folder)

    def publish(
        self,
        seed: int,
        *,
        lie: float = 0.0,
        index_seed: int | None = None,
        passages: Passages | None = None,
        indexed: Passages | None = None,
    ) -> str:
        """A release, not yet live.

        Args:
            lie: the ranker's golden scores are off by this amount.
            index_seed: the index is built by another encoder.
            passages: how the ranker reads long documents.
            indexed: how the encoder reads them.
        """
        tiny = TinyModels(seed)
        data = self.data()
        ranker = tiny.bundle(self.path, "ranker", lie=lie, passages=passages)
        encoder = tiny.bundle(self.path, "encoder")
        embedding = encoder if index_seed is None else TinyModels(index_seed).bundle(self.path, "encoder")
        engine = Engine(embedding.path, threads=1)
        document_vectors = vectors.make(
            self.path,
            vectors.DocumentEncoder(engine.digest, lambda texts: engine.embed(texts, "document")),
            data=data,
            choice=TextChoice(cutter=offline.cutter(offline.embedder(embedding), indexed)),
        )
        engine.close()
        config = IndexConfig()

        def fusion(staging: Staging) -> dict[str, float]:
            weights = dict.fromkeys(features.FEATURES, 0.0) | {"ranker": 1.0, "bm25": 0.5}
            (staging.folder / "fusion.json").write_text(features.Fusion(weights=weights).to_json())
            return {}

        def report(staging: Staging) -> dict[str, float]:
            examples = {"wins": [{"query": "sort a list"}], "losses": [{"query": "读 文件"}]}
            (staging.folder / "report.json").write_text(json.dumps({"examples": examples}))
            return {}

        parts = {
            "ranker": ranker,
            "encoder": encoder,
            "lexical": lexical_build.make(self.path, config, data=data),
            "documents": documents.make(self.path, data=data),
            "index": semantic_build.make(self.path, config, vectors=document_vectors),
            "fusion": artifacts.make(self.path, "fusion", version=1, config={}, inputs={}, build=fusion),
            "report": artifacts.make(self.path, "report", version=1, config={}, inputs={}, build=report),
        }
        release = self.releases.publish(parts, metrics={"surfaces": SURFACES}, config={})
        self.models[release.fingerprint] = tiny
        return release.fingerprint

    def folder(self, release: str) -> Path:
        return self.path / "artifacts" / "release" / release


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyWorkspace:
    """A workspace whose live release has seed 1; tests that move its pointer use `fresh`."""
    workspace = TinyWorkspace(tmp_path_factory.mktemp("tiny"))
    workspace.releases.promote(workspace.publish(1), reason="test")
    return workspace


@pytest.fixture
def fresh(tmp_path: Path) -> TinyWorkspace:
    """An empty workspace of the test's own."""
    return TinyWorkspace(tmp_path / "workspace")


@pytest.fixture
def started(tiny: TinyWorkspace) -> Callable[..., Lifecycle]:
    """A life cycle that has loaded the tiny release, made with settings of the test's choice."""

    def start(**knobs: object) -> Lifecycle:
        lifecycle = Lifecycle(patient(workspace=tiny.path, release=tiny.releases.resolve("live"), threads=1, **knobs))
        lifecycle.start()
        return lifecycle

    return start


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of every deadline in this process."""
    clock = Clock()
    monkeypatch.setattr("serving.runtime.deadline.time", clock)
    # Who waits on a real clock looks at this one often.
    monkeypatch.setattr(Deadline, "patience", property(lambda deadline: min(deadline.remaining, 0.02)))
    return clock
