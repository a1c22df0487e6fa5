"""Data: from raw text and pictures to the tensors that attention takes."""

from mha.data.alignments import AlignedPair, aligned_pairs
from mha.data.batching import Batches, pad
from mha.data.bpe import apply_bpe, learn_bpe, marked_words
from mha.data.date_pairs import FORMATS, LOCALES, DatePair, date_vocabularies, dates
from mha.data.digit_images import Digits, augment, digits, image_batches
from mha.data.libreoffice import libreoffice_zh
from mha.data.lookback import lookback_batches
from mha.data.masked_tokens import masked_tokens
from mha.data.nearest import Nearest, nearest_sentences, plain_words
from mha.data.plays import Shakespeare, shakespeare, text_batches
from mha.data.sentences import (
    SentencePair,
    Sentences,
    references,
    split_by_source,
    tatoeba,
    words,
)
from mha.data.subwords import Subwords
from mha.data.translation import TranslationBatch, translation_batch, translation_batches
from mha.data.vocabulary import SPECIALS, Vocabulary

__all__ = [
    "FORMATS",
    "LOCALES",
    "SPECIALS",
    "AlignedPair",
    "Batches",
    "DatePair",
    "Digits",
    "Nearest",
    "SentencePair",
    "Sentences",
    "Shakespeare",
    "Subwords",
    "TranslationBatch",
    "Vocabulary",
    "aligned_pairs",
    "apply_bpe",
    "augment",
    "date_vocabularies",
    "dates",
    "digits",
    "image_batches",
    "learn_bpe",
    "libreoffice_zh",
    "lookback_batches",
    "marked_words",
    "masked_tokens",
    "nearest_sentences",
    "pad",
    "plain_words",
    "references",
    "shakespeare",
    "split_by_source",
    "tatoeba",
    "text_batches",
    "translation_batch",
    "translation_batches",
    "words",
]
