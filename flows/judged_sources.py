"""Judged queries to judge a release by, or to learn its order from, joined with the documents that they name."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from flows import publishing
from flows.runner import Runner
from pipeline.artifacts import Artifact
from pipeline.config import DataConfig, SourceConfig
from pipeline.errors import SchemaError
from pipeline.releases import Releases
from pipeline.secrets import hide_passwords
from pipeline.text import counted

log = logging.getLogger(__name__)


def several(judgments: SourceConfig | Sequence[SourceConfig]) -> tuple[SourceConfig, ...]:
    """One source or several, as several."""
    return (judgments,) if isinstance(judgments, SourceConfig) else tuple(judgments)


def with_documents(
    sources: tuple[SourceConfig, ...], registry: Releases, release: Artifact
) -> tuple[SourceConfig, ...]:
    """The sources and, where none of them holds a document, the documents of a release.

    Raises:
        SchemaError: a source has no texts of queries, or the release holds none of the judged documents.
    """
    import pyarrow.parquet as pq

    from pipeline.data import sources as reading
    from pipeline.data.formats import qrels_file

    for source in sources:
        if source.format == qrels_file.NAME:
            raise SchemaError(f"a release ranks by texts of queries; {qrels_file.advice(Path(source.path))}")
    read = [reading.read(source, Path()) for source in sources]
    if any(source.documents.num_rows for source in read):
        return sources
    documents = publishing.documents_of(registry, release)
    judged = {name for source in read for name in source.judgments["doc_id"].to_pylist()}
    known = pq.read_table(documents.file("documents.parquet"), columns=["doc_id"])["doc_id"].to_pylist()
    shown = ", ".join(hide_passwords(source.path) for source in sources)
    if not judged.intersection(known):
        raise SchemaError(
            f"{shown}: there are no documents beside these judgments, and release {release.fingerprint[:12]} has none "
            f"of theirs; they name {min(judged, default='none')!r}, the release has ids such as {min(known)!r}"
        )
    own = counted(len(known), "document")
    log.info("%s: judged with the %s of release %s", shown, own, release.fingerprint[:12])
    # One name makes one collection of both.
    beside = SourceConfig(path=str(documents.file("documents.parquet").resolve()), format="parquet", name=read[0].name)
    return (*(replace(source, name=read[0].name) for source in sources), beside)


def by_rules(config: DataConfig, rules: DataConfig | None) -> DataConfig:
    """The section `config`, with the rules of another section on unusable rows and on pairs of several grades."""
    return config if rules is None else replace(config, faulty_rows=rules.faulty_rows, conflicts=rules.conflicts)


def read(sources: tuple[SourceConfig, ...], config: DataConfig, run: Runner) -> Artifact:
    """The data artifact of these sources by the rules of `config`, with all of their queries and documents."""
    from pipeline.data import judgments

    all_queries = replace(
        config, root=".", sources=sources, train_queries=0, valid_queries=0, test_queries=0, max_documents=0
    )
    return run.labelled("judgments")(judgments.make, all_queries, purpose="judging")
