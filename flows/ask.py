"""Searches and reranks with a release from the command line, through the engine that the service uses."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import release_parts, releases, text
from pipeline.errors import MissingError, SchemaError
from pipeline.features import by_score, in_fused_order

if TYPE_CHECKING:
    from rich.table import Table


def search(query: str, workspace: Path, *, release: str = "live", top: int = 10) -> dict[str, Any]:
    """Searches a release; returns the lexical, semantic and final lists as the service answers them.

    Raises:
        MissingError: no such release.
        SchemaError: the query is empty.
    """
    from serving.scoring.searcher import Searcher

    query = text.clean(query)
    if not query.strip():
        raise SchemaError("the query is empty; write what to look for in quotes")
    searcher = Searcher(releases.Releases(workspace).open(release).path, verify=False)
    return asdict(searcher.search(query, top_n=top))


def rerank(query: str, file: Path, workspace: Path, *, release: str = "live") -> dict[str, Any]:
    """Orders a file's texts by relevance to the query, best first; each has its line number and raw score.

    The order is that of `/rerank`. Where every JSON line has a BM25 `score`, or the release says so, it is the fused
    one of `search`, and `score` the fused score.

    Raises:
        MissingError: no such file or release.
        SchemaError: the file is not UTF-8, holds no text, or a JSON line or its score cannot be used.
        NotServedError: there are BM25 scores, and the release has no fusion.
    """
    from serving.runtime.engine import Engine
    from serving.scoring.loaded_release import fusion_of
    from serving.scoring.reranker import relevance

    query = text.clean(query)
    if not query.strip():
        raise SchemaError("the query is empty; write what to look for in quotes")
    texts = _texts(file)
    opened = releases.Releases(workspace).open(release)
    bm25 = _bm25(file, texts)
    if in_fused_order(fusion_of(opened), bm25):
        scores, ranker = _fused(opened.path, query, [item for _, item, _ in texts], bm25)
    else:
        scores = ranker = Engine(release_parts.part(opened, "ranker").path).scores(
            query, [item for _, item, _ in texts]
        )
    return {
        "query": query,
        "release": opened.fingerprint,
        "results": [
            {
                "line": texts[row][0],
                "score": scores[row],
                "relevance": relevance(ranker[row]),
                "text": texts[row][1],
            }
            for row in by_score(scores)
        ],
    }


def _fused(release: Path, query: str, texts: list[str], bm25: list[float] | None) -> tuple[list[float], list[float]]:
    """Fused scores of the texts, and the ranker's."""
    from serving.runtime.admission import RequestOptions
    from serving.runtime.deadline import Deadline
    from serving.scoring.searcher import Searcher

    fused = Searcher(release, verify=False).fused(query, texts, bm25, RequestOptions(Deadline.never()))
    return fused.values, list(fused.ranker)


def _bm25(file: Path, texts: list[tuple[int, str, Any]]) -> list[float] | None:
    """The first-stage scores of all lines; None where no line has one.

    Raises:
        SchemaError: only some lines have one, or one is not a finite number of at least 0.
    """
    if all(score is None for _, _, score in texts):
        return None
    for number, _, score in texts:
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score < 1e300:
            raise SchemaError(
                f"{file}, line {number}: score is {json.dumps(score)[:60]}; a BM25 score is a number of at least 0 on "
                "every line, or on none"
            )
    return [float(score) for _, _, score in texts]


def _texts(file: Path) -> list[tuple[int, str, Any]]:
    """Line number, from 1, text and first-stage score (None where it has none) of each line that is not blank."""
    try:
        lines = text.split_lines(text.read_text(file))
    except FileNotFoundError as error:
        raise MissingError(f"{file}: no such file; name one with a text on each line") from error
    except (UnicodeDecodeError, OSError) as error:
        raise SchemaError(f"{file}: cannot be read as UTF-8 text ({error})") from error
    texts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        body, score = line, None
        if file.suffix.lower() in (".jsonl", ".ndjson"):
            try:
                row = json.loads(line)
                body = text.document_text(_value(row, "title", ""), _value(row, "text"))
                score = row.get("score")
            except (ValueError, KeyError, TypeError) as error:
                raise SchemaError(f"{file}, line {number}: not a JSON object with a key text ({error})") from error
        texts.append((number, text.clean(body), score))
    if not texts:
        raise SchemaError(f"{file}: holds no text; write one a line")
    return texts


def _value(row: Any, name: str, default: str | None = None) -> str:
    """The text under a name; a number, a list or null is no text."""
    if not isinstance(row, dict):
        raise TypeError(f"a {type(row).__name__}, not an object")
    value = row.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise TypeError(f"'{name}' is {json.dumps(value)[:60]}, not a text; it has {list(row)[:20]}")
    return value


def render_search(answer: dict[str, Any]) -> "Table":
    """A table of the final order: each document's score, ranker's relevance, and ranks by BM25 and by the encoder."""
    from rich.table import Table
    from rich.text import Text

    spent = answer["milliseconds"]
    table = Table(
        title=Text(f"{answer['query']}  ({answer['candidates']} candidates, {spent['total']:.0f} ms)"),
        title_justify="left",
        caption="  ".join(f"{name} {value:.0f} ms" for name, value in spent.items() if name != "total"),
        caption_justify="left",
    )
    for heading, justify in (("", "right"), ("document", "left"), ("BM25", "right"), ("encoder", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    table.add_column("score", justify="right")
    table.add_column("ranker", justify="right")
    for hit in answer["reranked"]:
        body = Text(hit["title"] or hit["doc_id"], style="bold")
        body.append(f"\n{hit['snippet'][:160]}", style="dim not bold")
        ranks = (str(hit[name] or "–") for name in ("lexical_rank", "semantic_rank"))
        ranker = "–" if hit["relevance"] is None else f"{hit['relevance']:.3f}"
        table.add_row(str(hit["rank"]), body, *ranks, f"{hit['score']:.3f}", ranker)
    return table


def render_rerank(answer: dict[str, Any]) -> "Table":
    """The texts in order, with their relevance and line."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(answer["query"]), title_justify="left")
    table.add_column("relevance", justify="right")
    table.add_column("line", justify="right")
    table.add_column("text")
    for result in answer["results"]:
        table.add_row(f"{result['relevance']:.3f}", str(result["line"]), Text(result["text"][:200]))
    return table
