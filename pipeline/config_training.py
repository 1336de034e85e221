"""The recipe's sections of training: the shared loop, pre-training, teacher, ranker and encoder."""

import dataclasses
from dataclasses import field
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from pipeline.config_checks import DOCUMENTED, added, positive, share, weights
from pipeline.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True, config=DOCUMENTED)
class LoopConfig:
    """The training loop: settings that all trained models share."""

    learning_rate: float = 1e-4
    """Peak learning rate; reached after `warmup_share` of the steps, then falling linearly to a tenth. Twice as much in
    small steps, or four times as much, can end below random order."""
    fresh_rate: float = 10.0
    """Factor on the learning rate of parameters that start untrained (a new head, its thresholds, a learned scale)."""
    warmup_share: float = 0.06
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.01
    """Weight decay of AdamW; not applied to biases and normalisation weights."""
    clip_norm: float = 1.0
    """Maximum norm of the gradient; a larger one is scaled down."""
    epochs: float = 1.0
    """Passes over the training data. Ignored where a bound is set: then epoch follows epoch until the bound is
    reached."""
    max_tokens: int = 0
    """Maximum number of real tokens trained on; 0 for no bound. With a bound the learning rate follows the share of it
    that is used, so the end is annealed. A resumed training is the same bit for bit."""
    max_seconds: float = 0.0
    """Maximum training time, evaluations after the first and time before a resumption included; 0 for no bound. The
    result depends on the machine then. Of two bounds the first that is reached ends the training."""
    tokens_per_batch: int = 2048
    """Real tokens of one optimizer step, padding not counted."""
    chunk_tokens: int = 8192
    """Padded tokens whose activations are held at once; fewer take less memory, and the step is the same."""
    checkpoint_activations: bool = False
    """Keep only each layer's input and compute the rest again in the backward pass: slower, for when memory is short.
    The gradients are the same."""
    evaluations: int = 4
    """Number of evaluations of nDCG on the valid split; the best state is kept. 0 keeps the last state."""
    valid_pairs: int = 1500
    """Approximate number of pairs in each evaluation, of whole queries drawn once; 0 for all."""
    checkpoint_s: float = 60.0
    """Seconds between checkpoints, from which a killed training resumes."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the matrix products; auto is bf16 on a processor with bf16 matrix instructions."""
    seed: int = 13
    """Seed of the order of the training data and of untrained parameters."""

    def __post_init__(self) -> None:
        positive(
            "loop",
            learning_rate=self.learning_rate,
            epochs=self.epochs,
            tokens_per_batch=self.tokens_per_batch,
            chunk_tokens=self.chunk_tokens,
            clip_norm=self.clip_norm,
        )
        share("loop", warmup_share=self.warmup_share)
        for name, value in (("max_tokens", self.max_tokens), ("max_seconds", self.max_seconds)):
            if value < 0:
                raise ConfigError(f"loop.{name} is {value}; it must be 0, for no bound, or more")


@dataclass(frozen=True, kw_only=True, slots=True, config=DOCUMENTED)
class ScratchConfig:
    """A new encoder and its vocabulary, for where no pretrained weights can be had."""

    family: Literal["bert", "roberta", "albert"] = "bert"
    """Architecture. albert shares one layer's weights among all layers and has narrow embeddings: a fraction of the
    memory, not of the time."""
    layers: int = 4
    """Number of layers."""
    hidden: int = 256
    """Width of the hidden states."""
    heads: int = 4
    """Attention heads; must divide `hidden`."""
    intermediate: int = 1024
    """Width of the feed-forward layers."""
    embedding: int = 128
    """Width of albert's word embeddings; other families' are as wide as `hidden`."""
    positions: int = 512
    """Maximum length of an input in tokens."""
    vocab_size: int = 16000
    """Size of the vocabulary, trained on the documents and training queries: WordPiece for bert and albert, byte-level
    BPE for roberta."""

    def __post_init__(self) -> None:
        positive(
            "pretrain.scratch", layers=self.layers, heads=self.heads, intermediate=self.intermediate, hidden=self.hidden
        )
        positive("pretrain.scratch", embedding=self.embedding, positions=self.positions)
        if self.hidden % self.heads:
            raise ConfigError(
                f"pretrain.scratch.hidden {self.hidden} is no multiple of heads {self.heads}; make it one"
            )
        if self.vocab_size < 300:
            raise ConfigError(f"pretrain.scratch.vocab_size is {self.vocab_size}; below 300 not even bytes fit in")


@dataclass(frozen=True, kw_only=True, slots=True, config=DOCUMENTED)
class PretrainConfig:
    """Masked language modelling on the recipe's own texts, before the teacher."""

    enabled: bool = False
    """Whether to pre-train; always on for a model from scratch."""
    scratch: ScratchConfig = field(default_factory=ScratchConfig)
    """Shape of a new model, for teacher.base = "scratch"."""
    mask_share: float = 0.25
    """Share of the tokens that are masked."""
    max_tokens: int = 128
    """Maximum length of an input in tokens."""
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(learning_rate=5e-4, epochs=3.0, evaluations=3))
    """The training loop of the pre-training."""

    def __post_init__(self) -> None:
        positive("pretrain", mask_share=self.mask_share)
        share("pretrain", mask_share=self.mask_share)


def weights_of(config: Any) -> dict[str, float]:
    """The weights of a config's losses, by the name of the key."""
    names = (one.name for one in dataclasses.fields(config) if one.name.endswith("_weight"))
    return {name: getattr(config, name) for name in names}


@dataclass(frozen=True, kw_only=True, slots=True, config=DOCUMENTED)
class TeacherConfig:
    """The cross-encoder that everything else learns from."""

    base: str = "FacebookAI/roberta-large"
    """A folder, a hub name, `package:NAME` for weights inside an installed package, or `scratch`."""
    layers: int = 0
    """Number of the base's layers that are kept, evenly spaced; 0 for all."""
    max_tokens: int = 128
    """Maximum length of query and document together, special tokens included."""
    max_query_tokens: int = 32
    """Maximum length of a query in tokens."""
    ordinal_weight: float = 1.0
    """Weight of the cumulative-link loss on grades."""
    pairwise_weight: float = 1.0
    """Weight of the RankNet loss on pairs of different grade within a query."""
    hinge_weight: float = 0.0
    """Weight of the hinge loss on such pairs: the better one should lead by `hinge_margin`. Experimental: no built-in
    recipe sets it and no figure supports it."""
    hinge_margin: float = 1.0
    """Lead in score that the hinge loss asks for."""
    listnet_weight: float = 0.0
    """Weight of the cross-entropy between the softmax of the grades and that of the scores within a query (ListNet).
    Experimental: no built-in recipe sets it and no figure supports it."""
    lambdarank_weight: float = 0.0
    """Weight of the RankNet loss whose pairs weigh as much as their swap would change nDCG, with linear gain and no
    cut-off. Experimental: no built-in recipe sets it and no figure supports it."""
    loop: LoopConfig = field(default_factory=LoopConfig)
    """The training loop of the teacher."""

    def __post_init__(self) -> None:
        positive(
            "teacher",
            max_tokens=self.max_tokens,
            max_query_tokens=self.max_query_tokens,
            hinge_margin=self.hinge_margin,
        )
        weights("teacher", **weights_of(self))


@dataclass(frozen=True, kw_only=True, slots=True, config=DOCUMENTED)
class ExternalTeacherConfig:
    """A teacher that is not trained here: students learn its scores of the pairs in place of our teacher's.

    They are still cut from our teacher. Give one of `scores` and `causal_lm`, or neither. Experimental: no built-in
    recipe sets it and no figure supports it.
    """

    scores: str = ""
    """A Parquet file with the columns `score` (higher is better, on any scale) and `query_id`, `doc_id`, or `row_id`
    of the pairs artifact in place of the two."""
    causal_lm: str = ""
    """A language model, as a folder or hub name; its score is the log-odds of `positive` against `negative` as the
    prompt's next token."""
    prompt: str = "Query: {query}\nDocument: {document}\nDoes the document answer the query? Answer yes or no.\nAnswer:"
    """Prompt with `{query}` and `{document}` once each; write out the marks of a chat if the model wants them."""
    positive: str = " yes"
    """Answer for a relevant document: one token, as it follows the prompt, with its space if the prompt ends
    without."""
    negative: str = " no"
    """Answer for an irrelevant document: one token."""
    max_tokens: int = 512
    """Maximum length of the whole prompt in tokens; the document is cut to fit."""
    max_query_tokens: int = 64
    """Maximum length of a query in tokens."""
    batch_tokens: int = 16384
    """Padded tokens of one batch."""

    def __post_init__(self) -> None:
        positive(
            "external_teacher",
            max_tokens=self.max_tokens,
            max_query_tokens=self.max_query_tokens,
            batch_tokens=self.batch_tokens,
        )
        if self.scores and self.causal_lm:
            raise ConfigError(
                "external_teacher.scores and external_teacher.causal_lm: students have one teacher; give one of them"
            )
        for field_name in ("{query}", "{document}"):
            if self.prompt.count(field_name) != 1:
                raise ConfigError(
                    f"external_teacher.prompt has {field_name} {self.prompt.count(field_name)} times; write it once"
                )
        if self.positive == self.negative or not (self.positive and self.negative):
            raise ConfigError("external_teacher.positive and external_teacher.negative must be two different answers")

    @property
    def given(self) -> bool:
        """Whether there is such a teacher."""
        return bool(self.scores or self.causal_lm)


@dataclass(frozen=True, kw_only=True, slots=True, config=DOCUMENTED)
class RankerConfig:
    """The ranker: a shallow cross-encoder distilled from the teacher.

    The default weights are those of the ablation in RESULTS.md: in a tie with the best of its grid, at a third of the
    time.
    """

    base: str = "teacher"
    """The model that it is cut from: teacher, base (the teacher's own starting weights), or a folder, hub name or
    package."""
    layers: int = 6
    """Number of layers."""
    keep_layers: tuple[int, ...] = ()
    """Layers of the base to keep, counted from 1; empty spaces `layers` of them evenly, the last included."""
    layer_map: tuple[int, ...] = ()
    """Teacher layers matched to student layers 1, 2, … by the Patient KD term; empty spaces them evenly (4, 8, 12, 16,
    20 for 24 → 6)."""
    hard_ordinal_weight: float = 0.5
    """Weight of the cumulative-link loss on grades; see `TeacherConfig.ordinal_weight`."""
    hard_pairwise_weight: float = 1.0
    """Weight of the RankNet loss on grades; see `TeacherConfig.pairwise_weight`."""
    hard_hinge_weight: float = 0.0
    """Weight of the hinge loss on grades; see `TeacherConfig.hinge_weight`. Experimental: no built-in recipe sets it
    and no figure supports it."""
    hinge_margin: float = 1.0
    """Lead in score that the hinge loss asks for."""
    hard_listnet_weight: float = 0.0
    """Weight of the ListNet loss on grades; see `TeacherConfig.listnet_weight`. Experimental: no built-in recipe sets
    it and no figure supports it."""
    hard_lambdarank_weight: float = 0.0
    """Weight of the LambdaRank loss on grades; see `TeacherConfig.lambdarank_weight`. Experimental: no built-in recipe
    sets it and no figure supports it."""
    soft_weight: float = 1.0
    """Weight of the cross-entropy with the teacher's grade distribution at `temperature`, times its square."""
    temperature: float = 2.0
    """Temperature of the soft cross-entropy; 1.0 leaves the teacher's distribution unchanged."""
    margin_weight: float = 1.0
    """Weight of the mean squared error of scores centred within each query: the teacher's score differences."""
    hidden_weight: float = 0.1
    """Weight of the Patient KD loss: squared distance of unit first-token states, mean over layers."""
    logit_weight: float = 0.0
    """Weight of the mean squared error of the scores themselves, which also teaches their level. Experimental: no
    built-in recipe sets it and no figure supports it."""
    listwise_weight: float = added(0.0)
    """Weight of the listwise loss: within a query, KL divergence of the scores' softmax from the teacher's, at
    `temperature`."""
    infonce_weight: float = added(0.0)
    """Weight of the cross-entropy of a query's documents with the teacher's best one as the positive (InfoNCE)."""
    relation_weight: float = 0.0
    """Weight of MiniLM's loss on relations between tokens (query–key and value–value) in `relation_layer` of the
    teacher and the student's last layer. For this loss and the four below the teacher reads each batch beside the
    student, which takes as long as scoring it, and the student's base must have the teacher's tokenizer. RESULTS.md
    has its figures: a tie with the default set, at a third of the speed."""
    relation_layer: int = 0
    """Teacher layer of the relation loss, counted from 1; 0 for the last. MiniLMv2 takes 19 of RoBERTa-large's 24."""
    relation_heads: int = 0
    """Parts into which queries, keys and values are cut; 0 for the student's attention heads. Must divide both widths;
    more are finer."""
    attention_weight: float = 0.0
    """Weight of TinyBERT's loss on attention scores: MSE before the softmax, sum over heads, mean over the layers of
    `layer_map`; when that is empty, over all layers of the student, evenly spaced over the teacher's, the last with
    the last. Experimental: no built-in recipe sets it and no figure supports it."""
    token_hidden_weight: float = 0.0
    """Weight of TinyBERT's loss on hidden states: MSE of all tokens' states, mean over the same layers. Where widths
    differ, this loss and the two below learn a projection each. Experimental: no built-in recipe sets it and no
    figure supports it."""
    embedding_weight: float = 0.0
    """Weight of TinyBERT's loss on the embeddings' output (MSE). Experimental: no built-in recipe sets it and no figure
    supports it."""
    cosine_weight: float = 0.0
    """Weight of DistilBERT's loss: 1 − cosine of the last layer's states of all tokens. Experimental: no built-in
    recipe sets it and no figure supports it."""
    mutual_weight: float = 0.0
    """Weight of deep mutual learning: a second student, cut from other layers of the base, learns beside this one, each
    also from the other's grade distribution at `temperature`; then it is thrown away. Training takes twice as long.
    Experimental: no built-in recipe sets it and no figure supports it."""
    intermediate: int = added(0)
    """Units that each feed-forward layer keeps: the least important for the score are removed before the training, as
    TextPruner does; 0 keeps all."""
    max_tokens: int = added(0)
    """Maximum length of query and document together, special tokens included; 0 takes the teacher's."""
    plain: bool = True
    """Also train the same student without the teacher, for comparison: cut from base, by the hard losses alone."""
    prune_vocabulary: bool = False
    """After training, drop the tokens that occur in no document or query of the data: a smaller model with the same
    scores on them. Later texts may be split into smaller pieces."""
    loop: LoopConfig = field(default_factory=LoopConfig)
    """The training loop of the ranker."""

    def __post_init__(self) -> None:
        positive("ranker", temperature=self.temperature, layers=self.layers, hinge_margin=self.hinge_margin)
        weights("ranker", **weights_of(self))
        for name in ("relation_layer", "relation_heads", "intermediate", "max_tokens"):
            if getattr(self, name) < 0:
                raise ConfigError(f"ranker.{name} is {getattr(self, name)}; it must be 0, for the default, or more")

    def from_base(self) -> "RankerConfig":
        """The same shape cut from what the teacher was trained from, where layers to keep would be other layers."""
        return dataclasses.replace(self, base="base", layers=len(self.keep_layers) or self.layers, keep_layers=())


@dataclass(frozen=True, kw_only=True, slots=True, config=DOCUMENTED)
class MiningConfig:
    """Hard negatives: documents that BM25 and the previous round's encoder rank high and nobody judged."""

    rounds: int = 1
    """Number of trainings of the encoder; each after the first continues the one before, with new negatives."""
    negatives: int = 8
    """Number of negatives of each training query: the highest ranked that pass the guard."""
    depth: int = 50
    """Depth of each run that negatives are taken from."""
    guard: float = 0.5
    """Standard deviations (of the teacher's scores within queries) below the query's mean positive score above which a
    document may be relevant, and is left out."""

    def __post_init__(self) -> None:
        positive("encoder.mining", rounds=self.rounds, negatives=self.negatives, depth=self.depth)


@dataclass(frozen=True, kw_only=True, slots=True, config=DOCUMENTED)
class EncoderConfig:
    """The encoder: a bi-encoder distilled from the cross-encoder."""

    base: str = "base"
    """The model that it starts from: base (the teacher's own starting weights), or a folder, hub name or package."""
    layers: int = 0
    """Number of the base's layers that are kept, evenly spaced; 0 for all. Experimental: no built-in recipe sets it and
    no figure supports it."""
    dimensions: int = 64
    """Width of the vectors."""
    widths: tuple[int, ...] = ()
    """Smaller widths, such as 32, at which vectors must rank alone too: their first dimensions, scaled to unit length.
    The losses are means over these widths and the full one (Matryoshka representations). RESULTS.md has figures."""
    projection: Literal["directions", "similarities"] = "directions"
    """Start of the projection to `dimensions`: the principal directions of the training texts, or learned so that short
    vectors find the neighbours that the base's full width finds, from a sample of all documents."""
    max_tokens: int = 128
    """Maximum length of a document in tokens; queries are cut to `max_query_tokens`."""
    max_query_tokens: int = 32
    """Maximum length of a query in tokens."""
    margin_weight: float = 1.0
    """Weight of the mean squared error to the teacher's scores, both centred within each query."""
    in_batch_weight: float = 0.3
    """Weight of the contrast with the other queries' documents in the step, and with a query's own mined negatives."""
    temperature: float = 0.05
    """Temperature of the in-batch contrast."""
    similarity_weight: float = 0.0
    """Weight of keeping the base's full-width similarities between the texts of a step. Worth 1 to 10 where the base is
    a good encoder of such sentences already (RESULTS.md has figures), and 0 where it starts from masked language
    modelling."""
    similarity_temperature: float = 0.05
    """Temperature of the softmax over similarities that `similarity_weight` and `projection` match; a lower one attends
    to the nearest alone."""
    prune_vocabulary: bool = False
    """After training, drop the tokens that occur in no document or query of the data: a smaller model with the same
    vectors of them. Later texts, as of a re-index, may be split into smaller pieces."""
    mining: MiningConfig = field(default_factory=MiningConfig)
    """Hard negatives for further rounds of training."""
    loop: LoopConfig = field(default_factory=LoopConfig)
    """The training loop of the encoder."""

    def __post_init__(self) -> None:
        positive(
            "encoder",
            dimensions=self.dimensions,
            temperature=self.temperature,
            similarity_temperature=self.similarity_temperature,
        )
        weights("encoder", **weights_of(self))
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
