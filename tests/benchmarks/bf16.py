"""bf16 by OpenVINO against our fp32 and int8: one model, the same inputs, one thread, by turns.

    pip install --target OPENVINO --no-deps openvino
    PYTHONPATH=OPENVINO python tests/benchmarks/bf16.py WORKSPACE [--model FINGERPRINT] [--tokens 40000]

WORKSPACE holds a retraining or study that is done: its teacher, or another cross-encoder of it, is exported, and judged
on valid queries as every export is. The inputs run one at a time at their exact length, as the service runs them on a
CPU. OpenVINO reads the fp32 file that ONNX Runtime runs; its `fp32` row tells what is the library's and what is the
format's. A processor without bf16 matrix products (`amx_bf16` or `avx512_bf16` in /proc/cpuinfo) shows nothing here.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import artifacts
from pipeline.artifacts import Artifact
from pipeline.config import ExportConfig
from pipeline.evaluation.metrics import ndcg
from pipeline.export import bundle, sample
from pipeline.export.parity import runner
from pipeline.export.precision import agreement
from pipeline.models.cross_encoder import CrossEncoder

TURNS = 3

Score = Callable[[sample.Input], float]


def by_openvino(path: Path, precision: str) -> Score:
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    compiled = core.compile_model(core.read_model(path), "CPU", settings)
    names = {name for item in compiled.inputs for name in item.get_names()}
    request = compiled.create_infer_request()

    def score(item: sample.Input) -> float:
        feeds = {"input_ids": [item.ids], "attention_mask": [[1] * len(item.ids)], "token_type_ids": [item.types]}
        inputs = {name: np.array(value, np.int64) for name, value in feeds.items() if name in names}
        return float(next(iter(request.infer(inputs).values())).reshape(-1)[0])

    return score


def by_onnx_runtime(path: Path) -> Score:
    run = runner(path)
    return lambda item: float(np.asarray(run(item)).reshape(-1)[0])


def timed(score: Score, inputs: Sequence[sample.Input]) -> tuple[np.ndarray, float]:
    began = time.process_time()
    values = np.array([score(item) for item in inputs], np.float32)
    return values, time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--model", default="")
    parser.add_argument("--tokens", type=int, default=40_000)
    arguments = parser.parse_args()
    workspace: Path = arguments.workspace
    folder = artifacts.folder_of(workspace, arguments.model) or artifacts.finished(workspace, "teacher")[0]
    source = artifacts.load(folder)
    teacher = source if source.manifest.kind == "teacher" else _input(workspace, source, "teacher")
    data, pairs = (_input(workspace, teacher, name) for name in ("data", "pairs"))
    config = ExportConfig(precisions=("fp32", "int8"))
    exported = bundle.make(workspace, config, model=source, data=data, pairs=pairs)
    model = CrossEncoder.load(source.path)
    reader = sample.Reader(model.tokenizer, {"pair": model.template})
    judged = sample.take(data, pairs, reader, arguments.tokens)
    fp32, int8 = (exported.file(f"model.{name}.onnx") for name in ("fp32", "int8"))
    ways: dict[str, Score] = {
        "fp32, ONNX Runtime": by_onnx_runtime(fp32),
        "int8, ONNX Runtime (ours)": by_onnx_runtime(int8),
        "fp32, OpenVINO": by_openvino(fp32, "f32"),
        "bf16, OpenVINO": by_openvino(fp32, "bf16"),
    }
    outputs: dict[str, np.ndarray] = {}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(TURNS + 1):
        for name, score in ways.items():
            values, took = timed(score, judged.inputs)
            if turn:  # The first turn compiles for each length.
                seconds[name].append(took)
            outputs.setdefault(name, values)
            if not np.array_equal(values, outputs[name]):
                print(f"{name}: another score in turn {turn}, by {np.abs(values - outputs[name]).max():.2g}")
    reference = judged.scores(outputs["fp32, ONNX Runtime"])
    tokens = np.mean([len(item.ids) for item in judged.inputs])
    print(
        f"{len(judged.inputs)} inputs of {tokens:.0f} tokens, {len(judged.lists)} lists; parts of int8 kept in fp32: "
        f"{exported.metrics['precisions']['int8']['fp32_parts']}"
    )
    print("| | pairs per CPU-second | × fp32 | largest change | Kendall's tau | nDCG@10 |")
    print("|---|---|---|---|---|---|")
    base = np.median(seconds["fp32, ONNX Runtime"])
    for name in ways:
        ours, took = judged.scores(outputs[name]), float(np.median(seconds[name]))
        change = max(np.abs(a - b).max() for a, b in zip(ours, reference, strict=True))
        gains = [
            ndcg(item.grades, scores, k=10, ids=item.doc_ids) for item, scores in zip(judged.lists, ours, strict=True)
        ]
        print(
            f"| {name} | {len(judged.inputs) / took:,.0f} | {base / took:.2f} | {change:.2g} | "
            f"{agreement(ours, reference):.4f} | {np.mean(gains):.4f} |"
        )


def _input(workspace: Path, artifact: Artifact, name: str) -> Artifact:
    folder: Any = artifacts.folder_of(workspace, artifact.manifest.inputs[name])
    return artifacts.load(folder)


if __name__ == "__main__":
    main()
