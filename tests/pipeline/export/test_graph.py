"""The graphs written node by node against the PyTorch models they stand for."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    CamembertConfig,
    DebertaV2Config,
    PretrainedConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from pipeline.config import Precision
from pipeline.errors import ConfigError
from pipeline.export import graph, quantisation
from pipeline.export.bundle import _body, _score_head
from pipeline.export.graph_shape import GraphShape
from pipeline.models.int8_rounding import LARGEST_WEIGHT

SIZES = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
    "num_labels": 1,
}
CONFIGS = {
    "bert": BertConfig(num_hidden_layers=3, **SIZES),
    "bert, one layer, tanh GELU": BertConfig(num_hidden_layers=1, hidden_act="gelu_new", **SIZES),
    "bert, ReLU, one segment": BertConfig(num_hidden_layers=2, hidden_act="relu", type_vocab_size=1, **SIZES),
    "roberta": RobertaConfig(num_hidden_layers=2, type_vocab_size=1, pad_token_id=1, **SIZES),
    "xlm-roberta": XLMRobertaConfig(num_hidden_layers=2, type_vocab_size=1, pad_token_id=1, **SIZES),
    "camembert": CamembertConfig(num_hidden_layers=2, type_vocab_size=1, pad_token_id=1, **SIZES),
    "albert": AlbertConfig(num_hidden_layers=3, embedding_size=16, **SIZES),
}

PRECISIONS = ("fp32", "fp16", "int8", "w8")

Feeds = dict[str, NDArray[np.int64]]


def model_of(config: PretrainedConfig) -> torch.nn.Module:
    torch.manual_seed(1)
    return AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()


def run(model: onnx.ModelProto, feeds: Feeds) -> NDArray[np.float32]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    output: NDArray[np.float32] = session.run(None, feeds)[0]
    return output


def feeds_of(shape: GraphShape, lengths: list[int], seed: int = 0) -> Feeds:
    """A padded batch of random inputs of these lengths."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, 120, (len(lengths), max(lengths)))
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    ids[mask == 0] = 1 if shape.first_position else 0
    types = (np.arange(max(lengths)) >= np.array(lengths)[:, None] // 2).astype(np.int64)
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    return {name: feeds[name] for name in shape.inputs}


def torch_scores(model: torch.nn.Module, feeds: Feeds) -> NDArray[np.float32]:
    with torch.inference_mode():
        return model(**{name: torch.tensor(value) for name, value in feeds.items()}).logits[:, 0].numpy()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_ranker_scores_as_its_pytorch_model_does(name: str) -> None:
    model, shape = model_of(CONFIGS[name]), GraphShape.of(CONFIGS[name])
    written = graph.ranker(shape, _body(model) | _score_head(model), "fp32")
    for lengths in ([1], [shape.max_tokens], [7, 23, 2, 16]):
        feeds = feeds_of(shape, lengths)
        np.testing.assert_allclose(run(written, feeds), torch_scores(model, feeds), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_an_encoder_gives_the_normalised_mean_of_the_last_states(name: str) -> None:
    model, shape = model_of(CONFIGS[name]), GraphShape.of(CONFIGS[name])
    rng = np.random.default_rng(3)
    weight, bias = rng.normal(size=(8, 32)).astype(np.float32), rng.normal(size=8).astype(np.float32)
    written = graph.encoder(shape, _body(model) | {"head.dense.weight": weight, "head.dense.bias": bias}, "fp32")
    feeds = feeds_of(shape, [9, 20, 1])
    with torch.inference_mode():
        states = model.base_model(**{key: torch.tensor(value) for key, value in feeds.items()}).last_hidden_state
    for row, length in enumerate(feeds["attention_mask"].sum(axis=1)):
        dense = weight @ states[row, :length].mean(dim=0).numpy() + bias
        np.testing.assert_allclose(run(written, feeds)[row], dense / np.linalg.norm(dense), atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken"])
def test_padding_takes_no_part_in_an_encoders_vector(pooling: str) -> None:
    model, shape = model_of(CONFIGS["bert"]), GraphShape.of(CONFIGS["bert"])
    rng = np.random.default_rng(3)
    weight, bias = rng.normal(size=(8, 32)).astype(np.float32), rng.normal(size=8).astype(np.float32)
    weights = _body(model) | {"head.dense.weight": weight, "head.dense.bias": bias}
    written = graph.encoder(shape, weights, "fp32", pooling=pooling)
    feeds = feeds_of(shape, [9, 20, 1])
    together = run(written, feeds)
    for row, length in enumerate([9, 20, 1]):
        alone = {key: value[row : row + 1, :length] for key, value in feeds.items()}
        np.testing.assert_allclose(together[row : row + 1], run(written, alone), atol=1e-5)


def test_a_body_without_head_has_the_same_names() -> None:
    """BiEncoder holds a BertModel, whose parameters have no `bert.` before them."""
    body = BertModel(CONFIGS["bert"], add_pooling_layer=False)
    assert set(_body(body)) == set(_body(model_of(CONFIGS["bert"])))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "w8"])
@pytest.mark.parametrize("name", ["bert", "roberta", "albert"])
def test_a_lower_precision_is_near_and_padding_hardly_matters(name: str, precision: Precision) -> None:
    model, shape = model_of(CONFIGS[name]), GraphShape.of(CONFIGS[name])
    weights = _body(model) | _score_head(model)
    written = graph.ranker(shape, weights, precision)
    feeds = feeds_of(shape, [12, 30, 5])
    near = {"fp32": 1e-5, "fp16": 0.02, "int8": 0.4, "w8": 0.1}[precision]
    scores = run(written, feeds)
    np.testing.assert_allclose(scores, torch_scores(model, feeds), atol=near)
    for row, length in enumerate([12, 30, 5]):
        alone = {key: value[row : row + 1, :length] for key, value in feeds.items()}
        np.testing.assert_allclose(run(written, alone), scores[row : row + 1], atol=near)


def test_half_precision_keeps_normalisation_softmax_head_and_inputs() -> None:
    model, shape = model_of(CONFIGS["bert"]), GraphShape.of(CONFIGS["bert"])
    written = graph.ranker(shape, _body(model) | _score_head(model), "fp16")
    types = {constant.name: constant.data_type for constant in written.graph.initializer}
    values = {output: node for node in written.graph.node for output in node.output}
    half = {output for output in values if _is_half(output, values, types)}
    for node in written.graph.node:
        if node.op_type in ("LayerNormalization", "Softmax", "Gemm", "Tanh"):
            assert not half & set(node.input)
            assert all(types.get(name) != onnx.TensorProto.FLOAT16 for name in node.input)
        if node.op_type == "Attention":
            assert node.input[0] in half
            assert types[node.input[1]] == onnx.TensorProto.FLOAT16
    assert written.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert sum(types[name] == onnx.TensorProto.FLOAT16 for name in types) > 3 * shape.layers


def _is_half(name: str, values: dict[str, onnx.NodeProto], types: dict[str, int]) -> bool:
    """Whether a value is in half precision: what a cast says, else what the node's first input is."""
    if name in types:
        return types[name] == onnx.TensorProto.FLOAT16
    if name not in values:
        return False
    node = values[name]
    if node.op_type == "Cast":
        return bool(node.attribute[0].i == onnx.TensorProto.FLOAT16)
    return _is_half(node.input[0], values, types)


@pytest.mark.parametrize("precision", ["int8", "w8"])
def test_a_graph_with_every_part_kept_is_the_fp32_graph(precision: Precision) -> None:
    model, shape = model_of(CONFIGS["bert"]), GraphShape.of(CONFIGS["bert"])
    weights = _body(model) | _score_head(model)
    assert graph.ranker(shape, weights, precision, shape.parts) == graph.ranker(shape, weights, "fp32")


@pytest.mark.parametrize("name", ["bert", "roberta", "albert"])
def test_a_w8_score_has_the_same_bits_in_any_batch_and_padding(name: str) -> None:
    """A limit of int8: its activations share a scale with their whole batch."""
    model, shape = model_of(CONFIGS[name]), GraphShape.of(CONFIGS[name])
    weights = _body(model) | _score_head(model)
    session = ort.InferenceSession(graph.ranker(shape, weights, "w8").SerializeToString())
    rng = np.random.default_rng(4)
    for batch in ([12, 30, 5], [1, 38], [7, 7, 7, 7, 23, 2, 16]):
        feeds = feeds_of(shape, batch, seed=int(rng.integers(99)))
        together = session.run(None, feeds)[0]
        for row, length in enumerate(batch):
            alone = {key: value[row : row + 1, :length] for key, value in feeds.items()}
            assert session.run(None, alone)[0][0] == together[row]


def block_product(matrix: NDArray[np.float32]) -> ort.InferenceSession:
    """A session that gives y (rows, columns), the product of x and a matrix (inputs, columns) in 8-bit blocks."""
    inputs, columns = matrix.shape
    blocks, scales = quantisation.blockwise(matrix, quantisation.BLOCK)
    sizes = {"K": inputs, "N": columns, "bits": 8, "block_size": quantisation.BLOCK, "accuracy_level": 4}
    node = helper.make_node("MatMulNBits", ["x", "blocks", "scales"], ["y"], domain="com.microsoft", **sizes)
    ends = [helper.make_tensor_value_info(end, onnx.TensorProto.FLOAT, None) for end in "xy"]
    return session_of(
        node, ends, [numpy_helper.from_array(blocks, "blocks"), numpy_helper.from_array(scales, "scales")]
    )


def session_of(
    node: onnx.NodeProto, ends: Sequence[onnx.ValueInfoProto], stored: Sequence[onnx.TensorProto]
) -> ort.InferenceSession:
    """A session of a graph of one node with one input and one output, `ends`."""
    opsets = [helper.make_opsetid("", graph.OPSET), helper.make_opsetid("com.microsoft", 1)]
    written = helper.make_graph([node], "product", ends[:1], ends[1:], stored)
    return ort.InferenceSession(helper.make_model(written, opset_imports=opsets, ir_version=8).SerializeToString())


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 16, 33])
def test_blocks_multiply_alike_whatever_the_number_of_rows(rows: int) -> None:
    """Uses real widths, where ONNX Runtime has a kernel for few rows and one for many."""
    rng = np.random.default_rng(rows)
    matrix = rng.normal(size=(768, 96)).astype(np.float32)
    session = block_product(matrix)
    values = rng.normal(size=(64, 768)).astype(np.float32)
    all_rows = session.run(None, {"x": values})[0]
    np.testing.assert_allclose(all_rows, values @ matrix, atol=0.02 * np.abs(values @ matrix).max())
    np.testing.assert_array_equal(session.run(None, {"x": values[:rows]})[0], all_rows[:rows])


@pytest.mark.parametrize(
    ("quantise", "axis", "largest"), [(quantisation.weight_columns, 1, 64), (quantisation.embedding_rows, 0, 127)]
)
def test_whole_numbers_are_within_half_a_step(quantise: Callable[[Any], Any], axis: int, largest: int) -> None:
    matrix = np.random.default_rng(2).normal(size=(30, 20)).astype(np.float32)
    matrix[:, 3] = 0
    matrix[4] = 0
    integers, scale = quantise(matrix)
    steps = scale[:, None] if axis == 0 else scale
    assert np.all(np.abs(matrix - integers * steps) <= steps / 2 + 1e-6)
    assert np.abs(integers).max() == largest


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("inputs", [2, 64, 385])
def test_the_largest_products_are_exact_on_this_processor(inputs: int, sign: int) -> None:
    """Processors with AVX2 alone add two products in 16 bits."""
    weights, _ = quantisation.weight_columns(np.full((inputs, 24), sign, np.float32))
    kinds = {"x": onnx.TensorProto.UINT8, "y": onnx.TensorProto.INT32}
    ends = [helper.make_tensor_value_info(end, kind, None) for end, kind in kinds.items()]
    node = helper.make_node("MatMulInteger", ["x", "weights"], ["y"])
    session = session_of(node, ends, [numpy_helper.from_array(weights, "weights")])
    for rows in (1, 7, 64):
        [products] = session.run(None, {"x": np.full((rows, inputs), 255, np.uint8)})
        np.testing.assert_array_equal(products, 255 * sign * LARGEST_WEIGHT * inputs)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_products_of_blocks_are_right_on_this_processor(sign: int) -> None:
    session = block_product(np.full((130, 8), sign, np.float32))
    for rows in (1, 7, 64):
        np.testing.assert_allclose(session.run(None, {"x": np.ones((rows, 130), np.float32)})[0], sign * 130, rtol=1e-3)


@pytest.mark.parametrize("inputs", [20, 64, 130])
def test_blockwise_is_within_half_a_step_of_each_block(inputs: int) -> None:
    matrix = np.random.default_rng(2).normal(size=(inputs, 6)).astype(np.float32)
    matrix[:, 3] = 0
    blocks, scales = quantisation.blockwise(matrix, 64)
    assert blocks.shape == (6, -(-inputs // 64), 64)
    for column in range(6):
        for row in range(inputs):
            step = scales[column, row // 64]
            value = (int(blocks[column, row // 64, row % 64]) - 128) * step
            assert abs(value - matrix[row, column]) <= step / 2 + 1e-6
    assert (blocks.reshape(6, -1)[:, inputs:] == 128).all()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (DebertaV2Config(), "family 'deberta-v2'; start from bert, roberta"),
        (BertConfig(hidden_act="silu"), "activation 'silu' is not one of gelu"),
        (BertConfig(is_decoder=True), "decoders"),
        (AlbertConfig(num_hidden_groups=2), "not one of several groups"),
    ],
)
def test_what_is_not_known_is_refused_by_name(config: PretrainedConfig, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        GraphShape.of(config)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["bert", "roberta", "albert"])
def test_what_runs_is_fused_in_every_precision(name: str, precision: Precision, tmp_path: Path) -> None:
    """The graph as ONNX Runtime has made it ready, with the options of the service; in half precision as it is written,
    because a CPU has no half GELU and takes it apart."""
    model, shape = model_of(CONFIGS[name]), GraphShape.of(CONFIGS[name])
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "ready.onnx")
    options.log_severity_level = 3  # It warns that the file fits this processor only.
    written = graph.ranker(shape, _body(model) | _score_head(model), precision)
    ort.InferenceSession(
        written.SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["SkipLayerNormFusion"],
    )
    ready = written if precision == "fp16" else onnx.load(options.optimized_model_filepath)
    kinds = Counter(node.op_type for node in ready.graph.node)
    attention = {"int8": "QAttention", "w8": "MultiHeadAttention"}.get(precision, "Attention")
    assert kinds[attention] == shape.layers - 1
    assert kinds["Softmax"] == 1  # Of the last layer, which looks from the first token only.
    assert kinds["LayerNormalization"] + kinds["SkipLayerNormalization"] == 2 * shape.layers + 1
    assert kinds["Gelu"] + kinds["BiasGelu"] + kinds["FastGelu"] == shape.layers
    assert not {"Erf", "ReduceMean", "Pow", "Sqrt"} & set(kinds)  # What they would be made of.
    products = {"int8": "DynamicQuantizeMatMul", "w8": "MatMulNBits"}.get(precision)
    if products:  # Four a layer but that the first layers' three come with attention, or in one in w8.
        assert kinds[products] == 4 + (3 if precision == "int8" else 4) * (shape.layers - 1)
