"""The tree of errors in the docstring of `serving.errors` is the tree of its classes."""

import re

from serving import errors
from serving.errors import ServingError


def _classes(root: type[ServingError], depth: int = 0) -> set[tuple[str, int, int]]:
    """Name, status and depth of a class of the module and of those below it."""
    below = [_classes(kind, depth + 1) for kind in root.__subclasses__() if kind.__module__ == errors.__name__]
    return {(root.__name__, root.status, depth)}.union(*below)


def test_the_drawn_tree_is_that_of_the_classes() -> None:
    drawn = set()
    for line in (errors.__doc__ or "").splitlines():
        row = re.fullmatch(r"    ([│├└─ ]*)(\w+Error) +(\d{3})   \S.*", line)
        if row:
            drawn.add((row[2], int(row[3]), len(row[1]) // 4))
    assert drawn == _classes(ServingError)
