"""Memory stays between steps; layers that compute their activations anew keep less, and the gradients are the same."""

import json
import platform
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AlbertConfig, AlbertForMaskedLM, BertConfig, BertForMaskedLM, RobertaConfig, RobertaForMaskedLM

from pipeline.errors import MemoryShortageError
from pipeline.models.bi_encoder import BiEncoder
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.training.loop import batches, memory, pair_tokens, scoring

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "hidden_dropout_prob": 0.3,
    "attention_probs_dropout_prob": 0.0,
    "max_position_embeddings": 40,
}
BODIES: dict[str, Callable[[], Any]] = {
    "bert": lambda: BertForMaskedLM(BertConfig(**SIZES)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**SIZES)),
    "albert": lambda: AlbertForMaskedLM(AlbertConfig(**SIZES, embedding_size=8)),
}


def learn(module: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> tuple[int, dict[str, torch.Tensor]]:
    """Bytes kept for the way back, parameters not counted, and the gradients."""
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    module.zero_grad()
    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss()
    size = sum(kept.values())
    value.backward()  # type: ignore[no-untyped-call]
    return size, {
        name: parameter.grad.clone() for name, parameter in module.named_parameters() if parameter.grad is not None
    }


MEASURED_ALONE = """
import json, resource
import torch
from pipeline.training.loop import memory

def faults(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(size, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with memory.kept_between_steps():
    within = [faults(64 << 20) for _ in range(5)]
again = faults(64 << 20)
after = [faults(128 << 20) for _ in range(5)]
print(json.dumps([within, again, after]))
"""
"""A process that counts the pages which the system clears for large tensors, one freed before the next is made.

The heap may hold a free block as large as the first ones, below a small one, and lend it again: `after` asks for more.
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_freed_memory_stays_within_a_training_and_goes_back_after_it() -> None:
    # In a process of its own: small blocks of earlier tests would lie in between, and move the tensor.
    run = subprocess.run([sys.executable, "-c", MEASURED_ALONE], capture_output=True, text=True, check=True)
    within, again, after = json.loads(run.stdout)
    pages = (64 << 20) // resource.getpagesize()
    assert min(within[1:]) < pages / 100
    assert again > pages / 2
    assert min(after) > pages


@pytest.mark.parametrize("family", BODIES)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_less_is_kept_and_gradients_are_equal(family: str, precision: torch.dtype) -> None:
    torch.manual_seed(1)
    model = BODIES[family]().train()
    ids = torch.randint(5, 50, (6, 30))

    def loss() -> torch.Tensor:
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            logits: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()
        return logits.square().mean()

    size, expected = learn(model, loss)
    with memory.recomputed(model):
        less, got = learn(model, loss)
    assert less < 0.5 * size
    assert all(torch.equal(value, got[name]) for name, value in expected.items())
    assert learn(model, loss)[0] == size  # As before, when it is over.


def test_a_cross_encoder_reads_through_the_same_layers(untrained: Any) -> None:
    model = CrossEncoder.load(untrained.ranker.path).train()
    pairs = pair_tokens.read_pairs(untrained.data, untrained.pairs, model.tokenizer, max_query_tokens=12, max_tokens=48)
    inputs = batches.pad(batches.pair_inputs(pairs, pairs.indices("train"), model.template), torch.device("cpu"))

    def loss() -> torch.Tensor:
        reading = model.read(*inputs.all, first=(1, 2))
        return reading.scores.square().sum() + reading.first.sum()

    size, expected = learn(model, loss)
    with memory.recomputed(model):
        less, got = learn(model, loss)
    assert less < 0.6 * size
    assert all(torch.allclose(value, got[name], atol=1e-6) for name, value in expected.items())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()], ids=repr)
def test_scoring_that_runs_out_of_memory_says_what_to_make_smaller(
    untrained: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def large(*_: object, **__: object) -> None:
        raise error

    model = CrossEncoder.load(untrained.ranker.path)
    pairs = pair_tokens.read_pairs(untrained.data, untrained.pairs, model.tokenizer, max_query_tokens=12, max_tokens=48)
    monkeypatch.setattr(model, "read", large)
    with pytest.raises(MemoryShortageError, match=r"^teacher scores: memory ran out \(.*\); lower max_tokens"):
        scoring.cross_scores(model, pairs, pairs.indices("valid"), label="teacher scores")
    encoder = BiEncoder.load(untrained.encoder.path)
    monkeypatch.setattr(encoder, "forward", large)
    with pytest.raises(MemoryShortageError, match=r"^valid: memory ran out"):
        scoring.cosines(encoder, pairs, pairs.indices("valid"), label="  valid")
