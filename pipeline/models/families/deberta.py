"""DeBERTa-v2 and -v3: attention between contents and relative positions, in both directions."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position

from pipeline.models.families.family import AttentionParts, ModelFamily


class DebertaV2(ModelFamily):
    """DeBERTa-v2 and -v3; `AttentionParts.bias` adds the part of the attention logits that depends on positions.

    In a model with a convolution each layer runs by its own forward pass, see `ModelFamily.splits`.
    """

    model_types = ("deberta-v2",)
    optional_pooler = False

    def splits(self, config: Any) -> bool:
        return not getattr(config, "conv_kernel_size", 0)

    def run_layer(self, body: Any, number: int, hidden: Tensor, mask: Tensor) -> Tensor:
        encoder = body.encoder
        real = mask == 0  # (batch, 1, 1, tokens)
        states: Tensor = self.layer(body, number)(
            hidden,
            real & real.transpose(2, 3),
            relative_pos=encoder.get_rel_pos(hidden),
            rel_embeddings=encoder.get_rel_embedding(),
        )[0]
        if number == 1 and encoder.conv is not None:
            states = encoder.conv(hidden, states, real[:, 0, 0])
        return states

    def attention(self, body: Any, number: int) -> AttentionParts:
        module = self.layer(body, number).attention.self
        kinds = sum(kind in module.pos_att_type for kind in ("c2p", "p2c"))
        scaling = (module.attention_head_size * (1 + kinds)) ** -0.5
        return AttentionParts(
            query=module.query_proj,
            key=module.key_proj,
            value=module.value_proj,
            heads=module.num_attention_heads,
            size=module.attention_head_size,
            scaling=scaling,
            dropout=module.dropout,
            implementation=body.config._attn_implementation,
            bias=(lambda query, key: _disentangled(body, module, query, key) * scaling)
            if module.relative_attention and kinds
            else None,
        )

    def score(self, model: Any, first: Tensor) -> Tensor:
        scores: Tensor = model.classifier(model.dropout(model.pooler(first.unsqueeze(1))))
        return scores

    def guess(self, model: Any, states: Tensor) -> Tensor:
        if model.legacy:
            return super().guess(model, states)
        logits: Tensor = model.lm_predictions(states, model.base_model.embeddings.word_embeddings)
        return logits

    def new_config(self, shape: Mapping[str, Any], tokenizer: Any, embedding: int) -> dict[str, Any]:  # noqa: ARG002
        """DeBERTa-v3's kind of positions: relative only, in 256 buckets, with the keys' own projections."""
        return {
            **shape,
            "type_vocab_size": 0,
            "relative_attention": True,
            "position_buckets": 256,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
        }


def _disentangled(body: Any, module: Any, query: Tensor, key: Tensor) -> Tensor:
    """Attention logits that depend on positions, (texts, heads, queries, tokens), before scaling.

    They are the sum of content to position and position to content, as far as the model has them.

    Args:
        query: (texts, heads, queries, size) of the first tokens.
        key: (texts, heads, tokens, size).

    Source: He et al., DeBERTa, ICLR 2021, arXiv:2006.03654, equation 4.
    """
    span, (texts, heads, tokens, size), queries = module.pos_ebd_size, key.shape, query.shape[2]
    distances = build_relative_position(
        key, key, bucket_size=module.position_buckets, max_position=module.max_relative_positions
    )[0]  # (tokens, tokens)
    table = module.pos_dropout(body.encoder.get_rel_embedding()[: 2 * span])  # (2 · span, hidden)
    by_key = module.key_proj if module.share_att_key else getattr(module, "pos_key_proj", None)
    by_query = module.query_proj if module.share_att_key else getattr(module, "pos_query_proj", None)

    def of_heads(states: Tensor) -> Tensor:
        """Splits projected position embeddings, (2 · span, hidden), into heads, (heads, size, 2 · span)."""
        return states.view(2 * span, heads, size).permute(1, 2, 0)

    logits = query.new_zeros(())
    if "c2p" in module.pos_att_type and by_key is not None:
        buckets = (distances[:queries] + span).clamp(0, 2 * span - 1)  # (queries, tokens)
        logits = logits + (query @ of_heads(by_key(table))).gather(3, buckets.expand(texts, heads, queries, tokens))
    if "p2c" in module.pos_att_type and by_query is not None:
        buckets = (span - distances[:, :queries]).clamp(0, 2 * span - 1)  # (tokens, queries)
        theirs = (key @ of_heads(by_query(table))).gather(3, buckets.expand(texts, heads, tokens, queries))
        logits = logits + theirs.transpose(2, 3)
    return logits
