"""Training: one loop for every model here, losses and scores; ``python -m mha.training`` trains."""

from mha.training.loop import History, Row, fit, warmup_cosine
from mha.training.scores import (
    TranslationScores,
    accuracy,
    exact_match,
    image_loss,
    language_model_loss,
    masked_token_loss,
    nats_per_target_token,
    nats_per_token,
    translation_loss,
    translation_scores,
)

__all__ = [
    "History",
    "Row",
    "TranslationScores",
    "accuracy",
    "exact_match",
    "fit",
    "image_loss",
    "language_model_loss",
    "masked_token_loss",
    "nats_per_target_token",
    "nats_per_token",
    "translation_loss",
    "translation_scores",
    "warmup_cosine",
]
