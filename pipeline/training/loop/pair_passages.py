"""Pairs whose documents a model reads in passages: each passage is a pair of its own, whose scores are joined.

    pair 0, fits beside its query     ─► input 0
    pair 1, three passages            ─► inputs 1, 2, 3     owner = 0, 1, 1, 1, 2 …
    pair 2, fits                      ─► input 4

The cut is that of the service (`pipeline.passages`), so both give the same scores.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pipeline.passages import Passages
from pipeline.tokens import PairTemplate
from pipeline.training.loop.batches import Ints
from pipeline.training.loop.pair_tokens import Pairs, PairTexts, Ragged
from pipeline.training.loop.scoring import Floats

WHOLE = (0, 0)
"""The span of a document that is not cut into passages."""


@dataclass(frozen=True, slots=True)
class PassagePairs:
    """The passages of a table of pairs, as pairs."""

    inputs: Pairs
    owner: Ints
    """(inputs,) index of the pair that each input belongs to, ascending."""
    spans: Ints
    """(inputs, 2) start and end (exclusive) of each passage in the tokens of its document; WHOLE for an uncut one."""
    passages: Passages | None

    @property
    def stats(self) -> dict[str, int]:
        """Numbers of passages and of pairs that were cut; empty where no model cuts."""
        if self.passages is None:
            return {}
        return {"inputs": len(self.owner), "in_passages": len(np.unique(self.owner[self.spans.any(axis=1)]))}

    def joined(self, scores: Floats) -> Floats:
        """(pairs,) the score of each pair from those of its inputs, (inputs,)."""
        if self.passages is None:
            return scores
        starts = np.flatnonzero(np.diff(self.owner, prepend=-1))
        lists = np.split(scores.astype(np.float64), starts[1:]) if len(scores) else []
        return np.array([self.passages.join(values.tolist()) for values in lists], dtype=np.float32)

    def best(self, scores: Floats) -> Ints:
        """(pairs,) the input with the highest score of each pair, the first of equals."""
        order = np.lexsort((np.arange(len(scores)), -scores, self.owner))
        return order[np.flatnonzero(np.diff(self.owner[order], prepend=-1))]


def cut(pairs: Pairs, template: PairTemplate) -> PassagePairs:
    """The inputs of a model for these pairs.

    Args:
        pairs: the pairs, with the first `template.document_tokens` tokens of each document.
        template: the model's; without passages each pair is one input.
    """
    count, passages = len(pairs), template.passages
    if passages is None:
        return PassagePairs(pairs, np.arange(count), np.zeros((count, 2), dtype=np.int64), None)
    query = pairs.queries.lengths[pairs.query].tolist()
    document = pairs.documents.lengths[pairs.document].tolist()
    owner: list[int] = []
    spans: list[tuple[int, int]] = []
    for number in range(count):
        cuts = [WHOLE]
        if template.lengths(query[number], document[number])[1] < document[number]:
            cuts = passages.spans(document[number], template.passage_room(query[number]))
        owner += [number] * len(cuts)
        spans += cuts
    rows = np.array(owner, dtype=np.int64)
    parts = np.array(spans, dtype=np.int64).reshape(-1, 2)
    return PassagePairs(parted(rows_of(pairs, rows), parts), rows, parts, passages)


def texts_of(read: PassagePairs, texts: PairTexts, tokenizer: Tokenizer) -> PairTexts:
    """The inputs as texts, for a model with another tokenizer: a passage becomes its part of the document's text.

    Args:
        read: the passages of these pairs.
        texts: texts of the pairs, in the same order.
        tokenizer: the tokenizer whose tokens the spans count.
    """
    documents, numbers = list(texts.documents), texts.document[read.owner].copy()
    offsets: dict[int, list[tuple[int, int]]] = {}
    added: dict[tuple[int, int, int], int] = {}
    for index in np.flatnonzero(read.spans.any(axis=1)).tolist():
        number, first, last = int(numbers[index]), int(read.spans[index, 0]), int(read.spans[index, 1])
        if number not in offsets:
            offsets[number] = tokenizer.encode(documents[number], add_special_tokens=False).offsets
        if (number, first, last) not in added:
            added[number, first, last] = len(documents)
            documents.append(documents[number][offsets[number][first][0] : offsets[number][last - 1][1]])
        numbers[index] = added[number, first, last]
    rows = texts.table.take(read.owner)
    return PairTexts(rows, texts.query[read.owner], numbers, texts.queries, documents)


def rows_of(pairs: Pairs, indices: Ints) -> Pairs:
    """The pairs at these indices, which may repeat."""
    return replace(
        pairs,
        rows=pairs.rows[indices],
        query=pairs.query[indices],
        document=pairs.document[indices],
        grades=pairs.grades[indices],
        split=pairs.split[indices],
        clicked=None if pairs.clicked is None else pairs.clicked[indices],
    )


def compact(pairs: Pairs, indices: Ints) -> Pairs:
    """The pairs at these indices with the texts that they name and no others, so that they can be sent elsewhere."""
    part = rows_of(pairs, indices)
    queries, query = np.unique(part.query, return_inverse=True)
    documents, document = np.unique(part.document, return_inverse=True)
    return replace(
        part,
        query=query.astype(np.int64),
        document=document.astype(np.int64),
        queries=pairs.queries.taken(queries),
        documents=pairs.documents.taken(documents),
        own_documents={},
    )


def parted(pairs: Pairs, spans: Ints) -> Pairs:
    """The same pairs with a part of their document, (pairs, 2) as `PassagePairs.spans`, in place of the whole.

    A part becomes a document of its own, once for all pairs that read it.
    """
    numbers = pairs.document.copy()
    added: dict[tuple[int, int, int], int] = {}
    ids: list[NDArray[np.int32]] = []
    for index in np.flatnonzero(spans.any(axis=1)).tolist():
        document, start, end = int(pairs.document[index]), int(spans[index, 0]), int(spans[index, 1])
        key = (document, start, end)
        if key not in added:
            added[key] = len(pairs.documents) + len(ids)
            begin = int(pairs.documents.starts[document])
            stop = int(pairs.documents.starts[document + 1])
            ids.append(pairs.documents.ids[min(begin + start, stop) : min(begin + end, stop)])
        numbers[index] = added[key]
    lengths = [len(part) for part in ids]
    starts = np.concatenate([pairs.documents.starts, pairs.documents.starts[-1] + np.cumsum(lengths, dtype=np.int64)])
    return replace(pairs, document=numbers, documents=Ragged(np.concatenate([pairs.documents.ids, *ids]), starts))
