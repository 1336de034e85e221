"""The ONNX graph of a cross-encoder or bi-encoder, written node by node from the weights of its PyTorch model.

Written rather than traced, because a traced transformers model keeps ONNX Runtime from fusing attention, and because
the half-precision and int8 graphs then come out of the same lines as the full one. What makes it fast:

- ONNX Runtime's fused attention, on CPU and CUDA alike (QAttention in int8);
- the last layer of a cross-encoder computes the first token only, as the score reads nothing else. With a single
  query position K and V need not be made: the attention scores are x·(W_k q) and the output is W_v (p·x), the same
  numbers in another order. That takes nearly one layer in six from the cost;
- int8 and w8 weights, see `quantisation`.

Covered: the families with `has_graph` (pipeline/models/families), with absolute positions and GELU (exact or tanh) or
ReLU. The others are traced, see `traced`.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pipeline.config import Precision
from pipeline.export.graph_shape import ACTIVATIONS, EMBEDDINGS, GraphShape
from pipeline.export.quantisation import BLOCK, Floats, blockwise, embedding_rows, weight_columns

OPSET = 17
"""Version of ONNX's operators in an exported graph."""

NUMBERS = 2
"""Raise it when the same weights come to give other numbers in any precision; part of a bundle's digest."""


def ranker(
    shape: GraphShape,
    weights: Mapping[str, Floats],
    precision: Precision,
    keep: Collection[str] = (),
    *,
    label: int | None = None,
) -> onnx.ModelProto:
    """The graph of a cross-encoder: inputs (batch, tokens) int64, output `score` (batch,) float32.

    Args:
        weights: the body's parameters by the names that BERT has in transformers (`embeddings.…`, `encoder.layer.…`,
            and `embeddings.mapping.…` where embeddings are narrower than the body), and the head's: `head.dense.weight`
            and `.bias` before the activation, `head.out.weight` (labels, hidden) and `.bias` (labels,).
        precision: fp16 keeps residuals, normalisation, softmax and head in fp32; int8 and w8 all but the products of
            weights.
        keep: parts of the model (see `GraphShape.parts`) that stay fp32 in an int8 or w8 graph.
        label: the label of relevance where there are several; see `cross_encoder_head.one_score`.
    """
    write = _Writer(shape, weights, precision, keep)
    states = write.embeddings()
    for number in range(shape.layers - 1):
        states = write.layer(number, states)
    first = write.last_layer(shape.layers - 1, states)  # (batch, 1, hidden)
    pooled = write.activation(shape.head_activation, write.head(write.squeeze(first), "head.dense"))  # (batch, hidden)
    logits = write.head(pooled, "head.out")  # (batch, labels)
    if label is None:
        return write.finish("score", write.squeeze(logits), ["batch"])
    other_labels = [number for number in range(len(weights["head.out.bias"])) if number != label]
    chosen = write.node("Gather", logits, write.axis(label), axis=1)  # (batch, 1)
    rest = write.node("Gather", logits, write.axis(*other_labels), axis=1)
    rest = write.node("ReduceLogSumExp", rest, axes=[1], keepdims=1)
    return write.finish("score", write.squeeze(write.node("Sub", chosen, rest)), ["batch"])


def encoder(
    shape: GraphShape,
    weights: Mapping[str, Floats],
    precision: Precision,
    keep: Collection[str] = (),
    *,
    pooling: str = "mean",
    activation: str = "identity",
    earlier: Sequence[str] = (),
) -> onnx.ModelProto:
    """The graph of a bi-encoder: inputs (batch, tokens) int64, output `embedding` (batch, dimensions), unit length.

    Args:
        weights: the body's parameters, `head.dense.weight` (dimensions, hidden) and `.bias` (dimensions,), and of each
            layer ahead of it `head.earlier.NUMBER.weight` and `.bias`.
        precision, keep: see `ranker`.
        pooling: the way in which the states of the tokens become one vector, such as mean or cls.
        activation: the function after the projection.
        earlier: the functions after the linear layers ahead of the projection, one for each layer.
    """
    write = _Writer(shape, weights, precision, keep)
    states = write.embeddings()
    for number in range(shape.layers):
        states = write.layer(number, states)
    dense = write.pooled(states, pooling)  # (batch, hidden)
    names = [*(f"head.earlier.{number}" for number in range(len(earlier))), "head.dense"]
    for name, function in zip(names, (*earlier, activation), strict=True):
        dense = write.head(dense, name)
        if function == "tanh":
            dense = write.node("Tanh", dense)
    length = write.node("ReduceL2", dense, axes=[-1], keepdims=1)
    length = write.node("Max", length, write.constant("tiny", np.array(1e-12, np.float32)))
    return write.finish("embedding", write.node("Div", dense, length), ["batch", len(weights["head.dense.bias"])])


class _Writer:
    """Appends nodes and constants. Values that pass between its methods are float32; `half` ones say so."""

    def __init__(
        self, shape: GraphShape, weights: Mapping[str, Floats], precision: Precision, keep: Collection[str]
    ) -> None:
        self.shape = shape
        self.weights = weights
        self.half = precision == "fp16"
        self.blocks = precision == "w8"
        self.exact = set(keep) if precision in ("int8", "w8") else set(shape.parts)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.mask = self.node("Cast", "attention_mask", to=TensorProto.INT32)
        self.real = self.node("Cast", "attention_mask", to=TensorProto.FLOAT)

    def node(self, op: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> str:
        """Appends a node. The name of its output; more outputs are called name.1, name.2, …"""
        name = f"{op}_{len(self.nodes)}"
        names = [name, *(f"{name}.{number}" for number in range(1, outputs))]
        self.nodes.append(helper.make_node(op, inputs, names, name=name, domain=domain, **attributes))
        return name

    def fused(self, op: str, *inputs: str, **attributes: Any) -> str:
        """A node of ONNX Runtime's own."""
        return self.node(op, *inputs, domain="com.microsoft", **attributes)

    def constant(self, name: str, value: NDArray[Any]) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def axis(self, *numbers: int) -> str:
        """Whole numbers, for axes, bounds and shapes."""
        return self.constant(f"int.{'.'.join(map(str, numbers))}", np.array(numbers, np.int64))

    def parameter(self, name: str) -> str:
        return self.constant(name, self.weights[name])

    def low(self, name: str, value: NDArray[Any]) -> str:
        """A constant in half precision where the graph is; too large a number becomes infinite, which is measured."""
        with np.errstate(over="ignore"):
            return self.constant(name, value.astype(np.float16) if self.half else value)

    def to_half(self, value: str) -> str:
        return self.node("Cast", value, to=TensorProto.FLOAT16) if self.half else value

    def to_single(self, value: str) -> str:
        return self.node("Cast", value, to=TensorProto.FLOAT) if self.half else value

    def squeeze(self, value: str) -> str:
        return self.node("Squeeze", value, self.axis(1))

    def columns(self, name: str) -> Floats:
        """A linear layer's weight as ONNX multiplies it, (in, out)."""
        return self.weights[f"{name}.weight"].T

    def embeddings(self) -> str:
        """Words, positions and segments, added and normalised, (batch, tokens, hidden)."""
        words = self.words()
        positions = self.weights["embeddings.position_embeddings.weight"][self.shape.first_position :]
        types = self.weights["embeddings.token_type_embeddings.weight"]
        tokens = self.node("Shape", "input_ids", start=1, end=2)
        if self.shape.types > 1:
            position_vectors = self.node("Slice", self.constant("positions", positions), self.axis(0), tokens)
            position_vectors = self.node(
                "Add", self.node("Gather", self.constant("types", types), "token_type_ids"), position_vectors
            )
        else:
            position_vectors = self.node(
                "Slice", self.constant("positions", positions + types[0]), self.axis(0), tokens
            )
        states = self.norm(self.node("Add", words, position_vectors), "embeddings.LayerNorm")
        if "embeddings.mapping.weight" not in self.weights:
            return states
        product = self.node("MatMul", states, self.constant("mapping", self.columns("embeddings.mapping")))
        return self.node("Add", product, self.parameter("embeddings.mapping.bias"))

    def words(self) -> str:
        """The word embeddings of the input, (batch, tokens, hidden) float32."""
        name = "embeddings.word_embeddings"
        factored = f"{name}.first.weight" in self.weights
        table = self.weights[f"{name}.first.weight" if factored else f"{name}.weight"]
        if EMBEDDINGS in self.exact:
            words = self.node("Gather", self.low("words", table), "input_ids")
        else:
            rows, scales = embedding_rows(table)
            words = self.node("Gather", self.constant("words.int8", rows), "input_ids")
            scale = self.node("Gather", self.constant("words.scale", scales[:, None]), "input_ids")
            words = self.node("Mul", self.node("Cast", words, to=TensorProto.FLOAT), scale)
        if factored:  # Narrow rows, which a small matrix widens.
            words = self.node("MatMul", words, self.low("words.second", self.columns(f"{name}.second")))
        return self.to_single(words)

    def norm(self, value: str, name: str) -> str:
        scales = self.parameter(f"{name}.weight"), self.parameter(f"{name}.bias")
        return self.node("LayerNormalization", value, *scales, axis=-1, epsilon=self.shape.epsilon)

    def name(self, number: int) -> str:
        """Where the weights of a layer are."""
        return f"encoder.layer.{0 if self.shape.shared else number}"

    def linear(self, value: str, name: str, number: int) -> str:
        """x · W + b of a layer, W perhaps as two factors; in half precision from half to half."""
        if f"{name}.first.weight" in self.weights:
            value, name = self.product(value, f"{name}.first", number, bias=False), f"{name}.second"
        return self.product(value, name, number, bias=True)

    def product(self, value: str, name: str, number: int, *, bias: bool) -> str:
        """x · W + b of a stored matrix of a layer, or x · W without a bias."""
        matrix = self.columns(name)
        if f"layer.{number}" in self.exact:
            product = self.node("MatMul", value, self.low(name, matrix))
            return (
                self.node("Add", product, self.low(f"{name}.bias", self.weights[f"{name}.bias"])) if bias else product
            )
        added = self.parameter(f"{name}.bias") if bias else ""
        if self.blocks:
            return self.block_product(value, name, matrix, added)
        return self.fused("DynamicQuantizeMatMul", value, *self.integers(name, matrix), added)

    def block_product(self, value: str, name: str, matrix: Floats, bias: str) -> str:
        """x · W + b with W in blocks, b perhaps empty; at accuracy level 4 the product is one of whole numbers."""
        weight, scales = blockwise(matrix, BLOCK)
        stored = self.constant(f"{name}.blocks", weight), self.constant(f"{name}.scales", scales)
        sizes = {"K": matrix.shape[0], "N": matrix.shape[1], "block_size": BLOCK}
        return self.fused("MatMulNBits", value, *stored, "", "", bias, bits=8, accuracy_level=4, **sizes)

    def integers(self, name: str, matrix: Floats) -> tuple[str, str, str]:
        """An int8 matrix, its columns' scales and its zero points."""
        weight, scales = weight_columns(matrix)
        zeros = np.zeros(len(scales), np.int8)
        return (
            self.constant(f"{name}.int8", weight),
            self.constant(f"{name}.scale", scales),
            self.constant(f"{name}.zero", zeros),
        )

    def layer(self, number: int, states: str) -> str:
        """One layer over all tokens, (batch, tokens, hidden) to the same."""
        name = f"{self.name(number)}.attention.self"
        thirds = [f"{name}.{part}" for part in ("query", "key", "value")]
        packed = np.concatenate([self.columns(third) for third in thirds], axis=1)  # (hidden, 3 · hidden)
        bias = np.concatenate([self.weights[f"{third}.bias"] for third in thirds])
        heads = {"num_heads": self.shape.heads}
        if f"layer.{number}" in self.exact:
            inputs = self.to_half(states), self.low(name, packed), self.low(f"{name}.bias", bias), self.mask
            return self.feed_forward(number, self.fused("Attention", *inputs, **heads), states)
        stored_bias = self.constant(f"{name}.bias", bias)
        if self.blocks:
            product = self.block_product(states, name, packed, stored_bias)  # (batch, tokens, 3 · hidden)
            split = self.node("Split", product, outputs=3, axis=-1)
            mixed = self.fused("MultiHeadAttention", split, f"{split}.1", f"{split}.2", "", self.mask, **heads)
            return self.feed_forward(number, mixed, states)
        weight, scale, zero = self.integers(name, packed)
        data = self.node("DynamicQuantizeLinear", states, outputs=3)
        inputs = data, weight, stored_bias, f"{data}.1"
        mixed = self.fused("QAttention", *inputs, scale, self.mask, f"{data}.2", zero, **heads)
        return self.feed_forward(number, mixed, states)

    def last_layer(self, number: int, states: str) -> str:
        """The last layer for the first token only, (batch, tokens, hidden) to (batch, 1, hidden)."""
        name = f"{self.name(number)}.attention.self"
        heads, hidden = self.shape.heads, self.shape.hidden
        width = hidden // heads
        first = self.node("Slice", states, self.axis(0), self.axis(1), self.axis(1))  # (batch, 1, hidden)
        query = self.linear(self.to_half(first), f"{name}.query", number)
        query = self.node("Reshape", query, self.axis(-1, heads, 1, width))
        # Without the key's bias, which adds the same to all of a query's attention scores.
        keys = self.columns(f"{name}.key").reshape(hidden, heads, width).transpose(1, 2, 0) * width**-0.5
        looks = self.node("MatMul", query, self.low(f"{name}.key.by_head", keys.astype(np.float32)))
        looks = self.node("Reshape", looks, self.axis(-1, heads, hidden))
        tokens = self.to_half(states)
        attention = self.node("MatMul", looks, self.node("Transpose", tokens, perm=[0, 2, 1]))  # (batch, heads, tokens)
        shares = self.node("Softmax", self.node("Add", self.to_single(attention), self.penalty()), axis=-1)
        mixed = self.node("MatMul", self.to_half(shares), tokens)  # (batch, heads, hidden)
        values = self.columns(f"{name}.value").reshape(hidden, heads, width).transpose(1, 0, 2)
        mixed = self.node(
            "MatMul", self.node("Unsqueeze", mixed, self.axis(2)), self.low(f"{name}.value.by_head", values)
        )
        mixed = self.node("Reshape", mixed, self.axis(-1, 1, hidden))
        bias = self.low(f"{name}.value.bias", self.weights[f"{name}.value.bias"])  # Whole: the shares sum to one.
        return self.feed_forward(number, self.node("Add", mixed, bias), first)

    def feed_forward(self, number: int, context: str, states: str) -> str:
        """The part of a layer after attention's heads; `context` is half where the graph is, `states` never."""
        name = self.name(number)
        mixed = self.to_single(self.linear(context, f"{name}.attention.output.dense", number))
        states = self.norm(self.node("Add", mixed, states), f"{name}.attention.output.LayerNorm")
        inner = self.linear(self.to_half(states), f"{name}.intermediate.dense", number)
        inner = self.activation(ACTIVATIONS[self.shape.activation], inner)
        outer = self.to_single(self.linear(inner, f"{name}.output.dense", number))
        return self.norm(self.node("Add", outer, states), f"{name}.output.LayerNorm")

    def activation(self, operator: str, value: str) -> str:
        return self.node(operator, value, domain="com.microsoft" if operator.endswith("Gelu") else "")

    def head(self, value: str, name: str) -> str:
        weight, bias = self.parameter(f"{name}.weight"), self.parameter(f"{name}.bias")
        return self.node("Gemm", value, weight, bias, transB=1)

    def penalty(self) -> str:
        """0 at each token and a large negative number at padding, (batch, 1, tokens)."""
        missing = self.node("Sub", self.real, self.constant("one", np.array(1, np.float32)))
        large = self.constant("large", np.array(1e4, np.float32))
        return self.node("Unsqueeze", self.node("Mul", missing, large), self.axis(1))

    def pooled(self, states: str, pooling: str) -> str:
        """One vector of the states of all tokens, (batch, tokens, hidden) to (batch, hidden)."""
        if pooling == "cls":
            return self.squeeze(self.node("Slice", states, self.axis(0), self.axis(1), self.axis(1)))
        if pooling == "max":
            penalty = self.node("Transpose", self.penalty(), perm=[0, 2, 1])  # (batch, tokens, 1)
            return self.node("ReduceMax", self.node("Add", states, penalty), axes=[1], keepdims=0)
        if pooling == "lasttoken":
            return self.squeeze(self.node("MatMul", self.last_token(), states))
        return self.squeeze(self.node("MatMul", self.mean_shares(), states))

    def last_token(self) -> str:
        """1 at the last token and 0 elsewhere, (batch, 1, tokens)."""
        after = self.node("CumSum", self.real, self.constant("last axis", np.array(1, np.int64)), reverse=1)
        is_last = self.node("Equal", self.node("Cast", after, to=TensorProto.INT32), self.constant_one())
        real = self.node("Mul", self.node("Cast", is_last, to=TensorProto.FLOAT), self.real)
        return self.node("Unsqueeze", real, self.axis(1))

    def constant_one(self) -> str:
        return self.constant("one.int32", np.array(1, np.int32))

    def mean_shares(self) -> str:
        """One over the number of tokens at each token, 0 at padding, (batch, 1, tokens)."""
        count = self.node("ReduceSum", self.real, self.axis(-1), keepdims=1)
        share = self.node("Div", self.real, self.node("Max", count, self.constant("one", np.array(1, np.float32))))
        return self.node("Unsqueeze", share, self.axis(1))

    def finish(self, name: str, value: str, dimensions: list[str | int]) -> onnx.ModelProto:
        """The model, with `value` as its only output."""
        self.nodes.append(helper.make_node("Identity", [value], [name], name=name))
        inputs = [
            helper.make_tensor_value_info(key, TensorProto.INT64, ["batch", "tokens"]) for key in self.shape.inputs
        ]
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, dimensions)
        graph = helper.make_graph(self.nodes, "relevance", inputs, [output], list(self.constants.values()))
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="search-relevance")
