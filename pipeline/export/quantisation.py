"""Quantises weights to int8 numbers and their scales, for the precisions int8 and w8.

- int8: −64 to 64 and a scale for each output column of a matrix, see `LARGEST_WEIGHT`; −127 to 127 and a scale for
  each row of the word embeddings;
- w8: a scale for each `BLOCK` numbers of a column. Activations are quantised block by block within their own row, so
  a score cannot depend on what else is in the batch, nor on padding.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.models.int8_rounding import LARGEST_EMBEDDING, LARGEST_WEIGHT

Floats = NDArray[np.float32]

BLOCK = 64
"""Number of weights of a column that share a scale in w8. Larger blocks are faster, but with them ONNX Runtime 1.31
adds up in an order that depends on the number of rows, so the last bits of a score depend on its batch."""
LARGEST_IN_BLOCK = 127
"""Largest size of a number of a block in w8, whose products ONNX Runtime adds exactly on every processor."""


def weight_columns(matrix: Floats) -> tuple[NDArray[np.int8], Floats]:
    """A matrix (in, out) as int8 and a scale for each column, (out,): matrix ≈ int8 × scale.

    Its products with activations are exact on every processor.
    """
    return _quantised(matrix, 1, LARGEST_WEIGHT)


def embedding_rows(table: Floats) -> tuple[NDArray[np.int8], Floats]:
    """A table (words, width) as int8 and a scale for each row, (words,): table ≈ int8 × scale."""
    return _quantised(table, 0, LARGEST_EMBEDDING)


def _quantised(matrix: Floats, axis: int, largest: int) -> tuple[NDArray[np.int8], Floats]:
    """A matrix as −largest to largest, and one scale for each index of `axis`."""
    extent = np.abs(matrix).max(axis=1 - axis, keepdims=True)
    scale = (np.where(extent > 0, extent, 1) / largest).astype(np.float32)
    return np.clip(np.rint(matrix / scale), -largest, largest).astype(np.int8), scale.reshape(-1)


def blockwise(matrix: Floats, size: int) -> tuple[NDArray[np.uint8], Floats]:
    """A matrix (in, out) as MatMulNBits reads it: bytes around 128 and their scales.

    Returns:
        (out, blocks, size) and (out, blocks); matrix ≈ (bytes - 128) × scale, the last block filled up with zeros.
    """
    inputs, columns = matrix.shape
    blocks = -(-inputs // size)
    padded = np.zeros((columns, blocks * size), np.float32)
    padded[:, :inputs] = matrix.T
    rows, scales = _quantised(padded.reshape(columns * blocks, size), 0, LARGEST_IN_BLOCK)
    return (rows.astype(np.int16) + 128).astype(np.uint8).reshape(columns, blocks, size), scales.reshape(
        columns, blocks
    )
