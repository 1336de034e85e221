"""The inputs on which an export is judged: whole lists of queries of the valid split, or texts without judgments."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

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
"""Template by kind of input: `pair` for a ranker; `query` and `document` for an encoder."""


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
    """One query's documents, as indices of the sample's inputs."""

    query: int | None
    """Index of the query's own input, for an encoder; None for a ranker, whose inputs hold query and document."""
    documents: Sequence[int]
    doc_ids: Sequence[str]
    grades: Sequence[int]


@dataclass(frozen=True, slots=True)
class Sample:
    """Inputs, each once, and the lists made of them."""

    inputs: Sequence[Input]
    lists: Sequence[RankedList]

    @property
    def judged(self) -> bool:
        """Whether any document has a grade above 0; without one every order has the same nDCG."""
        return any(grade > 0 for item in self.lists for grade in item.grades)

    def scores(self, outputs: Floats) -> list[Floats]:
        """Scores of each list's documents, (documents,) each.

        Args:
            outputs: outputs for all inputs: (inputs,) scores of a ranker or (inputs, dimensions) vectors of an encoder.
        """
        return [
            outputs[list(item.documents)] if item.query is None else outputs[list(item.documents)] @ outputs[item.query]
            for item in self.lists
        ]

    def spread(self, count: int) -> list[int]:
        """Indices of at most `count` inputs, of lengths spread from the shortest to the longest."""
        order = sorted(range(len(self.inputs)), key=lambda index: (len(self.inputs[index].ids), index))
        return [order[int(at)] for at in np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).astype(int))]


@dataclass(frozen=True, slots=True)
class Reader:
    """Tokenises texts and assembles them to inputs as the service does."""

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
        (prompted,) = template.prompted([item])
        return Input({"text": item, "role": role}, template.assemble(self._ids(prompted, template.max_tokens)), ())

    def _ids(self, item: str, max_tokens: int) -> list[int]:
        (ids,) = self._prefixes.ids([item], max_tokens)
        return ids


class _Collector:
    """Lists of queries and documents as they are collected; an input that stands in several lists is made once."""

    def __init__(self, reader: Reader) -> None:
        self.tokens = 0
        """Tokens of all inputs together."""
        self._reader = reader
        self._indices: dict[tuple[str, str], int] = {}
        self._inputs: list[Input] = []
        self._lists: list[RankedList] = []

    def add(
        self, query: tuple[str, str], documents: Sequence[tuple[str, str]], grades: Sequence[int] | None = None
    ) -> None:
        """Adds a query's documents as one list.

        Args:
            query: its id and its text.
            documents: id and text of each.
            grades: None where nobody judged them; they count as grade 0, and are named by the index of their input.
        """
        reader, (query_id, query_text) = self._reader, query
        if "pair" in reader.templates:
            own = None
            indices = [
                self._index((query_id, doc_id), partial(reader.pair, query_text, body)) for doc_id, body in documents
            ]
        else:
            own = self._index(("query", query_id), partial(reader.single, query_text, "query"))
            indices = [
                self._index(("document", doc_id), partial(reader.single, body, "document"))
                for doc_id, body in documents
            ]
        if grades is None:
            self._lists.append(RankedList(own, indices, [str(index) for index in indices], [0] * len(indices)))
        else:
            self._lists.append(RankedList(own, indices, [doc_id for doc_id, _ in documents], grades))

    def sample(self) -> Sample:
        """All that was added."""
        return Sample(self._inputs, self._lists)

    def _index(self, key: tuple[str, str], make: Callable[[], Input]) -> int:
        if key not in self._indices:
            self._indices[key] = len(self._inputs)
            self._inputs.append(make())
            self.tokens += len(self._inputs[-1].ids)
        return self._indices[key]


SENTENCES = (
    "relevance",
    "sort a list in place",
    "How do I turn a list of dictionaries into a table?",
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "Die Straßenbahn hält nicht an jeder Haltestelle; bitte rechtzeitig drücken.",
    "Le chat dort sur le canapé pendant que la pluie tombe.",
    "El precio incluye el envío y los impuestos.",
    "今天天气很好，我们去公园散步吧。",
    "東京駅から京都駅まで新幹線で二時間ほどかかります。",
    "Поезд отправляется в семь часов утра.",
    "stainless steel angle bracket, 3 in. x 3 in., pack of 10",
    "ValueError: could not convert string to float: '3,14'",
    "What is the difference between a process and a thread? A process has its own memory; threads of one process share "
    "it, so they talk to each other cheaply and can harm each other easily.",
    "An inverted index maps each term to the documents that contain it. A query is answered by joining the lists of "
    "its terms, scoring what they have in common, and keeping the best. Dense retrieval maps texts to vectors instead "
    "and looks for the nearest ones; it finds paraphrases that share no word with the query, and it misses rare names "
    "that an inverted index would find at once. Search systems use both, and a model that reads query and document "
    "together decides on the final order of what they found.",
)
"""Texts in several languages and lengths, for models that come without documents."""

LIST = 8
"""Number of documents in each list of `unjudged`."""


def document_texts(documents: Artifact, count: int = 500) -> list[str]:
    """Texts of documents spread over all of a data or corpus artifact, as models read them; empty ones are left out."""
    table = schema.read(documents.file("documents.parquet"), "documents").select(["title", "text"]).to_pydict()
    rows = np.unique(np.linspace(0, max(len(table["text"]) - 1, 0), count).astype(int)) if table["text"] else ()
    texts = (text.document_text(table["title"][row], table["text"][row]) for row in rows)
    return [item for item in texts if item.strip()]


def unjudged(reader: Reader, texts: Sequence[str], max_tokens: int) -> Sample:
    """Lists of texts that nobody judged: each text's beginning as a query, with its neighbours as documents.

    Args:
        reader: makes the model's inputs.
        texts: documents; `SENTENCES` where there are fewer than `LIST`.
        max_tokens: inputs are taken until they have this many tokens.
    """
    texts = texts if len(texts) >= LIST else SENTENCES
    collected = _Collector(reader)
    for number in range(len(texts)):
        query = " ".join(texts[number].split()[:8]) or texts[number]
        chosen = [texts[(number + step) % len(texts)] for step in range(min(LIST, len(texts)))]
        collected.add((query, query), [(item, item) for item in chosen])
        if collected.tokens >= max_tokens:
            break
    return collected.sample()


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
    collected = _Collector(reader)
    groups = list(valid.groupby("query_id", sort=True))
    for number in np.random.default_rng(0).permutation(len(groups)):
        query_id, rows = groups[number]
        doc_ids = [str(doc_id) for doc_id in rows["doc_id"]]
        texts = [text.document_text(*bodies.loc[doc_id]) for doc_id in rows["doc_id"]]
        grades = [int(grade) for grade in rows["grade"]]
        query = str(query_id), str(queries[query_id])
        collected.add(query, list(zip(doc_ids, texts, strict=True)), grades)
        if collected.tokens >= max_tokens:
            break
    return collected.sample()
