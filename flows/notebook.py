"""The Python API: the calls that a notebook or a script needs, each on one line.

    from flows import notebook as relevance

    release = relevance.open_release("workspace")
    release.search("remove duplicate rows")
    release.rerank("sort a list in place", ["list.sort", "sorted"])

Everything here is a thin name for what the command line and the service do, so the numbers are the same. Heavy
libraries are imported by the call that needs them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import release_parts
from pipeline import releases as registry
from pipeline.errors import MissingError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from flows.retrain import RetrainResult
    from index.document_store import Value
    from pipeline.evaluation.significance import Difference
    from serving.runtime.engine import Role

MEASURES = ("ndcg@10", "mrr", "recall@100")
"""Measures of a run where the caller names none."""


class OpenRelease:
    """The models, indexes and documents of one release, in this process."""

    def __init__(self, workspace: Path, name: str) -> None:
        """
        Raises:
            MissingError: the workspace has no such release.
            ArtifactError: the release is damaged; the message names the file.
        """
        from serving.scoring.searcher import Searcher

        self._release = registry.Releases(workspace).open(name)
        self._searcher = Searcher(self._release.path, verify=False)

    @property
    def fingerprint(self) -> str:
        """The release's name: 32 hex digits."""
        return self._release.fingerprint

    def search(
        self, query: str, *, top: int = 10, filters: "Mapping[str, Value | Sequence[Value]] | None" = None
    ) -> "pd.DataFrame":
        """Documents for a query in the order of BM25, encoder and ranker together, best first; a row for each.

        Columns, among others: doc_id, title, snippet, `score` of the order, `rank` from 1, `lexical_rank` by BM25 and
        `semantic_rank` by the encoder (None where they did not find it), and `relevance` in [0, 1] by the ranker.

        Args:
            top: number of rows, at least 1; fewer where fewer documents are found.
            filters: field of the documents → the value, or one of the values, that it must have.

        Raises:
            InvalidRequestError: a filter names a field that no document has, or `top` is below 1.
            NotServedError: the release has no documents.
        """
        import pandas as pd

        from serving.errors import InvalidRequestError
        from serving.scoring.answers import Answer

        if top < 1:
            raise InvalidRequestError(f"top is {top}; take 1 or more")
        wanted = {
            name: values if isinstance(values, Sequence) and not isinstance(values, str) else [values]
            for name, values in (filters or {}).items()
        }
        answers = self._searcher.search(query, top_n=top, filters=wanted).reranked
        return pd.DataFrame(answers, columns=[field.name for field in fields(Answer)])

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """Raw scores of the ranker, one for each text; higher is more relevant.

        Raises:
            NotServedError: the release has no ranker.
            InvalidRequestError: `texts` is one text.
        """
        return list(self._searcher.ranker.scores(query, _several(texts)))

    def rerank(self, query: str, texts: Sequence[str]) -> "pd.DataFrame":
        """Columns index (position in `texts`), score, relevance in [0, 1] by the ranker, and text; best first.

        The order is that of `/rerank`: by the ranker alone, or fused where the release says so.

        Raises:
            NotServedError: the release has no ranker.
            InvalidRequestError: `texts` is one text.
        """
        import pandas as pd

        from serving.scoring.reranker import relevance

        texts = _several(texts)
        scores = self._searcher.rerank(query, texts)
        table = pd.DataFrame(
            {
                "index": range(len(texts)),
                "score": scores.values,
                "relevance": map(relevance, scores.ranker),
                "text": list(texts),
            }
        )
        return table.sort_values("score", ascending=False, kind="stable", ignore_index=True)

    def embed(self, texts: Sequence[str], *, role: "Role" = "document") -> "NDArray[np.float32]":
        """(texts, dimensions) unit vectors of the encoder; `role` is query or document.

        Raises:
            NotServedError: the release has no encoder.
            InvalidRequestError: `texts` is one text.
        """
        import numpy as np

        return np.asarray(self._searcher.encoder.embed(_several(texts), role), dtype=np.float32)

    def report(self) -> dict[str, Any]:
        """The report that the release was judged by, with all systems, measures and intervals, as plain values.

        Raises:
            MissingError: the release was not judged when it was made, as by a quickstart.
        """
        report: dict[str, Any] = json.loads(
            release_parts.part(self._release, "report").file("report.json").read_text(encoding="utf-8")
        )
        return report


def _several(texts: Sequence[str]) -> Sequence[str]:
    """The texts; raises InvalidRequestError for a single one, whose characters would count as texts."""
    from serving.errors import InvalidRequestError

    if isinstance(texts, str):
        raise InvalidRequestError("texts is one text; give a list of texts")
    return texts


def open_release(workspace: str | Path = "workspace", release: str = "live") -> OpenRelease:
    """Opens a release: live, previous, or the first digits of its fingerprint.

    Raises:
        MissingError: the workspace has no such release.
        ArtifactError: the release is damaged; the message names the file.
    """
    return OpenRelease(Path(workspace), release)


def list_releases(workspace: str | Path = "workspace") -> "pd.DataFrame":
    """Releases of a workspace, oldest first: name, recipe, time, size, and the mean measure of each judged system.

    Raises:
        MissingError: no such folder.
    """
    import pandas as pd

    from flows.releases import releases

    if not Path(workspace).is_dir():
        raise MissingError(f"{workspace}: no such folder; give the workspace that a retraining or quickstart wrote")
    return pd.DataFrame(releases(Path(workspace))["releases"])


def retrain(recipe: str | Path, workspace: str | Path = "workspace", overrides: Sequence[str] = ()) -> "RetrainResult":
    """Runs a whole retraining in this process: `recipe` is a TOML file or the name of a built-in recipe.

    Args:
        overrides: changes of the recipe in the form of `--set`, such as "ranker.layers=2".

    Raises:
        RelevanceError: the message says what, where and what to do.
    """
    from flows import retrain as flow
    from flows.built_in_recipes import recipe_path
    from pipeline import recipe as recipes

    return flow.retrain(recipes.load(recipe_path(str(recipe)), overrides), Path(workspace))


def judge(run: str | Path, qrels: str | Path, measures: Sequence[str] = MEASURES) -> "pd.DataFrame":
    """A row for each measure: its mean over the judged queries, where a missed query counts 0, with a 95 % interval.

    Args:
        run: TREC run file, or Parquet with query_id, doc_id and score; FILE:SYSTEM of a file with several systems.
        qrels: TREC qrels file, or Parquet with query_id, doc_id and grade.
        measures: names of metrics: ndcg@10 (linear gain), ndcg_exp@10, mrr, map, recall@100, pairwise.

    Raises:
        MissingError, SchemaError: a file is not there or cannot be used, or the run ranks none of the judged queries.
        ConfigError: an unknown measure.
    """
    import pandas as pd

    from pipeline.evaluation import significance

    per_query = _per_query(run, Path(qrels), measures)
    rows = []
    for measure in measures:
        interval = significance.interval(per_query.values[measure])
        rows.append(
            {"measure": measure, "mean": interval.mean, "low": interval.low, "high": interval.high}
            | {"queries": interval.queries}
        )
    return pd.DataFrame(rows)


def compare(run: str | Path, baseline: str | Path, qrels: str | Path, measure: str = "ndcg@10") -> "Difference":
    """The paired difference of two runs in one measure, with its interval and p value; see `judge` on the files.

    Raises:
        MissingError, SchemaError: a file is not there or cannot be used, or a run ranks none of the judged queries.
        ConfigError: an unknown measure.
    """
    from pipeline.evaluation import significance

    new, old = (_per_query(path, Path(qrels), [measure]).values[measure] for path in (run, baseline))
    return significance.difference(new, old)


def _per_query(run: str | Path, qrels: Path, measures: Sequence[str]) -> Any:
    from pipeline.evaluation import metrics, runs

    file = runs.RunFile.parse(str(run))
    ranked, judgments = runs.read(file.path, file.name, is_named=bool(file.system)), _judgments(qrels)
    runs.check_queries(file.name, ranked, set(judgments["query_id"].to_pylist()))
    return metrics.evaluate(ranked, judgments, measures)


def _judgments(path: Path) -> Any:
    from pipeline import schema
    from pipeline.data.formats import trec_files

    return schema.read(path, "judgments") if path.suffix.lower() == ".parquet" else trec_files.read_qrels(path)
