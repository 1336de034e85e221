"""The sections of a recipe on data: its sources, its splits, and the pairs of queries and documents."""

from collections.abc import Mapping
from dataclasses import field
from typing import Literal

from pydantic.dataclasses import dataclass

from pipeline.config_checks import DOCUMENTED, added, check_not_negative, check_positive, check_shares, check_watermark
from pipeline.errors import ConfigError

Augmentation = Literal["replace", "drop", "ngram"]
"""A change of a text that makes another training text of it."""


@dataclass(frozen=True, kw_only=True, slots=True, config=DOCUMENTED)
class SourceConfig:
    """One set of documents, queries and judgments."""

    path: str
    """Folder or file, relative to `data.root`; an address of an object store, such as `s3://bucket/folder`; or for a
    database a SQLAlchemy URL, such as `sqlite:///shop.db?table=articles` (the table is `documents` by default)."""
    format: str = "auto"
    """parquet, beir, trec, esci, wands, t2ranking, qbqtc, crowdflower, homedepot, thumbs, text, sql, qrels,
    python_api, table; auto looks at the files. qrels is a TREC qrels file alone, by which a run can be judged."""
    name: str = ""
    """Reported as a slice, and put before ids when a recipe has several sources; the folder's name when empty. Sources
    of one name are one collection: documents from a database, judgments from a folder."""
    grades: tuple[int, ...] = ()
    """Our grade for each grade of the source, from grade 0 up; empty keeps them. Needed where sources have different
    scales."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """The columns of a table (CSV, TSV, JSON lines, Parquet, a database) by what they are: query, query_id, title,
    text, doc_id, grade, split; any other key keeps a column of the documents under that name. A path such as
    product.title names a field of a JSON object or of a struct in Parquet. A list of texts is one text, or with a list
    of grades as many documents. With positive and negative, texts or lists of texts, a row has documents of grades 1
    and 0. With clicked the rows are a click log: position is needed, session and time are read, and the grades come
    from the clicks."""
    labels: Mapping[str, int] = field(default_factory=dict)
    """The grade that each word of a mapped table's grade column stands for."""
    grade_scale: tuple[float, ...] = ()
    """Lowest value, highest value and steps of a mapped table's grades: they become 0 to steps, halves rounded up. Of
    a click log, the scale of the attractiveness of documents, between 0 and 1."""
    min_examined: float = 10.0
    """Number of examined impressions that a query and document of a click log need to be judged; an impression at a
    position that is examined half as often as the first counts half."""
    query: str = ""
    """The SQL query that is read from a database instead of a table."""
    watermark: str = added("")
    """Column of a database's table of documents that grows whenever a row is written, such as updated_at: a re-index
    reads the rows at or above the value that it last saw, and those without one."""
    deletions: Literal["", "flag", "table", "scan", "none"] = added("")
    """The way in which a re-index learns of rows that are gone; needed with `watermark`. flag: a row is gone when its
    column `deleted` is not NULL, 0, false or empty. table: the table `deleted` has the ids of rows that are gone, and
    the watermark. scan: the ids of all rows are read. none: rows never go."""
    deleted: str = added("")
    """Column of the flag, or table of the ids, by which `deletions` works."""
    overlap: float = added(0.0)
    """Distance below the last watermark at which reading begins, in seconds for times and in units for numbers: for
    rows that are written with an older value, by a long transaction or a clock that went back."""

    def __post_init__(self) -> None:
        check_watermark(
            watermark=self.watermark,
            deletions=self.deletions,
            deleted=self.deleted,
            overlap=self.overlap,
            query=self.query,
        )


@dataclass(frozen=True, kw_only=True, slots=True, config=DOCUMENTED)
class DataConfig:
    """Training data, and how it is split by query."""

    root: str = "."
    """Folder that source paths are relative to."""
    sources: tuple[SourceConfig, ...] = ()
    """The sources of documents, queries and judgments (`[[data.sources]]`)."""
    faulty_rows: Literal["error", "drop"] = "error"
    """Treatment of rows that cannot be used; drop counts them by reason in the artifact."""
    conflicts: Literal["error", "max", "mean"] = "error"
    """Treatment of a pair that has several grades from one kind of source."""
    splits: Literal["source", "hash", "test", "valid"] = "hash"
    """source keeps the published splits (a missing test split is the published valid, and a new valid is cut from
    train; a missing train is the published valid) and cuts queries without one as hash does; hash cuts all anew by a
    hash of the normalised query; test makes all of them test queries, for judging; valid makes all but the share
    `test_share` valid queries, for a refit."""
    valid_share: float = 0.1
    """Share of queries in the valid split that hash cuts."""
    test_share: float = 0.2
    """Share of queries in the test split that hash cuts."""
    train_queries: int = 0
    """Maximum number of training queries, chosen by hash; 0 for all."""
    valid_queries: int = 0
    """Maximum number of valid queries, chosen by hash; 0 for all."""
    test_queries: int = 0
    """Maximum number of test queries, chosen by hash; 0 for all."""
    max_documents: int = 0
    """Maximum number of documents: the judged ones first, then others by hash; 0 for all."""
    seed: int = 13
    """Seed of the hashes that cut splits and choose queries and documents."""

    def __post_init__(self) -> None:
        check_shares("data", valid_share=self.valid_share, test_share=self.test_share)
        check_not_negative(
            "data",
            "all",
            train_queries=self.train_queries,
            valid_queries=self.valid_queries,
            test_queries=self.test_queries,
            max_documents=self.max_documents,
        )
        if self.valid_share + self.test_share >= 1:
            raise ConfigError(
                f"data.valid_share {self.valid_share} and data.test_share {self.test_share} leave nothing to train on"
            )


@dataclass(frozen=True, kw_only=True, slots=True, config=DOCUMENTED)
class CandidatesConfig:
    """(query, document) pairs to train on and to judge."""

    pool: Literal["judged", "retrieved"] = "retrieved"
    """judged reranks the judged documents of each query, for sets with whole lists; retrieved reranks the documents
    that BM25 and the encoder find, for sets with few judgments a query."""
    train_queries: int = added(0)
    """Maximum number of training queries whose pairs teacher, ranker and encoder learn from, chosen by hash; 0 for all.
    The encoder's `projection = "judgments"` learns from all of them nevertheless, as it is quick."""
    negatives: int = 5
    """Unjudged documents added to each training query as grade 0, sampled from its BM25 run; 0 for none."""
    encoder_negatives: int = added(0)
    """Unjudged documents added in the same way from the encoder's run, so that teacher and ranker learn from what both
    ways bring to a pool; the valid pairs are then those of both runs. The encoder is made ahead of the teacher, so
    `encoder.train_body` must be false. 0 for none. RESULTS.md has figures: the ranker alone gains."""
    negatives_depth: int = 50
    """Depth of the runs that negatives are sampled from."""
    skip_top: int = 0
    """Number of a run's first unjudged documents that are no negatives, as they may be relevant."""
    retrieve: int = 20
    """Number of documents that BM25 and the encoder each bring to a reranked pool."""
    max_list: int = 16
    """Maximum number of a query's documents in one training step; the rest come in other epochs."""
    unlabelled: float = 0.0
    """Unlabelled pairs for each labelled training pair: (query, document) pairs without a grade, from which the ranker
    learns the teacher's scores. Their documents are found by BM25 for training queries and those of
    `unlabelled_queries` and `title_queries`, in lists of `max_list`. A larger number keeps all pairs of a smaller."""
    unlabelled_depth: int = 100
    """Depth of each query's run that unlabelled pairs are drawn from."""
    unlabelled_queries: str = ""
    """A file with further queries for unlabelled pairs: Parquet with a column `query` or `text`, such as a click log,
    or a text with one a line. Queries that equal a judged one are left out. Experimental: no built-in recipe sets it
    and no figure supports it."""
    title_queries: int = 0
    """Number of document titles that are used as queries for unlabelled pairs. Experimental: no built-in recipe sets it
    and no figure supports it."""
    augmented: float = added(0.0)
    """Augmented pairs for each labelled training pair: copies of training pairs with changed texts, without a grade,
    from which the ranker learns the teacher's scores, as from unlabelled pairs. Experimental: no built-in recipe sets
    it and no figure supports it."""
    augmentation: tuple[Augmentation, ...] = added(("replace", "ngram"))
    """Changes of which each augmented text takes one: replace puts likely words in place of four in ten, drop leaves
    out one word in ten, ngram keeps a part of the text."""
    seed: int = 13
    """Seed of the sampling of negatives, unlabelled and augmented pairs."""
    click_weight: float = added(1.0)
    """Weight, in losses over grades, of training pairs whose grade was made from clicks or from thumbs of the search
    page, and of the sampled negatives of queries that have no other grades; a pair that a person graded weighs 1. 0
    learns from people's grades alone."""

    def step_settings(self) -> dict[str, float]:
        """The values that decide a training step, for the fingerprints of the stages that train."""
        weight = {} if self.click_weight == 1 else {"click_weight": self.click_weight}
        return {"max_list": self.max_list, **weight}

    def __post_init__(self) -> None:
        check_shares("candidates", click_weight=self.click_weight)
        check_positive(
            "candidates", retrieve=self.retrieve, max_list=self.max_list, negatives_depth=self.negatives_depth
        )
        check_positive("candidates", unlabelled_depth=self.unlabelled_depth)
        check_not_negative(
            "candidates",
            train_queries=self.train_queries,
            negatives=self.negatives,
            encoder_negatives=self.encoder_negatives,
            skip_top=self.skip_top,
            unlabelled=self.unlabelled,
            augmented=self.augmented,
            title_queries=self.title_queries,
        )
        if not self.augmentation or len(set(self.augmentation)) < len(self.augmentation):
            raise ConfigError(f"candidates.augmentation {list(self.augmentation)}: name at least one change, each once")
