"""The recipe and its sections: export, index, evaluation, gate and schedule.

The sections of data, of training and of comparisons stand in `config_data`, `config_training`, `config_students` and
`config_study`.

Sections are pydantic dataclasses: frozen, checked when they are made, and made anew by `dataclasses.replace`, which
checks again. The text below a field is its description in the JSON Schema (`relevance recipe schema`). An impossible
value is a `ConfigError` that names the key. Nothing here imports more than the standard library and pydantic.
"""

import re
from dataclasses import field, fields
from typing import Literal, TypeVar

from pydantic.dataclasses import dataclass

from pipeline.config_checks import (
    DOCUMENTED,
    added,
    check_fields,
    check_not_negative,
    check_positive,
    check_seed,
    check_shares,
)
from pipeline.config_data import Augmentation, CandidatesConfig, DataConfig, SourceConfig
from pipeline.config_students import EncoderConfig, MiningConfig, RankerConfig
from pipeline.config_study import AblationConfig, Precision, StudyConfig, VariantConfig
from pipeline.config_training import (
    ExternalTeacherConfig,
    LoopConfig,
    PassagesConfig,
    PretrainConfig,
    ScratchConfig,
    TeacherConfig,
    weights_of,
)
from pipeline.errors import ConfigError

__all__ = [
    "AblationConfig",
    "Augmentation",
    "CandidatesConfig",
    "ComputeConfig",
    "DataConfig",
    "EncoderConfig",
    "EvaluationConfig",
    "ExportConfig",
    "ExternalTeacherConfig",
    "GateConfig",
    "IndexConfig",
    "LoopConfig",
    "MiningConfig",
    "PassagesConfig",
    "Precision",
    "PretrainConfig",
    "RankerConfig",
    "Recipe",
    "ScheduleConfig",
    "ScratchConfig",
    "SourceConfig",
    "StudyConfig",
    "T",
    "TeacherConfig",
    "VariantConfig",
    "weights_of",
]


@dataclass(frozen=True, kw_only=True, slots=True, config=DOCUMENTED)
class ExportConfig:
    """ONNX precisions, and bounds on what a lower one may cost."""

    precisions: tuple[Precision, ...] = ("fp32", "fp16", "int8", "w8")
    """Precisions that are exported; fp32 is the reference. fp16, for CUDA, keeps normalisation, softmax and head in
    fp32; without a GPU it is left out of this default list. int8 scales
    the activations of an input by their largest, so it is run one input at a time. w8 has 8-bit weights in blocks and
    rounds each token's activations for itself: slower than int8, nearer to fp32, and no score depends on its batch."""
    max_ndcg_drop: float = 0.005
    """Maximum loss of nDCG on valid queries; a precision that loses more is not chosen for serving. 0.002 is a good
    bound where the sample has a thousand lists; over the fifty of a small one, two documents that change places move
    the mean by as much."""
    min_kendall_tau: float = 0.9
    """Minimum agreement with fp32 on the order within valid queries; a precision below it is not chosen. 0.98 is a good
    bound for a well-trained model; nearly tied scores, as short trainings leave them, change places easily."""
    sample_tokens: int = 40_000
    """Tokens of valid queries on which each precision is judged; more take longer and give a more certain judgment."""
    golden: int = 16
    """Number of inputs whose scores are stored for a check at every load."""
    parity: float = 1e-5
    """Largest difference allowed between PyTorch and fp32 ONNX, times (1 + the score's size)."""

    def __post_init__(self) -> None:
        check_positive("export", sample_tokens=self.sample_tokens, golden=self.golden, parity=self.parity)
        check_not_negative("export", max_ndcg_drop=self.max_ndcg_drop)
        if abs(self.min_kendall_tau) > 1:
            raise ConfigError(f"export.min_kendall_tau is {self.min_kendall_tau}; a correlation is between -1 and 1")
        if "fp32" not in self.precisions:
            raise ConfigError("export.precisions lacks fp32, which the others are held against; add it")


@dataclass(frozen=True, kw_only=True, slots=True, config=DOCUMENTED)
class IndexConfig:
    """The lexical and the semantic index."""

    flat_below: int = 50_000
    """Number of documents up to which search is exact; above it uses inverted lists (IVF)."""
    nprobe: int = 16
    """Inverted lists visited for a query."""
    language: str = "english"
    """Stemmer of the lexical index; empty for none. Chinese and other texts without spaces need none."""
    k1: float = 1.2
    """BM25's k1: the weight of a repeated term. 0.6 is better where documents are short titles."""
    b: float = 0.75
    """BM25's b: the penalty on long documents, from 0 for none to 1."""
    seed: int = 13
    """Seed of the clustering of inverted lists and of the recall sample."""
    recall: float = added(0.0)
    """Recall at 100 against exact search that the semantic index keeps for held-out queries by its lower 95 % bound,
    such as 0.98. The type of index and the visited lists are then chosen, and `nprobe` is not read; 0 for none."""
    bytes_per_document: float = added(0.0)
    """Maximum size of the semantic index, in bytes a document; needs `recall`. 0 for no limit."""
    votes: tuple[str, ...] = added(())
    """Two columns of the documents that count votes for and against, such as ["up", "down"]; empty for no filter."""
    least_quality: float = added(0.0)
    """Lower bound of Wilson's 95 % interval of the votes for a document, from which on it gets a vector; the others are
    found by BM25 alone. Needs `votes`. A document without votes has 0."""
    fields: tuple[str, ...] = added(())
    """Stored fields of the documents, such as ["title", "text"], that BM25 also scores apart: the fusion learns a
    weight for each, beside that of the whole document. Empty for the whole document alone."""
    field_vectors: bool = added(False)
    """Whether each of `fields` also gets a vector of its own, whose cosine the fusion weighs. A document whose field is
    empty has none there, and cosine 0."""
    passages: PassagesConfig = added(PassagesConfig())
    """Passages of documents longer than `encoder.max_tokens`: each gets a vector, and the cosine of the nearest one is
    the document's. `most` = 0 or 1 cuts documents at their end. `best` must be 1. RESULTS.md has figures."""

    def __post_init__(self) -> None:
        check_positive("index", nprobe=self.nprobe, k1=self.k1, flat_below=self.flat_below)
        check_shares("index", b=self.b)
        check_seed("index", self.seed)
        if not 0 <= self.recall < 1:
            raise ConfigError(f"index.recall is {self.recall}; it must be below 1, such as 0.98, or 0 for no contract")
        check_shares("index", least_quality=self.least_quality)
        if len(self.votes) not in (0, 2) or bool(self.votes) != bool(self.least_quality):
            raise ConfigError(
                f"index.votes is {list(self.votes)} and index.least_quality {self.least_quality:g}; give two columns "
                "and a bound above 0, or neither"
            )
        check_fields(self.fields, vectors=self.field_vectors)
        if self.passages.best != 1:
            raise ConfigError(
                f"index.passages.best is {self.passages.best}: an index finds a document by its nearest passage; set "
                "it to 1"
            )
        if self.bytes_per_document < 0 or (self.bytes_per_document and not self.recall):
            raise ConfigError(
                f"index.bytes_per_document is {self.bytes_per_document:g}; it must be 0 or more, and needs index.recall"
            )


@dataclass(frozen=True, kw_only=True, slots=True, config=DOCUMENTED)
class EvaluationConfig:
    """Measures and intervals of the report."""

    cutoff: int = 10
    """Cut-off rank of the headline nDCG."""
    gain: Literal["linear", "exponential"] = "linear"
    """Gain of the headline nDCG; the report states both."""
    relevant_from: int = 1
    """Lowest grade that MRR, MAP and recall count as relevant."""
    clicks: bool = False
    """Counts weak judgments too, those made from clicks and from thumbs of the search page; without it reports are on
    the other judgments alone."""
    bootstrap: int = 2000
    """Resamples of the queries for 95 % intervals, and sign flips for p values."""
    examples: int = 5
    """Number of largest wins, and of largest losses, that the report shows with their documents."""
    seed: int = 13
    """Seed of the resamples."""

    def __post_init__(self) -> None:
        check_positive("evaluation", cutoff=self.cutoff, relevant_from=self.relevant_from, bootstrap=self.bootstrap)
        check_not_negative("evaluation", examples=self.examples)
        check_seed("evaluation", self.seed)


@dataclass(frozen=True, kw_only=True, slots=True, config=DOCUMENTED)
class GateConfig:
    """Conditions on which a new release may go live by itself."""

    margin: float = 0.005
    """The lower end of the 95 % interval of (new - live) nDCG must be above minus this."""
    slice_margin: float = 0.02
    """Tolerated loss of a slice: the upper end of its interval must not be below minus this."""
    min_slice_queries: int = 50
    """Smallest slice that takes part in the decision; smaller ones are only shown."""
    min_queries: int = 50
    """Smallest number of judged queries on which a live release is replaced. With fewer, most samples do not show a
    rare large loss, and no interval is right."""
    earlier_releases: int = 5
    """Number of releases that were live before, the best of which a new one must not be worse than; 0 for none."""
    rerank_floor: bool = added(True)
    """Whether a release is refused whose ranker alone, the order of `/rerank`, is surely worse than BM25, as long as no
    ranker is live. False only warns, for a service where nobody calls `/rerank` without first-stage scores."""

    def __post_init__(self) -> None:
        check_positive("gate", min_queries=self.min_queries)
        check_not_negative("gate", min_slice_queries=self.min_slice_queries)
        for name, value in (("margin", self.margin), ("slice_margin", self.slice_margin)):
            if value < 0:
                raise ConfigError(f"gate.{name} is {value}; it is a tolerated loss, so 0 or more")
        if self.earlier_releases < 0:
            raise ConfigError(
                f"gate.earlier_releases is {self.earlier_releases}; it is a number of releases, 0 or more"
            )


@dataclass(frozen=True, kw_only=True, slots=True, config=DOCUMENTED)
class ScheduleConfig:
    """Cron lines of the three flows; an empty one is not served."""

    retrain: str = "0 2 * * 0"
    """Cron line of retraining."""
    report: str = "0 6 * * *"
    """Cron line of the report."""
    reindex: str = "0 * * * *"
    """Cron line of re-indexing."""
    timezone: str = "UTC"
    """Time zone of the cron lines, such as Europe/Berlin."""


@dataclass(frozen=True, kw_only=True, slots=True, config=DOCUMENTED)
class ComputeConfig:
    """Where documents are embedded and pairs are scored by trained cross-encoders.

    No result depends on it, so artifacts made by one engine are used by the other. Models are trained, and an external
    teacher scores, on the machine where the command runs.
    """

    engine: Literal["local", "ray"] = "local"
    """local computes in the process of the command; ray on the workers of a Ray cluster, and needs the extra ray."""
    address: str = ""
    """HOST:PORT of the cluster's head, such as 10.0.0.7:6379; all machines must see the workspace by the same path.
    Empty starts a cluster on this machine, for the time of the work."""
    workers: int = 0
    """Processes that each hold the model; 0 for as many as the cluster has CPUs for."""
    cpus_per_worker: int = 1
    """CPUs of each worker, and threads of its model."""
    gpus_per_worker: float = 0.0
    """GPUs of each worker; without one its model runs on the processor."""

    def __post_init__(self) -> None:
        check_positive("compute", cpus_per_worker=self.cpus_per_worker)
        if self.workers < 0 or self.gpus_per_worker < 0:
            raise ConfigError("compute.workers and compute.gpus_per_worker must be 0 or more")
        if self.engine == "local" and any(getattr(self, item.name) != item.default for item in fields(self)):
            raise ConfigError(
                "compute.address, workers, cpus_per_worker and gpus_per_worker are those of a Ray cluster; set "
                'compute.engine to "ray", or leave them out'
            )
        if self.address and not re.fullmatch(r"[^\s/]+:\d+", self.address):
            raise ConfigError(f"compute.address is {self.address!r}; write HOST:PORT, such as 10.0.0.7:6379")


@dataclass(frozen=True, kw_only=True, slots=True, config=DOCUMENTED)
class Recipe:
    """The settings of one retraining."""

    name: str = "recipe"
    """Name in reports and lists; the file's name by default."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data and splits."""
    candidates: CandidatesConfig = field(default_factory=CandidatesConfig)
    """Pairs to train on and to judge."""
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    """Masked language modelling before the teacher."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """The large cross-encoder."""
    external_teacher: ExternalTeacherConfig = field(default_factory=ExternalTeacherConfig)
    """A teacher that is not trained here."""
    assistants: tuple[RankerConfig, ...] = ()
    """Students between teacher and ranker (`[[assistants]]`, the first learns first): each is distilled from the one
    before it, and teaches the next. One as deep as its teacher is self-distillation. Only the ranker's `plain` is
    used. Experimental: no built-in recipe sets it and no figure supports it."""
    ranker: RankerConfig = field(default_factory=RankerConfig)
    """The distilled cross-encoder that serves."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """The distilled bi-encoder that serves."""
    export: ExportConfig = field(default_factory=ExportConfig)
    """ONNX precisions."""
    index: IndexConfig = field(default_factory=IndexConfig)
    """Lexical and semantic index."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """The report."""
    gate: GateConfig = field(default_factory=GateConfig)
    """The decision to go live."""
    ablation: AblationConfig = field(default_factory=AblationConfig)
    """The grid of `relevance ablate`."""
    study: StudyConfig = added(StudyConfig())
    """The ways to compress the ranker that `relevance study` compares."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Cron lines of `relevance schedule`."""
    compute: ComputeConfig = added(ComputeConfig())
    """The machines that embed documents and score pairs."""

    def __post_init__(self) -> None:
        of_grades = [weight for name, weight in weights_of(self.ranker).items() if name.startswith("hard_")]
        if self.ranker.plain and not any(of_grades):
            raise ConfigError(
                "ranker.plain: the plain student learns from grades alone, and every ranker.hard_…_weight is 0; give "
                "one a weight, or set ranker.plain to false"
            )
        if self.external_teacher.given and self.encoder.mining.rounds > 1:
            raise ConfigError(
                f"encoder.mining.rounds is {self.encoder.mining.rounds}: our teacher scores what a later round finds, "
                "on another scale than the external teacher's; set it to 1, or leave external_teacher empty"
            )
        first = (*self.assistants, self.ranker)[0]  # Who learns from it.
        if self.external_teacher.given and first.teachers > 1:
            raise ConfigError(
                f"{'assistants[0]' if self.assistants else 'ranker'}.teachers is {first.teachers}: the external "
                "teacher takes the place of ours, so there are no others; set it to 1"
            )
        if several := [each.teachers for each in (*self.assistants, self.ranker)[1:] if each.teachers > 1]:
            raise ConfigError(
                f"teachers is {several[0]} of a student that learns from an assistant; set assistants[0].teachers, as "
                "only the first student has several teachers"
            )
        if self.candidates.encoder_negatives and self.encoder.train_body:
            raise ConfigError(
                f"candidates.encoder_negatives is {self.candidates.encoder_negatives}: the teacher learns from what "
                "the encoder finds, and with encoder.train_body the encoder learns from the teacher; set "
                "encoder.train_body to false, or candidates.encoder_negatives to 0"
            )
        if self.external_teacher.scores and self.candidates.augmented:
            raise ConfigError(
                f"candidates.augmented is {self.candidates.augmented:g}: external_teacher.scores has no scores of "
                "texts that are yet to be made; set it to 0, or give external_teacher.causal_lm"
            )
        if self.external_teacher.given and first.matches_states:
            raise ConfigError(
                f"{'assistants[0]' if self.assistants else 'ranker'}.hidden_weight is {first.hidden_weight}: it "
                "compares states of layers, and an external teacher gives only scores; set it to 0"
            )


T = TypeVar("T")
