"""Ranks of good answers to plain questions in the demo's release, by which to choose an order.

RELEVANCE_WORKSPACE=FOLDER pytest -m benchmark -s tests/benchmarks/test_plain_questions.py

The folder is the workspace of `make demo`. These are other questions than the eleven of `flows.demo`, which are a test:
whatever is chosen by those is no longer measured by them. The patterns were written before any order was looked at.
"""

import fnmatch
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from flows import demo
from pipeline.features import by_score
from pipeline.releases import Releases
from serving.scoring.searcher import Searcher, SearchResult

pytestmark = pytest.mark.benchmark

QUESTIONS: Mapping[str, Sequence[str]] = {
    "write a dictionary to a json file": ("json.dump", "json.dumps", "*.to_json", "*write_json"),
    "sort a table by a column": (
        "pandas.DataFrame.sort_values",
        "narwhals.*sort",
        "pyarrow.*sort_by",
        "narwhals.*sort_by",
    ),
    "fill in missing values": ("*.fillna", "*.fill_null", "sklearn.impute.*", "*.interpolate", "*.ffill", "*.bfill"),
    "compute the average of each group": ("*.groupby", "*group_by", "*GroupBy.mean", "*GroupBy*"),
    "download a file from a url": ("urllib.request.*", "*download*", "*http_get"),
    "unpack a zip archive": ("zipfile*", "shutil.unpack_archive"),
    "wait until a thread finishes": ("threading.Thread.join", "*.join"),
    "pick random items from a list": ("random.*choice*", "random.*sample", "numpy.random.*choice", "*.choices"),
    "find files by name pattern": ("glob*", "pathlib.*glob", "fnmatch*", "*.glob", "*rglob"),
    "measure how long a function takes": ("timeit*", "*timeit", "time.perf_counter*"),
    "group similar points together": ("sklearn.cluster.*", "scipy.cluster.*"),
    "reduce the number of dimensions": (
        "sklearn.decomposition.*",
        "sklearn.manifold.*",
        "sklearn.random_projection*",
        "*squeeze",
    ),
    "predict a number from other columns": ("*Regress*",),
    "multiply two matrices": ("*.matmul", "*.dot", "torch.mm", "torch.bmm", "*.multi_dot", "*mm", "*matmul"),
    "find the smallest value of a function": ("scipy.optimize.*",),
    "read settings from an ini file": ("configparser*",),
    "send an email": ("smtplib*", "email.*", "*Email*"),
    "connect to a database": ("sqlite3.*", "sqlalchemy.*create_engine", "*.connect", "*read_sql*"),
    "escape special characters in html": ("html.escape", "*escape*"),
    "remove spaces from both ends of a string": ("*strip*",),
    "replace text that matches a pattern": ("re.sub*", "*.replace", "*.sub", "*replace_substring*", "*.replace_all"),
    "list all files in a folder": (
        "os.listdir",
        "os.scandir",
        "os.walk",
        "*iterdir",
        "*.ls",
        "*.find",
        "*listdir",
        "*walk",
    ),
    "delete a folder with everything in it": ("*rmtree", "*.rm", "*delete_dir*", "*rmdir"),
    "compress data to save space": ("zlib*", "gzip*", "bz2*", "lzma*", "*compress*"),
    "hash a password": ("hashlib*", "*scrypt*", "*pbkdf2*", "crypt*"),
    "round up to the next whole number": ("*.ceil", "*ceil"),
    "count words in a text": (
        "*CountVectorizer*",
        "nltk.FreqDist",
        "collections.Counter",
        "*word_count*",
        "*count_words*",
    ),
    "add up all numbers in an array": ("*.sum", "math.fsum", "*.nansum", "*cumsum"),
    "show a progress bar while looping": ("tqdm*", "rich.progress*", "*progressbar*", "*progress_bar*"),
    "run tasks at the same time": ("concurrent.futures.*", "asyncio.*", "*TaskGroup*", "*gather*", "multiprocessing*"),
    "print colored text in the terminal": (
        "click.*style",
        "click.secho",
        "rich.*",
        "typer.*style*",
        "*secho",
        "*colored*",
    ),
    "ask the user a yes or no question": ("*confirm*", "*Confirm*"),
    "get the current date and time": ("*now", "*today", "*utcnow", "time.*", "*.now_*"),
    "save a trained model to disk": (
        "joblib.dump",
        "torch.save",
        "*save_pretrained",
        "*.save",
        "*save_model*",
        "*save_weights*",
    ),
    "change the shape of an array": ("*reshape*", "*.resize", "*.view"),
    "start a small web server": ("http.server*", "uvicorn.*", "wsgiref*", "socketserver*", "*run_simple*"),
    "check whether two arrays are nearly the same": (
        "*allclose*",
        "*isclose*",
        "*array_almost_equal*",
        "*array_equal*",
        "*assert_close*",
    ),
    "combine several lists into one": ("itertools.chain*", "heapq.merge", "*concat*", "*flatten*", "*chain*"),
    "write rows to a spreadsheet": ("*to_excel", "*ExcelWriter*", "csv.*writer*", "*writerow*"),
    "limit how long a call may take": (
        "asyncio.timeout*",
        "asyncio.wait_for",
        "*fail_after",
        "*move_on_after",
        "*timeout*",
    ),
    "make a copy that shares nothing with the original": ("copy.deepcopy", "*.copy", "*deepcopy", "*clone*"),
    "keep only rows that meet a condition": ("*.query", "*.filter", "*.where", "*.loc", "*.drop_where"),
    "turn rows into columns": ("*pivot*", "*transpose*", "*unstack", "*.T"),
    "find the shortest path between two nodes": ("*shortest_path*", "*dijkstra*", "*bellman_ford*", "*astar*"),
    "translate category names into numbers": (
        "*OrdinalEncoder*",
        "*LabelEncoder*",
        "*factorize",
        "*OneHotEncoder*",
        "*.codes",
        "*LabelBinarizer*",
    ),
    "test whether two samples have the same mean": ("scipy.stats.*ttest*", "scipy.stats.*"),
    "create a temporary folder": ("tempfile.*", "*mkdtemp", "*TemporaryDirectory*"),
}
"""Plain question → shell patterns of the documents that answer it."""


def orders(result: SearchResult) -> dict[str, list[str]]:
    """Name of an order → ids, the best first; BM25+encoder and ranker are over the first 20 of the fused order."""
    fused = result.reranked
    ranker = by_score([answer.relevance or 0.0 for answer in fused])
    before = by_score([-float(answer.rank + (answer.rank_change or 0)) for answer in fused])
    return {
        "BM25": [answer.doc_id for answer in result.lexical],
        "encoder": [answer.doc_id for answer in result.semantic],
        "BM25+encoder": [fused[number].doc_id for number in before],
        "ranker": [fused[number].doc_id for number in ranker],
        "fused": [answer.doc_id for answer in fused],
    }


def first_good(doc_ids: Sequence[str], patterns: Sequence[str]) -> float:
    """The rank of the first document that answers; infinity where none does."""
    good = (any(fnmatch.fnmatchcase(doc_id, pattern) for pattern in patterns) for doc_id in doc_ids)
    return next((float(rank) for rank, answers in enumerate(good, start=1) if answers), np.inf)


def test_places_of_good_answers() -> None:
    workspace = Path(os.environ.get("RELEVANCE_WORKSPACE", "workspace"))
    if not (workspace / demo.DOCUMENTS).is_file():
        pytest.skip("needs the workspace of `make demo`")
    searcher = Searcher(Releases(workspace).open().path, verify=False)
    ranks_of_answers: dict[str, list[float]] = {}
    for question, patterns in QUESTIONS.items():
        for order, doc_ids in orders(searcher.search(question, top_n=20)).items():
            ranks_of_answers.setdefault(order, []).append(first_good(doc_ids, patterns))
    assert not set(QUESTIONS) & set(demo.QUESTIONS)
    for order, ranks in ranks_of_answers.items():
        print(
            f"{order:13s} {np.sum(np.array(ranks) <= demo.FIRST)} of {len(ranks)} in the first {demo.FIRST}, "
            f"mean reciprocal rank {np.mean(1 / np.array(ranks)):.3f}"
        )
    assert np.isfinite(ranks_of_answers["fused"]).mean() > 0.5
