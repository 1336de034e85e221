"""The interaction model: query and document read together, one raw score out.

Teacher, ranker and plain student are all this class. A saved one is a folder:

    model/       config.json, model.safetensors, tokenizer.json, …   opens with AutoModelForSequenceClassification
                 and with sentence_transformers.CrossEncoder
    head.json    {"thresholds": [b_1 < … < b_G], "template": PairTemplate}, and "ranks" of matrices that are exported as
                 two factors

P(grade ≥ k) = sigmoid(score − b_k). The thresholds have mean zero, so sigmoid(score) says how likely the grade is
in the upper half of the scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.errors import ConfigError, ShapeError
from pipeline.models import base_models, model_files, model_folders, packed, tokenizers
from pipeline.models.cross_encoder_head import CrossEncoderHead, one_score
from pipeline.models.families import ModelFamily, OwnForward, family_of
from pipeline.models.low_rank import FactorRanks
from pipeline.tokens import PairTemplate


class CrossEncoder(nn.Module):
    """A transformer with one output, its tokenizer, the shape of its input and the grade thresholds.

    `read` is the forward pass, layer by layer; `read_together` is the same for several batches at once.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        template: PairTemplate,
        thresholds: Sequence[float],
    ) -> None:
        """
        Args:
            model: AutoModelForSequenceClassification with one label.
            tokenizer: the fast one that belongs to it.
            template: the special tokens and bounds of an input.
            thresholds: (grades,) strictly ascending, one for each grade from 1.

        Raises:
            ConfigError: the input is longer than the model's positions, or the thresholds do not ascend.
        """
        super().__init__()
        tokenizers.check_positions(model.config, template.max_tokens)
        values = torch.tensor(list(thresholds), dtype=torch.float64)
        if not len(values) or (values.diff() <= 0).any():
            raise ConfigError(f"thresholds {list(thresholds)}: one for each grade above 0, strictly ascending")
        self.model = model
        self.family: ModelFamily = family_of(model.config)
        if isinstance(self.family, OwnForward):
            self.family.log_limits(model.config)
        self.hub_tokenizer = tokenizer
        self.tokenizer: Tokenizer = tokenizers.plain_tokenizer(tokenizer)
        self.template = template
        self.gaps = nn.Parameter(_inverse_softplus(values.diff()).float())
        """(grades − 1,) softplus gives the distance between neighbouring thresholds."""
        self.label: int | None = None
        """The label of relevance of a ready-made head of several; None for a head that gives one score."""
        self.ranks = FactorRanks()
        """The ranks of the matrices that are trained and exported as two factors; see `low_rank`."""
        self.fresh: tuple[str, ...] = ()
        """Names of the parameters that the base did not have, so that no training has touched them yet."""

    @classmethod
    def start(
        cls, base: Path, *, thresholds: Sequence[float], max_tokens: int, max_query_tokens: int, seed: int
    ) -> "CrossEncoder":
        """A cross-encoder with the body found in `base` and a new head, the same for the same seed.

        Args:
            base: folder of an encoder of a known family; see `pipeline.models.families`.
            thresholds: (grades,) logits of the shares of documents below each grade; their mean becomes the
                head's bias, so that the first scores already have the right level.

        Raises:
            ConfigError: not a known encoder, a head of several labels, no fast tokenizer, or too few positions for
                `max_tokens`.
        """
        model_files.check_head(base)
        tokenizer = tokenizers.load_tokenizer(base)
        config = base_models.config(base)
        tokenizers.check_positions(config, max_tokens)
        config.num_labels = 1
        config.problem_type = None
        config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
        base_models.without_dropout(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, missing = base_models.load_whole(
                AutoModelForSequenceClassification, base, config=config, attn_implementation=tokenizers.attention()
            )
        template = tokenizers.pair_template(tokenizer, config, max_tokens, max_query_tokens)
        middle = sum(thresholds) / len(thresholds)
        encoder = cls(model, tokenizer, template, [value - middle for value in thresholds])
        with torch.no_grad():
            encoder.head.bias.fill_(-middle)
        encoder.fresh = ("gaps", *(f"model.{name}" for name in missing))
        return encoder

    @classmethod
    def load(cls, folder: Path) -> "CrossEncoder":
        """The cross-encoder that `save` wrote, in eval mode.

        Raises:
            ArtifactError: head.json is not readable.
            ConfigError: not a known encoder, or a head of several labels.
            MissingError: no model in this folder.
        """
        model_folder = model_folders.folder(folder / "model")
        head = CrossEncoderHead.read(folder)
        if head.label is None:
            model_files.check_head(model_folder)
        with base_models.quiet():
            model = AutoModelForSequenceClassification.from_pretrained(
                model_folder, dtype=torch.float32, attn_implementation=tokenizers.attention(), trust_remote_code=False
            )
        encoder = cls(model, tokenizers.load_tokenizer(model_folder), head.template, head.thresholds).eval()
        encoder.label, encoder.ranks = head.label, head.ranks
        return encoder

    def save(self, folder: Path) -> None:
        """Writes `model/` and `head.json` into a folder that exists; factors must have been merged."""
        with base_models.quiet():
            self.model.save_pretrained(folder / "model")
        tokenizers.save_tokenizer(self.hub_tokenizer, folder / "model", self.template.max_tokens)
        head = CrossEncoderHead(
            thresholds=self.thresholds.tolist(), template=self.template, label=self.label, ranks=self.ranks
        )
        head.write(folder)

    @property
    def thresholds(self) -> Tensor:
        """(grades,) ascending, mean zero."""
        values = torch.cat([self.gaps.new_zeros(1), F.softplus(self.gaps).cumsum(0)])
        return values - values.mean()

    @property
    def layers(self) -> int:
        return int(self.model.config.num_hidden_layers)

    @property
    def head(self) -> nn.Linear:
        """The layer that gives the score."""
        return self.family.score_layer(self.model)

    @property
    def segments(self) -> bool:
        """Whether the model reads segment ids; RoBERTa does not."""
        return self.family.segments(self.model.config) > 1

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None, attention_mask: Tensor) -> Tensor:
        """Raw scores (batch,), float32; see `read`."""
        return self.read(input_ids, token_type_ids, attention_mask).scores

    def read(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None,
        attention_mask: Tensor,
        *,
        first: Sequence[int] = (),
        token_layers: Sequence[int] = (),
        score: bool = True,
    ) -> "Reading":
        """Scores, and states on the way to them.

        Args:
            input_ids: (batch, tokens) int64.
            token_type_ids: (batch, tokens) int64, or None where the model has one segment.
            attention_mask: (batch, tokens), 1 for a real token.
            first: layers after which the first token's state is kept, from 1.
            token_layers: layers after which the states of all tokens are kept; 0 for the embeddings. The last layer is
                computed for more than the first token only when it is among them.
            score: False ends at the highest of these layers, with no scores.

        Raises:
            ShapeError: a layer that the model does not have.
        """
        self._check_layers(first, token_layers)
        types = token_type_ids if self.segments else None
        if isinstance(self.family, OwnForward):
            return self._read_at_once(
                self.family, input_ids, types, attention_mask, first=first, token_layers=token_layers
            )
        depth = self.layers if score else max([0, *first, *token_layers])
        body: Any = self.model.base_model
        hidden = self.family.embed(body, input_ids, types)
        added = packed.padding(attention_mask, hidden.dtype)
        all_tokens = {0: hidden}
        first_tokens = {0: self.family.cls(hidden, attention_mask)}
        for number in range(1, depth + 1):
            if number < self.layers or number in token_layers or not self._last_for_first_token:
                hidden = self.family.run_layer(body, number, hidden, added)  # (batch, tokens, hidden)
            else:
                hidden = packed.first_token(self.family, body, number, hidden, added)  # (batch, 1, hidden)
            if number == self.layers:
                hidden = self.family.finish(body, hidden)
            if number in token_layers:
                all_tokens[number] = hidden
            first_tokens[number] = self.family.cls(hidden, attention_mask)
        last = first_tokens[depth]
        if score and not self._last_for_first_token:
            last = self.family.pooled(self.model, hidden, attention_mask)
        return self._reading(
            last if score else None,
            [first_tokens[layer] for layer in first],
            {layer: all_tokens[layer] for layer in token_layers},
        )

    @property
    def _last_for_first_token(self) -> bool:
        """Whether the last layer may be computed for the first token alone."""
        config = self.model.config
        return self.family.splits(config) and self.family.reads_first_token(config)

    def _read_at_once(
        self,
        family: OwnForward,
        input_ids: Tensor,
        token_type_ids: Tensor | None,
        attention_mask: Tensor,
        *,
        first: Sequence[int],
        token_layers: Sequence[int],
    ) -> "Reading":
        """The reading of a model that is read by its own forward pass; arguments as for `read`.

        Raises:
            ConfigError: states of a model that gives none.
        """
        scores, states = family.outputs(self.model, input_ids, token_type_ids, attention_mask)
        if (first or token_layers) and len(states) != self.layers + 1:
            raise ConfigError(
                f"a {self.model.config.model_type} model gives no states after each layer; let it teach by its "
                "scores alone: set ranker.hidden_weight to 0"
            )
        kept = [family.cls(states[layer], attention_mask).float() for layer in first]
        empty = scores.new_empty(len(scores), 0, self.hidden)
        token_states = {layer: states[layer] for layer in token_layers}
        return Reading(scores[:, 0].float(), torch.stack(kept, dim=1) if kept else empty, token_states)

    def read_together(self, batches: Sequence[packed.Inputs], *, first: Sequence[int] = ()) -> "Reading":
        """The readings of batches of unlike width, one after the other, in fewer and larger operations.

        Args:
            batches: input_ids, token_type_ids and attention_mask of each.
            first: layers after which the first token's state is kept, from 1.

        Raises:
            ShapeError: a layer that the model does not have.
        """
        self._check_layers(first, ())
        if not self._last_for_first_token:
            readings = [self.read(*batch, first=first) for batch in batches]
            scores = torch.cat([reading.scores for reading in readings])
            return Reading(scores, torch.cat([reading.first for reading in readings]), {})
        if not self.segments:
            batches = [(ids, torch.zeros_like(ids), mask) for ids, _, mask in batches]
        begin = self.family.first_position(self.model.config)
        states = packed.first_tokens(self.family, self.model.base_model, batches, offset=begin)
        return self._reading(states[-1], [states[layer - 1] for layer in first], {})

    def _check_layers(self, first: Sequence[int], token_layers: Sequence[int]) -> None:
        if any(not 1 <= layer <= self.layers for layer in first) or any(
            not 0 <= layer <= self.layers for layer in token_layers
        ):
            raise ShapeError(f"states of layers {(*first, *token_layers)}: the model has layers 1 to {self.layers}")

    def projections(self, layer: int, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (batch, tokens, hidden), of a layer from the states before it.

        They are computed again: a hook in the layer would see nothing where its activations are not kept.

        Raises:
            ConfigError: the layer has several attentions.
        """
        attention = self.family.attention(self.model.base_model, layer)
        normal = attention.norm(before)
        return attention.query(normal), attention.key(normal), attention.value(normal)

    @property
    def heads(self) -> int:
        """Attention heads of each layer."""
        return int(self.model.config.num_attention_heads)

    @property
    def hidden(self) -> int:
        """Width of the states."""
        return int(self.model.config.hidden_size)

    @property
    def shared(self) -> bool:
        """Whether the layers share their weights, as ALBERT's do."""
        return self.family.shares_layers

    @property
    def shape(self) -> base_models.ModelShape:
        """Layers, width and heads."""
        config = self.model.config
        units = int(getattr(config, self.family.units_field, 0))
        return base_models.ModelShape(
            self.layers, self.hidden, self.heads, self.shared, intermediate=units, model_type=str(config.model_type)
        )

    def _reading(self, last: Tensor | None, first: Sequence[Tensor], token_states: dict[int, Tensor]) -> "Reading":
        """The reading of a batch.

        Args:
            last: (batch, hidden) the first token's last state; None for no scores.
            first: (batch, hidden) each, the states of the first token to be kept.
        """
        scores = next(self.parameters()).new_empty(0)
        if last is not None:
            scores = one_score(self.family.score(self.model, last).float(), self.label)
        rows = len(first[0]) if first else len(scores)
        states = (
            torch.stack([each.float() for each in first], dim=1) if first else scores.new_empty(rows, 0, self.hidden)
        )
        return Reading(scores, states, token_states)


@dataclass(frozen=True, slots=True)
class Reading:
    """Scores and states of a batch."""

    scores: Tensor
    """(batch,) raw, float32; (0,) where none were computed."""
    first: Tensor
    """(batch, layers, hidden) float32, in the order of the layers given."""
    token_states: dict[int, Tensor]
    """(batch, tokens, hidden) by layer, 0 for the embeddings."""


def _inverse_softplus(values: Tensor) -> Tensor:
    return values + torch.log(-torch.expm1(-values))
