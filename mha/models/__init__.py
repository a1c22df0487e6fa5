"""Models: translators, language models and a reader of pictures, built on `mha.MultiHeadAttention` alone."""

from mha.models.ablation import (
    TranslatorHead,
    bootstrap,
    pair_nats,
    remove_greedily,
    translator_heads,
    without_head,
    without_heads,
)
from mha.models.alignment import (
    AlignmentScore,
    LinkCounts,
    alignment_score,
    best_links,
    cross_word_attention,
    diagonal_links,
    hiding_costs,
    link_counts,
    word_attention,
    word_shares,
)
from mha.models.bert import Bert
from mha.models.blocks import DecoderBlock, EncoderBlock, FeedForward
from mha.models.checkpoint import save_translator
from mha.models.convolution import ConvolutionalNet
from mha.models.decoding import LayerCaches, TranslatorCaches, beam_search, greedy
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
from mha.models.rollout import (
    attention_distance,
    attention_rollout,
    blank_effects,
    patch_distances,
)
from mha.models.texts import translate_texts
from mha.models.translator import Translator, TranslatorWeights
from mha.models.vision import VisionTransformer, patchify, shuffle_patches, unpatchify

__all__ = [
    "LOOKBACK_KINDS",
    "AlignmentScore",
    "Bert",
    "Caches",
    "CausalConvolution",
    "ConvolutionalNet",
    "DecoderBlock",
    "EncoderBlock",
    "FeedForward",
    "GPT",
    "Generated",
    "LayerCaches",
    "LinkCounts",
    "Lookback",
    "Recurrent",
    "Translator",
    "TranslatorHead",
    "TranslatorCaches",
    "TranslatorWeights",
    "VisionTransformer",
    "alignment_score",
    "attention_distance",
    "attention_rollout",
    "beam_search",
    "best_links",
    "blank_effects",
    "bootstrap",
    "count_parameters",
    "cross_word_attention",
    "diagonal_links",
    "drawn",
    "filtered",
    "generate",
    "gradient_by_distance",
    "greedy",
    "hiding_costs",
    "link_counts",
    "lookback_accuracy",
    "lookback_loss",
    "lookback_model",
    "ngram_nats",
    "pair_nats",
    "patch_distances",
    "patchify",
    "remove_greedily",
    "save_translator",
    "translate_texts",
    "shuffle_patches",
    "translator_heads",
    "unpatchify",
    "without_head",
    "without_heads",
    "word_attention",
    "word_shares",
]
