"""Trains a recipe's encoder by the teacher's score differences, by contrast, and by both, and prints them as a table.

    OMP_NUM_THREADS=1 python tests/benchmarks/encoder_losses.py WORKSPACE RECIPE --set data.root=FOLDER …

    differences    margin-MSE on the teacher's scores of a query's documents (`encoder.margin_weight`)
    contrast       with the documents of the step's other queries (`encoder.in_batch_weight`)

All encoders have one start, the same pairs, seeds and steps. They are judged on test queries twice: on the lists of
judged documents, and over the whole collection by exact cosines, where documents that nobody judged count 0. A stage
that the workspace holds, such as the teacher of a study with the same settings, is not made again.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from flows import built_in_recipes, encoder_rounds, training
from flows.runner import Runner
from flows.training_inputs import TrainingInputs
from pipeline import recipe as recipes
from pipeline.artifacts import Artifact
from pipeline.config import Recipe
from pipeline.evaluation import metrics, page, significance, text_tables, widths
from pipeline.evaluation.metrics import RANGE
from pipeline.models import model_folders
from pipeline.models.bi_encoder import BiEncoder
from pipeline.text import document_text
from pipeline.training.loop import pair_tokens, scoring

BOTH = "both, contrast 0.3"
WEIGHTS: Mapping[str, tuple[float, float]] = {
    "differences": (1.0, 0.0),
    "contrast": (0.0, 1.0),
    BOTH: (1.0, 0.3),
    "both, contrast 1": (1.0, 1.0),
    "both, contrast 3": (1.0, 3.0),
}
"""Weights of score differences and of contrast; `BOTH` has the recipe's defaults. Adam's steps do not depend on the
size of a single weight."""
LIST_MEASURES = ("ndcg@10", "pairwise")

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Judged:
    """Texts of the test queries and of all documents, and the grades between them."""

    queries: Sequence[str]
    documents: Sequence[str]
    pairs: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
    """(judgments,) row of the query, row of the document, grade."""

    @classmethod
    def read(cls, data: Artifact) -> "Judged":
        documents, queries, judged = (
            pq.read_table(data.file(f"{name}.parquet")).to_pydict() for name in ("documents", "queries", "judgments")
        )
        of_test = [row for row, split in enumerate(judged["split"]) if split == "test"]
        names = sorted({judged["query_id"][row] for row in of_test})
        query_rows = {name: row for row, name in enumerate(names)}
        document_rows = {name: row for row, name in enumerate(documents["doc_id"])}
        texts = dict(zip(queries["query_id"], queries["text"], strict=True))
        pairs = (
            np.array([query_rows[judged["query_id"][row]] for row in of_test]),
            np.array([document_rows[judged["doc_id"][row]] for row in of_test]),
            np.array([judged["grade"][row] for row in of_test]),
        )
        words = [document_text(*both) for both in zip(documents["title"], documents["text"], strict=True)]
        return cls([texts[name] for name in names], words, pairs)

    def values(self, vectors: tuple[NDArray[np.float32], NDArray[np.float32]]) -> Floats:
        """(queries, 4) `LIST_MEASURES` of the judged lists and `widths.MEASURES` of the whole collection.

        Args:
            vectors: unit vectors of the queries and of the documents.
        """
        query, document, grade = self.pairs
        cosines = np.einsum("ij,ij->i", vectors[0][query], vectors[1][document])
        lists = metrics.by_query(query, grade, cosines, LIST_MEASURES)
        grades = np.zeros((len(self.queries), len(self.documents)), dtype=np.int64)
        grades[query, document] = grade
        collection = widths.by_query(*vectors, grades)
        return np.stack([*lists.values(), *collection.values()], axis=1)


def encoded(
    model: BiEncoder, judged: Judged, *, pooled: bool = False
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Unit vectors of the queries and of the documents; with `pooled` those before the projection."""
    tables = []
    for texts, template in ((judged.queries, model.query_template), (judged.documents, model.document_template)):
        tokens = pair_tokens.tokenise(model.tokenizer, texts, template.max_tokens)
        vectors = scoring.vectors(model.eval(), tokens, np.arange(len(tokens)), template, pooled=pooled)
        tables.append(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return tables[0], tables[1]


def trained(recipe: Recipe, inputs: TrainingInputs, run: Runner, weights: tuple[float, float], seed: int) -> BiEncoder:
    """The encoder of these weights of differences and contrast."""
    loop = dataclasses.replace(recipe.encoder.loop, seed=recipe.encoder.loop.seed + seed)
    margin, contrast = weights
    config = dataclasses.replace(recipe.encoder, margin_weight=margin, in_batch_weight=contrast, loop=loop)
    changed = dataclasses.replace(recipe, encoder=config)
    return BiEncoder.load(encoder_rounds.train_encoder(changed, inputs, run).path)


def measured(recipe: Recipe, workspace: Path, seeds: int) -> dict[str, list[Floats]]:
    """Name of an encoder → for each seed (queries, 4) values; `base` is what they start from, at its full width."""
    run = Runner(workspace)
    inputs = training.prepare(recipe, run)
    judged = Judged.read(inputs.data)
    base = model_folders.folder(inputs.base)
    sizes = {"max_tokens": recipe.encoder.max_tokens, "max_query_tokens": recipe.encoder.max_query_tokens}
    untouched = BiEncoder.start(base, dimensions=recipe.encoder.dimensions, widths=(), seed=13, **sizes)
    values = {"base": [judged.values(encoded(untouched, judged, pooled=True))]}
    for name, weights in WEIGHTS.items():
        models = (trained(recipe, inputs, run, weights, seed) for seed in range(seeds))
        values[name] = [judged.values(encoded(model, judged)) for model in models]
    return values


def table(values: Mapping[str, Sequence[Floats]]) -> list[str]:
    """The lines of the table: means over queries and seeds, and differences to the defaults with intervals."""
    rows = []
    reference = np.mean(values[BOTH], axis=0)
    for name, seeds in values.items():
        mean = np.mean(seeds, axis=0)
        cells = [name, str(len(seeds))]
        for column, gap in enumerate(significance.differences(mean, reference, bounds=RANGE)):
            spread = (
                f" ± {np.std([np.nanmean(seed[:, column]) for seed in seeds], ddof=1):.4f}" if len(seeds) > 1 else ""
            )
            cells.append(f"{np.nanmean(mean[:, column]):.4f}{spread}")
            cells.append("" if name == BOTH else page.interval(dataclasses.asdict(gap), digits=4))
        rows.append(cells)
    heads = ["", "seeds"]
    for ranked, names in (("lists", LIST_MEASURES), ("collection", widths.MEASURES)):
        heads += [head for name in names for head in (f"{name}, {ranked}", "less the defaults")]
    return text_tables.markdown(heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("recipe", help="name of a built-in recipe, or a file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a value of the recipe")
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = recipes.load(built_in_recipes.recipe_path(arguments.recipe), arguments.set)
    print("\n".join(["", *table(measured(recipe, arguments.workspace, arguments.seeds))]))


if __name__ == "__main__":
    main()
