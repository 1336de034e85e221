"""Digests of contents, by which a re-index knows documents, and the join of those held with those wanted."""

import numpy as np
import numpy.typing as npt

DIGEST_BYTES = 16
"""Length of a document's digest."""

Digests = npt.NDArray[np.uint8]
"""(documents, 16): digests of contents."""
Rows = npt.NDArray[np.int64]
"""Row numbers of documents in the data."""

_Keys = npt.NDArray[np.uint64]


def as_bytes(digests: Digests) -> list[bytes]:
    """Each digest as bytes."""
    joined = digests.tobytes()
    return [joined[start : start + DIGEST_BYTES] for start in range(0, len(joined), DIGEST_BYTES)]


def matched(held: Digests, wanted: Digests) -> Rows:
    """The index in `wanted` of an equal digest for each of `held`, (held,); -1 where there is none.

    No index is given twice: of equal digests the first held gets the first wanted, the second the second, and so on.
    """
    rows = np.full(len(held), -1, np.int64)
    keys, wanted_keys = _halves(held)[:, 0].copy(), _halves(wanted)[:, 0].copy()
    order, wanted_order = np.argsort(keys), np.argsort(wanted_keys)
    ordered, wanted_ordered = keys[order], wanted_keys[wanted_order]
    nearest = np.searchsorted(wanted_ordered, ordered)
    there = nearest < len(wanted)
    there[there] = wanted_ordered[nearest[there]] == ordered[there]
    # Most occur once on each side, and are paired by that; the others by their order.
    pairs = wanted_order[nearest[there]]
    once = _once(ordered)[there] & _once(wanted_ordered)[nearest[there]]
    once &= _halves(held)[order[there], 1] == _halves(wanted)[pairs, 1]
    rows[order[there][once]] = pairs[once]
    repeated = np.unique(ordered[there][~once])
    if len(repeated):
        held_again, wanted_again = (np.flatnonzero(np.isin(part, repeated)) for part in (keys, wanted_keys))
        paired = _paired(held[held_again], wanted[wanted_again])
        rows[held_again] = np.where(paired >= 0, wanted_again[paired], -1)
    return rows


def _halves(digests: Digests) -> _Keys:
    """(documents, 2): the halves of each digest as numbers."""
    halves: _Keys = np.ascontiguousarray(digests).view("<u8").reshape(-1, 2)
    return halves


def _once(ordered: _Keys) -> npt.NDArray[np.bool_]:
    """Marks the values of an ascending array that occur once in it."""
    alone = np.ones(len(ordered), bool)
    alone[1:] &= ordered[1:] != ordered[:-1]
    alone[:-1] &= ordered[1:] != ordered[:-1]
    return alone


def _paired(held: Digests, wanted: Digests) -> Rows:
    """Does what `matched` does, by one stable sort of both; quicker where many are equal."""
    count = len(held)
    pairs = _halves(np.concatenate([held, wanted]))
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))  # Stable: in a group of equal ones first the held, then the wanted.
    changes = np.any(np.diff(pairs[order], axis=0) != 0, axis=1)
    group = np.concatenate([np.zeros(min(len(order), 1), np.int64), np.cumsum(changes)])
    starts = np.flatnonzero(np.concatenate([np.ones(min(len(order), 1), bool), changes]))
    is_held = order < count
    held_in_group = np.bincount(group[is_held], minlength=len(starts))
    of_wanted = np.flatnonzero(~is_held)
    groups = group[of_wanted]
    rank = of_wanted - starts[groups] - held_in_group[groups]
    paired = rank < held_in_group[groups]
    rows = np.full(count, -1, np.int64)
    rows[order[starts[groups[paired]] + rank[paired]]] = order[of_wanted[paired]] - count
    return rows
