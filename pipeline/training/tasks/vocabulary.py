"""A new vocabulary, trained on a recipe's own texts, as the tokenizer of a model from scratch.

Training is the work of `tokenizers`. What is added here makes it repeatable: left alone, its WordPiece trainer
numbers the letters in the order of a hash map that differs in every process, and breaks ties by those numbers.
"""

import logging
import time
from collections import Counter
from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE, WordPiece
from transformers import PreTrainedTokenizerFast

from pipeline.config import ScratchConfig
from pipeline.errors import TrainingError
from pipeline.text import counted

MAX_CHARS = 30_000_000
"""The most characters that are read. Of a larger corpus every second, third, … text is read; more text changes
hardly a word."""

ALPHABET_SHARE = 0.75
"""The largest share of single characters in a WordPiece vocabulary; rarer ones become [UNK]."""

BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""Special tokens of BERT in the order of their ids."""
ROBERTA_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
"""Special tokens in the order of their ids; the first four ids are RoBERTa's, whose mask is the last of all."""

log = logging.getLogger(__name__)


def train(texts: Sequence[str], config: ScratchConfig) -> PreTrainedTokenizerFast:
    """The tokenizer for a new model: byte-level BPE for roberta, else WordPiece; the same for the same texts.

    Raises:
        TrainingError: the texts hold no character.
    """
    began = time.monotonic()
    total = sum(map(len, texts))
    if not total:
        raise TrainingError("no vocabulary can be trained: the documents and training queries are empty")
    texts = texts[:: -(-total // MAX_CHARS)]
    tokenizer = _byte_level_bpe(texts, config) if config.family == "roberta" else _wordpiece(texts, config)
    learned = counted(len(tokenizer), "token"), counted(len(texts), "text")
    log.info("vocabulary: %s from %s in %.1f s", *learned, time.monotonic() - began)
    return tokenizer


def _wordpiece(texts: Sequence[str], config: ScratchConfig) -> PreTrainedTokenizerFast:
    """Trains a WordPiece tokenizer like BERT's: texts in lower case without accents, each Chinese character a word."""
    learner = Tokenizer(WordPiece(unk_token="[UNK]"))
    learner.normalizer = normalizers.BertNormalizer(lowercase=True, handle_chinese_chars=True)
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    alphabet, inside = _letters(texts, learner, int(config.vocab_size * ALPHABET_SHARE))
    # Letters get their ids here, in order, and not in the trainer: as special tokens, which come first.
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[*BERT_SPECIALS, *(f"##{letter}" for letter in inside)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    tokenizer = Tokenizer(WordPiece(learner.get_vocab(with_added_tokens=False), unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = learner.normalizer, learner.pre_tokenizer
    tokenizer.decoder = decoders.WordPiece()
    pad, unknown, first, separator, mask = BERT_SPECIALS
    tokenizer.add_special_tokens(list(BERT_SPECIALS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {separator}",
        pair=f"{first} $A {separator} $B:1 {separator}:1",
        special_tokens=[(name, BERT_SPECIALS.index(name)) for name in (first, separator)],
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=pad,
        unk_token=unknown,
        cls_token=first,
        sep_token=separator,
        mask_token=mask,
        model_max_length=config.positions,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def _letters(texts: Sequence[str], learner: Tokenizer, room: int) -> tuple[list[str], list[str]]:
    """The commonest characters, and those of them that can continue a word; together at most `room`, both sorted."""
    counts = Counter(character for text in texts for character in learner.normalizer.normalize_str(text))
    alphabet: list[str] = []
    inside: list[str] = []
    for letter in sorted(counts, key=lambda letter: (-counts[letter], letter)):
        if letter.isspace():
            continue
        continues = len(learner.pre_tokenizer.pre_tokenize_str(learner.normalizer.normalize_str(f"a{letter}"))) == 1
        if len(alphabet) + len(inside) + 1 + continues > room:
            break
        alphabet.append(letter)
        if continues:
            inside.append(letter)
    return sorted(alphabet), sorted(inside)


def _byte_level_bpe(texts: Sequence[str], config: ScratchConfig) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer like RoBERTa's, which keeps case and every byte."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=list(ROBERTA_SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    first, pad, separator, unknown, mask = ROBERTA_SPECIALS
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {separator}",
        pair=f"{first} $A {separator} {separator} $B {separator}",
        special_tokens=[(name, ROBERTA_SPECIALS.index(name)) for name in (first, separator)],
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=pad,
        unk_token=unknown,
        bos_token=first,
        cls_token=first,
        eos_token=separator,
        sep_token=separator,
        mask_token=mask,
        model_max_length=config.positions,
        model_input_names=["input_ids", "attention_mask"],
    )
