"""Data: from raw text and pictures to the tensors that attention takes."""

from mha.data.batching import Batches, pad
from mha.data.date_pairs import FORMATS, LOCALES, DatePair, date_vocabularies, dates
from mha.data.digit_images import Digits, augment, digits, image_batches
from mha.data.lookback import lookback_batches
from mha.data.masked_tokens import masked_tokens
from mha.data.plays import Shakespeare, shakespeare, text_batches
from mha.data.translation import TranslationBatch, translation_batch, translation_batches
from mha.data.vocabulary import SPECIALS, Vocabulary

__all__ = [
    "FORMATS",
    "LOCALES",
    "SPECIALS",
    "Batches",
    "DatePair",
    "Digits",
    "Shakespeare",
    "TranslationBatch",
    "Vocabulary",
    "augment",
    "date_vocabularies",
    "dates",
    "digits",
    "image_batches",
    "lookback_batches",
    "masked_tokens",
    "pad",
    "shakespeare",
    "text_batches",
    "translation_batch",
    "translation_batches",
]
