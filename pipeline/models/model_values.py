"""Checks of a loaded model: the values of its weights, and its answers.

A copy that broke off often has its full length, with zeros where the rest belongs, and loads without a word.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError

UNREAD = ("token_type", "pooler")
"""Parts of names of weights that a model may leave at zero, or not read at all."""


def check_values(root: Path, model: nn.Module) -> None:
    """Refuses a loaded model of which a weight is not finite, or a whole matrix zero.

    Raises:
        ConfigError: names the weight.
    """
    for name, value in model.named_parameters():
        if any(part in name for part in UNREAD):
            continue
        # The sum takes a fifth of the time; each number is looked at only where it overflows or is 0.
        total, problem = value.sum(), ""
        if not total.isfinite() and not value.isfinite().all():
            problem = "numbers that are not finite"
        elif total == 0 and name.endswith("weight") and not value.any():
            problem = "nothing but zeros" if value.numel() else "no numbers"
        if problem:
            raise ConfigError(
                f"{root}: its weight {name} holds {problem}; the file was damaged or copied in part: fetch or save the "
                "model again"
            )


@torch.no_grad()
def check_answers(root: Path, tokens: int, answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Refuses a model that cannot read two short inputs, or gives no finite answers that differ.

    Args:
        root: the model's folder, for the message.
        tokens: size of the vocabulary.
        answer: the model: input_ids and attention_mask, (2, 4) each, to scores or vectors.

    Raises:
        ConfigError: it fails, or its answers are not finite, or equal for both inputs.
    """
    ids = torch.arange(8).reshape(2, 4) % tokens
    try:
        first, second = answer(ids, torch.ones_like(ids))
    except Exception as error:  # Whatever a value of config.json leads to inside the model.
        reason = str(error).partition("\n")[0][:200]
        raise ConfigError(f"{root}: the model cannot be run as its config.json says ({reason})") from error
    if not (first.isfinite().all() and second.isfinite().all()) or torch.equal(first, second):
        raise ConfigError(
            f"{root}: the model gives the same answer to all inputs, or none that is a number; its weights or its "
            "config.json are damaged: fetch or save the model again"
        )
