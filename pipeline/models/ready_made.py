"""Ready-made models: a folder of sentence-transformers or transformers becomes a ranker or encoder of ours.

What the folder says is taken over: pooling, projection, prompts, input length, the head's score. Where it leaves
something open that scores depend on, the caller must say it; nothing is guessed. Scores and vectors are those of
sentence-transformers, but vectors always have unit length.

The folder is read, never changed, and no code that comes with it is run.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from pipeline.errors import ConfigError, MissingError
from pipeline.models import base_models, model_files, model_values, module_settings, tokenizers
from pipeline.models import sentence_transformers_format as folder_format
from pipeline.models.bi_encoder import BiEncoder, Head, load_body
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.models.families import family_of, known_types
from pipeline.models.ready_made_files import ReadyMadeOptions
from pipeline.passages import Passages
from pipeline.text import counted

RELEVANT = ("relevant", "relevance", "positive", "yes", "true", "entailment", "duplicate", "match")
"""Words in `id2label` that name the label of relevance."""

DEFAULT_TOKENS = 512
"""Maximum length of an input where the folder states none and the model reads more."""

log = logging.getLogger(__name__)


def encoder(root: Path, options: ReadyMadeOptions | None = None) -> BiEncoder:
    """The bi-encoder in a folder of sentence-transformers, or in one of transformers with mean pooling.

    Raises:
        ConfigError: a module, pooling, activation or model that is not known; a cross-encoder; weights as .bin; code in
            the folder; a tokenizer that does not fit the embeddings.
        MissingError: half a model; names the file.
    """
    options = options or ReadyMadeOptions()
    modules = folder_format.read_modules(root)
    path = _folder(root / modules.transformer)
    body_config = base_models.config(path)
    if not (root / "modules.json").is_file() and _scores(body_config):
        raise ConfigError(
            f"{path / 'config.json'}: architectures is {body_config.architectures}, a cross-encoder, whose states were "
            "not trained to be vectors of texts; name it as the ranker, on the command line with --ranker"
        )
    tokenizer = tokenizers.load_tokenizer(path)
    model = load_body(path, body_config)
    _check_vocabulary(path, tokenizer, model)
    module_settings.check_transformer(path / module_settings.LENGTHS, "encoder")
    stated = _stated_length(path / module_settings.LENGTHS, tokenizer)
    max_tokens = _max_tokens(options.max_tokens or stated, tokenizer, body_config)
    *earlier, last = folder_format.read_layers(root, modules, int(body_config.hidden_size))
    template = tokenizers.text_template(tokenizer, max_tokens)
    query, document = options.query_prompt, options.document_prompt
    query = folder_format.read_prompt(root, "query") if query is None else query
    document = folder_format.read_prompt(root, "document") if document is None else document
    head = Head(
        pooling=folder_format.read_pooling(root, modules),
        activation=last.activation,
        earlier=tuple(layer.activation for layer in earlier),
    )
    if not modules.normalised:
        _check_similarity(root)
    widths = _widths(root, options, body_config, last.linear.out_features)
    prompted = (replace(template, prompt=query), replace(template, prompt=document))
    layers = [layer.linear for layer in earlier]
    encoder = BiEncoder(model, tokenizer, last.linear, *prompted, widths, head, layers).eval()
    model_values.check_answers(root, len(tokenizer), encoder)
    return encoder


def _stated_length(file: Path, tokenizer: Any) -> int:
    """The maximum number of tokens that a sentence_bert_config.json states; 0 where it states none.

    Raises:
        ConfigError: the model reads texts in lower case, and the tokenizer keeps capitals.
    """
    settings = model_files.read_object(file)
    if settings.get("do_lower_case") and tokenizer.tokenize("A") != tokenizer.tokenize("a"):
        raise ConfigError(
            f"{file}: do_lower_case is true and the tokenizer keeps capitals; set do_lower_case in "
            "tokenizer_config.json and save the tokenizer again"
        )
    return model_files.value_of(settings, "max_seq_length", int, file) or 0


def _check_similarity(root: Path) -> None:
    """Checks that vectors which have no unit length in this folder rank alike once they have.

    Raises:
        ConfigError: the folder compares them by their dot product.
    """
    log.info("encoder: its vectors have no unit length; ours do, which changes no cosine")
    similarity = model_files.read_object(root / "config_sentence_transformers.json").get("similarity_fn_name")
    if similarity == "dot":
        raise ConfigError(
            f"{root}: compares vectors by their dot product, and they have no unit length; the vectors here have, so "
            "the order would be another. Say cosine as similarity_fn_name in config_sentence_transformers.json to take "
            "that"
        )


def ranker(root: Path, options: ReadyMadeOptions | None = None) -> CrossEncoder:
    """The cross-encoder in a folder whose head gives a score, or labels of which one is relevance.

    With labels that exclude each other the score is the log-odds of relevance, whose sigmoid is its softmax
    probability; with labels that do not, its own logit.

    Raises:
        ConfigError: no head, or labels of which none is stated to be relevance; a model that is not known; weights as
            .bin; code in the folder; a tokenizer that does not fit the embeddings; too many passages.
        MissingError: half a model; names the file.
    """
    options = options or ReadyMadeOptions()
    path = _folder(root)
    module_settings.check_ranker(path, folder_format.kinds_of_modules(path))
    config = base_models.config(path)
    if not _scores(config):
        raise ConfigError(
            f"{path / 'config.json'}: architectures is {config.architectures}, so the model has no head that gives a "
            "score; give the folder of a cross-encoder"
        )
    tokenizer = tokenizers.load_tokenizer(path)
    stated = _stated_length(path / module_settings.LENGTHS, tokenizer)
    model, missing = base_models.load_whole(
        AutoModelForSequenceClassification, path, config=config, attn_implementation=tokenizers.attention()
    )
    if missing:
        raise MissingError(f"{path}: its weights lack {missing[:3]}; give the whole model")
    _check_vocabulary(path, tokenizer, model)
    relevant = _one_score(path, model, options.label)
    max_tokens = _max_tokens(options.max_tokens or stated, tokenizer, config)
    template = tokenizers.pair_template(tokenizer, config, max_tokens, 1)
    room = max_tokens - template.special_tokens
    template = replace(template, max_query_tokens=room - 1, longest_first=True)  # As sentence-transformers cuts.
    if options.passages > 1:
        template = replace(template, passages=Passages(most=options.passages))
    encoder = CrossEncoder(model, tokenizer, template, [0.0]).eval()
    encoder.label = relevant
    model_values.check_answers(root, len(tokenizer), lambda ids, mask: encoder(ids, None, mask))
    return encoder


def _scores(config: Any) -> bool:
    """Whether a model has a head that gives scores or labels, by its config."""
    return any("ForSequenceClassification" in str(name) for name in config.architectures or ())


def _folder(path: Path) -> Path:
    """A folder with config, weights and tokenizer, all of which can be read without running its code.

    Raises:
        ConfigError: code in the folder, or weights as .bin only.
        MissingError: a file is missing.
    """
    if not (path / "config.json").is_file():
        raise MissingError(f"{path}: holds no config.json; give the folder that transformers saved")
    config = model_files.read_object(path / "config.json")
    model_files.check_files(path)
    if "serve" not in base_models.family(path).offers:
        raise ConfigError(
            f"{path}: a {config['model_type']} model can teach, but not be served; take one of the kinds "
            f"{', '.join(known_types('serve'))}"
        )
    return path


def _widths(root: Path, options: ReadyMadeOptions, config: Any, dimensions: int) -> tuple[int, ...]:
    """Matryoshka widths below the whole one: the caller's and those of config.json.

    Raises:
        ConfigError: a width that the vectors do not have.
    """
    stated = getattr(config, "matryoshka_dimensions", None) or ()
    if not isinstance(stated, list | tuple) or not all(isinstance(width, int) for width in stated):
        raise ConfigError(f"{root}: matryoshka_dimensions in config.json is {str(stated)[:60]}, no list of numbers")
    named = [*options.widths, *(width for width in stated if width <= dimensions)]
    wrong = [width for width in named if not 0 < width <= dimensions]
    if wrong:
        raise ConfigError(f"{root}: width {wrong[0]}, and its vectors have {dimensions} numbers; name smaller ones")
    return tuple(sorted(set(named) - {dimensions}, reverse=True))


def _max_tokens(limit: int, tokenizer: Any, config: Any) -> int:
    """The length at which inputs are cut: the stated one, within what tokenizer and model read.

    Raises:
        ConfigError: more is asked for than the model has positions.
    """
    positions = tokenizers.positions(config)
    if limit > positions:
        raise ConfigError(f"max_tokens {limit}: this {config.model_type} model has {positions} positions; lower it")
    stated = tokenizer.model_max_length
    if not isinstance(stated, int | float) or not stated > 0:
        raise ConfigError(f"model_max_length in tokenizer_config.json is {stated!r}, no number of tokens; correct it")
    return limit or min(positions, int(stated) if stated < 1e6 else DEFAULT_TOKENS)


def _check_vocabulary(path: Path, tokenizer: Any, model: Any) -> None:
    """Checks that each token of the tokenizer has an embedding.

    Raises:
        ConfigError: the tokenizer has ids that the embeddings lack.
    """
    rows = int(model.get_input_embeddings().weight.shape[0])
    if len(tokenizer) > rows:
        raise ConfigError(
            f"{path}: its tokenizer has {len(tokenizer)} tokens and its embeddings {counted(rows, 'row')}; they are "
            "not of one model"
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
    elif label:
        _relevant(path, names, label)  # One that is not there was meant for another model.
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
    saved = model_files.read_object(path / "config_sentence_transformers.json").get("activation_fn")
    own = getattr(model.config, "sentence_transformers", None)
    if isinstance(own, dict):
        saved = own.get("activation_fn", saved)
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
