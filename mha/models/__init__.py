"""Models: translators, language models and a reader of pictures, built on `mha.MultiHeadAttention` alone."""

from mha.models.ablation import without_head
from mha.models.bert import Bert
from mha.models.blocks import DecoderBlock, EncoderBlock, FeedForward
from mha.models.decoding import beam_search, greedy
from mha.models.generation import Generated, drawn, filtered, generate
from mha.models.gpt import GPT, Caches
from mha.models.lookback import (
    LOOKBACK_KINDS,
    CausalConvolution,
    Lookback,
    Recurrent,
    count_parameters,
    gradient_by_distance,
    lookback_accuracy,
    lookback_loss,
    lookback_model,
)
from mha.models.ngrams import ngram_nats
from mha.models.translator import Translator, TranslatorWeights
from mha.models.vision import VisionTransformer, patchify, unpatchify

__all__ = [
    "LOOKBACK_KINDS",
    "Bert",
    "Caches",
    "CausalConvolution",
    "DecoderBlock",
    "EncoderBlock",
    "FeedForward",
    "GPT",
    "Generated",
    "Lookback",
    "Recurrent",
    "Translator",
    "TranslatorWeights",
    "VisionTransformer",
    "beam_search",
    "count_parameters",
    "drawn",
    "filtered",
    "generate",
    "gradient_by_distance",
    "greedy",
    "lookback_accuracy",
    "lookback_loss",
    "lookback_model",
    "ngram_nats",
    "patchify",
    "unpatchify",
    "without_head",
]
