"""Takes a small model of every family through the whole pipeline and prints one line of a table for each.

    python tests/benchmarks/families.py [FAMILY …]

Models are random, their tokenizers are trained on the texts. A line holds: nDCG@10 on valid queries of the teacher,
before and after its training, and of a student of half its layers that learns from its scores, [CLS] states and
relations; the largest distance of fp32 ONNX from PyTorch at 64, 512 (510 where there are no more positions) and 4,096
tokens; Kendall's tau of int8 against fp32; whether a score of the service is the same to the last bit alone and in a
list; the largest distance of the saved model's scores in sentence-transformers; pairs per CPU-second in fp32 and int8,
and in sentence-transformers. XLNet is the teacher of a BERT student.
"""

import logging
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from tokenizers import Tokenizer, processors
from transformers import AutoModel, XLNetConfig

from pipeline.artifacts import Artifact
from pipeline.config import ExportConfig, ScratchConfig
from pipeline.export import bundle
from pipeline.export.bundle import ExportSource
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.training import ranker, teacher, teacher_scores
from pipeline.training.pretrain import new_model
from pipeline.training.tasks import vocabulary
from serving.runtime.engine import Engine
from tests.pipeline.training.test_stages import CANDIDATES, RANKER, TEACHER, tables
from tests.tables import stage

FAMILIES = (
    *("bert", "roberta", "albert", "electra", "distilbert", "mpnet"),
    *("deberta-v2", "modernbert", "ernie", "nomic_bert", "eurobert"),
)
LONG = {"modernbert", "nomic_bert", "deberta-v2", "eurobert"}
"""Families that are made with 4,096 positions; learned ones would only be noise."""
SHAPE: dict[str, Any] = {"layers": 4, "hidden": 64, "heads": 4, "intermediate": 128, "embedding": 32, "vocab_size": 400}
STUDENT = replace(RANKER, hidden_weight=0.1, relation_weight=0.1)


def texts_of(data: dict[str, Any]) -> list[str]:
    return [*data["documents"]["text"].to_pylist(), *data["queries"]["text"].to_pylist()]


def largest_gap(source: ExportSource, tokens: int) -> float:
    """The distance of ONNX from PyTorch for one input of this length, over (1 + its size)."""
    model = source.model
    assert isinstance(model, CrossEncoder)
    session = session_of(source.graph("fp32"))
    ids = torch.randint(6, 60, (1, tokens), generator=torch.Generator().manual_seed(tokens))
    types, mask = (torch.arange(tokens)[None] > tokens // 3).long(), torch.ones_like(ids)
    with torch.no_grad():
        expected = float(model(ids, types, mask))
    feeds = {"input_ids": ids.numpy(), "attention_mask": mask.numpy(), "token_type_ids": types.numpy()}
    names = {item.name for item in session.get_inputs()}
    score = float(session.run(None, {name: value for name, value in feeds.items() if name in names})[0][0])
    return abs(score - expected) / (1 + abs(expected))


def session_of(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def by_sentence_transformers(folder: Path, pairs: list[tuple[str, str]]) -> tuple[np.ndarray, float]:
    """Scores, and pairs per CPU-second."""
    from sentence_transformers import CrossEncoder as HubCrossEncoder

    hub = HubCrossEncoder(str(folder / "model"), device="cpu", local_files_only=True)
    hub.predict(pairs[:8], show_progress_bar=False)
    began = time.process_time()
    scores = hub.predict(pairs, batch_size=32, show_progress_bar=False)
    return np.asarray(scores), len(pairs) / (time.process_time() - began)


def same_in_any_company(exported: Artifact, query: str, documents: list[str]) -> bool:
    engine = Engine(exported.path, precision="int8", threads=1)
    try:
        together = engine.scores(query, documents)
        return together == [engine.scores(query, [document])[0] for document in documents]
    finally:
        engine.close()


def line(workspace: Path, family: str) -> str:
    data_tables, pair_table = tables()
    data, pairs = stage(workspace, "data", data_tables), stage(workspace, "pairs", {"pairs": pair_table})
    positions = 4096 if family in LONG else 512
    scratch = ScratchConfig(family=family, positions=positions, **SHAPE)  # type: ignore[arg-type]
    base = workspace / f"base-{family}"
    new_model(base, scratch, vocabulary.train(texts_of(data_tables), scratch), 7)
    settings = replace(TEACHER, max_tokens=48, max_query_tokens=12)
    large = teacher.make(workspace, settings, CANDIDATES, data=data, pairs=pairs, base=str(base))
    layers, width = ranker.taught_by(STUDENT, large)
    scores = teacher_scores.make(workspace, teacher=large, data=data, pairs=pairs, layers=layers, width=width)
    small = ranker.make(workspace, STUDENT, CANDIDATES, data=data, pairs=pairs, teacher=large, teacher_scores=scores)
    exported = bundle.make(
        workspace, ExportConfig(precisions=("fp32", "int8"), sample_tokens=8000), model=small, data=data, pairs=pairs
    )
    source = ExportSource.load(small.path)
    gaps = [largest_gap(source, tokens) for tokens in (64, positions if positions > 512 else 510, 512)]
    documents, query = data_tables["documents"]["text"].to_pylist()[:160], data_tables["queries"]["text"][0].as_py()
    hub, hub_speed = by_sentence_transformers(small.path, [(query, document) for document in documents])
    engine = Engine(exported.path, precision="fp32", threads=1)
    ours = np.array(engine.scores(query, documents))
    engine.close()
    precisions = exported.metrics["precisions"]
    speeds = [precisions[name]["texts_per_cpu_s"] for name in ("fp32", "int8")]
    at_512 = gaps[2] if positions > 512 else gaps[1]
    cells = [
        family,
        f"{large.metrics['ndcg@10 before']:.2f} → {large.metrics['ndcg@10']:.2f}",
        f"{small.metrics['ndcg@10']:.2f}",
        " / ".join(f"{gap:.0e}" for gap in (gaps[0], at_512, *(gaps[1:2] if positions > 512 else ()))),
        f"{precisions['int8']['kendall_tau']:.3f}",
        "yes" if same_in_any_company(exported, query, documents[:20]) else "NO",
        f"{np.abs(ours - hub).max():.0e}",
        " / ".join(f"{speed:,.0f}" for speed in (*speeds, hub_speed)),
    ]
    return f"| {' | '.join(cells)} |"


def xlnet_base(folder: Path, texts: list[str]) -> Path:
    """A small XLNet whose tokenizer puts its special tokens at the end, as XLNet's does."""
    tokenizer = vocabulary.train(texts, ScratchConfig(**SHAPE))
    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    ends = [("[SEP]", tokenizer.sep_token_id), ("[CLS]", tokenizer.cls_token_id)]
    plain.post_processor = processors.TemplateProcessing(
        single="$A [SEP] [CLS]:2", pair="$A [SEP] $B:1 [SEP]:1 [CLS]:2", special_tokens=ends
    )
    tokenizer._tokenizer = plain  # type: ignore[attr-defined]
    torch.manual_seed(3)
    config = XLNetConfig(vocab_size=len(tokenizer), d_model=64, n_layer=4, n_head=4, d_inner=128, pad_token_id=0)
    AutoModel.from_config(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(folder)
    return folder


def xlnet_teaches_bert(workspace: Path) -> str:
    data_tables, pair_table = tables()
    data, pairs = stage(workspace, "data", data_tables), stage(workspace, "pairs", {"pairs": pair_table})
    texts = texts_of(data_tables)
    base = xlnet_base(workspace / "base-xlnet", texts)
    scratch = ScratchConfig(**SHAPE)
    own = workspace / "base-student"
    new_model(own, scratch, vocabulary.train(texts, scratch), 7)
    settings = replace(TEACHER, max_tokens=48, max_query_tokens=12)
    large = teacher.make(workspace, settings, CANDIDATES, data=data, pairs=pairs, base=str(base))
    config = replace(STUDENT, base=str(own), relation_weight=0.0)
    layers, width = ranker.taught_by(config, large)
    scores = teacher_scores.make(workspace, teacher=large, data=data, pairs=pairs, layers=layers, width=width)
    small = ranker.make(workspace, config, CANDIDATES, data=data, pairs=pairs, teacher=large, teacher_scores=scores)
    before, after = large.metrics["ndcg@10 before"], large.metrics["ndcg@10"]
    return f"| xlnet, teacher of bert | {before:.2f} → {after:.2f} | {small.metrics['ndcg@10']:.2f} | | | | | |"


def main(names: list[str]) -> None:
    logging.getLogger().setLevel(logging.ERROR)
    torch.set_num_threads(1)
    print("| family | teacher | student | parity 64 / 512 / 4,096 | tau | same score | reload | pairs per CPU-second |")
    print("|---|---|---|---|---|---|---|---|")
    for name in names or [*FAMILIES, "xlnet"]:
        with tempfile.TemporaryDirectory() as folder:
            print(xlnet_teaches_bert(Path(folder)) if name == "xlnet" else line(Path(folder), name), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
