"""The ONNX graph of a family that `graph` does not write: traced by torch's exporter from the family's own parts.

The traced model is the one that trains: embeddings, layers from `packed.whole_layer`, the last layer for the first
token alone where the score reads no other. Lower precisions are made of the fp32 graph: each product with a stored
matrix becomes the node that `graph` writes for it, so the numbers are rounded in the same way. Rotary and relative
positions and local windows are computed inside the graph from the length of its input, which the service never pads on
a CPU.
"""

import ast
import copy
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from pipeline.config import Precision
from pipeline.errors import ConfigError
from pipeline.export import graph_shape, quantisation
from pipeline.models import packed
from pipeline.models.base_models import quiet
from pipeline.models.bi_encoder import BiEncoder
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.models.cross_encoder_head import one_score
from pipeline.models.families import family_of

HEAD = "head"
"""Name of the part after the last layer, which stays fp32."""

SCOPES = "pkg.torch.onnx.name_scopes"
"""Key of a node's metadata: the modules that it was traced in, from the outside inwards."""

OPSET = 18
"""Version of ONNX's operators in an exported graph."""

TRACED = 1
"""Raise it when the same weights come to give other numbers; part of a bundle's digest."""

SMALLEST = 1024
"""Matrices of fewer numbers stay fp32: they take no time."""

RESULT = "relevance.result"
"""Name of the traced output, which no value inside a model has."""

TRACED_TOKENS = 12
"""Tokens of the input that is traced; the graph takes any number."""


class _Embeddings(nn.Module):
    def __init__(self, owner: Any) -> None:
        super().__init__()
        self.body, self.family = owner.model.base_model, family_of(owner.model.config)

    def forward(self, ids: Tensor, types: Tensor | None) -> Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device)[None] + self.family.first_position(self.body.config)
        return self.family.embed(self.body, ids, types, positions.expand(ids.shape[0], -1))


class _Layer(nn.Module):
    def __init__(self, owner: Any, number: int, *, first_only: bool) -> None:
        super().__init__()
        self.body, self.family = owner.model.base_model, family_of(owner.model.config)
        self.number, self.first_only = number, first_only

    def forward(self, states: Tensor, added: Tensor) -> Tensor:
        run = packed.first_token if self.first_only else packed.whole_layer
        return run(self.family, self.body, self.number, states, added)


class _Score(nn.Module):
    def __init__(self, owner: CrossEncoder) -> None:
        super().__init__()
        self.model, self.family, self.label = owner.model, owner.family, owner.label

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        states = self.family.finish(self.model.base_model, states)
        return one_score(self.family.score(self.model, self.family.pooled(self.model, states, mask)), self.label)


class _Vector(nn.Module):
    def __init__(self, owner: BiEncoder) -> None:
        super().__init__()
        self.owner, self.family = owner, family_of(owner.model.config)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        states = self.family.finish(self.owner.model.base_model, states)
        return self.owner.project(self.owner.pool(states, mask))


class _Whole(nn.Module):
    """A cross-encoder or bi-encoder as modules whose names are the parts of `TracedModel.parts`."""

    def __init__(self, owner: CrossEncoder | BiEncoder) -> None:
        super().__init__()
        config: Any = owner.model.config
        depth, family = int(config.num_hidden_layers), family_of(config)
        ranks = isinstance(owner, CrossEncoder)
        first_only = ranks and family.reads_first_token(config)
        self.embeddings = _Embeddings(owner)
        self.layer = nn.ModuleList(
            _Layer(owner, number, first_only=first_only and number == depth) for number in range(1, depth + 1)
        )
        self.head: nn.Module = _Score(owner) if isinstance(owner, CrossEncoder) else _Vector(owner)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        states = self.embeddings(input_ids, token_type_ids)
        added = packed.padding(attention_mask, states.dtype)
        for layer in self.layer:
            states = layer(states, added)
        result: Tensor = self.head(states, attention_mask)
        return result


class TracedModel:
    """A model whose graph is traced once, and given in any precision."""

    def __init__(self, owner: CrossEncoder | BiEncoder) -> None:
        """
        Raises:
            ConfigError: a family that can only teach, or whose layers do not come apart.
        """
        config: Any = owner.model.config
        check(config)
        self.digest_words = [TRACED, config.to_dict()]
        """Words of a bundle's digest beside the weights: settings such as a window change scores too."""
        self.role = "ranker" if isinstance(owner, CrossEncoder) else "encoder"
        self.types = isinstance(owner, CrossEncoder) and family_of(config).segments(config) > 1
        self.layers = int(config.num_hidden_layers)
        self._fp32 = self._trace(owner)

    @property
    def inputs(self) -> list[str]:
        return ["input_ids", "attention_mask", *(["token_type_ids"] if self.types else [])]

    @property
    def parts(self) -> list[str]:
        """The names of the parts that can be kept in fp32: the embeddings and each layer."""
        return [graph_shape.EMBEDDINGS, *(f"layer.{number}" for number in range(self.layers))]

    def graph(self, precision: Precision, keep: Collection[str] = ()) -> onnx.ModelProto:
        """The graph: inputs (batch, tokens) int64; output `score` (batch,) or `embedding` (batch, dimensions).

        Args:
            keep: parts that stay fp32 in an int8 or w8 graph.

        Raises:
            ConfigError: a precision that traced graphs do not have.
        """
        if precision == "fp32":
            return _bare(self._fp32)
        if precision == "fp16":
            return _bare(_halved(self._fp32))
        return _bare(_Lowered(self._fp32, precision, set(keep)).model)

    def _trace(self, owner: CrossEncoder | BiEncoder) -> onnx.ModelProto:
        kind = owner.model.config._attn_implementation
        training = owner.training
        owner.model.set_attn_implementation("eager")
        ids = torch.full((2, TRACED_TOKENS), 3)
        given = [ids, torch.ones_like(ids), *([torch.zeros_like(ids)] if self.types else [])]
        sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
        output = "score" if self.role == "ranker" else "embedding"
        try:
            with quiet(), torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # About torch's own use of its trees, and axes of one name.
                program = torch.onnx.export(
                    _Whole(owner).eval(),
                    tuple(given),
                    dynamo=True,
                    opset_version=OPSET,
                    input_names=self.inputs,
                    output_names=[RESULT],
                    dynamic_shapes=tuple(sizes for _ in given),
                    verbose=False,
                )
        finally:
            owner.model.set_attn_implementation(kind)
            owner.train(training)
        assert program is not None
        return _named(program.model_proto, output)


def _named(model: onnx.ModelProto, output: str) -> onnx.ModelProto:
    """The model with its only output called so, whatever values inside it are called."""
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [f"{name}.inner" if name == output else name for name in names]
    model.graph.node.append(helper.make_node("Identity", [RESULT], [output], name=output))
    model.graph.output[0].name = output
    del model.graph.value_info[:]
    return model


def _bare(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the notes of the exporter, which name files of this machine."""
    bare = copy.deepcopy(model)
    del bare.metadata_props[:], bare.graph.metadata_props[:], bare.graph.value_info[:]
    for item in (*bare.graph.node, *bare.graph.initializer, *bare.graph.input, *bare.graph.output):
        del item.metadata_props[:]
        item.doc_string = ""
    return bare


def check(config: Any) -> None:
    """Checks that a model of this config can be traced for export.

    Raises:
        ConfigError: a model that can only teach, or whose layers do not come apart.
    """
    family = family_of(config)
    if "serve" not in family.offers or not family.splits(config):
        raise ConfigError(
            f"export: a {config.model_type} model of this kind can teach, but not be served; take another base for "
            "the ranker and the encoder"
        )


class _Lowered:
    """A copy of an fp32 graph whose products with stored matrices, and word embeddings, are in whole numbers."""

    def __init__(self, fp32: onnx.ModelProto, precision: Precision, keep: Collection[str]) -> None:
        self.model = copy.deepcopy(fp32)
        self.precision, self.keep = precision, keep
        stored = self.model.graph.initializer
        self.arrays: Mapping[str, NDArray[Any]] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in stored if tensor.data_type == TensorProto.FLOAT
        }
        self.added: dict[str, onnx.TensorProto] = {}
        fixed = {tensor.name for tensor in stored}
        nodes: list[onnx.NodeProto] = []
        for node in self.model.graph.node:
            if node.op_type != "Shape" and all(name in fixed or not name for name in node.input):
                fixed.update(node.output)  # Computed once, when the graph is loaded.
                nodes.append(node)
            else:
                nodes.extend(self._lowered(node))
        del self.model.graph.node[:]
        self.model.graph.node.extend(nodes)
        used = {name for node in nodes for name in node.input}
        kept = [tensor for tensor in (*stored, *self.added.values()) if tensor.name in used]
        del self.model.graph.initializer[:]
        self.model.graph.initializer.extend(kept)
        del self.model.graph.value_info[:]
        if not any(item.domain == "com.microsoft" for item in self.model.opset_import):
            self.model.opset_import.append(helper.make_opsetid("com.microsoft", 1))

    def _lowered(self, node: onnx.NodeProto) -> Sequence[onnx.NodeProto]:
        part = _part(node)
        if part is None or part in self.keep:
            return [node]
        if node.op_type == "MatMul" and (matrix := self._matrix(node.input[1])) is not None:
            return [self._product(node, matrix)]
        is_words = part == graph_shape.EMBEDDINGS and node.op_type == "Gather" and node.input[1] == "input_ids"
        if is_words and (table := self._matrix(node.input[0])) is not None:
            return self._words(node, table)
        return [node]

    def _matrix(self, name: str) -> NDArray[np.float32] | None:
        array = self.arrays.get(name)
        return array if array is not None and array.ndim == 2 and array.size >= SMALLEST else None

    def _store(self, name: str, value: NDArray[Any]) -> str:
        if name not in self.added:
            self.added[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def _product(self, node: onnx.NodeProto, matrix: NDArray[np.float32]) -> onnx.NodeProto:
        states, name = node.input
        if self.precision == "w8":
            blocks, scales = quantisation.blockwise(matrix, quantisation.BLOCK)
            inputs = [states, self._store(f"{name}.blocks", blocks), self._store(f"{name}.scales", scales)]
            sizes = {"K": matrix.shape[0], "N": matrix.shape[1], "block_size": quantisation.BLOCK}
            more: dict[str, Any] = {**sizes, "bits": 8, "accuracy_level": 4}
            kind = "MatMulNBits"
        else:
            rows, scales = quantisation.weight_columns(matrix)
            inputs = [states, self._store(f"{name}.int8", rows), self._store(f"{name}.scale", scales)]
            inputs.append(self._store(f"{name}.zero", np.zeros(len(scales), np.int8)))
            more, kind = {}, "DynamicQuantizeMatMul"
        return helper.make_node(kind, inputs, list(node.output), name=node.name, domain="com.microsoft", **more)

    def _words(self, node: onnx.NodeProto, table: NDArray[np.float32]) -> Sequence[onnx.NodeProto]:
        rows, scales = quantisation.embedding_rows(table)
        name, (ids, output) = node.input[0], (node.input[1], node.output[0])
        stored = self._store(f"{name}.int8", rows), self._store(f"{name}.scale", scales[:, None])
        return [
            helper.make_node("Gather", [stored[0], ids], [f"{output}.int8"]),
            helper.make_node("Cast", [f"{output}.int8"], [f"{output}.real"], to=TensorProto.FLOAT),
            helper.make_node("Gather", [stored[1], ids], [f"{output}.scale"]),
            helper.make_node("Mul", [f"{output}.real", f"{output}.scale"], [output]),
        ]


def _part(node: onnx.NodeProto) -> str | None:
    """The part that a node belongs to; None for the head and what no module made."""
    for item in node.metadata_props:
        if item.key == SCOPES:
            scopes = [str(name) for name in _names(item.value)]
            part = scopes[1] if len(scopes) > 1 else ""
            return part if part == graph_shape.EMBEDDINGS or part.startswith("layer.") else None
    return None


def _names(value: str) -> Sequence[str]:
    names = ast.literal_eval(value)
    assert isinstance(names, list)
    return names


def _halved(fp32: onnx.ModelProto) -> onnx.ModelProto:
    """The graph in half precision, for CUDA; normalisation, softmax, positions and head in fp32."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    single = ["LayerNormalization", "Softmax", "Cos", "Sin", "Log", "Gemm", "ReduceSum", "ReduceL2"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Numbers that half precision cannot hold are cut; the loss is measured.
        model: onnx.ModelProto = convert_float_to_float16(
            copy.deepcopy(fp32), keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *single]
        )
    # The conversion casts a value once for each operator that reads it, all under one name: the first is enough.
    nodes = {node.output[0]: node for node in reversed(model.graph.node)}
    ordered = [node for node in model.graph.node if nodes[node.output[0]] is node]
    del model.graph.node[:]
    model.graph.node.extend(ordered)
    return model
