"""The valid texts on which an export is judged: whole query lists, assembled as the model reads them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pipeline import schema, text
from pipeline.artifacts import Artifact
from pipeline.errors import SchemaError
from pipeline.prefixes import PrefixTokenizer
from pipeline.tokens import PairTemplate, TextTemplate

Floats = NDArray[np.float32]
Templates = Mapping[str, PairTemplate | TextTemplate]
"""pair for a ranker; query and document for an encoder."""


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a model, and the text or texts it was made from."""

    source: Mapping[str, str]
    """query and document for a ranker; text and role for an encoder."""
    ids: Sequence[int]
    types: Sequence[int]
    """Segments; empty for a single text, where all are 0."""


@dataclass(frozen=True, slots=True)
class RankedList:
    """One query's judged documents, as places in the inputs."""

    query: int | None
    """The query's own input, for an encoder."""
    documents: Sequence[int]
    doc_ids: Sequence[str]
    grades: Sequence[int]


@dataclass(frozen=True, slots=True)
class Sample:
    """Inputs, each once, and the lists made of them."""

    inputs: Sequence[Input]
    lists: Sequence[RankedList]

    def scores(self, outputs: Floats) -> list[Floats]:
        """Scores of each list's documents, (documents,) each.

        Args:
            outputs: of all inputs, (inputs,) scores of a ranker or (inputs, dimensions) vectors of an encoder.
        """
        return [
            outputs[list(item.documents)] if item.query is None else outputs[list(item.documents)] @ outputs[item.query]
            for item in self.lists
        ]

    def spread(self, count: int) -> list[int]:
        """Places of at most so many inputs, from the shortest to the longest."""
        order = sorted(range(len(self.inputs)), key=lambda place: (len(self.inputs[place].ids), place))
        return [order[int(at)] for at in np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).astype(int))]


@dataclass(frozen=True, slots=True)
class Reader:
    """Texts to ids, as the service makes them."""

    tokenizer: Tokenizer
    templates: Templates
    _prefixes: PrefixTokenizer = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_prefixes", PrefixTokenizer.of(self.tokenizer))

    def pair(self, query: str, document: str) -> Input:
        template = self.templates["pair"]
        assert isinstance(template, PairTemplate)
        ids, types = template.assemble(*(self._ids(item, template.max_tokens) for item in (query, document)))
        return Input({"query": query, "document": document}, ids, types)

    def single(self, item: str, role: str) -> Input:
        template = self.templates[role]
        assert isinstance(template, TextTemplate)
        return Input({"text": item, "role": role}, template.assemble(self._ids(item, template.max_tokens)), ())

    def _ids(self, item: str, max_tokens: int) -> list[int]:
        (ids,) = self._prefixes.ids([item], max_tokens)
        return ids


def take(data: Artifact, pairs: Artifact, reader: Reader, max_tokens: int) -> Sample:
    """Whole lists of valid queries, spread over all of them, until their inputs have `max_tokens` tokens.

    Raises:
        SchemaError: there is no pair of split valid, or a pair names a query or document that the data lacks.
    """
    table = schema.read(pairs.file("pairs.parquet"), "pairs").to_pandas()
    valid = table[table["split"] == "valid"]
    if valid.empty:
        raise SchemaError(f"{pairs.path}: no pair of split valid to judge an export on; raise data.valid_share")
    documents = schema.read(data.file("documents.parquet"), "documents").to_pandas().set_index("doc_id")
    queries = schema.read(data.file("queries.parquet"), "queries").to_pandas().set_index("query_id")["text"]
    bodies = documents.loc[documents.index.isin(valid["doc_id"]), ["title", "text"]]
    missing = set(valid["doc_id"]) - set(bodies.index) | set(valid["query_id"]) - set(queries.index)
    if missing:
        raise SchemaError(f"{pairs.path}: {sorted(missing)[:3]} are not in {data.path}; make the pairs again")
    inputs: dict[tuple[str, str], int] = {}
    found: list[Input] = []
    lists: list[RankedList] = []
    tokens = 0

    def place(key: tuple[str, str], made: Input) -> int:
        nonlocal tokens
        if key not in inputs:
            inputs[key] = len(found)
            found.append(made)
            tokens += len(made.ids)
        return inputs[key]

    groups = list(valid.groupby("query_id", sort=True))
    stride = np.random.default_rng(0).permutation(len(groups))
    for number in stride:
        query_id, rows = groups[number]
        query = str(queries[query_id])
        texts = [text.document_text(*bodies.loc[doc_id]) for doc_id in rows["doc_id"]]
        doc_ids = [str(doc_id) for doc_id in rows["doc_id"]]
        if "pair" in reader.templates:
            own = None
            places = [
                place((str(query_id), doc_id), reader.pair(query, body))
                for doc_id, body in zip(doc_ids, texts, strict=True)
            ]
        else:
            own = place(("query", str(query_id)), reader.single(query, "query"))
            places = [
                place(("document", doc_id), reader.single(body, "document"))
                for doc_id, body in zip(doc_ids, texts, strict=True)
            ]
        lists.append(RankedList(own, places, doc_ids, [int(grade) for grade in rows["grade"]]))
        if tokens >= max_tokens:
            break
    return Sample(found, lists)
