"""Models: a translator and a reader of pictures, built on `mha.MultiHeadAttention` alone."""

from mha.models.ablation import without_head
from mha.models.blocks import DecoderBlock, EncoderBlock, FeedForward
from mha.models.decoding import beam_search, greedy
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
from mha.models.translator import Translator, TranslatorWeights
from mha.models.vision import VisionTransformer, patchify, unpatchify

__all__ = [
    "LOOKBACK_KINDS",
    "CausalConvolution",
    "DecoderBlock",
    "EncoderBlock",
    "FeedForward",
    "Lookback",
    "Recurrent",
    "Translator",
    "TranslatorWeights",
    "VisionTransformer",
    "beam_search",
    "count_parameters",
    "gradient_by_distance",
    "greedy",
    "lookback_accuracy",
    "lookback_loss",
    "lookback_model",
    "patchify",
    "unpatchify",
    "without_head",
]
