"""The choice of a precision, and the relief of one that loses too much."""

import dataclasses
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from pipeline.config import ExportConfig
from pipeline.errors import ArtifactError, ConfigError, SchemaError
from pipeline.evaluation.metrics import ndcg
from pipeline.export import parity, precision, sample, sensitivity
from pipeline.export.bundle import ExportSource
from pipeline.export.precision import Measured, agreement, choose
from pipeline.export.sample import Reader, Sample

FINE = ExportConfig(max_ndcg_drop=1.0, min_kendall_tau=-1.0)


def lower(
    source: Any, folder: Path, fp32: precision.Measured, taken: Any, config: Any
) -> dict[str, precision.Measured]:
    against = precision.PrecisionBaseline(
        build=source.graph, folder=folder, fp32=fp32, sample=taken, config=config, threads=1
    )
    return precision.lower(against, source.shape.parts)


def source_and_sample(untrained: Any, name: str) -> tuple[ExportSource, Sample]:
    source = ExportSource.load(getattr(untrained, name).path)
    return source, sample.take(untrained.data, untrained.pairs, Reader(source.tokenizer, source.templates), 10_000)


def reference(source: ExportSource, taken: Sample, folder: Path) -> Measured:
    path = folder / "model.fp32.onnx"
    onnx.save(source.graph("fp32"), path)
    return precision.measure(path, taken, None, 1)


def measured(**values: Any) -> Measured:
    fields = {"ndcg": 0.5, "kendall_tau": 1.0, "texts_per_cpu_s": 10.0, "max_change": 0.0, "min_cosine": 1.0}
    return Measured(file="", bytes=1, mean_tokens=1.0, outputs=np.zeros(1, np.float32), **(fields | values))


def test_a_sample_holds_the_whole_lists_of_valid_queries(untrained: Any) -> None:
    _, pairs = source_and_sample(untrained, "ranker")
    _, texts = source_and_sample(untrained, "encoder")
    for taken in (pairs, texts):
        assert len(taken.lists) == 6
        assert all(len(item.documents) == 8 for item in taken.lists)
    assert len(pairs.inputs) == 48
    assert len(texts.inputs) < 6 + 48  # A document that two queries share is embedded once.
    few = source_and_sample(untrained, "ranker")[0]
    assert len(sample.take(untrained.data, untrained.pairs, Reader(few.tokenizer, few.templates), 1).lists) == 1


def test_inputs_are_those_of_the_tokenizer_itself(untrained: Any) -> None:
    source, taken = source_and_sample(untrained, "ranker")
    for item in taken.inputs:
        encoded = source.model.hub_tokenizer(item.source["query"], item.source["document"])
        if len(encoded["input_ids"]) <= 48 and len(source.tokenizer.encode(item.source["query"]).ids) <= 12:
            assert list(item.ids) == encoded["input_ids"]
            assert list(item.types) == encoded["token_type_ids"]


def test_a_spread_goes_from_the_shortest_to_the_longest(untrained: Any) -> None:
    _, taken = source_and_sample(untrained, "ranker")
    lengths = [len(taken.inputs[index].ids) for index in taken.spread(10)]
    assert lengths == sorted(lengths)
    assert len(lengths) == 10
    assert {lengths[0], lengths[-1]} == {f([len(item.ids) for item in taken.inputs]) for f in (min, max)}
    assert sorted(taken.spread(1000)) == list(range(48))


def test_measured_ndcg_is_that_of_pytorch_scores(untrained: Any, tmp_path: Path) -> None:
    source, taken = source_and_sample(untrained, "encoder")
    reference_figures = reference(source, taken, tmp_path)
    values = []
    for item in taken.lists:
        query = source.torch_output(taken.inputs[item.query or 0])
        scores = [float(query @ source.torch_output(taken.inputs[index])) for index in item.documents]
        values.append(ndcg(item.grades, scores, k=10, ids=item.doc_ids))
    assert reference_figures.ndcg == pytest.approx(np.mean(values), abs=1e-6)
    assert (reference_figures.max_change, reference_figures.kendall_tau) == (0.0, pytest.approx(1.0))


@pytest.mark.parametrize("seed", range(5))
def test_agreement_is_the_surplus_of_concordant_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ours = [rng.normal(size=9).astype(np.float32) for _ in range(4)]
    theirs = [values + rng.normal(size=9).astype(np.float32) for values in ours]
    taus = [
        np.mean([np.sign((a[i] - a[j]) * (b[i] - b[j])) for i, j in combinations(range(9), 2)])
        for a, b in zip(ours, theirs, strict=True)
    ]
    assert agreement(ours, theirs) == pytest.approx(np.mean(taus))


def test_agreement_leaves_out_lists_without_an_order_but_not_a_lost_order() -> None:
    order, level = np.arange(4, dtype=np.float32), np.zeros(4, np.float32)
    assert agreement([level, order], [level, order]) == pytest.approx(1)
    assert agreement([level], [order]) == 0
    assert agreement([], []) == 1


FAST, LOSSY = {"texts_per_cpu_s": 30.0}, {"kendall_tau": 0.5}


@pytest.mark.parametrize(
    ("int8", "fp16", "w8", "expected"),
    [
        (FAST, {}, {}, {"cpu": "int8", "cuda": "fp16"}),
        ({"texts_per_cpu_s": 9.0}, FAST, {"texts_per_cpu_s": 8.0}, {"cpu": "fp32", "cuda": "fp16"}),
        (FAST | LOSSY, LOSSY, {"texts_per_cpu_s": 20.0}, {"cpu": "w8", "cuda": "fp32"}),
        (FAST, {}, {"texts_per_cpu_s": 31.0}, {"cpu": "w8", "cuda": "fp16"}),
        (FAST | {"ndcg": 0.49}, LOSSY, FAST | LOSSY, {"cpu": "fp32", "cuda": "fp32"}),
        (FAST | {"ndcg": 0.6}, {"ndcg": 0.4}, {}, {"cpu": "int8", "cuda": "fp32"}),
    ],
)
def test_the_fastest_that_keeps_the_bounds_is_chosen(
    int8: dict[str, Any], fp16: dict[str, Any], w8: dict[str, Any], expected: dict[str, str]
) -> None:
    figures = {"fp32": measured(), "int8": measured(**int8), "fp16": measured(**fp16), "w8": measured(**w8)}
    assert choose(figures, ExportConfig()) == expected
    assert choose({"fp32": measured()}, ExportConfig()) == {"cpu": "fp32", "cuda": "fp32"}


def test_the_part_that_int8_harms_goes_back_to_fp32(untrained: Any, tmp_path: Path) -> None:
    source, taken = source_and_sample(untrained, "ranker")
    name = "encoder.layer.0.output.dense"
    weights = dict(source.weights)
    # The first inner unit is far from zero and nothing reads it: without effect, but it stretches the range of the
    # activations, so that int8 has few steps left for the others.
    weights["encoder.layer.0.intermediate.dense.bias"] = weights["encoder.layer.0.intermediate.dense.bias"].copy()
    weights["encoder.layer.0.intermediate.dense.bias"][0] = 3000
    weights[f"{name}.weight"] = weights[f"{name}.weight"].copy()
    weights[f"{name}.weight"][:, 0] = 0
    source = replace(source, weights=weights)
    fp32 = reference(source, taken, tmp_path)
    strict = ExportConfig(precisions=("fp32", "int8"), max_ndcg_drop=1.0, min_kendall_tau=0.85)
    blind = lower(source, tmp_path, fp32, taken, replace_tau(strict, -1))
    assert blind["int8"].kendall_tau < 0.85
    assert blind["int8"].fp32_parts == ()
    figures = lower(source, tmp_path, fp32, taken, strict)
    assert figures["int8"].fp32_parts == ("layer.0",)
    assert figures["int8"].kendall_tau >= 0.85
    harm = figures["int8"].sensitivity
    assert harm == blind["int8"].sensitivity
    assert harm["layer.0"] > 10 * max(harm["embeddings"], harm["layer.1"])
    assert (figures["int8"].file, figures["int8"].bytes) == (
        "model.int8.onnx",
        (tmp_path / "model.int8.onnx").stat().st_size,
    )
    assert not (tmp_path / "model.trial.onnx").exists()
    impossible = lower(source, tmp_path, fp32, taken, replace_tau(strict, 1))
    assert choose({"fp32": fp32, **impossible}, replace_tau(strict, 1))["cpu"] == "fp32"


@pytest.mark.parametrize("name", ["ranker", "encoder"])
def test_sensitivity_is_what_one_part_alone_changes(untrained: Any, tmp_path: Path, name: str) -> None:
    source, taken = source_and_sample(untrained, name)
    fp32 = reference(source, taken, tmp_path)
    changes = sensitivity.scan(source.graph, "w8", source.shape.parts, taken, fp32.outputs, 2)
    assert set(changes) == {"embeddings", "layer.0", "layer.1"}
    # The table rounded by hand, in an fp32 graph.
    table = source.weights["embeddings.word_embeddings.weight"]
    steps = np.maximum(np.abs(table).max(axis=1, keepdims=True), np.float32(1e-9)) / 127
    rounded = source.weights | {"embeddings.word_embeddings.weight": np.rint(table / steps) * steps}
    run = parity.runner(replace(source, weights=rounded).graph("fp32").SerializeToString())
    indices = taken.spread(sensitivity.SCAN_INPUTS)
    gaps = [np.linalg.norm(run(taken.inputs[index]) - fp32.outputs[index]) for index in indices]
    assert changes["embeddings"] == pytest.approx(np.mean(gaps), rel=1e-2)
    assert changes["layer.0"] > 0
    assert changes["layer.1"] > 0


def replace_tau(config: ExportConfig, tau: float) -> ExportConfig:
    return replace(config, min_kendall_tau=tau)


def test_a_precision_that_overflows_is_left_out_and_fp32_refused(
    untrained: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, taken = source_and_sample(untrained, "ranker")
    weights = dict(source.weights)
    weights["encoder.layer.1.output.dense.bias"] = np.full(32, 1e6, np.float32)  # Half precision ends at 65504.
    large = replace(source, weights=weights)
    figures = lower(large, tmp_path, reference(large, taken, tmp_path), taken, FINE)
    assert set(figures) == {"int8", "w8"}
    assert not (tmp_path / "model.fp16.onnx").exists()
    assert "fp16 is left out" in caplog.text
    weights["head.out.bias"] = np.full(1, np.nan, np.float32)
    with pytest.raises(ArtifactError, match=r"model\.fp32\.onnx: an output is not a finite number"):
        reference(replace(source, weights=weights), taken, tmp_path)


def test_parity_names_the_text_and_the_knob() -> None:
    items = [sample.Input({"query": "good", "document": "fine"}, [1], [0])] * 2
    outputs = np.array([0.5, 1.0], np.float32)
    assert parity.check(items, outputs, outputs + np.float32(0.25), 0.3) == pytest.approx(0.25 / 1.5)
    assert parity.check(items, outputs * -1000, outputs * -1000 + np.float32(0.25), 1e-3) == pytest.approx(0.25 / 501)
    with pytest.raises(ArtifactError, match=r"'fine'.*0\.17 from PyTorch, more than export\.parity 0\.1"):
        parity.check(items, outputs, outputs + np.float32(0.25), 0.1)
    with pytest.raises(ArtifactError, match="inf from PyTorch"):
        parity.check(items, outputs, np.array([0.5, np.nan], np.float32), 0.1)


def test_a_sample_needs_valid_pairs_that_the_data_knows(untrained: Any, tmp_path: Path) -> None:
    import pyarrow as pa

    from pipeline import artifacts, schema

    source, _ = source_and_sample(untrained, "ranker")
    reader = Reader(source.tokenizer, source.templates)

    def pairs(**columns: Any) -> Any:
        row = {"row_id": 0, "query_id": "q1", "doc_id": "d1", "grade": 1, "split": "valid", "source": "human"} | columns

        def build(staging: Any) -> dict[str, Any]:
            schema.write(
                pa.table({key: [value] for key, value in row.items()}), staging.folder / "pairs.parquet", "pairs"
            )
            return {}

        return artifacts.make(tmp_path, "pairs", version=1, config=columns, inputs={}, build=build)

    with pytest.raises(SchemaError, match=r"no pair of split valid.*raise data\.valid_share"):
        sample.take(untrained.data, pairs(split="train"), reader, 100)
    with pytest.raises(SchemaError, match=r"\['nowhere'\] are not in"):
        sample.take(untrained.data, pairs(doc_id="nowhere"), reader, 100)


def test_precisions_without_the_reference_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"export\.precisions lacks fp32"):
        ExportConfig(precisions=("int8",))


def test_a_sample_without_relevant_documents_has_no_ndcg(untrained: Any, tmp_path: Path) -> None:
    source, taken = source_and_sample(untrained, "ranker")
    assert reference(source, taken, tmp_path).ndcg is not None
    lists = [dataclasses.replace(item, grades=[0] * len(item.grades)) for item in taken.lists]
    unjudged = dataclasses.replace(taken, lists=lists)
    fp32 = reference(source, unjudged, tmp_path)
    assert fp32.ndcg is None
    assert fp32.quality == "tau 1.000"
    assert precision.bearable(fp32, fp32, ExportConfig())
