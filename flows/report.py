"""The flow that judges: a release, or any run file, on judged queries that may not be those it was made with.

A release is judged on those of the queries that its recipe keeps from training (`split` test): the recipe cuts by
a hash of the query's text, so they are found in any copy of the data. For queries that training cannot have
seen, `all` judges every one.
"""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from flows import judging, runner
from pipeline import recipe as recipes
from pipeline import releases
from pipeline.artifacts import Artifact
from pipeline.config import DataConfig, Recipe, SourceConfig
from pipeline.releases import Releases

log = logging.getLogger(__name__)

Split = Literal["test", "all"]


def report(
    judgments: str,
    workspace: Path,
    *,
    format: str = "auto",
    split: Split = "test",
    release: str = "live",
    run_file: Path | None = None,
    baseline: str = "",
    clicks: bool = False,
    out: Path | None = None,
    execute: runner.Execute = runner.directly,
) -> Artifact:
    """A report artifact on a release's models, or on a run file, over all queries that a source judges.

    Args:
        judgments, format: a folder or file of documents, queries and judgments; see `SourceConfig`.
        split: which of its queries; see above. A run file is judged on all of them.
        release: whose models rank the source's documents, as its recipe says: the judged lists or what they retrieve.
        run_file: TREC text or Parquet; judged instead of a release's models.
        baseline: a release to compare with; without it BM25 and encoder together are.
        clicks: counts judgments that were made from clicks too.
        out: report.html, report.json and per_query.parquet are copied here.

    Raises:
        MissingError: no such source, file or release.
    """
    registry, run = Releases(workspace), runner.Runner(workspace, execute)
    source = SourceConfig(path=judgments, format=format)
    if run_file is not None:
        made = _of_run(registry, source, run_file, baseline, run, clicks=clicks)
    else:
        made = _of_release(registry, source, split, release, baseline, run, clicks=clicks)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for name in made.manifest.files:
            shutil.copyfile(made.path / name, out / name)
    return made


def _judgments(source: SourceConfig, config: DataConfig, run: runner.Runner) -> Artifact:
    from pipeline.data import judgments

    whole = replace(
        config, root=".", sources=(source,), train_queries=0, valid_queries=0, test_queries=0, max_documents=0
    )
    return run.labelled("judgments")(judgments.make, whole, purpose="judging")


def _of_release(
    registry: Releases,
    source: SourceConfig,
    split: Split,
    release: str,
    baseline: str,
    run: runner.Runner,
    *,
    clicks: bool,
) -> Artifact:
    from pipeline.evaluation import facts, systems
    from pipeline.evaluation import report as reports

    opened = registry.open(release)
    recipe = recipes.parse(Recipe, opened.manifest.config)
    data = _judgments(source, recipe.data if split == "test" else replace(recipe.data, splits="test"), run)
    judged, corpus = judging.judge_release(opened, recipe.index, recipe.candidates, run, data=data)
    live = None
    if baseline:
        former = registry.open(baseline)
        index = recipes.parse(Recipe, former.manifest.config).index
        other, _ = judging.judge_release(former, index, recipe.candidates, run.labelled("baseline"), data=data)
        live = systems.ReleaseScores(features=other.features, fusion=other.fusion)
    ranked = run(systems.make, features=judged.features, fusion=judged.fusion, scores={}, live=live)
    parts = {name: releases.part(opened, name) for name in ("ranker", "encoder")}
    return run(
        reports.make,
        replace(recipe.evaluation, clicks=clicks or recipe.evaluation.clicks),
        data=data,
        systems=ranked,
        baseline=systems.LIVE if baseline else systems.BOTH,
        subject=systems.FUSED,
        title=f"Release {opened.fingerprint[:12]}",
        measured=facts.of(parts["ranker"], parts["encoder"], corpus.vectors, corpus.index, {}),
    )


def _of_run(
    registry: Releases, source: SourceConfig, run_file: Path, baseline: str, run: runner.Runner, *, clicks: bool
) -> Artifact:
    from pipeline.evaluation import report as reports
    from pipeline.evaluation import systems

    config = replace(Recipe().evaluation, clicks=clicks)
    data = _judgments(source, DataConfig(splits="test"), run)
    files = {run_file.stem: run_file}
    if baseline:
        opened = registry.open(baseline)
        recipe = recipes.parse(Recipe, opened.manifest.config)
        judged, _ = judging.judge_release(opened, recipe.index, recipe.candidates, run, data=data)
        ranked = run(systems.make, features=judged.features, fusion=judged.fusion, scores={})
        files = {systems.FUSED: ranked.file("run.parquet"), **files}
    return run(reports.make_from_run, config, data=data, systems=files, title=f"Run {run_file.name}")


def rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Systems with their means, for a table of plain values."""
    return [
        {"system": name, **{measure: round(item["mean"] or 0.0, 4) for measure, item in system["measures"].items()}}
        for name, system in found["systems"].items()
    ]
