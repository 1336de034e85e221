"""The sections of a recipe for training: the shared loop, pre-training, the teacher and an external teacher."""

import dataclasses
from dataclasses import field
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from pipeline.config_checks import (
    DOCUMENTED,
    SEEDS,
    added,
    check_not_negative,
    check_positive,
    check_seed,
    check_shares,
    check_weights,
)
from pipeline.errors import ConfigError
from pipeline.passages import Passages


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
    """Maximum time of the whole stage, resumed runs included; 0 for no bound. Reading, base vectors and evaluations are
    part of it, and the encoder's learned projection may take two fifths; the steps get a quarter at least. The result
    depends on the machine then. Of two bounds the first that is reached ends the training."""
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
        check_positive(
            "loop",
            learning_rate=self.learning_rate,
            epochs=self.epochs,
            tokens_per_batch=self.tokens_per_batch,
            chunk_tokens=self.chunk_tokens,
            clip_norm=self.clip_norm,
            fresh_rate=self.fresh_rate,
        )
        check_not_negative(
            "loop",
            weight_decay=self.weight_decay,
            evaluations=self.evaluations,
            valid_pairs=self.valid_pairs,
            checkpoint_s=self.checkpoint_s,
        )
        check_seed("loop", self.seed)
        check_shares("loop", warmup_share=self.warmup_share)
        check_not_negative("loop", "no bound", max_tokens=self.max_tokens, max_seconds=self.max_seconds)

    def reseeded(self, number: int) -> "LoopConfig":
        """The loop whose seed is the one `number` further; after the largest comes 0."""
        return dataclasses.replace(self, seed=(self.seed + number) % SEEDS)

    def part(self, share: float) -> "LoopConfig":
        """The loop that takes this share of the training; its schedule is a whole one."""
        return dataclasses.replace(
            self,
            epochs=self.epochs * share,
            max_tokens=self.max_tokens and max(1, round(self.max_tokens * share)),
            max_seconds=self.max_seconds * share,
            evaluations=self.evaluations and max(1, round(self.evaluations * share)),
        )


@dataclass(frozen=True, kw_only=True, slots=True, config=DOCUMENTED)
class ScratchConfig:
    """A new encoder and its vocabulary, for where no pretrained weights can be had."""

    family: Literal[
        "bert",
        "roberta",
        "albert",
        "electra",
        "distilbert",
        "mpnet",
        "deberta-v2",
        "modernbert",
        "ernie",
        "nomic_bert",
        "eurobert",
    ] = "bert"
    """Architecture. albert shares one layer's weights among all layers and has narrow embeddings: a fraction of the
    memory, not of the time. modernbert, nomic_bert and eurobert have gated units: about two thirds of bert's
    `intermediate`."""
    layers: int = 4
    """Number of layers."""
    hidden: int = 256
    """Width of the hidden states."""
    heads: int = 4
    """Attention heads; must divide `hidden`."""
    intermediate: int = 1024
    """Width of the feed-forward layers."""
    embedding: int = 128
    """Width of the word embeddings of albert and electra; other families' are as wide as `hidden`."""
    positions: int = 512
    """Maximum length of an input in tokens."""
    vocab_size: int = 16000
    """Size of the vocabulary, trained on the documents and training queries: byte-level BPE for roberta,
    WordPiece for all others."""

    def __post_init__(self) -> None:
        check_positive(
            "pretrain.scratch", layers=self.layers, heads=self.heads, intermediate=self.intermediate, hidden=self.hidden
        )
        check_positive("pretrain.scratch", embedding=self.embedding, positions=self.positions)
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
    """Shape of a new model, for `teacher.base` or `ranker.base` = "scratch"."""
    mask_share: float = 0.25
    """Share of the tokens that are masked."""
    max_tokens: int = 128
    """Maximum length of an input in tokens."""
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(learning_rate=5e-4, epochs=3.0, evaluations=3))
    """The training loop of the pre-training."""

    def __post_init__(self) -> None:
        check_positive("pretrain", mask_share=self.mask_share, max_tokens=self.max_tokens)
        check_shares("pretrain", mask_share=self.mask_share)


@dataclass(frozen=True, kw_only=True, slots=True, config=DOCUMENTED)
class PassagesConfig:
    """Documents that do not fit beside a query within `max_tokens`: read in passages whose scores are joined.

    A student learns such a document by the passage that its teacher finds best. RESULTS.md has figures: a gain for a
    good model of short texts, none shown for a weak one, at two and a half times the tokens.
    """

    most: int = 0
    """Maximum number of passages of one document; 1 cuts documents at their end, and so does 0 for a teacher. For a
    ranker 0 takes the teacher's passages."""
    tokens: int = 0
    """Length of a passage in tokens of the document; 0 for all that the query leaves."""
    stride: int = 0
    """Tokens from the start of a passage to that of the next, fewer than a passage has; 0 for half a passage."""
    best: int = 1
    """Number of best passages whose mean score is the document's; 1 takes the maximum."""

    def __post_init__(self) -> None:
        check_not_negative("passages", "the default", most=self.most)
        if self.most > 1:
            self.passages(None)
        elif (self.tokens, self.stride, self.best) != (0, 0, 1):
            raise ConfigError(
                f"passages.most is {self.most}, so passages.tokens, passages.stride and passages.best mean nothing; "
                "set passages.most to the number of passages of a document, such as 8"
            )

    def passages(self, default: Passages | None) -> Passages | None:
        """The passages in which the model reads long documents; None where it cuts them at their end.

        Args:
            default: the teacher's, for a ranker that leaves it open.
        """
        if self.most == 0:
            return default
        if self.most == 1:
            return None
        return Passages(most=self.most, tokens=self.tokens, stride=self.stride, best=self.best)


def weights_of(config: Any) -> dict[str, float]:
    """The weights of a config's losses, by the name of the key."""
    names = (entry.name for entry in dataclasses.fields(config) if entry.name.endswith("_weight"))
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
    """Weight of the hinge loss on pairs of unlike grades: the better one should lead by `hinge_margin`. Experimental:
    no built-in recipe sets it and no figure supports it."""
    hinge_margin: float = 1.0
    """Lead in score that the hinge loss asks for."""
    listnet_weight: float = 0.0
    """Weight of the cross-entropy between the softmax of the grades and that of the scores within a query (ListNet).
    Experimental: no built-in recipe sets it and no figure supports it."""
    lambdarank_weight: float = 0.0
    """Weight of the RankNet loss whose pairs weigh as much as their swap would change nDCG, with linear gain and no
    cut-off. Experimental: no built-in recipe sets it and no figure supports it."""
    passages: PassagesConfig = added(PassagesConfig())
    """Long documents. The teacher is trained on their beginnings and scores them whole."""
    loop: LoopConfig = field(default_factory=LoopConfig)
    """The training loop of the teacher."""

    def __post_init__(self) -> None:
        check_positive(
            "teacher",
            max_tokens=self.max_tokens,
            max_query_tokens=self.max_query_tokens,
            hinge_margin=self.hinge_margin,
        )
        check_not_negative("teacher", layers=self.layers)
        check_weights("teacher", **weights_of(self))


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
    prompt's next token. It judges each passage of a long document where `teacher.passages` says so."""
    prompt: str = "Query: {query}\nDocument: {document}\nDoes the document answer the query? Answer yes or no.\nAnswer:"
    """Prompt with `{query}` and `{document}` once each; write out the marks of a chat if the model wants them, or set
    `chat`."""
    chat: bool = added(default=False)
    """Whether the prompt is put into the chat template of the model's folder, as the user's turn; thinking is off. The
    answers of a Qwen3-Reranker are then `yes` and `no`, without a space."""
    system: str = added(default="")
    """System turn ahead of it, such as what counts as relevant; only with `chat`."""
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
        check_positive(
            "external_teacher",
            max_tokens=self.max_tokens,
            max_query_tokens=self.max_query_tokens,
            batch_tokens=self.batch_tokens,
        )
        if self.scores and self.causal_lm:
            raise ConfigError(
                "external_teacher.scores and external_teacher.causal_lm: students have one teacher; give one of them"
            )
        if self.system and not self.chat:
            raise ConfigError("external_teacher.system is a turn of a chat; set external_teacher.chat, or leave it out")
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
