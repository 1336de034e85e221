"""The indexes of single fields, searched beside those of whole documents: `index.fields` of a recipe names the fields.

They bring no documents to a pool. Each gives every candidate one score more, which the fusion weighs.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from index.lexical import LexicalIndex
from index.semantic import SemanticIndex
from pipeline.artifacts import Artifact
from pipeline.features import field_feature


@dataclass(frozen=True, slots=True)
class FieldIndexes:
    """Indexes of single fields, over the rows of one document store."""

    lexical: Mapping[str, LexicalIndex]
    """Feature → BM25 index."""
    semantic: Mapping[str, SemanticIndex]
    """Feature → index of vectors; empty without `index.field_vectors`."""

    @classmethod
    def load(cls, parts: Mapping[str, Artifact]) -> "FieldIndexes":
        """The indexes in these parts of a release, whose files were checked before.

        Args:
            parts: name of the part (`pipeline.release_parts.field_part`) → its artifact.

        Raises:
            ArtifactError: files that do not belong together.
        """
        lexical, semantic = {}, {}
        for name, part in parts.items():
            kind, _, field = name.partition(".")
            if kind == "index":
                semantic[field_feature("encoder", field)] = SemanticIndex.load(part.path, verify=False)
            else:
                lexical[field_feature("bm25", field)] = LexicalIndex.load(part.path, verify=False)
        return cls(lexical, semantic)

    @property
    def features(self) -> tuple[str, ...]:
        """The names of all scores that `scores` can give."""
        return (*self.lexical, *self.semantic)

    def scores(
        self,
        query: str,
        vector: npt.NDArray[np.float32] | None,
        rows: Sequence[int] | npt.NDArray[np.int64],
        wanted: Collection[str],
    ) -> dict[str, list[float]]:
        """Feature → (rows,) scores of these documents by one field, for each of the wanted features.

        A document whose field is empty has score 0.

        Args:
            vector: (dimensions,) of the query; without one, the cosines are left out.

        Raises:
            SchemaError: there is no such row.
        """
        scores = {name: index.scores(query, rows) for name, index in self.lexical.items() if name in wanted}
        if vector is not None:
            embedded = {name: index for name, index in self.semantic.items() if name in wanted}
            scores |= {name: index.similarities(vector, rows) for name, index in embedded.items()}
        return {name: values.tolist() for name, values in scores.items()}
