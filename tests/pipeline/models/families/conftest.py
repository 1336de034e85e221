"""Small random models of every family, with a tokenizer trained on a few words."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
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


def write_base(place: Path, model_type: str, **changes: Any) -> Path:
    """A base model of this type with weights large enough that states and scores differ clearly."""
    words = tokenizer()
    shape = {**SHAPE, "vocab_size": len(words)}
    fields = {**family_of(model_type).new_config(shape, words, 16), **changes}
    torch.manual_seed(5)
    model = AutoModel.from_config(CONFIG_MAPPING[model_type](**fields))
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(torch.randn_like(value) * (0.2 if value.dim() > 1 else 0.1) + (1.0 if _is_scale(name) else 0.0))
    model.save_pretrained(place)
    words.save_pretrained(place)
    return place


def _is_scale(name: str) -> bool:
    return "norm" in name.lower() and name.endswith("weight")


@pytest.fixture(scope="session")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a base model of a type, made once; other config fields may be given."""
    made: dict[Any, Path] = {}

    def get(model_type: str, **changes: Any) -> Path:
        key = (model_type, *sorted((name, str(value)) for name, value in changes.items()))
        if key not in made:
            made[key] = write_base(tmp_path_factory.mktemp(model_type), model_type, **changes)
        return made[key]

    return get
