"""The representation model: one text in, one short vector of unit length out.

A saved one is a folder:

    model/           config.json, model.safetensors, tokenizer.json, …   opens with AutoModel
      modules.json   1_Pooling, 2_Dense, 3_Normalize                     opens with SentenceTransformer
      2_Dense/       model.safetensors: linear.weight (dimensions, hidden), linear.bias (dimensions,)
    head.json        {"dimensions", "widths", "query_template", "document_template"}, and "pooling", "activation" and
                     "earlier" where they are not the mean, none and none

A ready-made one may have linear layers ahead of the projection: 2_Dense, 3_Dense and so on, the projection last.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.disk import write_atomically
from pipeline.errors import ArtifactError, ConfigError, ShapeError
from pipeline.models import base_models, model_folders, sentence_transformers_format, tokenizers
from pipeline.models.families import OwnForward, family_of
from pipeline.models.sentence_transformers_format import Activation, DenseLayer, Pooling
from pipeline.tokens import TextTemplate


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """Settings of the part of a bi-encoder between the tokens' states and the projection's output."""

    pooling: Pooling = "mean"
    activation: Activation = "identity"
    earlier: tuple[Activation, ...] = ()
    """The activation functions of the linear layers ahead of the projection, one for each layer."""

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "Head":
        """The head of a head.json; other keys are left out."""
        known = {name: settings[name] for name in ("pooling", "activation") if name in settings}
        return cls(**known, earlier=tuple(settings.get("earlier", ())))

    def to_dict(self) -> dict[str, Any]:
        """The settings that differ from those of the models that we train, for head.json and digests."""
        return {name: value for name, value in asdict(self).items() if value != getattr(Head(), name)}


class BiEncoder(nn.Module):
    """A transformer body, pooling, a dense projection and L2 normalisation."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        dense: nn.Linear,
        query_template: TextTemplate,
        document_template: TextTemplate,
        widths: Sequence[int] = (),
        head: Head | None = None,
        earlier: Sequence[nn.Linear] = (),
    ) -> None:
        """Assembles the parts of a bi-encoder.

        Args:
            dense: the projection from pooled states to the vector.
            query_template: special tokens, prompt and greatest length of a query; `document_template` of a document.
            head: mean pooling and no activation when None, as in the models that we train.
            earlier: linear layers ahead of the projection, one for each function of `head.earlier`.
            widths: smaller dimensions at which a vector may be cut off (Matryoshka), see `EncoderConfig.widths`.

        Raises:
            ConfigError: the texts are longer than the model's positions.
        """
        super().__init__()
        tokenizers.check_positions(model.config, max(query_template.max_tokens, document_template.max_tokens))
        self.model = model
        self.hub_tokenizer = tokenizer
        self.tokenizer: Tokenizer = tokenizers.plain_tokenizer(tokenizer)
        self.dense = dense
        self.head = head or Head()
        self.earlier = nn.ModuleList(earlier)
        self.query_template = query_template
        self.document_template = document_template
        self.widths = (dense.out_features, *sorted(widths, reverse=True))
        """Widths at which a vector may be cut off and scaled to unit length; the widest is the whole vector."""

    @classmethod
    def start(
        cls,
        base: Path,
        *,
        dimensions: int,
        widths: Sequence[int] = (),
        max_tokens: int,
        max_query_tokens: int,
        seed: int,
    ) -> "BiEncoder":
        """A bi-encoder with the body found in `base` and a random projection; `fit_projection` makes a good one.

        Raises:
            ConfigError: not a known encoder, no fast tokenizer, or too few positions for `max_tokens`.
        """
        tokenizer = tokenizers.load_tokenizer(base)
        config = base_models.config(base)
        base_models.without_dropout(config)
        with base_models.quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = load_body(base, config)
            dense = nn.Linear(int(config.hidden_size), dimensions)
        return cls(
            model,
            tokenizer,
            dense,
            tokenizers.text_template(tokenizer, max_query_tokens),
            tokenizers.text_template(tokenizer, max_tokens),
            widths,
        )

    @classmethod
    def load(cls, folder: Path) -> "BiEncoder":
        """The bi-encoder that `save` wrote, in eval mode.

        Raises:
            ArtifactError: head.json or the projection is not readable.
            MissingError: no model in this folder.
        """
        path = model_folders.folder(folder / "model")
        try:
            head = json.loads((folder / "head.json").read_text(encoding="utf-8"))
            query, document = (TextTemplate.from_dict(head[f"{role}_template"]) for role in ("query", "document"))
            widths = [int(width) for width in head["widths"]]
            form = Head.from_dict(head)
            folders = [
                path / sentence_transformers_format.dense_folder(number) for number in range(len(form.earlier) + 1)
            ]
            *earlier, dense = [sentence_transformers_format.read_linear(item / "model.safetensors") for item in folders]
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise ArtifactError(
                f"{folder}: head.json or model/{sentence_transformers_format.DENSE} is not readable ({error!r})"
            ) from error
        model = load_body(path, base_models.config(path))
        return cls(model, tokenizers.load_tokenizer(path), dense, query, document, widths[1:], form, earlier).eval()

    def save(self, folder: Path) -> None:
        """Writes `model/` and `head.json` into a folder that exists."""
        path = folder / "model"
        with base_models.quiet():
            self.model.save_pretrained(path)
        tokenizers.save_tokenizer(self.hub_tokenizer, path, self.document_template.max_tokens)
        sentence_transformers_format.write(
            path,
            [DenseLayer(linear, activation) for linear, activation in self._layers()],
            max_tokens=self.document_template.max_tokens,
            pooling=self.head.pooling,
            prompts={"query": self.query_template.prompt, "document": self.document_template.prompt},
        )
        sentence_transformers_format.leave_out_pooler(path)
        head = {
            "dimensions": self.dense.out_features,
            "widths": list(self.widths),
            "query_template": self.query_template.to_dict(),
            "document_template": self.document_template.to_dict(),
            **self.head.to_dict(),
        }
        write_atomically(folder / "head.json", json.dumps(head, indent=1) + "\n", json.loads)

    def pooled(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Runs the body and pools its last states: the projection's input, (batch, inputs of the projection) float32.

        Padding tokens, 0 in `attention_mask`, do not count.
        """
        states: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()
        return self.pool(states, attention_mask)

    def pool(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        """Pools the body's last states, (batch, tokens, hidden), and applies the linear layers ahead of the projection.

        Returns:
            (batch, inputs of the projection) float32.
        """
        pooled = self._one_vector(states, attention_mask)
        for linear, activation in self._layers()[:-1]:
            pooled = _activated(linear(pooled).float(), activation)
        return pooled

    def _layers(self) -> list[tuple[nn.Linear, Activation]]:
        """The linear layers after the pooling with the functions after them; the projection is the last."""
        linears = [*self.earlier, self.dense]
        return list(zip(linears, (*self.head.earlier, self.head.activation), strict=True))

    def _one_vector(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask.unsqueeze(-1).to(states.dtype)  # (batch, tokens, 1)
        if self.head.pooling == "cls":
            return states[:, 0]
        if self.head.pooling == "max":
            return states.masked_fill(mask == 0, -torch.inf).amax(1)
        if self.head.pooling == "lasttoken":
            last = attention_mask.sum(1) - 1  # (batch,)
            return states[torch.arange(len(states), device=states.device), last]
        return (states * mask).sum(1) / mask.sum(1).clamp(min=1.0)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Vectors (batch, dimensions) of unit length, float32.

        Args:
            input_ids: (batch, tokens) int64.
            attention_mask: (batch, tokens), 1 for a real token.
        """
        return self.project(self.pooled(input_ids, attention_mask))

    def project(self, pooled: Tensor) -> Tensor:
        """Projects the outputs of `pooled` or `pool` to unit vectors, (batch, dimensions) float32."""
        return F.normalize(_activated(self.dense(pooled).float(), self.head.activation), dim=-1)

    def fit_projection(self, pooled: Tensor, *, about: Literal["mean", "origin"] = "mean") -> float:
        """Sets the projection to the principal directions of these vectors.

        The untrained encoder then orders texts nearly as its base does, and training starts from there. About the
        origin it keeps the base's cosines best, if the vectors have unit length; about their mean it keeps what tells
        the sample's texts apart.

        Args:
            pooled: (texts, hidden) from `pooled`, of a sample of the texts to be encoded.

        Returns:
            Share of the sample's variance (about the origin: of its squared lengths) that the projection keeps.

        Raises:
            ShapeError: the model is narrower than the projection has dimensions.
        """
        dimensions = self.dense.out_features
        if pooled.shape[1] < dimensions:
            raise ShapeError(f"fit_projection: {dimensions} directions of vectors {tuple(pooled.shape)}; take fewer")
        values = pooled.double()
        mean = values.mean(0) if about == "mean" else values.new_zeros(values.shape[1])
        centred = values - mean
        spread, directions = torch.linalg.eigh(centred.T @ centred)  # ascending
        chosen = directions[:, -dimensions:].flip(1).T  # (dimensions, hidden), widest first
        # An eigenvector's sign is arbitrary; fix it, so that the same sample gives the same model everywhere.
        chosen = chosen * chosen.gather(1, chosen.abs().argmax(1, keepdim=True)).sign()
        with torch.no_grad():
            self.dense.weight.copy_(chosen)
            self.dense.bias.copy_(-chosen @ mean)
        return float(spread[-dimensions:].sum() / spread.sum())


def _activated(values: Tensor, activation: Activation) -> Tensor:
    return values.tanh() if activation == "tanh" else values


def load_body(path: Path, config: Any) -> PreTrainedModel:
    family = family_of(config)
    if isinstance(family, OwnForward):
        raise ConfigError(f"{path}: a {config.model_type} model can teach, but not be an encoder; take another base")
    model, _ = base_models.load_whole(
        AutoModel,
        path,
        config=config,
        attn_implementation=tokenizers.attention(),
        **({"add_pooling_layer": False} if family.optional_pooler else {}),
    )
    assert isinstance(model, PreTrainedModel)
    return model
