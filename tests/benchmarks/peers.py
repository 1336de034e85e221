"""One peer in a process and an environment of its own; started by test_serving_peers.py, imports nothing of ours.

    python peers.py NAME MODEL REQUESTS EXPORTED

For each line on standard input it scores all pairs once and answers with one line of JSON: `seconds` of processor time
and `scores`. An import that fails ends it with code 3 before the first line.
"""

import json
import logging
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # Before any import of ONNX Runtime.

MAX_TOKENS = 128

Score = Callable[[], list[float]]
Requests = dict[str, list[str]]


def one_thread() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return options


def sentence_transformers(model: Path, requests: Requests, **settings: Any) -> Score:
    import torch
    from sentence_transformers import CrossEncoder

    torch.set_num_threads(1)
    ranker = CrossEncoder(str(model), max_length=MAX_TOKENS, device="cpu", **settings)
    pairs = [(query, document) for query, documents in requests.items() for document in documents]
    # The model's own setting leaves scores raw; so they can be compared.
    return lambda: list(map(float, ranker.predict(pairs, show_progress_bar=False)))


def export(model: Path, exported: Path) -> None:
    """Exports the model with sentence-transformers: onnx/model.onnx, and int8 for this processor."""
    from sentence_transformers import CrossEncoder, export_dynamic_quantized_onnx_model

    if not exported.exists():
        wanted = {"export": True, "provider": "CPUExecutionProvider"}
        ranker = CrossEncoder(str(model), backend="onnx", device="cpu", model_kwargs=wanted)
        ranker.save_pretrained(str(exported))
        export_dynamic_quantized_onnx_model(ranker, "avx512_vnni", str(exported))


def with_onnx(model: Path, requests: Requests, exported: Path, file: str) -> Score:
    import optimum.onnxruntime  # noqa: F401  # Where it is missing, sentence-transformers would say so less plainly.

    export(model, exported)
    wanted = {"file_name": file, "session_options": one_thread(), "provider": "CPUExecutionProvider"}
    return sentence_transformers(exported, requests, backend="onnx", model_kwargs=wanted)


def plain_onnx(requests: Requests, exported: Path) -> Score:
    """ONNX Runtime alone: all pairs in padded batches of 32, as a person would write it."""
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(exported / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding()
    session = onnxruntime.InferenceSession(str(exported / "onnx" / "model.onnx"), one_thread())
    pairs = [(query, document) for query, documents in requests.items() for document in documents]

    def score() -> list[float]:
        scores: list[float] = []
        for start in range(0, len(pairs), 32):
            encoded = tokenizer.encode_batch(pairs[start : start + 32])
            inputs = {
                "input_ids": np.array([item.ids for item in encoded]),
                "attention_mask": np.array([item.attention_mask for item in encoded]),
                "token_type_ids": np.array([item.type_ids for item in encoded]),
            }
            scores += session.run(None, inputs)[0].reshape(-1).tolist()
        return scores

    return score


def flashrank(model: Path, requests: Requests, exported: Path) -> Score:
    import onnxruntime
    from flashrank import Ranker, RerankRequest
    from flashrank.Config import model_file_map

    export(model, exported)
    cache = Path(tempfile.mkdtemp())
    name = "ms-marco-MiniLM-L-12-v2"  # A folder of a name that it knows is not downloaded.
    shutil.copytree(exported, cache / name)
    file = cache / name / model_file_map[name]
    shutil.copy(exported / "onnx" / "model.onnx", file)
    ranker = Ranker(model_name=name, cache_dir=str(cache), max_length=MAX_TOKENS)
    ranker.session = onnxruntime.InferenceSession(str(file), one_thread())

    def score() -> list[float]:
        scores: list[float] = []
        for query, documents in requests.items():
            passages = [{"id": index, "text": text} for index, text in enumerate(documents)]
            ranked = ranker.rerank(RerankRequest(query=query, passages=passages))
            scores += [float(item["score"]) for item in sorted(ranked, key=lambda item: item["id"])]
        return scores

    return score


def infinity(model: Path, requests: Requests) -> Score:
    import torch
    from infinity_emb import EngineArgs
    from infinity_emb.sync_engine import SyncEngineArray

    torch.set_num_threads(1)
    name = str(model)
    arguments = EngineArgs(
        model_name_or_path=name, engine="torch", device="cpu", bettertransformer=False, model_warmup=False
    )
    engines = SyncEngineArray.from_args([arguments])

    def score() -> list[float]:
        scores: list[float] = []
        for query, documents in requests.items():
            ranked, _ = engines.rerank(model=name, query=query, docs=documents).result()
            scores += [float(item.relevance_score) for item in sorted(ranked, key=lambda item: item.index)]
        return scores

    return score


def peer(name: str, model: Path, requests: Requests, exported: Path) -> Score:
    if name == "sentence-transformers torch":
        return sentence_transformers(model, requests)
    if name == "sentence-transformers onnx":
        return with_onnx(model, requests, exported, "onnx/model.onnx")
    if name == "sentence-transformers onnx int8":
        return with_onnx(model, requests, exported, "onnx/model_qint8_avx512_vnni.onnx")
    if name == "onnxruntime":
        return plain_onnx(requests, exported)
    if name == "FlashRank":
        return flashrank(model, requests, exported)
    return infinity(model, requests)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What libraries print is no answer.
    name, model, requests, exported = sys.argv[1:]
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    try:
        score = peer(name, Path(model), json.loads(Path(requests).read_text(encoding="utf-8")), Path(exported))
    except ImportError as error:
        print(f"{name}: {error}", file=sys.stderr)
        raise SystemExit(3) from None
    for _ in sys.stdin:
        began = time.process_time()
        scores = score()
        answers.write(json.dumps({"seconds": time.process_time() - began, "scores": scores}) + "\n")
        answers.flush()
    answers.flush()
    os._exit(0)  # Threads that a library left running must not hold up the table.


if __name__ == "__main__":
    main()
