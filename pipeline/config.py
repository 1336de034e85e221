"""Every knob of the pipeline on one page: a frozen dataclass for each stage, filled from one TOML recipe.

An unknown key, a value of the wrong type or an impossible value is an error that names the key. Nothing
here imports more than the standard library.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pipeline.errors import ConfigError

Precision = Literal["fp32", "fp16", "int8", "w8"]


def _positive(section: str, **values: float) -> None:
    for name, value in values.items():
        if value <= 0:
            raise ConfigError(f"{section}.{name} is {value}; it must be above 0")


def _weights(section: str, **values: float) -> None:
    for name, value in values.items():
        if value < 0:
            raise ConfigError(f"{section}.{name} is {value}; it must be 0, for none, or more")
    if not any(values.values()):
        raise ConfigError(f"{section}: every loss has weight 0, so there is nothing to learn; give one a weight")


def _share(section: str, **values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ConfigError(f"{section}.{name} is {value}; it is a share, between 0 and 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """One set of documents, queries and judgments."""

    path: str
    """Folder or file, relative to `data.root`; for a document store a SQLAlchemy URL, such as
    `sqlite:///shop.db?table=articles` (the table is `documents` when not given)."""
    format: str = "auto"
    """parquet, beir, trec, esci, wands, t2ranking, qbqtc, crowdflower, homedepot, sql, python_api; auto looks at the
    files."""
    name: str = ""
    """Reported as a slice, and put before ids when a recipe has several sources; the folder's name when empty. Sources
    of one name are one collection: documents from a database, judgments from a folder."""
    grades: tuple[int, ...] = ()
    """Ours for each of theirs, from grade 0 up; empty keeps them. Needed where sources have different scales."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """The columns of a table (CSV, TSV, JSON lines, Parquet, a database) by what they are: query, query_id, title,
    text, doc_id, grade, split; any other key keeps a column of the documents under that name."""
    labels: Mapping[str, int] = field(default_factory=dict)
    """The grade that each word of a mapped table's grade column stands for."""
    grade_scale: tuple[float, ...] = ()
    """Lowest value, highest value and steps of a mapped table's grades: they become 0 to steps, halves rounded up."""
    query: str = ""
    """The SQL query that is read from a database instead of a table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which data is learned from, and how it is split by query."""

    root: str = "."
    """What source paths are relative to."""
    sources: tuple[SourceConfig, ...] = ()
    faulty_rows: Literal["error", "drop"] = "error"
    """What to do with rows that cannot be used; drop counts them by reason in the artifact."""
    conflicts: Literal["error", "max", "mean"] = "error"
    """What to do when one pair has several grades from one kind of source."""
    splits: Literal["source", "hash", "test"] = "hash"
    """source keeps the published splits (a missing test split is the published valid, and a new valid is cut from
    train; a missing train is the published valid) and cuts queries without one as hash does; hash cuts all anew by a
    hash of the normalised query; test makes all of them test queries, for judging."""
    valid_share: float = 0.1
    test_share: float = 0.2
    train_queries: int = 0
    """At most so many training queries, chosen by hash; 0 for all."""
    valid_queries: int = 0
    test_queries: int = 0
    max_documents: int = 0
    """At most so many documents: the judged first, then others by hash; 0 for all."""
    seed: int = 13

    def __post_init__(self) -> None:
        _share("data", valid_share=self.valid_share, test_share=self.test_share)
        for name in ("train_queries", "valid_queries", "test_queries", "max_documents"):
            if getattr(self, name) < 0:
                raise ConfigError(f"data.{name} is {getattr(self, name)}; it must be 0, for all, or more")
        if self.valid_share + self.test_share >= 1:
            raise ConfigError(
                f"data.valid_share {self.valid_share} and data.test_share {self.test_share} leave nothing to train on"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidatesConfig:
    """Which (query, document) pairs are trained on and judged."""

    pool: Literal["judged", "retrieved"] = "retrieved"
    """judged reranks the judged documents of each query, for sets with whole lists; retrieved reranks what BM25 and
    the encoder find in all documents, for sets with few judgments a query."""
    negatives: int = 5
    """Unjudged documents added to each training query as grade 0, sampled from its BM25 run; 0 for none."""
    negatives_depth: int = 50
    """They are sampled from the first so many of the run."""
    skip_top: int = 0
    """So many of the run's first unjudged documents are left out, as they may be relevant."""
    retrieve: int = 20
    """Documents that BM25 and the encoder each bring to a reranked pool."""
    max_list: int = 16
    """At most so many documents of a query in one training step; the rest come in other epochs."""
    unlabelled: float = 0.0
    """(query, document) pairs without a grade that the ranker learns from as the teacher scores them, for each training
    pair: documents that BM25 finds for training queries and those of the next two keys, in lists of `max_list`. A
    larger number adds pairs to those of a smaller."""
    unlabelled_depth: int = 100
    """They are drawn from the first so many of each query's run."""
    unlabelled_queries: str = ""
    """A file with further queries for them: Parquet with a column `query` or `text`, such as a click log, or a text
    with one a line. What equals a judged query is left out."""
    title_queries: int = 0
    """So many documents' titles are asked as well."""
    seed: int = 13

    def __post_init__(self) -> None:
        _positive("candidates", retrieve=self.retrieve, max_list=self.max_list, negatives_depth=self.negatives_depth)
        _positive("candidates", unlabelled_depth=self.unlabelled_depth)
        for name in ("negatives", "skip_top", "unlabelled", "title_queries"):
            if getattr(self, name) < 0:
                raise ConfigError(f"candidates.{name} is {getattr(self, name)}; it must be 0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """How any model is trained: the part that all stages share."""

    learning_rate: float = 1e-4
    """Peak; reached after `warmup_share` of the steps, then falling linearly to a tenth. Twice as much in small
    steps, or four times as much, can end below random order."""
    fresh_rate: float = 10.0
    """Parameters that start from nothing (a new head, its thresholds, a learned scale) learn so many times as fast."""
    warmup_share: float = 0.06
    weight_decay: float = 0.01
    """Not applied to biases and normalisation weights."""
    clip_norm: float = 1.0
    epochs: float = 1.0
    """Not read where a bound is set: then epoch follows epoch until it is used up."""
    max_tokens: int = 0
    """A bound on the real tokens trained on; 0 for none. With a bound the learning rate follows the share of it that
    is used, so the end is annealed. Resumed bit for bit."""
    max_seconds: float = 0.0
    """A bound on the time, evaluations after the first counted, what passed before a resumption too; 0 for none. What
    is learned depends on the machine then. Of two bounds the first to be used up ends the training."""
    tokens_per_batch: int = 2048
    """Real tokens of one optimizer step, padding not counted."""
    chunk_tokens: int = 8192
    """Padded tokens whose activations are held at once; smaller takes less memory, the step is the same."""
    checkpoint_activations: bool = False
    """Keep only each layer's input and compute the rest again going backward: slower, for when memory is short.
    The gradients are the same."""
    evaluations: int = 4
    """How often nDCG on the valid split is measured; the best state is kept. 0 keeps the last state."""
    valid_pairs: int = 1500
    """Each time on at most about so many pairs, of whole queries drawn once; 0 for all."""
    checkpoint_s: float = 60.0
    """Seconds between checkpoints, from which a killed training goes on."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto is bf16 on a processor with bf16 matrix instructions."""
    seed: int = 13

    def __post_init__(self) -> None:
        _positive(
            "loop",
            learning_rate=self.learning_rate,
            epochs=self.epochs,
            tokens_per_batch=self.tokens_per_batch,
            chunk_tokens=self.chunk_tokens,
            clip_norm=self.clip_norm,
        )
        _share("loop", warmup_share=self.warmup_share)
        for name, value in (("max_tokens", self.max_tokens), ("max_seconds", self.max_seconds)):
            if value < 0:
                raise ConfigError(f"loop.{name} is {value}; it must be 0, for no bound, or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScratchConfig:
    """A new encoder and its vocabulary, for where no pretrained weights can be had."""

    family: Literal["bert", "roberta", "albert"] = "bert"
    """albert has one layer, gone through `layers` times, and narrow embeddings: a fraction of the memory, not of the
    time."""
    layers: int = 4
    hidden: int = 256
    heads: int = 4
    intermediate: int = 1024
    embedding: int = 128
    """Width of the word embeddings of albert; those of the other families are as wide as `hidden`."""
    positions: int = 512
    vocab_size: int = 16000
    """Trained on the documents and training queries: WordPiece for bert and albert, byte-level BPE for roberta."""

    def __post_init__(self) -> None:
        _positive(
            "pretrain.scratch", layers=self.layers, heads=self.heads, intermediate=self.intermediate, hidden=self.hidden
        )
        _positive("pretrain.scratch", embedding=self.embedding, positions=self.positions)
        if self.hidden % self.heads:
            raise ConfigError(
                f"pretrain.scratch.hidden {self.hidden} is no multiple of heads {self.heads}; make it one"
            )
        if self.vocab_size < 300:
            raise ConfigError(f"pretrain.scratch.vocab_size is {self.vocab_size}; below 300 not even bytes fit in")


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig:
    """Masked language modelling on the recipe's own texts, before the teacher."""

    enabled: bool = False
    """Always on for a model from scratch."""
    scratch: ScratchConfig = field(default_factory=ScratchConfig)
    mask_share: float = 0.25
    max_tokens: int = 128
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(learning_rate=5e-4, epochs=3.0, evaluations=3))

    def __post_init__(self) -> None:
        _positive("pretrain", mask_share=self.mask_share)
        _share("pretrain", mask_share=self.mask_share)


def weights_of(config: Any) -> dict[str, float]:
    """The weights of a config's losses, by the name of the key."""
    names = (one.name for one in dataclasses.fields(config) if one.name.endswith("_weight"))
    return {name: getattr(config, name) for name in names}


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherConfig:
    """The cross-encoder that everything else learns from."""

    base: str = "FacebookAI/roberta-large"
    """A folder, a hub name, `package:NAME` for weights inside an installed package, or `scratch`."""
    layers: int = 0
    """Keep so many layers of the base, evenly spaced; 0 for all."""
    max_tokens: int = 128
    """Query and document together, special tokens included."""
    max_query_tokens: int = 32
    ordinal_weight: float = 1.0
    """Cumulative-link loss on the grade."""
    pairwise_weight: float = 1.0
    """RankNet loss on pairs of different grade within a query."""
    hinge_weight: float = 0.0
    """The better of such a pair should lead by `hinge_margin`."""
    hinge_margin: float = 1.0
    listnet_weight: float = 0.0
    """Cross-entropy of the scores' softmax with the grades' within a query."""
    lambdarank_weight: float = 0.0
    """RankNet whose pairs weigh what their swap would change in nDCG, with linear gain and no cut-off."""
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        _positive(
            "teacher",
            max_tokens=self.max_tokens,
            max_query_tokens=self.max_query_tokens,
            hinge_margin=self.hinge_margin,
        )
        _weights("teacher", **weights_of(self))


@dataclass(frozen=True, kw_only=True, slots=True)
class ExternalTeacherConfig:
    """A teacher that is not trained here: what it says about the pairs is what students learn, in place of the scores
    of our teacher, from which they still are cut. Give one of `scores` and `causal_lm`, or neither."""

    scores: str = ""
    """A Parquet file with the columns `score` (higher is better, on any scale) and `query_id`, `doc_id`, or `row_id`
    of the pairs artifact in place of the two."""
    causal_lm: str = ""
    """A language model, as a folder or hub name: its score is how much likelier `positive` than `negative` is to be the
    prompt's next token."""
    prompt: str = "Query: {query}\nDocument: {document}\nDoes the document answer the query? Answer yes or no.\nAnswer:"
    """With `{query}` and `{document}` once each; the marks of a chat, if the model wants them, are written out."""
    positive: str = " yes"
    """An answer of one token, as it follows the prompt; with its space, if the prompt ends without."""
    negative: str = " no"
    max_tokens: int = 512
    """Of the whole prompt; the document is cut to fit."""
    max_query_tokens: int = 64
    batch_tokens: int = 16384
    """Padded tokens that go through the model at once."""

    def __post_init__(self) -> None:
        _positive(
            "outside",
            max_tokens=self.max_tokens,
            max_query_tokens=self.max_query_tokens,
            batch_tokens=self.batch_tokens,
        )
        if self.scores and self.causal_lm:
            raise ConfigError("outside.scores and outside.causal_lm: students have one teacher; give one of the two")
        for field_name in ("{query}", "{document}"):
            if self.prompt.count(field_name) != 1:
                raise ConfigError(
                    f"outside.prompt has {field_name} {self.prompt.count(field_name)} times; write it once"
                )
        if self.positive == self.negative or not (self.positive and self.negative):
            raise ConfigError("outside.positive and outside.negative must be two different answers")

    @property
    def given(self) -> bool:
        """Whether there is such a teacher."""
        return bool(self.scores or self.causal_lm)


@dataclass(frozen=True, kw_only=True, slots=True)
class RankerConfig:
    """How the shallow cross-encoder, the ranker, is distilled from the teacher.

    The weights are those of the ablation in the README: in a tie with the best of its grid, at a third of the time.
    """

    base: str = "teacher"
    """What it is cut from: teacher, base (the teacher's own starting weights), or a folder, hub name or package."""
    layers: int = 6
    keep_layers: tuple[int, ...] = ()
    """Layers of the base to keep, counted from 1; empty spaces `layers` of them evenly, the last included."""
    layer_map: tuple[int, ...] = ()
    """Teacher layers matched to student layers 1, 2, … by the Patient KD term; empty spaces them evenly (4, 8, 12, 16,
    20 for 24 → 6)."""
    hard_ordinal_weight: float = 0.5
    hard_pairwise_weight: float = 1.0
    hard_hinge_weight: float = 0.0
    """As of the teacher, like those two above and below."""
    hinge_margin: float = 1.0
    hard_listnet_weight: float = 0.0
    hard_lambdarank_weight: float = 0.0
    soft_weight: float = 1.0
    """Cross-entropy with the teacher's grade distribution at `temperature`, times its square."""
    temperature: float = 2.0
    margin_weight: float = 1.0
    """MSE of scores centred within each query: the teacher's score differences."""
    hidden_weight: float = 0.1
    """Patient KD: squared distance of unit first-token states, mean over layers."""
    logit_weight: float = 0.0
    """MSE of the scores themselves, which also teaches their level."""
    relation_weight: float = 0.0
    """MiniLM: relations between tokens (query–key and value–value) in `relation_layer` of the teacher and the student's
    last layer. For this term and the four below the teacher reads each batch beside the student, which takes as long as
    scoring it, and the student's base must have the teacher's tokenizer."""
    relation_layer: int = 0
    """Counted from 1; 0 for the teacher's last. MiniLMv2 takes 19 of RoBERTa-large's 24."""
    relation_heads: int = 0
    """Parts into which queries, keys and values are cut; 0 for the student's attention heads. Must divide both
    widths; more are finer."""
    attention_weight: float = 0.0
    """TinyBERT: MSE of attention scores before the softmax, sum over heads, mean over the layers of `layer_map`; when
    that is empty, all layers of the student, evenly spaced over the teacher's, the last with the last."""
    token_hidden_weight: float = 0.0
    """TinyBERT: MSE of the states of all tokens, mean over the same layers. Where widths differ, this term and the two
    below learn a projection each."""
    embedding_weight: float = 0.0
    """TinyBERT: MSE of the embeddings' output."""
    cosine_weight: float = 0.0
    """DistilBERT: 1 − cosine of the last layer's states of all tokens."""
    mutual_weight: float = 0.0
    """Deep mutual learning: a second student, cut from other layers of the base, learns beside this one, each also
    from the other's grade distribution at `temperature`. It is thrown away. Training takes twice as long."""
    plain: bool = True
    """Also train the same student without the teacher, for comparison: cut from base, by the hard losses alone."""
    prune_vocabulary: bool = False
    """After training, drop the tokens that neither documents nor queries of the data have: a smaller model with
    the same scores on them. Texts that come later may be read in smaller pieces."""
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        _positive("ranker", temperature=self.temperature, layers=self.layers, hinge_margin=self.hinge_margin)
        _weights("ranker", **weights_of(self))
        for name in ("relation_layer", "relation_heads"):
            if getattr(self, name) < 0:
                raise ConfigError(f"ranker.{name} is {getattr(self, name)}; it must be 0, for the default, or more")

    def from_base(self) -> "RankerConfig":
        """The same shape cut from what the teacher was trained from, where layers to keep would be other layers."""
        return dataclasses.replace(self, base="base", layers=len(self.keep_layers) or self.layers, keep_layers=())


@dataclass(frozen=True, kw_only=True, slots=True)
class MiningConfig:
    """How hard negatives are found: what BM25 and the encoder of the round before rank high and nobody judged."""

    rounds: int = 1
    """How often the encoder is trained; each round after the first goes on from the one before, with new negatives."""
    negatives: int = 8
    """Of each training query, the highest ranked that pass the guard."""
    depth: int = 50
    """They are among the first so many of each run."""
    guard: float = 0.5
    """A document may be relevant, and is left out, when the teacher scores it above the query's mean positive less so
    many standard deviations of its scores within queries."""

    def __post_init__(self) -> None:
        _positive("encoder.mining", rounds=self.rounds, negatives=self.negatives, depth=self.depth)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """How the bi-encoder is distilled from the cross-encoder."""

    base: str = "base"
    """What it starts from: base (the teacher's own starting weights), or a folder, hub name or package."""
    layers: int = 0
    """Keep so many layers of the base, evenly spaced; 0 for all."""
    dimensions: int = 64
    widths: tuple[int, ...] = ()
    """Fewer dimensions that must rank alone too, such as 32: the first so many of a vector, scaled to unit length. The
    losses are means over these widths and the full one (Matryoshka representations)."""
    projection: Literal["directions", "similarities"] = "directions"
    """How the step to `dimensions` starts: the principal directions of the training texts, or learned so that short
    vectors find the neighbours that the base's full width finds, from a sample of all documents."""
    max_tokens: int = 128
    """Of a document; queries are cut to `max_query_tokens`."""
    max_query_tokens: int = 32
    margin_weight: float = 1.0
    """Per-query centred MSE to the teacher's scores."""
    in_batch_weight: float = 0.3
    """Contrast with the other queries' documents in the step, and with a query's own mined negatives."""
    temperature: float = 0.05
    """Of the in-batch contrast."""
    similarity_weight: float = 0.0
    """Of the base's full-width similarities between the texts of a step, which short vectors then keep. Worth a weight
    of 1 to 10 where the base is a good encoder of such sentences already (the README has figures), and none where it
    starts from masked words."""
    similarity_temperature: float = 0.05
    """Of the softmax over similarities that is matched there and by `projection`; lower looks at the nearest alone."""
    prune_vocabulary: bool = False
    """After training, drop the tokens that neither documents nor queries of the data have: a smaller model with
    the same vectors of them. Texts that come later, as by a re-index, may be read in smaller pieces."""
    mining: MiningConfig = field(default_factory=MiningConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        _positive(
            "encoder",
            dimensions=self.dimensions,
            temperature=self.temperature,
            similarity_temperature=self.similarity_temperature,
        )
        _weights("encoder", **weights_of(self))
        if len(set(self.widths)) < len(self.widths) or any(not 0 < width < self.dimensions for width in self.widths):
            raise ConfigError(
                f"encoder.widths {list(self.widths)}: each once, above 0 and below encoder.dimensions {self.dimensions}"
            )
        if self.prune_vocabulary and self.similarity_weight and self.mining.rounds > 1:
            raise ConfigError(
                "encoder.prune_vocabulary: a later mining round would compare the pruned encoder with its base, which "
                "reads other tokens; set encoder.similarity_weight to 0 or encoder.mining.rounds to 1"
            )

    @property
    def all_widths(self) -> tuple[int, ...]:
        """`dimensions` and the shorter ones, the widest first."""
        return (self.dimensions, *sorted(self.widths, reverse=True))


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """Which ONNX precisions are made, and what a lower one may cost."""

    precisions: tuple[Precision, ...] = ("fp32", "fp16", "int8", "w8")
    """fp32 is the reference. fp16, for CUDA, keeps normalisation, softmax and head in fp32. int8 scales the activations
    of an input by their largest, so it is run one input at a time. w8 has 8-bit weights in blocks and rounds each
    token's activations for itself: slower than int8, nearer to fp32, and no score depends on its batch."""
    max_ndcg_drop: float = 0.005
    """On valid queries; a precision that loses more is not chosen for serving. 0.002 is a good bound where the sample
    has a thousand lists; over the fifty of a small one, two documents that change places move the mean by as much."""
    min_kendall_tau: float = 0.9
    """Agreement with fp32 on the order within valid queries, below which a precision is not chosen either. 0.98 is a
    good bound for a well-trained model; nearly tied scores, as short trainings leave them, swap at a breath."""
    sample_tokens: int = 40_000
    """Tokens of valid queries on which each precision is judged; more takes longer and says it more surely."""
    golden: int = 16
    """Inputs whose scores are stored for a check at every load."""
    parity: float = 1e-5
    """Largest difference allowed between PyTorch and fp32 ONNX, times (1 + the score's size)."""

    def __post_init__(self) -> None:
        _positive("export", sample_tokens=self.sample_tokens, golden=self.golden, parity=self.parity)
        if "fp32" not in self.precisions:
            raise ConfigError("export.precisions lacks fp32, which the others are held against; add it")


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexConfig:
    """The semantic index."""

    flat_below: int = 50_000
    """Exact search up to here, inverted lists (IVF) above."""
    nprobe: int = 16
    """Inverted lists visited for a query."""
    language: str = "english"
    """Stemmer of the lexical index; empty for none. Chinese and other texts without spaces need none."""
    k1: float = 1.2
    """Of BM25: how much a repeated term counts. 0.6 is better where documents are short titles."""
    b: float = 0.75
    """Of BM25: how much a longer document must repeat a term; from 0, not at all, to 1."""
    seed: int = 13

    def __post_init__(self) -> None:
        _positive("index", nprobe=self.nprobe, k1=self.k1, flat_below=self.flat_below)
        _share("index", b=self.b)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """What the report says."""

    cutoff: int = 10
    gain: Literal["linear", "exponential"] = "linear"
    """Of the headline nDCG; the report states both."""
    relevant_from: int = 1
    """Lowest grade that MRR, MAP and recall count as relevant."""
    bootstrap: int = 2000
    """Resamples of the queries for 95 % intervals, and sign flips for p values."""
    examples: int = 5
    """Largest wins, and as many largest losses, that the report shows with their documents."""
    seed: int = 13

    def __post_init__(self) -> None:
        _positive("evaluation", cutoff=self.cutoff, relevant_from=self.relevant_from, bootstrap=self.bootstrap)


@dataclass(frozen=True, kw_only=True, slots=True)
class GateConfig:
    """When a new release may go live by itself."""

    margin: float = 0.005
    """The lower end of the 95 % interval of (new - live) nDCG must be above minus this."""
    slice_margin: float = 0.02
    """No slice may be surely worse by more: the upper end of its interval must not be below minus this."""
    min_slice_queries: int = 50
    """Smaller slices are shown but decide nothing."""
    min_queries: int = 50
    """Smallest number of judged queries on which a live release is replaced. With fewer, most samples do not show a
    rare large loss, and no interval is right."""
    earlier_releases: int = 5
    """Number of releases that were live before, the best of which a new one must not be worse than; 0 for none."""

    def __post_init__(self) -> None:
        _positive("gate", min_queries=self.min_queries)
        for name, value in (("margin", self.margin), ("slice_margin", self.slice_margin)):
            if value < 0:
                raise ConfigError(f"gate.{name} is {value}; it is a tolerated loss, so 0 or more")
        if self.earlier_releases < 0:
            raise ConfigError(
                f"gate.earlier_releases is {self.earlier_releases}; it is a number of releases, 0 or more"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class AblationConfig:
    """What `relevance ablate` compares; retraining does not read it."""

    sets: tuple[str, ...] = ("plain", "hard", "soft", "margin", "hidden", "soft+margin", "all")
    """Sets of losses of the ranker (`pipeline.training.losses.ablation_sets`); the first is the baseline."""
    doses: tuple[float, ...] = ()
    """Each set is also tried with so many unlabelled pairs a labelled one; none takes `candidates.unlabelled`."""
    seeds: int = 3
    """Students of each kind; they differ in the order of their training data."""
    measure: str = ""
    """By which the winner is found, on the valid queries; the headline nDCG when empty."""

    def __post_init__(self) -> None:
        _positive("ablation", seeds=self.seeds)
        if not self.sets:
            raise ConfigError("ablation.sets is empty; name sets of losses, such as hard and soft+margin")
        for name, values in (("sets", self.sets), ("doses", self.doses)):
            if len(set(values)) < len(values):
                raise ConfigError(f"ablation.{name} {list(values)}: one stands there twice; name each once")
        if any(dose < 0 for dose in self.doses):
            raise ConfigError(f"ablation.doses {list(self.doses)}: a number of pairs a labelled one, so 0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """Cron lines of the three flows; an empty one is not served."""

    retrain: str = "0 2 * * 0"
    report: str = "0 6 * * *"
    reindex: str = "0 * * * *"
    timezone: str = "UTC"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """All of one retraining."""

    name: str = "recipe"
    data: DataConfig = field(default_factory=DataConfig)
    candidates: CandidatesConfig = field(default_factory=CandidatesConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    outside: ExternalTeacherConfig = field(default_factory=ExternalTeacherConfig)
    assistants: tuple[RankerConfig, ...] = ()
    """Students between teacher and ranker (`[[assistants]]`, the first learns first): each is distilled from the one
    before it, and teaches the next. One as deep as its teacher is self-distillation. `plain` is read of the ranker
    alone."""
    ranker: RankerConfig = field(default_factory=RankerConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    index: IndexConfig = field(default_factory=IndexConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    ablation: AblationConfig = field(default_factory=AblationConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        of_grades = [weight for name, weight in weights_of(self.ranker).items() if name.startswith("hard_")]
        if self.ranker.plain and not any(of_grades):
            raise ConfigError(
                "ranker.plain: the plain student learns from grades alone, and every ranker.hard_…_weight is 0; give "
                "one a weight, or set ranker.plain to false"
            )
        if self.outside.given and self.encoder.mining.rounds > 1:
            raise ConfigError(
                f"encoder.mining.rounds is {self.encoder.mining.rounds}: our teacher scores what a later round finds, "
                "on another scale than the outside teacher's; set it to 1, or leave outside empty"
            )
        first = (*self.assistants, self.ranker)[0]  # Who learns from it; one layer has none to be matched.
        if self.outside.given and first.hidden_weight and (len(first.keep_layers) or first.layers) > 1:
            raise ConfigError(
                f"{'assistants[0]' if self.assistants else 'ranker'}.hidden_weight is {first.hidden_weight}: it "
                "compares states of layers, and an outside teacher gives only scores; set it to 0"
            )


T = TypeVar("T")
