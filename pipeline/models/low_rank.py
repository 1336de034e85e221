"""Low-rank factorisation: a matrix as the product of two narrow ones, its best approximation of that rank at first.

A student is trained and exported with the two factors. It is saved with their product, so its folder stays one that
transformers opens, and `head.json` tells the ranks; the factors of a product of known rank are found again by its
singular values.

Source: Ben Noach and Goldberg, Compressing pre-trained language models by matrix decomposition, AACL 2020.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.models.cross_encoder import CrossEncoder


@dataclass(frozen=True, slots=True)
class FactorRanks:
    """The ranks of a model's factorised matrices; 0 for one that is whole."""

    feed_forward: int = 0
    """Rank of the two matrices of each feed-forward layer."""
    embedding: int = 0
    """Rank of the table of word embeddings."""

    def __bool__(self) -> bool:
        return bool(self.feed_forward or self.embedding)


class FactoredLinear(nn.Module):
    """A linear layer whose weight is the product of two factors."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        outer, inner = factors(layer.weight.detach(), rank)
        self.first = nn.Linear(layer.in_features, rank, bias=False)
        self.second = nn.Linear(rank, layer.out_features, bias=layer.bias is not None)
        self.first.weight = nn.Parameter(inner)
        self.second.weight = nn.Parameter(outer)
        if layer.bias is not None:
            self.second.bias = nn.Parameter(layer.bias.detach().clone())

    def forward(self, states: Tensor) -> Tensor:
        """(…, out) from (…, in)."""
        result: Tensor = self.second(self.first(states))
        return result

    def merged(self) -> nn.Linear:
        """The same layer with one matrix."""
        bias = self.second.bias
        layer = nn.Linear(self.first.in_features, self.second.out_features, bias=bias is not None)
        layer.weight = nn.Parameter(self.second.weight.detach() @ self.first.weight.detach())
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach().clone())
        return layer


class FactoredEmbedding(nn.Module):
    """A table of word embeddings as a narrow table and a matrix that widens its rows."""

    def __init__(self, embedding: nn.Embedding, rank: int) -> None:
        super().__init__()
        table, matrix = factors(embedding.weight.detach(), rank)
        self.first = nn.Embedding(embedding.num_embeddings, rank, padding_idx=embedding.padding_idx)
        self.second = nn.Linear(rank, embedding.embedding_dim, bias=False)
        self.first.weight = nn.Parameter(table)
        self.second.weight = nn.Parameter(matrix.T.contiguous())

    def forward(self, ids: Tensor) -> Tensor:
        """(…, width) from ids (…)."""
        result: Tensor = self.second(self.first(ids))
        return result

    def merged(self) -> nn.Embedding:
        """The same embeddings as one table."""
        table = self.first.weight.detach() @ self.second.weight.detach().T
        embedding = nn.Embedding(len(table), table.shape[1], padding_idx=self.first.padding_idx)
        embedding.weight = nn.Parameter(table)
        return embedding


def factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The two factors whose product is the best approximation of a matrix among those of a rank.

    Each takes the square root of the singular values, so both are of one scale.

    Args:
        matrix: (rows, columns).
        rank: the rank, at most the smaller of both.

    Returns:
        (rows, rank) and (rank, columns), of the matrix's type.

    Source: Eckart and Young 1936.
    """
    if matrix.shape[0] < matrix.shape[1]:
        inner, outer = factors(matrix.T, rank)
        return outer.T.contiguous(), inner.T.contiguous()
    exact = matrix.double()
    # The right singular vectors are the eigenvectors of the small Gram matrix: a tall table takes no decomposition.
    right = torch.linalg.eigh(exact.T @ exact).eigenvectors[:, -rank:].flip(1)  # (columns, rank)
    left = exact @ right  # (rows, rank), each column as long as its singular value
    roots = left.norm(dim=0).clamp_min(torch.finfo(exact.dtype).tiny).sqrt()
    outer, inner = left / roots, (right * roots).T
    return outer.to(matrix.dtype).contiguous(), inner.to(matrix.dtype).contiguous()


def factorise(model: "CrossEncoder", ranks: FactorRanks) -> None:
    """Replaces the matrices that `ranks` names by their factors, in place.

    A matrix stays whole where its factors would be no smaller, as a table of embeddings whose vocabulary was pruned.
    """
    for parent, name, matrix in list(_matrices(model, ranks)):
        if isinstance(matrix, nn.Linear) and _smaller(ranks.feed_forward, *matrix.weight.shape):
            setattr(parent, name, FactoredLinear(matrix, ranks.feed_forward))
        elif isinstance(matrix, nn.Embedding) and _smaller(ranks.embedding, *matrix.weight.shape):
            setattr(parent, name, FactoredEmbedding(matrix, ranks.embedding))
    model.ranks = ranks


def merge(model: nn.Module) -> None:
    """Replaces all factors by their products, in place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, FactoredLinear | FactoredEmbedding):
                setattr(parent, name, child.merged())


def check_model(model: "CrossEncoder", ranks: FactorRanks) -> None:
    """Checks that the factors of each matrix that `ranks` names are smaller than the matrix.

    Raises:
        ConfigError: they are not; names the key of the ranker's section.
    """
    for _, _, matrix in _matrices(model, ranks):
        if isinstance(matrix, nn.Linear):
            check("feed_forward_rank", ranks.feed_forward, matrix.in_features, matrix.out_features)
        else:
            check("embedding_rank", ranks.embedding, matrix.num_embeddings, matrix.embedding_dim)


def check(key: str, rank: int, rows: int, columns: int) -> None:
    """Checks that factors of this rank hold fewer numbers than the matrix.

    Raises:
        ConfigError: they do not; names `ranker.{key}`.
    """
    if not _smaller(rank, rows, columns):
        largest = (rows * columns - 1) // (rows + columns)
        raise ConfigError(
            f"ranker.{key} is {rank}: the factors of a matrix of {rows} × {columns} are no smaller than itself then; "
            f"take at most {largest}"
        )


def _smaller(rank: int, rows: int, columns: int) -> bool:
    """Whether factors of this rank hold fewer numbers than the matrix."""
    return rank * (rows + columns) < rows * columns


def _matrices(model: "CrossEncoder", ranks: FactorRanks) -> Iterator[tuple[nn.Module, str, nn.Linear | nn.Embedding]]:
    """The matrices to factorise, each with the module that holds it and its name there."""
    body: Any = model.model.base_model
    if ranks.feed_forward:
        for layer in model.family.layers(body):
            for matrix in model.family.feed_forward(layer):
                yield *holder(layer, matrix), matrix
    if ranks.embedding:
        table = model.model.get_input_embeddings()
        assert isinstance(table, nn.Embedding)
        yield *holder(body, table), table


def holder(root: nn.Module, wanted: nn.Module) -> tuple[nn.Module, str]:
    """The module that holds another, and the other's name there."""
    return next(
        (parent, name) for parent in root.modules() for name, child in parent.named_children() if child is wanted
    )
