"""Writes two models of half their teacher's width: one by a shared projection of its weights, one with new layers.

    OMP_NUM_THREADS=1 python tests/benchmarks/narrow_student.py WORKSPACE OUT

WORKSPACE holds a study or retraining whose teacher is a BERT; OUT gets the folders `projected` and `fresh`, which a
study takes as variants with `ranker.base=OUT/projected`, all layers and `ranker.hidden_weight=0`. The projection takes
the main directions of the teacher's states between its layers. As in Zhao et al. 2021, arXiv:1909.11687, all layers
share it, but here it is computed and not learned beside masked tokens. Heads and feed-forward units are the half of the
most energy. Embeddings are projected in both.
"""

import argparse
import copy
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerBase

from pipeline import artifacts
from pipeline.models import pruning

TEXTS, MAX_TOKENS, BATCH = 1500, 48, 32
"""Texts whose states the projection is computed from, the tokens read of each, and the texts read at once."""
NARROWED = ("hidden_size", "num_attention_heads", "intermediate_size")
"""Fields of the config that are halved."""


def _add_squares(total: Tensor, _: nn.Module, given: tuple[Tensor, ...]) -> None:
    total += given[0].flatten(0, -2).square().sum(0)


class Projection:
    """The main directions of a BERT's states, and the energy of its heads' and feed-forward units' outputs."""

    def __init__(self, model: BertModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
        layers = model.encoder.layer
        outputs = [linear for layer in layers for linear in (layer.attention.output.dense, layer.output.dense)]
        inputs = [torch.zeros(linear.in_features) for linear in outputs]
        handles = [
            linear.register_forward_pre_hook(partial(_add_squares, total))
            for linear, total in zip(outputs, inputs, strict=True)
        ]
        hidden = model.config.hidden_size
        products = torch.zeros(hidden, hidden)
        for begin in range(0, len(texts), BATCH):
            tokens = tokenizer(
                texts[begin : begin + BATCH], return_tensors="pt", padding=True, truncation=True, max_length=MAX_TOKENS
            )
            states = torch.cat(model(**tokens, output_hidden_states=True).hidden_states)
            real = states[tokens["attention_mask"].bool().repeat(len(layers) + 1, 1)]  # (tokens, hidden)
            products += real.T @ real
        for handle in handles:
            handle.remove()
        strengths, directions = torch.linalg.eigh(products)
        self.width = hidden // 2
        self.directions = directions.flip(1)[:, : self.width]  # (hidden, width)
        self.kept = float(strengths.flip(0)[: self.width].sum() / strengths.sum())
        """The share of the states' energy that the directions keep."""
        self.energy: Mapping[nn.Module, Tensor] = {
            linear: total * linear.weight.square().sum(0) for linear, total in zip(outputs, inputs, strict=True)
        }

    def normalise(self, ours: nn.LayerNorm, theirs: nn.LayerNorm) -> None:
        """Sets a LayerNorm so that projected states keep their length."""
        gain = (theirs.normalized_shape[0] / self.width * self.kept) ** 0.5
        ours.weight.copy_(gain * (self.directions * theirs.weight[:, None] * self.directions).sum(0))
        ours.bias.copy_(theirs.bias @ self.directions)

    def layer(self, ours: nn.Module, theirs: nn.Module, heads: int) -> None:
        """Sets a layer from its teacher's, with the half of its heads and units that has the most energy."""
        before, after = theirs.attention.output.dense, theirs.output.dense
        of_heads = self.energy[before].view(heads, -1).sum(1).topk(heads // 2).indices.sort().values
        size = before.in_features // heads
        rows = (of_heads[:, None] * size + torch.arange(size)).flatten()
        units = self.energy[after].topk(after.in_features // 2).indices.sort().values
        for name in ("query", "key", "value"):
            self._read(getattr(ours.attention.self, name), getattr(theirs.attention.self, name), rows)
        self._read(ours.intermediate.dense, theirs.intermediate.dense, units)
        for mine, other, kept in (
            (ours.attention.output, theirs.attention.output, rows),
            (ours.output, theirs.output, units),
        ):
            mine.dense.weight.copy_(self.directions.T @ other.dense.weight[:, kept])
            mine.dense.bias.copy_(other.dense.bias @ self.directions)
            self.normalise(mine.LayerNorm, other.LayerNorm)

    def _read(self, ours: nn.Linear, theirs: nn.Linear, rows: Tensor) -> None:
        """Sets a matrix that reads states and keeps these of its outputs."""
        ours.weight.copy_(theirs.weight[rows] @ self.directions)
        ours.bias.copy_(theirs.bias[rows])


def narrowed(teacher: BertModel, projection: Projection, *, layers: bool) -> BertModel:
    """A BERT of half the width with projected embeddings, and with projected layers or new ones."""
    config = copy.deepcopy(teacher.config)
    for name in NARROWED:
        setattr(config, name, getattr(config, name) // 2)
    torch.manual_seed(13)
    student = BertModel(BertConfig.from_dict(config.to_dict()))
    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        table = getattr(teacher.embeddings, name).weight
        getattr(student.embeddings, name).weight.copy_(table @ projection.directions)
    projection.normalise(student.embeddings.LayerNorm, teacher.embeddings.LayerNorm)
    if layers:
        for ours, theirs in zip(student.encoder.layer, teacher.encoder.layer, strict=True):
            projection.layer(ours, theirs, teacher.config.num_attention_heads)
    return student


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path, help="is only read")
    parser.add_argument("out", type=Path, help="folder for the two models")
    arguments = parser.parse_args()
    artifact = artifacts.load(artifacts.finished(arguments.workspace, "teacher")[-1])
    data = artifacts.input_of(arguments.workspace, artifact, "data")
    assert data is not None, f"{arguments.workspace}: the data of {artifact.path} is gone"
    teacher = AutoModel.from_pretrained(artifact.path / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(artifact.path / "model")
    with torch.no_grad():
        projection = Projection(teacher, tokenizer, list(islice(pruning.corpus_of(data), TEXTS)))
        print(f"{projection.width} directions keep {projection.kept:.3f} of the states' energy")
        for name, layers in (("projected", True), ("fresh", False)):
            narrowed(teacher, projection, layers=layers).save_pretrained(arguments.out / name)
            tokenizer.save_pretrained(arguments.out / name)


if __name__ == "__main__":
    main()
