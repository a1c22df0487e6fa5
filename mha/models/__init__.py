"""Models: a translator and a reader of pictures, built on `mha.MultiHeadAttention` alone."""

from mha.models.ablation import without_head
from mha.models.blocks import DecoderBlock, EncoderBlock, FeedForward
from mha.models.decoding import beam_search, greedy
from mha.models.translator import Translator, TranslatorWeights
from mha.models.vision import VisionTransformer, patchify, unpatchify

__all__ = [
    "DecoderBlock",
    "EncoderBlock",
    "FeedForward",
    "Translator",
    "TranslatorWeights",
    "VisionTransformer",
    "beam_search",
    "greedy",
    "patchify",
    "unpatchify",
    "without_head",
]
