"""The sections of a recipe for the students: the ranker, and the encoder with its mined negatives."""

import dataclasses
import math
from dataclasses import field
from typing import Literal

from pydantic.dataclasses import dataclass

from pipeline.config_checks import DOCUMENTED, added, check_not_negative, check_positive, check_shares, check_weights
from pipeline.config_training import LoopConfig, PassagesConfig, weights_of
from pipeline.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True, config=DOCUMENTED)
class RankerConfig:
    """The ranker: a shallow cross-encoder distilled from the teacher.

    The default weights are those of the ablation in RESULTS.md: in a tie with the best of its grid, at a third of the
    time.
    """

    base: str = "teacher"
    """The model that it is cut from: teacher, base (the teacher's own starting weights), scratch (a new model of the
    shape in `pretrain.scratch`, pre-trained on the texts), or a folder, hub name or package."""
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
    teachers: int = added(1)
    """Number of teachers whose mean score it learns from. Each further one is trained with another seed; the states of
    the Patient KD loss are those of the first."""
    fused_teacher: bool = added(default=False)
    """Learn from the teacher's scores joined with those of BM25 and the encoder, by weights that the valid queries
    choose: an ensemble, which orders documents as search does. The ranker alone gains; RESULTS.md has figures. The
    encoder is trained, exported and indexed first."""
    bm25_teacher: float = added(0.0)
    """Weight of BM25 in the scores that it learns from: the best document of a query by BM25 gains this much over the
    teacher's score, the others in proportion. 0 takes the teacher's scores alone. It needs no encoder, as
    `fused_teacher` does; RESULTS.md has figures."""
    intermediate: int = added(0)
    """Units that each feed-forward layer keeps: the least important for the score are removed before the training, as
    TextPruner does; 0 keeps all. All layers with few units beat few whole ones at one cost (RESULTS.md has figures)."""
    general_tokens: int = added(0)
    """Tokens of the data's texts on which the layers cut from the teacher's base first learn to read as all of them do
    (general distillation), masked and in the loop of `pretrain`; 0 for none. Needs `base = "base"`. RESULTS.md has its
    figures: with 1,000,000 tokens 85 % of the gap to the teacher in place of 59 %."""
    feed_forward_rank: int = added(0)
    """Rank of the feed-forward matrices: each is trained and exported as the product of two narrow ones, which start
    from its largest singular values; 0 keeps it whole."""
    embedding_rank: int = added(0)
    """Rank of the table of word embeddings, in the same way; 0 keeps it whole. Experimental: no built-in recipe sets it
    and no figure supports it."""
    int8_share: float = added(0.0)
    """Share of the training, at its end, in which weights, word embeddings and activations are rounded as in the int8
    export (quantisation-aware training); 0 for none, 1 for all of it. Needs int8 in `export.precisions`.
    Experimental: no built-in recipe sets it and no figure supports it."""
    dropout: float = added(0.0)
    """Dropout while it trains: the noise of a noisy student. Elsewhere there is none, as short trainings learn more
    without. Experimental: no built-in recipe sets it and no figure supports it."""
    max_tokens: int = added(0)
    """Maximum length of query and document together, special tokens included; 0 takes the teacher's."""
    passages: PassagesConfig = added(PassagesConfig())
    """Long documents, as the ranker reads them when it serves."""
    plain: bool = True
    """Also train the same student without the teacher, for comparison: cut from base, by the hard losses alone."""
    prune_vocabulary: bool = False
    """After training, drop the tokens that occur in no document or query of the data: a smaller model with the same
    scores on them. Later texts may be split into smaller pieces."""
    loop: LoopConfig = field(default_factory=LoopConfig)
    """The training loop of the ranker."""

    def __post_init__(self) -> None:
        check_positive(
            "ranker",
            temperature=self.temperature,
            layers=self.layers,
            hinge_margin=self.hinge_margin,
            teachers=self.teachers,
        )
        if not 0 <= self.bm25_teacher < math.inf:
            raise ConfigError(f"ranker.bm25_teacher is {self.bm25_teacher}; it must be 0, for none, or more")
        if self.bm25_teacher and self.fused_teacher:
            raise ConfigError(
                f"ranker.bm25_teacher is {self.bm25_teacher:g} beside fused_teacher, which joins BM25 too; set one"
            )
        check_shares("ranker", int8_share=self.int8_share, dropout=self.dropout)
        if self.dropout == 1:
            raise ConfigError("ranker.dropout is 1: then nothing is left to learn from; it must be below 1")
        check_weights("ranker", **weights_of(self))
        check_not_negative(
            "ranker",
            "the default",
            relation_layer=self.relation_layer,
            relation_heads=self.relation_heads,
            intermediate=self.intermediate,
            max_tokens=self.max_tokens,
            feed_forward_rank=self.feed_forward_rank,
            embedding_rank=self.embedding_rank,
            general_tokens=self.general_tokens,
        )
        if self.general_tokens and self.base != "base":
            raise ConfigError(
                f"ranker.general_tokens is {self.general_tokens}: layers of the teacher's base learn from it, and "
                f"ranker.base is {self.base}; set it to base"
            )

    @property
    def depth(self) -> int:
        """Number of layers of the student."""
        return len(self.keep_layers) or self.layers

    @property
    def matches_states(self) -> bool:
        """Whether the Patient KD loss has states to compare; by default those of the last layer are left out."""
        return bool(self.hidden_weight) and (self.depth > 1 or bool(self.layer_map))

    def from_base(self) -> "RankerConfig":
        """The same shape cut from what the teacher was trained from, where layers to keep would be other layers."""
        return dataclasses.replace(self, base="base", layers=self.depth, keep_layers=())


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
        check_positive("encoder.mining", rounds=self.rounds, negatives=self.negatives, depth=self.depth)


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
    projection: Literal["directions", "similarities", "judgments"] = "directions"
    """Start of the projection to `dimensions`: directions are the principal ones of the training texts; similarities is
    learned from a sample of all documents, so that short vectors find the neighbours that the base's full width finds;
    judgments so that training queries find their best judged documents too (`in_batch_weight` is that part's)."""
    projection_documents: int = added(20_000)
    """Maximum number of documents that a learned projection reads; with `judgments` those judged best come first."""
    train_body: bool = added(True)
    """Train all layers by the losses below; without, the projection alone is learned and the base stays as it is. Takes
    seconds where the base is a good encoder already."""
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
        check_positive(
            "encoder",
            dimensions=self.dimensions,
            temperature=self.temperature,
            similarity_temperature=self.similarity_temperature,
            projection_documents=self.projection_documents,
            max_tokens=self.max_tokens,
            max_query_tokens=self.max_query_tokens,
        )
        check_not_negative("encoder", layers=self.layers)
        check_weights("encoder", **weights_of(self))
        if len(set(self.widths)) < len(self.widths) or any(not 0 < width < self.dimensions for width in self.widths):
            raise ConfigError(
                f"encoder.widths {list(self.widths)}: each once, above 0 and below encoder.dimensions {self.dimensions}"
            )
        if not self.train_body and self.mining.rounds > 1:
            raise ConfigError(
                f"encoder.mining.rounds is {self.mining.rounds}: without encoder.train_body a later round changes "
                "nothing; set it to 1"
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
