"""Small random models of every family, with a tokenizer trained on a few words."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedTokenizerFast

from pipeline.models.families import family_of

WORDS = tuple(
    f"{colour}{thing}" for colour in ("red", "blue", "old", "wet") for thing in ("shoe", "car", "lamp", "tree")
)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}


def tokenizer() -> PreTrainedTokenizerFast:
    """Whole words, [CLS] a [SEP] b [SEP]."""
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *WORDS))}
    plain = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=plain,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        bos_token="[CLS]",
        eos_token="[SEP]",
    )


def write_base(folder: Path, model_type: str, **changes: Any) -> Path:
    """A base model of this type with weights large enough that states and scores differ clearly."""
    words = tokenizer()
    shape = {**SHAPE, "vocab_size": len(words)}
    fields = {**family_of(model_type).new_config(shape, words, 16), **changes}
    torch.manual_seed(5)
    model = AutoModel.from_config(CONFIG_MAPPING[model_type](**fields))
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(torch.randn_like(value) * (0.2 if value.dim() > 1 else 0.1) + (1.0 if _is_scale(name) else 0.0))
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def _is_scale(name: str) -> bool:
    return "norm" in name.lower() and name.endswith("weight")


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {}),
    "roberta": ("roberta", {"type_vocab_size": 1}),
    "albert": ("albert", {}),
    "electra": ("electra", {}),
    "electra, wide embeddings": ("electra", {"embedding_size": 32}),
    "distilbert": ("distilbert", {}),
    "mpnet": ("mpnet", {}),
    "deberta-v3": ("deberta-v2", {}),
    "deberta-v2": ("deberta-v2", {"share_att_key": False, "position_buckets": -1, "norm_rel_ebd": "none"}),
    "deberta-v2, absolute": ("deberta-v2", {"relative_attention": False, "position_biased_input": True}),
    "modernbert": ("modernbert", {"local_attention": 8, "max_position_embeddings": 4096}),
    "modernbert, mean": ("modernbert", {"local_attention": 8, "classifier_pooling": "mean"}),
    "ernie": ("ernie", {"use_task_id": True}),
    "nomic_bert": ("nomic_bert", {"max_position_embeddings": 4096}),
    "eurobert": ("eurobert", {"max_position_embeddings": 4096, "num_key_value_heads": 2}),
    "eurobert, late": ("eurobert", {"classifier_pooling": "late"}),
    "eurobert, mean": ("eurobert", {"classifier_pooling": "mean"}),
}
"""Kinds of models: `model_type`, and fields of the config besides those of SHAPE."""
