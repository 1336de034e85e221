"""The card of an exported model: what its training wrote, and how its ONNX files are opened without this pipeline."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CODE = {
    "ranker": """import numpy, onnxruntime, tokenizers
tokens = tokenizers.Tokenizer.from_file("tokenizer.json").encode("a query", "a document")
inputs = {"input_ids": tokens.ids, "attention_mask": tokens.attention_mask, "token_type_ids": tokens.type_ids}
session = onnxruntime.InferenceSession("onnx/model.onnx")
(score,) = session.run(None, {item.name: numpy.array([inputs[item.name]]) for item in session.get_inputs()})[0]""",
    "encoder": """import numpy, onnxruntime, tokenizers
tokens = tokenizers.Tokenizer.from_file("tokenizer.json").encode("a text")
inputs = {"input_ids": tokens.ids, "attention_mask": tokens.attention_mask, "token_type_ids": tokens.type_ids}
session = onnxruntime.InferenceSession("onnx/model.onnx")
(vector,) = session.run(None, {item.name: numpy.array([inputs[item.name]]) for item in session.get_inputs()})[0]""",
}
"""Role → five lines that compute one output; they run in the model's folder."""

_OWN_CODE = re.compile(r"```python\n(?:(?!```).)*?from pipeline\.(?:(?!```).)*?```\n*", re.DOTALL)
"""A block of code of a card that imports this pipeline."""
_HEAD = {
    "ranker": """---
library_name: sentence-transformers
pipeline_tag: text-ranking
tags:
- cross-encoder
- reranker
- search-relevance
---

# Ranker

A cross-encoder that reads a query and a document together and scores how well they fit.
`CrossEncoder(FOLDER)` of sentence-transformers opens this folder.""",
    "encoder": """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags:
- sentence-transformers
- feature-extraction
- search-relevance
---

# Encoder

A bi-encoder that turns a text into one vector of unit length.
`SentenceTransformer(FOLDER)` of sentence-transformers opens this folder.""",
}


def code(card: str) -> str:
    """The five lines in the ONNX section of a card."""
    code = re.search(r"## ONNX.*?```python\n(.*?)\n```", card, re.DOTALL)
    assert code, "a card of this module has the section"
    return code[1]


def write(folder: Path, role: str, bundle: Mapping[str, Any], source: str) -> None:
    """Writes README.md into an exported model's folder.

    Args:
        folder: the folder, with config.json, weights, tokenizer and `onnx/`; its README.md is kept and continued.
        role: ranker or encoder.
        bundle: the content of `bundle.json`.
        source: what a ready-made model was made from; empty for one that was trained here.
    """
    card = folder / "README.md"
    begin = _exported(card.read_text(encoding="utf-8"), role) if card.is_file() else _HEAD[role]
    if source and not card.is_file():
        begin += f"\n\nImported from `{source}`, whose licence and description hold."
    card.write_text(f"{begin}\n\n{_onnx(role, bundle)}\n", encoding="utf-8")


def _exported(card: str, role: str) -> str:
    """The card of a training as it holds for an exported folder, which is called by its role and opens elsewhere alone.

    The training's own folder has more files, which this pipeline opens a model by.
    """
    named = card.replace("Where this folder is `model`", f"Where this folder is `{role}`").replace(
        '("model")', f'("{role}")'
    )
    return _OWN_CODE.sub("", named).rstrip()


def _onnx(role: str, bundle: Mapping[str, Any]) -> str:
    templates = [fields for name, fields in bundle.items() if name.endswith("template")]
    longest = max(fields["max_tokens"] for fields in templates)
    lines, precisions = CODE[role], bundle["precisions"]
    notes = [
        f"An input has at most {longest} tokens, special tokens included; cut a longer one with "
        f"`enable_truncation({longest})` on the tokenizer."
    ]
    if role == "ranker":
        notes.append("The output is a raw score; its sigmoid is in [0, 1].")
    else:
        notes.append(f"The output is a vector of {bundle['dimensions']} numbers and of unit length.")
        if len(bundle["widths"]) > 1:
            widths = ", ".join(map(str, bundle["widths"]))
            notes.append(f"Its first {widths} numbers, scaled to unit length, are vectors too.")
        prompts = {kind: bundle[f"{kind}_template"].get("prompt", "") for kind in ("query", "document")}
        notes += [f"Before a {kind} stands the text {prompt!r}." for kind, prompt in prompts.items() if prompt]
    files = [f"- `onnx/{onnx_name(name)}`: {name}, {item['bytes'] / 1e6:,.1f} MB" for name, item in precisions.items()]
    parts = (
        "## ONNX",
        "In this folder, with `pip install onnxruntime tokenizers`:",
        f"```python\n{lines}\n```",
        " ".join(notes),
        "\n".join(files),
    )
    return "\n\n".join(parts)


def onnx_name(precision: str) -> str:
    """The file of a precision, by the names that sentence-transformers and others look for."""
    return "model.onnx" if precision == "fp32" else f"model_{precision}.onnx"
