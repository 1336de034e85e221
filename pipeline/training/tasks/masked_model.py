"""An encoder with a head that guesses masked tokens, as pre-training and word replacement use it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.config import PretrainConfig
from pipeline.errors import ConfigError
from pipeline.models import base_models, packed, surgery, tokenizers
from pipeline.models.families import ModelFamily, family_of
from pipeline.training.loop import batches
from pipeline.training.loop.batches import Ints

POOLER_SEED = 7
"""Seed of the weights of a pooler that the base did not have."""


class MaskedModel(nn.Module):
    """An encoder with a head that guesses tokens, which alone is not kept."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, base: Path) -> None:
        super().__init__()
        self.model = model
        self.hub_tokenizer = tokenizer
        self.base = base
        self.own_head = True
        """Whether the head came with the base, so that its guesses mean something before any training."""
        self._family = family_of(model.config)

    @classmethod
    def start(cls, base: Path, config: PretrainConfig) -> "MaskedModel":
        """The model found in `base`, with a new head where it has none.

        Raises:
            ConfigError: no encoder that can guess masked tokens, or too few positions for `config.max_tokens`.
        """
        tokenizer = tokenizers.load_tokenizer(base)
        settings = base_models.config(base)
        tokenizers.check_positions(settings, config.max_tokens)
        if tokenizer.mask_token_id is None:
            raise ConfigError(f"{base}: its tokenizer has no mask token, so pre-training cannot use it")
        base_models.without_dropout(settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.loop.seed)
            model, missing = base_models.load_whole(
                AutoModelForMaskedLM, base, config=settings, attn_implementation=tokenizers.attention()
            )
        masked = cls(model, tokenizer, base)
        masked.own_head = not missing
        return masked

    def forward(
        self, inputs: Sequence[batches.PaddedBatch], chosen: Sequence[Tensor], *, together: bool = True
    ) -> Tensor:
        """Logits of the chosen tokens of several batches, (chosen tokens, vocabulary) float32, batch after batch.

        Args:
            inputs: padded batches of any widths.
            chosen: (texts, tokens) of each batch; true for a token to guess.
            together: whether one pass reads all batches; a family that does not split its layers reads them in turn.
        """
        states = self.states(inputs, together=together)  # (all tokens, hidden)
        return self.guess(states[torch.cat([each.flatten() for each in chosen])])  # (chosen, vocabulary)

    def states(self, inputs: Sequence[batches.PaddedBatch], *, together: bool = True) -> Tensor:
        """(all tokens, hidden) after the last layer, batch after batch, padding too; arguments as for `forward`."""
        if together and self._family.splits(self.model.config):
            return self._states_together(self._family, inputs)
        return torch.cat([self._states(batch).flatten(0, 1) for batch in inputs])

    def guess(self, states: Tensor) -> Tensor:
        """Logits (…, vocabulary) float32 of the tokens whose last states these are."""
        return self._family.guess(self.model, states).float()

    @property
    def _segments(self) -> bool:
        return self._family.segments(self.model.config) > 1

    def _states(self, batch: batches.PaddedBatch) -> Tensor:
        """(texts, tokens, hidden) after the last layer."""
        types = {"token_type_ids": batch.token_type_ids} if self._segments else {}
        encoder: Any = self.model.base_model
        states: Tensor = encoder(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, **types
        ).last_hidden_state
        return states

    def _states_together(self, family: ModelFamily, inputs: Sequence[batches.PaddedBatch]) -> Tensor:
        """(all tokens, hidden) after the last layer, batch after batch."""
        read = [batch.all for batch in inputs]
        if not self._segments:
            read = [(ids, torch.zeros_like(ids), mask) for ids, _, mask in read]
        offset = family.first_position(self.model.config)
        return packed.all_tokens(family, self.model.base_model, read, offset=offset)

    def expect(self, counts: Ints) -> None:
        """Lets a new head start from how often each token occurs, (vocabulary,), as the best guess without reading.

        It otherwise takes the first hundred steps to learn no more than that. A head that came with the base stays.
        """
        decoder: Any = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        if decoder.bias is not None and not decoder.bias.any():
            shares = (counts + 0.5) / (counts + 0.5).sum()
            with torch.no_grad():
                decoder.bias.copy_(torch.from_numpy(np.log(shares)))

    def save(self, folder: Path, keep: Sequence[int] = ()) -> None:
        """Writes the encoder and its tokenizer as a transformers folder.

        Args:
            folder: the folder to write to.
            keep: the layers of the base, from 1, that the encoder was cut to; empty for all.
        """
        with base_models.quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(POOLER_SEED)
            body = AutoModel.from_pretrained(self.base, dtype=torch.float32, trust_remote_code=False)
            body = surgery.keep_layers(body, keep) if keep else body
            body.load_state_dict(self.model.base_model.state_dict(), strict=False)  # Has no pooler: that stays.
            body.save_pretrained(folder)
            self.hub_tokenizer.save_pretrained(folder)
