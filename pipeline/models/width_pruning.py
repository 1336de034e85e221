"""Structured pruning of feed-forward layers: the units that matter least for the score are removed.

A unit's importance is the mean size of activation times gradient of the score, a first-order estimate of how much the
score would change without it (Molchanov et al., Pruning convolutional neural networks for resource efficient inference,
ICLR 2017, arXiv:1611.06440; for transformers Yang et al., TextPruner, ACL 2022, arXiv:2203.15996). Each layer keeps
the same number of units, so the model keeps the format of its family, and the exported graph is smaller and faster.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models.cross_encoder import CrossEncoder

Inputs = tuple[Tensor, Tensor, Tensor]
"""Ids, segments and mask of a padded batch, (batch, tokens) each."""


def importance(model: CrossEncoder, batches: Iterable[Inputs]) -> list[Tensor]:
    """The importance of each feed-forward unit, (units,) for each layer, from the first.

    Args:
        model: its gradients are as they were afterwards; dropout is off meanwhile.
        batches: inputs, at least one; padding does not count, as no score depends on it.
    """
    body = model.model.base_model
    outer = [model.family.feed_forward(model.family.layer(body, number))[1] for number in range(1, model.layers + 1)]
    sums = [torch.zeros(linear.in_features, device=linear.weight.device) for linear in outer]
    seen: dict[int, Tensor] = {}

    def keep(number: int) -> "nn.modules.module.RemovableHandle":  # type: ignore[name-defined]
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[number] = inputs[0]

        return outer[number].register_forward_pre_hook(hook)

    handles = [keep(number) for number in range(len(outer))]
    training = model.training
    model.eval()
    try:
        for inputs in batches:
            with torch.enable_grad():
                scores = model(*inputs)  # (batch,)
                activations = [seen[number] for number in range(len(outer))]  # (…, units) each
                gradients = torch.autograd.grad(scores.sum(), activations)
            for total, activation, gradient in zip(sums, activations, gradients, strict=True):
                total.add_((activation * gradient).detach().float().abs().flatten(0, -2).sum(0))
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    return sums


def narrow(model: CrossEncoder, units: int, batches: Iterable[Inputs]) -> None:
    """Removes the least important feed-forward units of each layer, in place.

    Args:
        model: a cross-encoder whose layers have weights of their own.
        units: number of units that each layer keeps.
        batches: inputs that the importance is estimated on.

    Raises:
        ConfigError: the layers have fewer units, or share one set of weights.
    """
    units_field = model.family.units_field
    before = int(getattr(model.model.config, units_field))
    check(units, before, shared=model.family.shares_layers)
    if units == before:
        return
    body = model.model.base_model
    for number, weights in enumerate(importance(model, batches), start=1):
        inner, outer = model.family.feed_forward(model.family.layer(body, number))
        kept = weights.topk(units).indices.sort().values
        inner.weight = nn.Parameter(inner.weight.detach()[kept].clone())
        if inner.bias is not None:
            inner.bias = nn.Parameter(inner.bias.detach()[kept].clone())
        outer.weight = nn.Parameter(outer.weight.detach()[:, kept].clone())
        inner.out_features = outer.in_features = units
    setattr(model.model.config, units_field, units)


def check(units: int, before: int, *, shared: bool) -> None:
    """Checks that feed-forward layers can be narrowed to this many units.

    Raises:
        ConfigError: they have fewer, or all layers share one set of weights.
    """
    if shared:
        raise ConfigError(
            "ranker.intermediate: the model's layers share one set of weights, so none can be narrowed alone; set it "
            "to 0, or take a base whose layers differ"
        )
    if units > before:
        raise ConfigError(f"ranker.intermediate is {units}: the model's feed-forward layers have {before} units")
