"""Ready-made models: a folder of sentence-transformers or transformers becomes a ranker or encoder of ours.

What the folder says is taken over: pooling, projection, prompts, input length, the head's score. Where it leaves
something open that scores depend on, the caller must say it; nothing is guessed. Scores and vectors are those of
sentence-transformers, but vectors always have unit length.

The folder is read, never changed, and no code that comes with it is run.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from pipeline.errors import ConfigError, MissingError
from pipeline.models import base_models, tokenizers
from pipeline.models.bi_encoder import Activation, BiEncoder, Head, Pooling
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.models.families import family_of, known_types
from pipeline.models.ready_made_files import ReadyMadeOptions

RELEVANT = ("relevant", "relevance", "positive", "yes", "true", "entailment", "duplicate", "match")
"""Words in `id2label` that name the label of relevance."""

DEFAULT_TOKENS = 512
"""Maximum length of an input where the folder states none and the model reads more."""

_POOLINGS: Mapping[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
}
_ACTIVATIONS: Mapping[str, Activation] = {"Identity": "identity", "Tanh": "tanh"}
_QUERY_PROMPTS, _DOCUMENT_PROMPTS = ("query",), ("document", "passage", "corpus")
"""Names of prompts as sentence-transformers looks them up for queries and documents."""

log = logging.getLogger(__name__)


def root_of(name: str) -> Path:
    """The folder of a ready-made model: a folder, `package:NAME`, or a hub name.

    Raises:
        MissingError: there is none.
    """
    path = Path(name)
    if (path / "modules.json").is_file():
        return path
    return base_models.folder(name)


def encoder(root: Path, options: ReadyMadeOptions | None = None) -> BiEncoder:
    """The bi-encoder in a folder of sentence-transformers, or in one of transformers with mean pooling.

    Raises:
        ConfigError: a module, pooling, activation or model that is not known; weights as .bin; code in the folder; a
            tokenizer that does not fit the embeddings.
        MissingError: half a model; names the file.
    """
    options = options or ReadyMadeOptions()
    modules = _modules(root)
    path = _folder(root / modules.get("Transformer", ""))
    body_config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    tokenizer = tokenizers.load_tokenizer(path)
    with base_models.quiet():
        model = AutoModel.from_pretrained(
            path,
            config=body_config,
            **({"add_pooling_layer": False} if family_of(body_config).optional_pooler else {}),
            dtype=torch.float32,
            attn_implementation=tokenizers.attention(),
            trust_remote_code=False,
        )
    _check_vocabulary(path, tokenizer, model)
    settings = _json(path / "sentence_bert_config.json")
    if settings.get("do_lower_case") and tokenizer.tokenize("A") != tokenizer.tokenize("a"):
        raise ConfigError(
            f"{path / 'sentence_bert_config.json'}: do_lower_case is true and the tokenizer keeps capitals; set "
            "do_lower_case in tokenizer_config.json and save the tokenizer again"
        )
    limit = options.max_tokens or int(settings.get("max_seq_length") or 0)
    max_tokens = _max_tokens(limit, tokenizer, body_config)
    dense, activation = _dense(root, modules, int(body_config.hidden_size))
    prompts = _prompts(root, options)
    query, document = (
        _with_prompt(tokenizers.text_template(tokenizer, max_tokens), prompts[role]) for role in ("query", "document")
    )
    if "Normalize" not in modules:
        log.info("%s: its vectors have no unit length; ours do, which changes no cosine", root)
    head = Head(pooling=_pooling(root, modules), activation=activation)
    dense = _cut(root, dense)
    similarity = _json(root / "config_sentence_transformers.json").get("similarity_fn_name")
    if "Normalize" not in modules and similarity == "dot":
        raise ConfigError(
            f"{root}: compares vectors by their dot product, and they have no unit length; the vectors here have, so "
            "the order would be another. Say cosine as similarity_fn_name in config_sentence_transformers.json to take "
            "that"
        )
    widths = _widths(root, options, body_config, dense.out_features)
    return BiEncoder(model, tokenizer, dense, query, document, widths, head).eval()


def ranker(root: Path, options: ReadyMadeOptions | None = None) -> CrossEncoder:
    """The cross-encoder in a folder whose head gives a score, or two labels of which one is relevance.

    With two labels the score is the log-odds of the label of relevance, whose sigmoid is its softmax probability.

    Raises:
        ConfigError: no head, a head of more labels, or one of two of which none is stated to be relevance; a model that
            is not known; weights as .bin; code in the folder; a tokenizer that does not fit the embeddings.
        MissingError: half a model; names the file.
    """
    options = options or ReadyMadeOptions()
    path = _folder(root)
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    if not any("ForSequenceClassification" in name for name in config.architectures or ()):
        raise ConfigError(
            f"{path / 'config.json'}: architectures is {config.architectures}, so the model has no head that gives a "
            "score; give the folder of a cross-encoder"
        )
    tokenizer = tokenizers.load_tokenizer(path)
    with base_models.quiet():
        model, report = AutoModelForSequenceClassification.from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            attn_implementation=tokenizers.attention(),
            trust_remote_code=False,
            output_loading_info=True,
        )
    if report["missing_keys"]:
        raise MissingError(f"{path}: its weights lack {sorted(report['missing_keys'])[:3]}; give the whole model")
    _check_vocabulary(path, tokenizer, model)
    relevant = _one_score(path, model, options.label)
    max_tokens = _max_tokens(options.max_tokens, tokenizer, config)
    template = tokenizers.pair_template(tokenizer, config, max_tokens, 1)
    room = max_tokens - template.special_tokens
    template = replace(template, max_query_tokens=room - 1, longest_first=True)  # As sentence-transformers cuts.
    encoder = CrossEncoder(model, tokenizer, template, [0.0]).eval()
    encoder.label = relevant
    return encoder


def _folder(path: Path) -> Path:
    """A folder with config, weights and tokenizer, all of which can be read without running its code.

    Raises:
        ConfigError: code in the folder, or weights as .bin only.
        MissingError: a file is missing.
    """
    if not (path / "config.json").is_file():
        raise MissingError(f"{path}: holds no config.json; give the folder that transformers saved")
    config = _json(path / "config.json")
    base_models.check_files(path)
    if "serve" not in base_models.family(path).offers:
        raise ConfigError(
            f"{path}: a {config['model_type']} model can teach, but not be served; take one of the kinds "
            f"{', '.join(known_types())}"
        )
    if not (path / "tokenizer.json").is_file() and not any(path.glob("vocab*")) and not any(path.glob("*.model")):
        raise MissingError(f"{path}: holds no tokenizer; save tokenizer.json beside the weights")
    return path


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no such file.

    Raises:
        ConfigError: not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable ({error})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: not a JSON object")
    return content


def _modules(root: Path) -> dict[str, str]:
    """Kind of module → its folder, in the order of modules.json; empty for a folder of transformers.

    Raises:
        ConfigError: a kind that is not known, or one that stands there twice.
    """
    path = root / "modules.json"
    if not path.is_file():
        log.info("%s: no modules.json, so the mean of the states is taken, as sentence-transformers does", root)
        return {}
    try:
        entries = [(str(item["type"]).rsplit(".", 1)[-1], str(item["path"])) for item in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path}: not a list of modules ({error!r})") from error
    known = ("Transformer", "Pooling", "Dense", "Normalize")
    for kind, folder in entries:
        if kind not in known:
            raise ConfigError(f"{path}: module {kind} ({folder}) is not known; known are {', '.join(known)}")
        if Path(folder).is_absolute() or ".." in Path(folder).parts:
            raise ConfigError(f"{path}: module {kind} lies outside the folder ({folder})")
    kinds = [kind for kind, _ in entries]
    if len(set(kinds)) < len(kinds) or kinds[:2] != ["Transformer", "Pooling"]:
        raise ConfigError(f"{path}: modules {', '.join(kinds)}; a transformer, a pooling, and at most one more of each")
    return dict(entries)


def _pooling(root: Path, modules: Mapping[str, str]) -> Pooling:
    """
    Raises:
        ConfigError: no kind of pooling, several, or one that is not known.
    """
    if "Pooling" not in modules:
        return "mean"
    path = root / modules["Pooling"] / "config.json"
    config = _json(path)
    if config.get("include_prompt", True) is not True:
        raise ConfigError(f"{path}: include_prompt is false, and prompts are always pooled here; take another model")
    mode = config.get("pooling_mode")
    modes = {key for key, value in config.items() if key.startswith("pooling_mode_") and value is True}
    if isinstance(mode, str):
        modes = {f"pooling_mode_{mode}{'' if mode == 'lasttoken' else '_token' if mode == 'cls' else '_tokens'}"}
    if len(modes) != 1 or not modes <= set(_POOLINGS):
        raise ConfigError(
            f"{path}: pooling is {', '.join(sorted(modes)) or 'not stated'}; known is one of {', '.join(_POOLINGS)}"
        )
    return _POOLINGS[modes.pop()]


def _dense(root: Path, modules: Mapping[str, str], hidden: int) -> tuple[nn.Linear, Activation]:
    """The projection, and the function after it; the identity where the folder has none.

    Raises:
        ConfigError: an activation that is not known, weights as .bin, or weights of another width.
        MissingError: no weights.
    """
    if "Dense" not in modules:
        linear = nn.Linear(hidden, hidden)
        with torch.no_grad():
            linear.weight.copy_(torch.eye(hidden))
            linear.bias.zero_()
        return linear, "identity"
    path = root / modules["Dense"]
    name = str(_json(path / "config.json").get("activation_function", "Identity")).rsplit(".", 1)[-1]
    if name not in _ACTIVATIONS:
        raise ConfigError(
            f"{path / 'config.json'}: activation_function {name} is not known; known are {', '.join(_ACTIVATIONS)}"
        )
    base_models.check_weights(path)
    try:
        values = load_file(path / "model.safetensors")
        weight = values["linear.weight"]
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            linear.weight.copy_(weight)
            linear.bias.copy_(values.get("linear.bias", torch.zeros(weight.shape[0])))
    except (OSError, KeyError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"{path / 'model.safetensors'}: not a linear layer ({error})") from error
    if linear.in_features != hidden:
        raise ConfigError(f"{path}: projects states of {linear.in_features} numbers, the model's have {hidden}")
    return linear, _ACTIVATIONS[name]


def _cut(root: Path, dense: nn.Linear) -> nn.Linear:
    """The projection to the first `truncate_dim` numbers, where the folder says that its vectors are cut off there."""
    width = _json(root / "config_sentence_transformers.json").get("truncate_dim")
    if not isinstance(width, int) or not 0 < width < dense.out_features:
        return dense
    narrow = nn.Linear(dense.in_features, width)
    with torch.no_grad():
        narrow.weight.copy_(dense.weight[:width])
        narrow.bias.copy_(dense.bias[:width])
    return narrow


def _widths(root: Path, options: ReadyMadeOptions, config: Any, dimensions: int) -> tuple[int, ...]:
    """Matryoshka widths below the whole one: the caller's and those of config.json.

    Raises:
        ConfigError: a width that the vectors do not have.
    """
    stated = [width for width in getattr(config, "matryoshka_dimensions", None) or () if width <= dimensions]
    named = [*options.widths, *stated]
    wrong = [width for width in named if not isinstance(width, int) or not 0 < width <= dimensions]
    if wrong:
        raise ConfigError(f"{root}: width {wrong[0]}, and its vectors have {dimensions} numbers; name smaller ones")
    return tuple(sorted(set(named) - {dimensions}, reverse=True))


def _prompts(root: Path, options: ReadyMadeOptions) -> dict[str, str]:
    """The prompts of queries and documents: the caller's, else those of the folder."""
    config = _json(root / "config_sentence_transformers.json")
    known = config.get("prompts") or {}
    default = known.get(config.get("default_prompt_name") or "", "")

    def of(names: Sequence[str], given: str | None) -> str:
        if given is not None:
            return given
        # An empty prompt may be one that sentence-transformers adds by itself, so it hides no other.
        return str(next((known[name] for name in names if known.get(name)), default))

    return {
        "query": of(_QUERY_PROMPTS, options.query_prompt),
        "document": of(_DOCUMENT_PROMPTS, options.document_prompt),
    }


def _with_prompt(template: Any, prompt: str) -> Any:
    return replace(template, prompt=prompt)


def _max_tokens(limit: int, tokenizer: Any, config: Any) -> int:
    """The length at which inputs are cut: the stated one, within what tokenizer and model read.

    Raises:
        ConfigError: more is asked for than the model has positions.
    """
    positions = tokenizers.positions(config)
    if limit > positions:
        raise ConfigError(f"max_tokens {limit}: this {config.model_type} model has {positions} positions; lower it")
    stated = int(tokenizer.model_max_length)
    return limit or min(positions, stated if stated < 1e6 else DEFAULT_TOKENS)


def _check_vocabulary(path: Path, tokenizer: Any, model: Any) -> None:
    """
    Raises:
        ConfigError: the tokenizer has ids that the embeddings lack.
    """
    rows = int(model.get_input_embeddings().weight.shape[0])
    if len(tokenizer) > rows:
        raise ConfigError(
            f"{path}: its tokenizer has {len(tokenizer)} tokens and its embeddings {rows} rows; they are not of one "
            "model"
        )


def _one_score(path: Path, model: Any, label: str) -> int | None:
    """Leaves a head of one or two labels with one score, in place; returns the label of relevance of a longer one.

    Raises:
        ConfigError: several labels of which none is stated to be relevance, or a saved activation that is not known.
    """
    activation = _activation(path, model)
    count = int(model.config.num_labels)
    names = {int(number): str(name) for number, name in model.config.id2label.items()}
    linear = family_of(model.config).score_layer(model)
    alone = model.config.problem_type == "multi_label_classification" or activation == "Sigmoid"
    if count == 2 or (count > 2 and alone):
        chosen = _relevant(path, names, label)
        other = 0.0 if alone else 1.0  # Labels that exclude each other share a softmax.
        with torch.no_grad():
            weight = (linear.weight[chosen] - other * linear.weight[1 - chosen if count == 2 else 0])[None]
            bias = (linear.bias[chosen] - other * linear.bias[1 - chosen if count == 2 else 0])[None]
        linear.weight, linear.bias, linear.out_features = nn.Parameter(weight), nn.Parameter(bias), 1
    elif count > 2:
        return _relevant(path, names, label)
    model.config.num_labels = 1
    model.config.problem_type = None
    model.config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    model.num_labels = 1
    return None


def _activation(path: Path, model: Any) -> str:
    """The function that the folder says to put on the head's output: Identity, Sigmoid or Softmax.

    Raises:
        ConfigError: another function, whose values the service cannot give.
    """
    saved = _json(path / "config_sentence_transformers.json").get("activation_fn")
    saved = (getattr(model.config, "sentence_transformers", None) or {}).get("activation_fn", saved)
    name = str(saved or getattr(model.config, "sbert_ce_default_activation_function", None) or "Identity")
    if name.rsplit(".", 1)[-1] not in ("Identity", "Sigmoid", "Softmax"):
        raise ConfigError(
            f"{path}: its scores go through {name}; known are Identity and Sigmoid (the service gives both, as raw "
            "and as plain scores). Save it with activation_fn=torch.nn.Identity() where the order alone counts"
        )
    return name.rsplit(".", 1)[-1]


def _relevant(path: Path, names: Mapping[int, str], label: str) -> int:
    """The number of the label of relevance among several.

    Raises:
        ConfigError: the caller's is unknown, or neither or both of the labels mean relevance by their name.
    """
    if label:
        matches = [number for number, name in names.items() if label in (name, str(number))]
    else:
        matches = [number for number, name in names.items() if name.lower() in RELEVANT]
    if len(matches) != 1:
        raise ConfigError(
            f"{path / 'config.json'}: of the labels {', '.join(names.values())} none is known to be relevance"
            f"{f' ({label!r} is not among them)' if label else ''}; name it, on the command line with --label"
        )
    return matches[0]
