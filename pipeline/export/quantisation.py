"""Quantises weights to int8 numbers and their scales, for the precisions int8 and w8.

- int8: a scale for each output column of a matrix; word embeddings have one for each row;
- w8: a scale for each `BLOCK` numbers of a column. Activations are quantised block by block within their own row, so
  a score cannot depend on what else is in the batch, nor on padding.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

BLOCK = 64
"""Number of weights of a column that share a scale in w8. Larger blocks are faster, but with them ONNX Runtime 1.31
adds up in an order that depends on the number of rows, so the last bits of a score depend on its batch."""


def quantised(matrix: Floats, axis: int) -> tuple[NDArray[np.int8], Floats]:
    """A matrix as symmetric int8, and one scale for each index of `axis`: matrix ≈ int8 × scale."""
    largest = np.abs(matrix).max(axis=1 - axis, keepdims=True)
    scale = (np.where(largest > 0, largest, 1) / 127).astype(np.float32)
    return np.clip(np.rint(matrix / scale), -127, 127).astype(np.int8), scale.reshape(-1)


def blockwise(matrix: Floats, size: int) -> tuple[NDArray[np.uint8], Floats]:
    """A matrix (in, out) as MatMulNBits reads it: bytes around 128 and their scales.

    Returns:
        (out, blocks, size) and (out, blocks); matrix ≈ (bytes - 128) × scale, the last block filled up with zeros.
    """
    inputs, columns = matrix.shape
    blocks = -(-inputs // size)
    padded = np.zeros((columns, blocks * size), np.float32)
    padded[:, :inputs] = matrix.T
    rows, scales = quantised(padded.reshape(columns * blocks, size), 0)
    return (rows.astype(np.int16) + 128).astype(np.uint8).reshape(columns, blocks, size), scales.reshape(
        columns, blocks
    )
