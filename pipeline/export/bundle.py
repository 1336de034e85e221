"""A trained ranker or encoder as a bundle: all that the service needs to run it, without PyTorch.

bundle.json        role, digest, templates, thresholds, inputs and output, what each precision costs, which is chosen
tokenizer.json     the tokenizer, set neither to truncate nor to pad
model.fp32.onnx    the reference, whose outputs are compared with PyTorch's
model.fp16.onnx    half precision, for CUDA; normalisation, softmax and head stay in fp32
model.int8.onnx    weights from −64 to 64 and 8-bit activations, for CPUs; it runs one input at a time, because its
                   activations are scaled by the largest of the whole run
model.w8.onnx      8-bit weights in blocks: slower than int8 and nearer to fp32; other inputs of a run change no score
golden.json        inputs with their outputs in PyTorch and in each precision, compared whenever a model is loaded
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from tokenizers import Tokenizer

from pipeline.artifacts import Artifact, Staging
from pipeline.config import ExportConfig, Precision
from pipeline.export import graph, graph_shape, parity, precision, sample, traced
from pipeline.export.graph_shape import GraphShape
from pipeline.export.quantisation import Floats
from pipeline.export.sample import Input, Reader, Sample, Templates
from pipeline.export.traced import TracedModel
from pipeline.models import low_rank, sentence_transformers_format
from pipeline.models.bi_encoder import BiEncoder
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.models.families import family_of
from pipeline.recipe import to_dict
from pipeline.stage import Stage

STAGE = Stage(
    "bundle",
    version=5,  # Padding takes no part in the maximum over an encoder's tokens.
    inputs={"model": ("ranker", "teacher", "encoder"), "data": "data", "pairs": "pairs"},
    section="export",
)
"""The stage that exports a model which was trained here, and judges its precisions by nDCG."""

UNJUDGED = Stage(
    "bundle",
    version=3,  # As STAGE.
    inputs={"model": ("ranker", "encoder"), "documents": "corpus"},
    section="export",
    title="unjudged bundle",
)
"""The stage that exports a ready-made model, for which there are no judged queries."""

FORMAT = 1
"""Version of the layout of `bundle.json`; the service reads only this one, see `serving.runtime.bundle.FORMAT`."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportSource:
    """A trained model, and the parts of it that an export needs: shape, weights, tokenizer and templates."""

    model: CrossEncoder | BiEncoder
    shape: GraphShape | TracedModel
    """The layout of the graph that this project writes itself, or the model to trace where it cannot."""
    weights: Mapping[str, Floats]
    """Name of each parameter → its values."""
    tokenizer: Tokenizer
    templates: Templates
    thresholds: Sequence[float]
    """A ranker's thresholds between grades; empty for an encoder."""
    dimensions: int
    """Width of an encoder's vectors; 1 for a ranker, whose output is a score."""
    widths: Sequence[int] = ()
    """Widths at which an encoder's vectors may be cut off and scaled to unit length, the widest first."""

    @property
    def role(self) -> str:
        return "ranker" if isinstance(self.model, CrossEncoder) else "encoder"

    @classmethod
    def load(cls, folder: Path) -> "ExportSource":
        """The model in the folder of a ranker, teacher or encoder artifact.

        Raises:
            ConfigError: no ONNX graph can be written for this kind of model.
            ArtifactError, MissingError: the folder holds no readable model.
        """
        if (folder / "model" / sentence_transformers_format.DENSE).is_file():
            encoder = BiEncoder.load(folder)
            dense = {f"head.dense.{name}": _array(value) for name, value in encoder.dense.state_dict().items()}
            dense |= {f"head.earlier.{name}": _array(value) for name, value in encoder.earlier.state_dict().items()}
            return cls(
                model=encoder,
                shape=_shape(encoder),
                weights=_body(encoder.model) | dense,
                tokenizer=encoder.tokenizer,
                templates={"query": encoder.query_template, "document": encoder.document_template},
                thresholds=(),
                dimensions=encoder.dense.out_features,
                widths=encoder.widths,
            )
        ranker = CrossEncoder.load(folder)
        low_rank.factorise(ranker, ranker.ranks)
        return cls(
            model=ranker,
            shape=_shape(ranker),
            weights=_body(ranker.model) | _score_head(ranker.model),
            tokenizer=ranker.tokenizer,
            templates={"pair": ranker.template},
            thresholds=_array(ranker.thresholds).tolist(),
            dimensions=1,
        )

    def graph(self, kind: Precision, keep: Sequence[str] = ()) -> onnx.ModelProto:
        """The model as an ONNX graph.

        Args:
            kind: the precision of its numbers.
            keep: parts that stay in fp32 in an int8 or w8 graph, such as `layer.0`.
        """
        if isinstance(self.shape, TracedModel):
            return self.shape.graph(kind, keep)
        if isinstance(self.model, CrossEncoder):
            return graph.ranker(self.shape, self.weights, kind, keep, label=self.model.label)
        head = self.model.head
        return graph.encoder(
            self.shape,
            self.weights,
            kind,
            keep,
            pooling=head.pooling,
            activation=head.activation,
            earlier=head.earlier,
        )

    def torch_output(self, item: Input) -> Floats:
        """The output of PyTorch for one input: a ranker's score, (), or an encoder's vector, (dimensions,)."""
        ids = torch.tensor([item.ids])
        with torch.inference_mode():
            if isinstance(self.model, CrossEncoder):
                return _array(self.model(ids, torch.tensor([item.types]), torch.ones_like(ids))[0])
            return _array(self.model(ids, torch.ones_like(ids))[0])

    def digest(self, kept: Mapping[str, Sequence[str]]) -> str:
        """32 hex digits that change with anything that an output depends on, except the chosen precision.

        Args:
            kept: precision → parts of that model that are in fp32.
        """
        digest = hashlib.blake2b(digest_size=16)
        templates = {name: template.to_dict() for name, template in self.templates.items()}
        words = [graph.NUMBERS, self.tokenizer.to_str(), templates, list(self.thresholds)]
        words.append(sorted(f"{name} {part}" for name, parts in kept.items() for part in parts))
        if isinstance(self.model, BiEncoder) and (head := self.model.head.to_dict()):
            words.append(head | ({"padding in the maximum": False} if head.get("pooling") == "max" else {}))
        if isinstance(self.model, CrossEncoder) and self.model.label is not None:
            words.append({"label": self.model.label})
        if isinstance(self.shape, TracedModel):
            words.append(self.shape.digest_words)
        digest.update(json.dumps(words, sort_keys=True).encode())
        for name in sorted(self.weights):
            digest.update(f"{name} {self.weights[name].shape}".encode())
            digest.update(np.ascontiguousarray(self.weights[name]).tobytes())
        return digest.hexdigest()


@STAGE
def make(workspace: Path, config: ExportConfig, *, model: Artifact, data: Artifact, pairs: Artifact) -> Artifact:
    """The bundle of a ranker, teacher or encoder artifact.

    Args:
        model: an artifact of `training.ranker`, `training.teacher` or `training.encoder`.
        data, pairs: artifacts with the queries of the valid split, on which the precisions are judged.

    Raises:
        ArtifactError: ONNX gives other scores than PyTorch.
        ConfigError: no graph is known for this kind of model.
        SchemaError: there are no valid pairs.
    """

    def build(staging: Staging) -> Mapping[str, Any]:
        source = ExportSource.load(model.path)
        taken = sample.take(data, pairs, Reader(source.tokenizer, source.templates), config.sample_tokens)
        return _write_bundle(staging.folder, config, source, model, taken)

    inputs: dict[str, Artifact | str] = {"model": model, "data": data, "pairs": pairs}
    return STAGE.make(workspace, config=to_dict(config), inputs=inputs, build=build)


@UNJUDGED
def make_unjudged(
    workspace: Path, config: ExportConfig, *, model: Artifact, documents: Artifact | None = None
) -> Artifact:
    """The bundle of a ready-made model, for which there are no judged queries.

    A lower precision is judged by how it orders texts beside fp32, and its nDCG is not known.

    Args:
        model: an artifact of `models.import_stage`.
        documents: an artifact with the texts that the precisions are compared on; without it they are a few sentences
            in several languages, `sample.SENTENCES`.

    Raises:
        ArtifactError: ONNX gives other scores than PyTorch.
        ConfigError: no graph is known for this kind of model.
    """

    def build(staging: Staging) -> Mapping[str, Any]:
        source = ExportSource.load(model.path)
        texts = sample.document_texts(documents) if documents is not None else ()
        taken = sample.unjudged(Reader(source.tokenizer, source.templates), texts, config.sample_tokens)
        return _write_bundle(staging.folder, config, source, model, taken)

    inputs: dict[str, Artifact | str] = {"model": model}
    if documents is not None:
        inputs["documents"] = documents
    return UNJUDGED.make(workspace, config=to_dict(config), inputs=inputs, build=build)


def _write_bundle(
    folder: Path, config: ExportConfig, source: ExportSource, model: Artifact, taken: Sample
) -> Mapping[str, Any]:
    """Writes the files of a bundle.

    Args:
        folder: the folder to write to.
        config: the precisions, and the bounds on their losses.
        source: the model to export.
        model: the artifact that it was loaded from.
        taken: the inputs that the precisions are measured on.

    Returns:
        The fields of `bundle.json` that the artifact's manifest repeats, and the size of the sample.

    Raises:
        ArtifactError: ONNX gives other scores than PyTorch.
    """
    golden = taken.spread(config.golden)
    golden_inputs = [taken.inputs[index] for index in golden]
    path = folder / "model.fp32.onnx"
    onnx.save(source.graph("fp32"), path)
    by_torch = parity.outputs(source.torch_output, golden_inputs)
    by_onnx = parity.outputs(parity.runner(path), golden_inputs)
    largest = parity.check(golden_inputs, by_torch, by_onnx, config.parity)
    measured = _measured(folder, config, source, taken)

    source.tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    outputs = {"torch": by_torch} | {name: item.outputs[golden] for name, item in measured.items()}
    _write(folder / "golden.json", parity.golden(golden_inputs, outputs))
    bundle = _description(source, measured) | {
        "chosen": precision.choose(measured, config),
        "parity": largest,
        "source": model.fingerprint,
    }
    _write(folder / "bundle.json", bundle)
    log.debug("%s: parity %.1e", source.role, largest)
    log.info("%s", _precision_line(source.role, bundle["chosen"]["cpu"], measured))
    keys = ("role", "digest", "dimensions", "precisions", "chosen", "parity")
    return {key: bundle[key] for key in keys} | {"sample_lists": len(taken.lists), "sample_inputs": len(taken.inputs)}


def _measured(
    folder: Path, config: ExportConfig, source: ExportSource, taken: Sample
) -> Mapping[str, precision.Measured]:
    """Measures fp32, whose file is there already, and writes and measures the lower precisions; precision → figures."""
    threads = os.cpu_count() or 1
    fp32 = precision.measure(folder / "model.fp32.onnx", taken, None, threads)
    against = precision.PrecisionBaseline(
        build=source.graph, folder=folder, fp32=fp32, sample=taken, config=config, threads=threads
    )
    return {"fp32": fp32} | precision.lower(against, source.shape.parts)


def _description(source: ExportSource, measured: Mapping[str, precision.Measured]) -> dict[str, Any]:
    """The fields of `bundle.json` on the model and on what each precision costs."""
    names = {"pair": "template", "query": "query_template", "document": "document_template"}
    return {
        "format": FORMAT,
        "role": source.role,
        "digest": source.digest({name: item.fp32_parts for name, item in measured.items()}),
        **{names[name]: template.to_dict() for name, template in source.templates.items()},
        "thresholds": list(source.thresholds),
        "dimensions": source.dimensions,
        "widths": list(source.widths),
        "inputs": source.shape.inputs,
        "output": "score" if source.role == "ranker" else "embedding",
        "precisions": {name: item.to_dict() for name, item in measured.items()},
    }


def _precision_line(role: str, chosen: str, measured: Mapping[str, precision.Measured]) -> str:
    """A sentence for the log on the precision that is chosen for CPUs, compared with fp32."""

    def figures(item: precision.Measured) -> str:
        known = "" if item.ndcg is None else f", nDCG {item.ndcg:.4f}"
        return f"{item.texts_per_cpu_s:,.0f} texts per CPU-second, {item.bytes / 1e6:.1f} MB{known}"

    item, fp32 = measured[chosen], measured["fp32"]
    if chosen == "fp32":
        return f"{role}: fp32 on CPUs: {figures(fp32)}"
    return f"{role}: {chosen} on CPUs: {figures(item)}, tau {item.kendall_tau:.3f} to fp32, which has {figures(fp32)}"


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _array(value: torch.Tensor) -> Floats:
    return value.detach().float().cpu().numpy()


def check_exportable(model: CrossEncoder | BiEncoder) -> None:
    """Raises `ConfigError` for a model of which no ONNX graph can be written."""
    config = model.model.config
    if family_of(config).has_graph:
        GraphShape.of(config)
    else:
        traced.check(config)


def _shape(model: CrossEncoder | BiEncoder) -> GraphShape | TracedModel:
    config = model.model.config
    return GraphShape.of(config) if family_of(config).has_graph else TracedModel(model)


def _body(model: Any) -> dict[str, Floats]:
    """The body's parameters by BERT's names where this project writes the graph; else the whole model's by its own."""
    prefix = f"{model.base_model_prefix}."
    values = {name.removeprefix(prefix): _array(value) for name, value in model.state_dict().items()}
    family = family_of(model.config)
    return family.body_weights(values) if family.has_graph else values


def _score_head(model: Any) -> dict[str, Floats]:
    """The weights of the two layers that turn the first token's state into the score."""
    if not family_of(model.config).has_graph:
        return {}  # They are among those that `_body` returns.
    values = model.state_dict()
    dense, out = graph_shape.graph_family(model.config).head_weights(model.base_model_prefix)
    return {
        f"head.{ours}.{part}": _array(values[f"{theirs}.{part}"])
        for ours, theirs in (("dense", dense), ("out", out))
        for part in ("weight", "bias")
    }
