"""Traced graphs against the PyTorch models they stand for, at any length and in every precision."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from transformers import XLNetConfig

from pipeline.errors import ConfigError
from pipeline.export import graph_shape, traced
from pipeline.export.bundle import ExportSource
from pipeline.export.traced import TracedModel
from pipeline.models.bi_encoder import BiEncoder
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.models.families import FAMILIES

Bases = Callable[[str], Path]

RANKERS = {"modernbert": 4096, "modernbert, mean": 512, "mpnet": 512, "deberta-v3": 512, "nomic_bert": 4096}
RANKERS |= {"eurobert": 4096, "eurobert, late": 512}
"""Variant → the longest input that is tried."""
WRITTEN = ("electra", "electra, wide embeddings", "distilbert", "ernie")
"""Variants whose graph is written node by node."""


@cache
def ranker_of(base: Path) -> tuple[CrossEncoder, TracedModel]:
    options: dict[str, Any] = {"max_tokens": 64, "max_query_tokens": 12, "seed": 1}
    model = CrossEncoder.start(base, thresholds=[-0.5, 0.5], **options).eval()
    with torch.no_grad():
        model.head.weight.mul_(20)  # Scores that differ.
    return model, TracedModel(model)


def ids_of(tokens: int, seed: int = 0) -> torch.Tensor:
    ids = torch.randint(5, 20, (1, tokens), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = 2
    return ids


def run(model: onnx.ModelProto, feeds: Mapping[str, torch.Tensor]) -> NDArray[np.float32]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = {item.name for item in session.get_inputs()}
    output: NDArray[np.float32] = session.run(None, {k: v.numpy() for k, v in feeds.items() if k in names})[0]
    return output


def both(model: CrossEncoder, written: onnx.ModelProto, tokens: int) -> tuple[float, float]:
    """The score of PyTorch and of the graph."""
    ids = ids_of(tokens)
    types = (torch.arange(tokens)[None] > tokens // 3).long()
    mask = torch.ones_like(ids)
    with torch.no_grad():
        expected = float(model(ids, types, mask))
    scores = run(written, {"input_ids": ids, "attention_mask": mask, "token_type_ids": types})
    return expected, float(scores[0])


@pytest.mark.parametrize("variant", RANKERS)
def test_a_traced_ranker_scores_as_its_pytorch_model_does(base_of: Bases, variant: str) -> None:
    model, shape = ranker_of(base_of(variant))
    assert shape.inputs[:2] == ["input_ids", "attention_mask"]
    scores = []
    for tokens in (1, 5, 64, 500, RANKERS[variant] - 2):
        expected, score = both(model, shape.graph("fp32"), tokens)
        assert abs(score - expected) <= 1e-5 * (1 + abs(expected)), tokens
        scores.append(expected)
    assert np.std(scores) > 0.01


@pytest.mark.parametrize("variant", RANKERS)
def test_padding_and_company_change_no_score(base_of: Bases, variant: str) -> None:
    _, shape = ranker_of(base_of(variant))
    ids, written = ids_of(20), shape.graph("fp32")
    alone = run(written, dict(zip(shape.inputs, (ids, ids * 0 + 1, ids * 0), strict=False)))
    rows = torch.cat([torch.nn.functional.pad(ids, (0, 10)), ids_of(30, 4)])
    mask = torch.ones_like(rows)
    mask[0, 20:] = 0
    padded = run(written, {"input_ids": rows, "attention_mask": mask, "token_type_ids": rows * 0})
    assert abs(padded[0] - alone[0]) <= 1e-5 * (1 + abs(alone[0]))


@pytest.mark.parametrize("precision", ["int8", "w8", "fp16"])
@pytest.mark.parametrize("variant", ["modernbert", "deberta-v3", "mpnet"])
def test_lower_precisions_stay_near(base_of: Bases, variant: str, precision: Any) -> None:
    model, shape = ranker_of(base_of(variant))
    written = shape.graph(precision)
    kinds = {node.op_type for node in written.graph.node}
    assert {"int8": "DynamicQuantizeMatMul", "w8": "MatMulNBits", "fp16": "Cast"}[precision] in kinds
    assert len(written.SerializeToString()) < 0.8 * len(shape.graph("fp32").SerializeToString())
    for tokens in (5, 64):
        expected, score = both(model, written, tokens)
        assert 0 < abs(score - expected) < 0.1 * (1 + abs(expected))


def test_a_graph_names_no_file_of_this_machine(base_of: Bases) -> None:
    _, shape = ranker_of(base_of("modernbert"))
    for precision in ("fp32", "int8", "w8", "fp16"):
        written = shape.graph(precision).SerializeToString()
        assert b".py" not in written
        assert b"File " not in written


def test_parts_that_are_kept_stay_in_single_precision(base_of: Bases) -> None:
    _, shape = ranker_of(base_of("modernbert"))
    assert shape.parts == [graph_shape.EMBEDDINGS, *(f"layer.{number}" for number in range(4))]
    products = [
        sum(node.op_type == "DynamicQuantizeMatMul" for node in shape.graph("int8", keep).graph.node)
        for keep in ((), ("layer.1",), tuple(shape.parts))
    ]
    assert products == [24, 18, 0]
    ids = {"input_ids": ids_of(9), "attention_mask": torch.ones(1, 9, dtype=torch.int64)}
    assert run(shape.graph("int8", shape.parts), ids) == run(shape.graph("fp32"), ids)


@pytest.mark.parametrize("variant", ["modernbert", "mpnet", "nomic_bert", "eurobert"])
def test_a_traced_encoder_gives_the_vectors_of_pytorch(base_of: Bases, variant: str, tmp_path: Path) -> None:
    encoder = BiEncoder.start(base_of(variant), dimensions=8, max_tokens=40, max_query_tokens=12, seed=2).eval()
    encoder.save(tmp_path)
    source = ExportSource.load(tmp_path)
    ids = ids_of(30)
    with torch.no_grad():
        expected = encoder(ids, torch.ones_like(ids)).numpy()
    vector = run(source.graph("fp32"), {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    np.testing.assert_allclose(vector, expected, atol=1e-5)


@pytest.mark.parametrize("variant", WRITTEN)
def test_written_graphs_of_more_families_score_as_pytorch(base_of: Bases, variant: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_tokens": 64, "max_query_tokens": 12, "seed": 1}
    model = CrossEncoder.start(base_of(variant), thresholds=[-0.5, 0.5], **options).eval()
    with torch.no_grad():
        model.head.weight.mul_(20)
    model.save(tmp_path)
    source = ExportSource.load(tmp_path)
    assert not isinstance(source.shape, TracedModel)
    scores = []
    for tokens in (1, 64, 510):
        expected, score = both(model, source.graph("fp32"), tokens)
        assert abs(score - expected) <= 1e-5 * (1 + abs(expected)), tokens
        scores.append(expected)
    assert np.std(scores) > 0.01


def test_the_digest_tells_apart_what_weights_do_not(base_of: Bases, tmp_path: Path) -> None:
    model, _ = ranker_of(base_of("modernbert"))
    digests = set()
    for window in (8, 16):
        model.model.config.local_attention = window
        (tmp_path / str(window)).mkdir()
        model.save(tmp_path / str(window))
        digests.add(ExportSource.load(tmp_path / str(window)).digest({}))
    model.model.config.local_attention = 8
    assert len(digests) == 2


def test_a_model_that_can_only_teach_is_refused() -> None:
    with pytest.raises(ConfigError, match="xlnet model of this kind can teach, but not be served"):
        traced.check(XLNetConfig())
    for family in FAMILIES:
        assert family.has_graph or family.model_types[0] in (
            "mpnet",
            "deberta-v2",
            "modernbert",
            "nomic_bert",
            "xlnet",
            "eurobert",
        )
