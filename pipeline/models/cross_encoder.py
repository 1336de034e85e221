"""The interaction model: query and document read together, one raw score out.

Teacher, ranker and plain student are all this class. A saved one is a folder:

    model/       config.json, model.safetensors, tokenizer.json, …   opens with AutoModelForSequenceClassification
                 and with sentence_transformers.CrossEncoder
    head.json    {"thresholds": [b_1 < … < b_G], "template": PairTemplate}

P(grade ≥ k) = sigmoid(score − b_k). The thresholds have mean zero, so sigmoid(score) says how likely the grade is
in the upper half of the scale.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.artifacts import write_atomically
from pipeline.errors import ArtifactError, ConfigError, ShapeError
from pipeline.models import base_models, packed, tokenizers
from pipeline.tokens import PairTemplate

DROPOUT = 0.0
"""Of hidden states and attention. Runs of an epoch or two learn more without; CPU training is a fifth faster."""


class CrossEncoder(nn.Module):
    """A transformer with one output, its tokenizer, the shape of its input and the grade thresholds."""

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
            template: how a pair becomes its input.
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
        self.hub_tokenizer = tokenizer
        self.tokenizer: Tokenizer = tokenizers.plain_tokenizer(tokenizer)
        self.template = template
        self.gaps = nn.Parameter(_inverse_softplus(values.diff()).float())
        """(grades − 1,) softplus gives the distance between neighbouring thresholds."""
        self.fresh: tuple[str, ...] = ()
        """Names of parameters that no training has touched yet: what the base did not have."""

    @classmethod
    def start(
        cls, base: Path, *, thresholds: Sequence[float], max_tokens: int, max_query_tokens: int, seed: int
    ) -> "CrossEncoder":
        """A cross-encoder with the body found in `base` and a new head, the same for the same seed.

        Args:
            base: folder of any encoder that transformers has a sequence classification for.
            thresholds: (grades,) logits of the shares of documents below each grade; their mean becomes the
                head's bias, so that the first scores already have the right level.

        Raises:
            ConfigError: not a known encoder, no fast tokenizer, or too few positions for `max_tokens`.
        """
        tokenizer = tokenizers.load_tokenizer(base)
        config = AutoConfig.from_pretrained(base, trust_remote_code=False)
        tokenizers.check_positions(config, max_tokens)
        config.num_labels = 1
        config.problem_type = None
        config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            if hasattr(config, name):
                setattr(config, name, DROPOUT)
        with base_models.quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, report = AutoModelForSequenceClassification.from_pretrained(
                base,
                config=config,
                dtype=torch.float32,
                attn_implementation=tokenizers.attention(),
                trust_remote_code=False,
                output_loading_info=True,
            )
        template = tokenizers.pair_template(tokenizer, config, max_tokens, max_query_tokens)
        middle = sum(thresholds) / len(thresholds)
        made = cls(model, tokenizer, template, [value - middle for value in thresholds])
        with torch.no_grad():
            made.head.bias.fill_(-middle)
        made.fresh = ("gaps", *sorted(f"model.{name}" for name in report["missing_keys"]))
        return made

    @classmethod
    def load(cls, folder: Path) -> "CrossEncoder":
        """The cross-encoder that `save` wrote, in eval mode.

        Raises:
            ArtifactError: head.json is not readable.
            MissingError: no model in this folder.
        """
        place = base_models.folder(folder / "model")
        try:
            head = json.loads((folder / "head.json").read_text(encoding="utf-8"))
            thresholds, template = head["thresholds"], PairTemplate.from_dict(head["template"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{folder / 'head.json'}: not readable ({error!r}); train the model again") from error
        with base_models.quiet():
            model = AutoModelForSequenceClassification.from_pretrained(
                place, dtype=torch.float32, attn_implementation=tokenizers.attention(), trust_remote_code=False
            )
        return cls(model, tokenizers.load_tokenizer(place), template, thresholds).eval()

    def save(self, folder: Path) -> None:
        """Writes `model/` and `head.json` into a folder that exists."""
        with base_models.quiet():
            self.model.save_pretrained(folder / "model")
        tokenizers.save_tokenizer(self.hub_tokenizer, folder / "model", self.template.max_tokens)
        head = {"thresholds": self.thresholds.tolist(), "template": self.template.to_dict()}
        write_atomically(folder / "head.json", json.dumps(head, indent=1) + "\n")

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
        classifier: Any = self.model.classifier
        found = getattr(classifier, "out_proj", classifier)
        assert isinstance(found, nn.Linear)
        return found

    @property
    def segments(self) -> bool:
        """Whether the model reads segment ids; RoBERTa does not."""
        return int(getattr(self.model.config, "type_vocab_size", 0)) > 1

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None, attention_mask: Tensor) -> Tensor:
        """Raw scores (batch,), float32.

        Args:
            input_ids: (batch, tokens) int64.
            token_type_ids: (batch, tokens) int64, or None where the model has one segment.
            attention_mask: (batch, tokens), 1 for a real token.
        """
        return self.read(input_ids, token_type_ids, attention_mask).scores

    def with_states(
        self, input_ids: Tensor, token_type_ids: Tensor | None, attention_mask: Tensor, layers: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Raw scores (batch,) and first-token states (batch, layers, hidden) after the named layers, from 1.

        Raises:
            ShapeError: a layer that the model does not have.
        """
        found = self.read(input_ids, token_type_ids, attention_mask, first=layers)
        return found.scores, found.first

    def read(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None,
        attention_mask: Tensor,
        *,
        first: Sequence[int] = (),
        whole: Sequence[int] = (),
    ) -> "Reading":
        """Scores, and states on the way to them.

        Args:
            first: layers after which the first token's state is kept, from 1.
            whole: layers after which the states of all tokens are kept; 0 for the embeddings. Only when the last
                layer is among them is it computed for more than the first token.

        Raises:
            ShapeError: a layer that the model does not have.
        """
        if any(not 1 <= layer <= self.layers for layer in first) or any(not 0 <= one <= self.layers for one in whole):
            wanted = (*first, *whole)
            raise ShapeError(f"states of layers {wanted}: the model has layers 1 to {self.layers}")
        added = packed.padding(attention_mask)
        hidden = self._embedded(input_ids, token_type_ids)
        kept, all_tokens = {}, {}
        for number in range(self.layers):
            kept[number] = hidden[:, 0]
            if number in whole:
                all_tokens[number] = hidden
            layer = self._layer(number + 1)
            if number + 1 < self.layers:
                hidden = layer(hidden, added)
            elif self.layers in whole or self.shared:
                hidden = layer(hidden, added)
                all_tokens[self.layers] = hidden
            else:
                hidden = first_token(layer, hidden, added)  # (batch, 1, hidden)
        kept[self.layers] = hidden[:, 0]

        return self._reading(
            hidden[:, 0], [kept[layer] for layer in first], {layer: all_tokens[layer] for layer in whole}
        )

    def read_together(self, batches: Sequence[packed.Inputs], *, first: Sequence[int] = ()) -> "Reading":
        """What `read` gives for these batches of unlike width, one behind the other, in fewer and larger operations.

        Args:
            batches: input_ids, token_type_ids and attention_mask of each.
            first: layers after which the first token's state is kept, from 1.

        Raises:
            ShapeError: a layer that the model does not have.
        """
        if self.shared or any(not 1 <= layer <= self.layers for layer in first):
            found = [self.read(*batch, first=first) for batch in batches]
            return Reading(torch.cat([one.scores for one in found]), torch.cat([one.first for one in found]), {})
        model: Any = self.model
        if not self.segments:
            batches = [(ids, torch.zeros_like(ids), mask) for ids, _, mask in batches]
        begin = tokenizers.first_position(model.config)
        states = packed.first_tokens(model.base_model, batches, offset=begin)
        return self._reading(states[-1], [states[layer - 1] for layer in first], {})

    def token_states(
        self, input_ids: Tensor, token_type_ids: Tensor | None, attention_mask: Tensor, layers: Sequence[int]
    ) -> dict[int, Tensor]:
        """(batch, tokens, hidden) after each of these layers, 0 for the embeddings; computes none above the highest.

        Raises:
            ShapeError: a layer that the model does not have.
        """
        if any(not 0 <= layer <= self.layers for layer in layers):
            raise ShapeError(f"states of layers {tuple(layers)}: the model has layers 1 to {self.layers}")
        added = packed.padding(attention_mask)
        hidden = self._embedded(input_ids, token_type_ids)
        found = {0: hidden}
        for number in range(1, max(layers, default=0) + 1):
            hidden = self._layer(number)(hidden, added)
            found[number] = hidden
        return {layer: found[layer] for layer in layers}

    def projections(self, layer: int, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (batch, tokens, hidden), of a layer from the states before it.

        Computed anew: a hook in the layer would see nothing where its activations are not kept.
        """
        attention = self._attention(layer)
        return attention.query(before), attention.key(before), attention.value(before)

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
        return bool(self.model.config.model_type == "albert")

    @property
    def shape(self) -> base_models.ModelShape:
        """Layers, width and heads."""
        return base_models.ModelShape(self.layers, self.hidden, self.heads, self.shared)

    def _embedded(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        segments = {"token_type_ids": token_type_ids} if token_type_ids is not None and self.segments else {}
        body: Any = self.model.base_model
        hidden: Tensor = body.embeddings(input_ids=input_ids, **segments)  # (batch, tokens, hidden)
        if self.shared:
            hidden = body.encoder.embedding_hidden_mapping_in(hidden)
        return hidden

    def _layer(self, number: int) -> Any:
        """The layer of this number, from 1."""
        encoder: Any = self.model.base_model.encoder
        if not self.shared:
            return encoder.layer[number - 1]
        return encoder.albert_layer_groups[(number - 1) * len(encoder.albert_layer_groups) // self.layers]

    def _attention(self, number: int) -> Any:
        """What makes the queries, keys and values of a layer."""
        layer = self._layer(number)
        if not self.shared:
            return layer.attention.self
        if len(layer.albert_layers) > 1:
            raise ConfigError("an albert model whose layers are groups of several has no one attention to learn from")
        return layer.albert_layers[0].attention

    def _reading(self, last: Tensor, first: Sequence[Tensor], whole: dict[int, Tensor]) -> "Reading":
        """From the first token's last state, (batch, hidden), and those to be kept."""
        scores = self._scores(last.unsqueeze(1))[:, 0].float()
        kept = [states.float() for states in first]
        empty = scores.new_empty(len(scores), 0, self.hidden)
        return Reading(scores, torch.stack(kept, dim=1) if kept else empty, whole)

    def _scores(self, first: Tensor) -> Tensor:
        """(batch, 1) from the last state of the first token, (batch, 1, hidden)."""
        model: Any = self.model
        body = model.base_model
        if self.shared:
            pooled = model.dropout(body.pooler_activation(body.pooler(first[:, 0])))
        else:
            pooled = first if body.pooler is None else model.dropout(body.pooler(first))
        found: Tensor = model.classifier(pooled)
        return found


@dataclass(frozen=True, slots=True)
class Reading:
    """What a cross-encoder made of a batch."""

    scores: Tensor
    """(batch,) raw, float32."""
    first: Tensor
    """(batch, layers, hidden) float32, in the order asked for."""
    whole: dict[int, Tensor]
    """(batch, tokens, hidden) by layer, 0 for the embeddings."""


def first_token(layer: Any, hidden: Tensor, mask: Tensor) -> Tensor:
    """The layer's output at the first token alone, (batch, 1, hidden): the score reads nothing else of the last layer.

    It is five sixths of that layer saved: an eighth of the training time at 6 layers, a quarter at 3.

    Args:
        layer: of a BERT or RoBERTa encoder.
        hidden: (batch, tokens, hidden) its input.
        mask: (batch, 1, 1, tokens), 0 for a real token and very negative for padding.
    """
    attention = layer.attention.self
    heads = (attention.num_attention_heads, attention.attention_head_size)
    query = attention.query(hidden[:, :1]).unflatten(-1, heads).transpose(1, 2)  # (batch, heads, 1, size)
    key = attention.key(hidden).unflatten(-1, heads).transpose(1, 2)  # (batch, heads, tokens, size)
    value = attention.value(hidden).unflatten(-1, heads).transpose(1, 2)
    weights = (query @ key.transpose(2, 3) * attention.scaling + mask).softmax(-1)  # (batch, heads, 1, tokens)
    context = (attention.dropout(weights) @ value).transpose(1, 2).flatten(2)  # (batch, 1, hidden)
    attended = layer.attention.output(context, hidden[:, :1])
    output: Tensor = layer.output(layer.intermediate(attended), attended)
    return output


def _inverse_softplus(values: Tensor) -> Tensor:
    return values + torch.log(-torch.expm1(-values))
