"""The checker: probes a learner's own attention from outside and names the mistake in it.

    report = mha.check.attention(my_attention)
    report = mha.check.multi_head_attention(MyMHA)
    print(report)

The learner's code is executed. Nothing it does ends the check: an error, an endless loop and a huge
allocation become findings.
"""

from mha.check.answers import diagnosis, function, prediction
from mha.check.asked import check_asked
from mha.check.exercises import (
    causal_mask,
    flash_attention,
    grouped_query_attention,
    kv_cache,
    merge_heads,
    padding_mask,
    positional_encoding,
    softmax,
    split_heads,
)
from mha.check.functions import FunctionExamination
from mha.check.guard import Guard
from mha.check.lab import SIZES
from mha.check.modules import Examination
from mha.check.report import Check, Finding, Report
from mha.check.transplant import transplant
from mha.check.unwritten import or_your_turn

__all__ = [
    "Check",
    "Finding",
    "Report",
    "attention",
    "causal_mask",
    "diagnosis",
    "flash_attention",
    "function",
    "grouped_query_attention",
    "kv_cache",
    "merge_heads",
    "multi_head_attention",
    "padding_mask",
    "positional_encoding",
    "prediction",
    "softmax",
    "split_heads",
    "transplant",
]
MASKS = ("attend", "block", "additive")


def multi_head_attention(
    subject,
    *,
    mask: str | None = None,
    weights: dict[str, str] | None = None,
    asked: tuple[str, ...] = (),
    seconds: float = 20.0,
) -> Report:
    """Examine a class or an instance of multi-head attention, and name its mistakes.

    Args:
        subject: a class such as MyMHA(embed_dim, num_heads, dropout=0.0), or an instance, which is
            copied. Its forward may be spelled in any usual way.
        mask: what True means in its masks, "attend" or "block", or "additive" for masks that are
            added to the scores; by default it is told from names, comments and behavior.
        weights: which parameter is which map, as {"W_q": "queries.weight", "W_k": ...}; by default
            they are found.
        asked: what an exercise asks for besides right numbers, names of ``mha.check.asked.ASKED``.
        seconds: after which the learner's code is cut off.
    Returns: a Report.
    Errors: TypeError or ValueError for options that are none.

    Examples:
        >>> import mha
        >>> class Unscaled(mha.MultiHeadAttention):
        ...     def __init__(self, embed_dim, num_heads):
        ...         super().__init__(embed_dim, num_heads, scale=1.0)
        >>> report = mha.check.multi_head_attention(Unscaled)
        >>> report.ok, [found.slug for found in report.findings]
        (False, ['scale-missing'])
        >>> mha.check.multi_head_attention(mha.MultiHeadAttention).ok
        True
    """
    _check_options(mask, weights, asked)
    declared = {"mask": mask, "weights": weights, "asked": asked}
    return _examine(Examination, subject, declared, seconds)


def attention(
    fn, *, mask: str | None = None, asked: tuple[str, ...] = (), seconds: float = 20.0
) -> Report:
    """Examine a function fn(query, key, value, mask=None) -> out or (out, weights).

    Args:
        fn: takes (B, H, T, D), (B, H, S, D), (B, H, S, D_v), or three or two axes; its arguments
            may be spelled in any usual way.
        mask, asked, seconds: as in ``multi_head_attention``.
    Returns: a Report.
    Errors: TypeError or ValueError for options that are none.

    Examples:
        >>> import mha
        >>> def attend(query, key, value, mask=None):
        ...     scores = query @ key.mT / key.shape[-1] ** 0.5  # (B, H, T, S)
        ...     if mask is not None:
        ...         scores = scores.masked_fill(mask, float("-inf"))
        ...     return scores.softmax(-1) @ value
        >>> report = mha.check.attention(attend)
        >>> report.ok, [found.slug for found in report.findings]
        (False, ['mask-inverted', 'dead-row-nan'])
        >>> mha.check.attention(attend, mask="block").ok
        True
    """
    _check_options(mask, None, asked)
    return _examine(FunctionExamination, fn, {"mask": mask, "asked": asked}, seconds)


def _check_options(mask, weights, asked) -> None:
    check_asked(asked)
    if mask is not None and mask not in MASKS:
        raise ValueError(f"mask must be one of {', '.join(MASKS)}, got {mask!r}")
    if weights is not None and not isinstance(weights, dict):
        raise TypeError(f"weights must be a dict, got {type(weights).__name__}")


def _examine(kind, subject, declared: dict, seconds: float) -> Report:
    name = getattr(subject, "__name__", type(subject).__name__)
    with Guard(subject, seconds=seconds, sizes=SIZES) as guard:
        exam = kind(subject, guard, declared)
        exam.run()
    reading = list(exam.reading)
    if guard.unprotected:
        reading.append(guard.unprotected)
    report = Report(name, tuple(exam.findings), tuple(exam.checks), tuple(reading))
    return or_your_turn(report, subject)
