"""Token ids and texts that must not be cut, by the words of a tiny tokenizer, for encoders of several shapes."""

from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.tokens import TextTemplate
from serving.api import inputs
from serving.errors import InvalidRequestError
from serving.runtime.deadline import Deadline
from serving.runtime.tokenizer import RuntimeTokenizer
from tests.serving.conftest import CLS, SEP, TinyModels

NEVER = Deadline.never()
SHAPES = [((CLS,), (SEP,)), ((CLS,), ()), ((), (SEP, CLS)), ((CLS, CLS), (SEP,))]


def encoder(template: TextTemplate) -> Any:
    """A stand-in for the engine of an encoder with this template."""
    return SimpleNamespace(
        bundle=SimpleNamespace(templates={"query": template}),
        tokeniser=RuntimeTokenizer(TinyModels(1).tokenizer),
        role="encoder",
        digest="0" * 32,
    )


@pytest.mark.parametrize(("before", "after"), SHAPES)
@pytest.mark.parametrize("prompt", ["", "a list of "])
def test_exactly_the_texts_that_the_encoder_would_cut_are_refused(
    before: tuple[int, ...], after: tuple[int, ...], prompt: str
) -> None:
    template = TextTemplate(before=before, after=after, max_tokens=12, prompt=prompt)
    engine = encoder(template)
    for words in range(1, 16):
        text = " ".join(["sort"] * words)
        (ids,) = engine.tokeniser.ids(template.prompted([text]), 100)
        if len(before) + len(ids) + len(after) <= template.max_tokens:
            inputs.check_texts(engine, [text], "query", "inputs", NEVER)
            continue
        with pytest.raises(InvalidRequestError, match=r"inputs\[0\]: has more than the \d+ tokens") as refused:
            inputs.check_texts(engine, [text], "query", "inputs", NEVER)
        assert repr(prompt) in str(refused.value) or not prompt


@pytest.mark.parametrize(("before", "after"), SHAPES)
def test_ids_are_read_with_and_without_their_special_tokens(before: tuple[int, ...], after: tuple[int, ...]) -> None:
    template = TextTemplate(before=before, after=after, max_tokens=12)
    engine = encoder(template)
    ids = list(engine.tokeniser.ids(["sort a list"], 100)[0])
    for given in (ids, template.assemble(ids)):
        assert inputs.texts(engine, [given], "query", "inputs", NEVER) == ["sort a list"]
    with pytest.raises(InvalidRequestError, match=r"inputs\[0\] is empty"):
        inputs.texts(engine, [template.assemble([])], "query", "inputs", NEVER)
