"""The indexes of single fields, searched beside those of whole documents: `index.fields` of a recipe names the fields.

They bring no documents to a pool. Each gives every candidate one score more, which the fusion weighs.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from index.lexical import LexicalIndex
from pipeline.artifacts import Artifact
from pipeline.features import field_feature


@dataclass(frozen=True, slots=True)
class FieldIndexes:
    """BM25 indexes of single fields, over the rows of one document store."""

    lexical: Mapping[str, LexicalIndex]
    """Field → index."""

    @classmethod
    def load(cls, parts: Mapping[str, Artifact]) -> "FieldIndexes":
        """The indexes in these parts of a release, whose files were checked before.

        Args:
            parts: name of the part (`pipeline.releases.field_part`) → its artifact.

        Raises:
            ArtifactError: files that do not belong together.
        """
        return cls({name.partition(".")[2]: LexicalIndex.load(part.path, verify=False) for name, part in parts.items()})

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the scores that `scores` gives, in its order."""
        return tuple(field_feature("bm25", field) for field in self.lexical)

    def scores(
        self, query: str, rows: Sequence[int] | npt.NDArray[np.int64], wanted: Collection[str]
    ) -> dict[str, list[float]]:
        """Feature → (rows,) scores of these documents by one field, for each of the wanted features.

        Raises:
            SchemaError: there is no such row.
        """
        by_feature = {field_feature("bm25", field): index for field, index in self.lexical.items()}
        return {name: by_feature[name].scores(query, rows).tolist() for name in wanted}
