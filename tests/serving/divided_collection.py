"""A random small collection as one release and as shards, with fields, passages and votes, in one process."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from flows import indexing, shards
from flows.runner import Runner
from index.shards import shard_of
from pipeline import artifacts, features
from pipeline import recipe as recipes
from pipeline.artifacts import Artifact, Staging
from pipeline.config import IndexConfig, PassagesConfig, Recipe
from pipeline.releases import Releases
from serving.runtime.deadline import Deadline
from serving.runtime.scheduler import Scheduler
from serving.scoring import shard_candidates
from serving.scoring.answers import MissingShard
from serving.scoring.process_caches import Caches
from serving.scoring.searcher import Searcher
from serving.scoring.shard_answer import CandidatesAnswer
from serving.scoring.shard_candidates import ShardQuery
from serving.scoring.sharded import ShardClient, ShardedSearcher
from tests.serving.conftest import TinyModels
from tests.tables import stage

WORDS = ("sort", "list", "file", "open", "json", "clock", "sleep", "number", "stable", "random", "a", "the", "列表")
QUERIES = ("sort a list", "open the json file", "列表 clock", "stable stable random number", "nothing-known")
CONFIGS = {
    "fields": IndexConfig(fields=("title", "text"), field_vectors=True),
    "fields by words": IndexConfig(fields=("title", "tags")),
    "passages": IndexConfig(passages=PassagesConfig(most=4, tokens=16, stride=8)),
    "fields, passages and votes": IndexConfig(
        fields=("title", "text"),
        field_vectors=True,
        passages=PassagesConfig(most=3, tokens=20, stride=12),
        votes=("up", "down"),
        least_quality=0.4,
    ),
}


def random_documents(rng: random.Random) -> pa.Table:
    """Twelve to thirty documents: long, short, empty, repeated; one shard of three alone has titles, tags and votes."""
    ids: list[str] = []
    while len({shard_of(doc_id, 3) for doc_id in ids}) < 3 or len({shard_of(doc_id, 2) for doc_id in ids}) < 2:
        ids = [f"d{number}" for number in rng.sample(range(1000), rng.randint(12, 30))]
    texts = [" ".join(rng.choices(WORDS, k=rng.choice([0, 1, 3, 12, 40, 120]))) for _ in ids]
    texts[1], texts[2] = texts[0], " ".join(rng.choices(WORDS, k=90))
    is_full = [shard_of(doc_id, 3) == 1 for doc_id in ids]
    return pa.table(
        {
            "doc_id": ids,
            "title": [" ".join(rng.choices(WORDS, k=3)) if full else "" for full in is_full],
            "text": texts,
            "tags": [[rng.choice(WORDS), f"t{rng.randint(0, 3)}"] if full else None for full in is_full],
            "up": [rng.randint(1, 9) if full else 0 for full in is_full],
            "down": [0 if full else rng.randint(0, 2) for full in is_full],
        }
    )


class LocalShards(ShardClient):
    """Shards in this process, asked as over HTTP: bodies and answers are JSON."""

    def __init__(self, searchers: Sequence[Searcher]) -> None:
        self.searchers = searchers
        self.addresses = tuple(f"shard {number}" for number in range(len(searchers)))
        self.gone: set[str] = set()

    def ask(self, body: Mapping[str, Any], until: Deadline) -> list[CandidatesAnswer | MissingShard]:
        sent = {name: value for name, value in orjson.loads(orjson.dumps(body)).items() if value is not None}
        assert {sent.pop("collection")} == {searcher.collection_id for searcher in self.searchers}
        query = ShardQuery(**{"vector": None, "filters": {}, **sent})
        return [
            MissingShard(shard=address, reason="gone")
            if address in self.gone
            else CandidatesAnswer.read(orjson.dumps(shard_candidates.answer(searcher, query, until)))
            for address, searcher in zip(self.addresses, self.searchers, strict=True)
        ]


@dataclass
class Collection:
    """A random collection as one release, and what its shards are made from."""

    run: Runner
    data: Artifact
    release: Artifact
    whole_index: Mapping[str, Artifact]
    single_index: Searcher

    @classmethod
    def of(cls, workspace: Path, config: IndexConfig, seed: int, documents: pa.Table | None = None) -> "Collection":
        run, tiny = Runner(workspace), TinyModels(seed)
        table = random_documents(random.Random(seed)) if documents is None else documents
        data = stage(workspace, "corpus", {"documents": table})
        models = {role: tiny.bundle(workspace, role) for role in ("ranker", "encoder")}
        corpus = indexing.make_searchable(config, run, encoder=models["encoder"], data=data)

        def fusion(staging: Staging) -> Mapping[str, Any]:
            rng = random.Random(seed)
            names = [f"bm25.{name}" for name in config.fields]
            names += [f"encoder.{name}" for name in config.fields] if config.field_vectors else []
            weights = {name: rng.uniform(0.1, 2.0) for name in (*features.FEATURES, *names)}
            (staging.folder / "fusion.json").write_text(features.Fusion(weights=weights).to_json())
            return {}

        parts = {**models, **corpus.parts}
        parts["fusion"] = artifacts.make(workspace, "fusion", version=1, config={}, inputs={}, build=fusion)
        release = Releases(workspace).publish(parts, {}, recipes.to_dict(Recipe(name="random", index=config)))
        whole_index = indexing.index_whole(config, run, data=data, previous={}, check=lambda _: None)
        return cls(run, data, release, whole_index, Searcher(release.path))

    def divided(self, count: int) -> tuple[ShardedSearcher, LocalShards]:
        """The service that asks `count` shards, and these."""
        published, front = shards.divide(self.run, self.release, self.data, count, self.whole_index)
        client = LocalShards([Searcher(shard.path) for shard in published])
        return searcher_of(front.path, client), client


def searcher_of(path: Path, client: ShardClient, scheduler: Scheduler | None = None) -> ShardedSearcher:
    """The loaded release of models that asks these shards.

    Args:
        scheduler: runs the models; one with a thread of its own where none is given.
    """
    caches = Caches.of(2**20)
    return ShardedSearcher(path, client, precision="auto", caches=caches, scheduler=scheduler or Scheduler(1))
