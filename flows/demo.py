"""The demo: a retraining on this machine's Python documentation, and then whole documents to search.

Models that learn from summaries as queries must not read them in documents, so the documents of the training lack
theirs. A person searches whole documents, and all of them: after the retraining they are re-indexed with their
summaries, those too that the training left out. As summaries share rare words with their documents and what people type
does not, the order is then learned anew from plain questions, and other plain questions are put to the release.
"""

import fnmatch
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows import publishing, refit, reindex, retrain, summary
from pipeline import schema
from pipeline.artifacts import Artifact
from pipeline.config import DataConfig, Recipe, SourceConfig
from pipeline.releases import Releases
from pipeline.temporary import temporary_file
from pipeline.text import read_lines

DOCUMENTS = Path("demo") / "documents.parquet"
"""The whole documents, in the workspace."""

LEARNED_FROM = Path(__file__).with_name("recipes") / "plain_questions.jsonl"
"""Plain questions with shell patterns of the documents that answer them, none of them among QUESTIONS: the order is
learned from these. They were written down before any order was looked at."""
JUDGED = Path("demo") / "plain_questions"
"""These questions as judged data, in the workspace."""

FIRST = 3
"""Number of results among which a question should have a good answer."""

QUESTIONS: Mapping[str, Sequence[str]] = {
    "read a csv file": ("pandas.read_csv", "pandas.read_table", "narwhals.*read_csv", "csv.*", "numpy.genfromtxt"),
    "remove duplicate rows": ("pandas.*.drop_duplicates", "pandas.DataFrame.duplicated", "narwhals.*Frame.unique"),
    "parse command line arguments": ("argparse*", "getopt*", "optparse*", "transformers.HfArgumentParser*"),
    "join two tables on a common column": (
        "pandas.merge",
        "pandas.DataFrame.merge",
        "pandas.DataFrame.join",
        "narwhals.*Frame.join",
        "sqlalchemy.*join",
    ),
    "split data into training and test sets": (
        "*.train_test_split",  # scikit-learn's for arrays, and those that a collection of data has itself.
        "sklearn.model_selection.*Split",
        "sklearn.model_selection.*.split",
    ),
    "count how often each value occurs": (
        "collections.Counter",
        "*.value_counts",
        "numpy.unique",
        "numpy.bincount",
        "nltk.FreqDist",
    ),
    "solve a system of linear equations": (
        "numpy.linalg.solve",
        "scipy.*.solve",
        "scipy.sparse.linalg.*solve",
        "torch.linalg.solve",
        "sympy.*solve*",
        "mpmath.*_solve",
    ),
    "copy a folder and all its files": (
        "shutil.copytree",
        "*.copytree",
        "fsspec.*.copy",
        "pyarrow.fs.copy_files",  # Copies folders with all that they hold.
        "prefect.filesystems.LocalFileSystem.put_directory",  # From one local folder to another.
    ),
    "convert a string to a date": (
        "pandas.to_datetime",
        "*.strptime",
        "dateutil.parser.*",
        "dateparser.*parse*",
        "whenever.*.parse*",
        "narwhals.*StringNamespace.to_date",
        "click.DateTime",
    ),
    "run a command and get its output": (
        "subprocess.*",
        "asyncio.create_subprocess*",
        "anyio.run_process",  # Waits, and returns what the command wrote, as `subprocess.run` does.
        "huggingface_hub.utils.run_subprocess",  # Captures both outputs.
        "*.run_shell_script",
    ),
    "turn a list of dicts into a table": (
        "pandas.DataFrame",
        "pandas.DataFrame.from_dict",
        "pandas.DataFrame.from_records",
        "pandas.json_normalize",
        "narwhals.*from_dicts",
    ),
}
"""Plain question → shell patterns of the documents that answer it well; installed packages decide which there are.

The page offers them in this order, so those that have been answered well in every run so far stand first.
"""


def run(recipe: Recipe, workspace: Path) -> dict[str, Any]:
    """Retrains, re-indexes whole documents, learns their order and asks the questions; returns the card of `summary`.

    Raises:
        RelevanceError: the message says what, where and what to do.
    """
    outcome = retrain.retrain(recipe, workspace)
    figures = serve_whole_documents(outcome, workspace, recipe.data)
    if not outcome.live:
        return summary.make(outcome, workspace)
    refitted = refit_to_questions(workspace)
    return summary.make(outcome, workspace, served=figures, refitted=refitted, questions=ask(workspace))


def serve_whole_documents(
    outcome: retrain.RetrainResult, workspace: Path, config: DataConfig | None = None
) -> dict[str, Any] | None:
    """Re-indexes whole documents with the models of a release that is live, and makes the result live.

    Args:
        outcome: the outcome of the retraining.
        workspace: the folder of artifacts and releases.
        config: the recipe's section `data`. If Python's documentation is its only source, all of that documentation is
            indexed, with what the training left out; otherwise, and for None, the documents of the training are.

    Returns:
        The figures of `flows.reindex.reindex`; None where the release is not live, or serves whole documents already.
    """
    from pipeline.data.formats import python_docs

    registry = Releases(workspace)
    documents = publishing.documents_of(registry, registry.open(outcome.release.fingerprint)) if outcome.live else None
    if documents is None or not write_whole_documents(documents, workspace / DOCUMENTS, config):
        return None
    return reindex.reindex(
        [str(workspace / DOCUMENTS)], workspace, left_out=(python_docs.SUMMARY,), examples=tuple(QUESTIONS)
    )


def write_whole_documents(documents: Artifact, path: Path, config: DataConfig | None) -> bool:
    """Writes documents with their summaries at the head of their texts.

    Args:
        documents: the documents that the training read.
        path: the Parquet file.
        config: see `serve_whole_documents`.

    Returns:
        Whether a file was written; not where the training's documents have no column of summaries.
    """
    from pipeline.data.formats import python_docs

    table = schema.read(documents.file("documents.parquet"), "documents")
    if python_docs.SUMMARY not in table.column_names:
        return False
    if config is not None and {source.format for source in config.sources} == {python_docs.NAME}:
        table = python_docs.read_documents()
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_file(path) as temporary:
        schema.write(python_docs.with_summaries(table), temporary, "documents")
        temporary.rename(path)
    return True


def refit_to_questions(workspace: Path) -> dict[str, Any]:
    """Learns the order of the live release from plain questions; returns the figures of `flows.refit.refit`."""
    registry = Releases(workspace)
    documents = publishing.documents_of(registry, registry.open())
    doc_ids = schema.read(documents.file("documents.parquet"), "documents")["doc_id"].to_pylist()
    write_judged_questions(doc_ids, workspace / JUDGED)
    return refit.refit(SourceConfig(path=str(workspace / JUDGED), format="parquet"), workspace, queries="all")


def write_judged_questions(doc_ids: Sequence[str], folder: Path) -> None:
    """Writes the questions of LEARNED_FROM as judged data: every document that a pattern names has grade 1.

    A question that none of these documents answers is left out.
    """
    import pyarrow as pa

    queries, judgments = [], []
    for number, item in enumerate(json.loads(line) for _, line in read_lines(LEARNED_FROM)):
        good = re.compile("|".join(fnmatch.translate(pattern) for pattern in item["answers"])).match
        answers = [doc_id for doc_id in doc_ids if good(doc_id)]
        if answers:
            name = f"plain {number}"
            queries.append({"query_id": name, "text": item["question"]})
            judgments += [{"query_id": name, "doc_id": doc_id, "grade": 1} for doc_id in answers]
    folder.mkdir(parents=True, exist_ok=True)
    for kind, rows in (("queries", queries), ("judgments", judgments)):
        with temporary_file(folder / f"{kind}.parquet") as temporary:
            schema.write(pa.Table.from_pylist(rows), temporary, kind)
            temporary.rename(folder / f"{kind}.parquet")


def ask(workspace: Path) -> dict[str, Any]:
    """Puts the plain questions to the live release.

    Returns:
        `asked` and `first`, two counts; `answered`, the questions with a good answer among the first results; and
        `results`: question → ids of the first results.
    """
    from serving.scoring.searcher import Searcher

    searcher = Searcher(Releases(workspace).open().path, verify=False)
    results = {
        question: [hit.doc_id for hit in searcher.search(question, top_n=FIRST).reranked] for question in QUESTIONS
    }
    answered = [
        question
        for question, names in results.items()
        if any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in QUESTIONS[question])
    ]
    return {"asked": len(results), "first": FIRST, "answered": answered, "results": results}
