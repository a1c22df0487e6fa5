"""Mistakes of the function: masks, causality, padding, and queries that may see nothing."""

import math
from functools import reduce

import torch
import torch.nn.functional as F

from faulty.plain import Function, mistake


@mistake("the_past_ignores_the_future", "padding_changes_nothing")
class MaskInverted(Function):
    """A bool mask is read the other way round: True means keep out."""

    def additive(self, mask):
        return super().additive(~mask if mask.dtype == torch.bool else mask)


@mistake("the_past_ignores_the_future", "padding_changes_nothing")
class MaskIgnored(Function):
    """Masks are taken and never used."""

    def rules(self, scores, *masks):
        return torch.zeros_like(scores)


@mistake("masks_compose_by_and")
class AttnMaskIgnoredWhenCausal(Function):
    """The causal flag makes the attn_mask disappear."""

    def rules(self, scores, attn_mask, key_mask, is_causal, *order):
        attn_mask = None if is_causal else attn_mask
        return super().rules(scores, attn_mask, key_mask, is_causal, *order)


@mistake("masks_compose_by_and")
class KeyMaskIgnoredWhenCausal(Function):
    """The causal flag makes the key_mask disappear."""

    def rules(self, scores, attn_mask, key_mask, is_causal, *order):
        key_mask = None if is_causal else key_mask
        return super().rules(scores, attn_mask, key_mask, is_causal, *order)


@mistake("masks_compose_by_and")
class MaskOr(Function):
    """Two masks are joined by OR: what either allows is allowed."""

    def together(self, parts):
        zeros, *masks = parts
        return zeros + reduce(torch.maximum, masks) if masks else zeros


@mistake("heads_and_examples_are_independent")
class MaskFirstHead(Function):
    """A mask with a head axis is used for all heads as it is for head 0."""

    def rules(self, scores, attn_mask, *others):
        if attn_mask is not None and attn_mask.ndim >= 3:
            attn_mask = attn_mask[..., :1, :, :]
        return super().rules(scores, attn_mask, *others)


@mistake("rows_of_weights_sum_to_one", "the_past_ignores_the_future")
class MaskAfterSoftmax(Function):
    """Weights are set to zero after the softmax, and no longer sum to one."""

    def normalise(self, scores, added):
        finite = added.masked_fill(added == float("-inf"), 0.0)
        return (scores + finite).softmax(-1) * (added != float("-inf"))


@mistake("the_past_ignores_the_future", "padding_changes_nothing")
class MaskMultiplied(Function):
    """Scores are multiplied by 0 or 1: a masked key keeps a score of 0."""

    def normalise(self, scores, added):
        return (scores * (added != float("-inf"))).softmax(-1)


@mistake("the_past_ignores_the_future", "padding_changes_nothing")
class MaskAddedBool(Function):
    """A bool mask is added to the scores as 0 and 1."""

    def additive(self, mask):
        return mask.double()


@mistake("adding_log_two_is_a_second_key")
class FloatMaskMultiplied(Function):
    """A float mask is multiplied with the scores, not added."""

    def rules(self, scores, attn_mask, *others):
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = scores * attn_mask - scores
        return super().rules(scores, attn_mask, *others)


@mistake("adding_log_two_is_a_second_key")
class FloatMaskAsBool(Function):
    """A float mask is turned into bool: whatever is not 0 may be seen."""

    def additive(self, mask):
        return super().additive(mask != 0)


@mistake("adding_log_two_is_a_second_key")
class FloatMaskScaled(Function):
    """A float mask is added before the scaling, and scaled with the scores."""

    def __call__(self, query, key, value, attn_mask=None, *rest, **options):
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask * query.shape[-1] ** -0.5
        return super().__call__(query, key, value, attn_mask, *rest, **options)


@mistake("the_past_ignores_the_future", "padding_changes_nothing")
class MaskFillSmall(Function):
    """The fill, -10, is not negative enough: masked keys keep a little weight."""

    fill = -10.0


@mistake("a_query_without_keys_gives_zero")
class MaskFillFinite(Function):
    """The fill is -1e9: a query that may see nothing attends to everything."""

    fill = -1e9


@mistake("padding_changes_nothing")
class MaskNan(Function):
    """A bool mask becomes 0 * -inf where it allows: NaN."""

    def additive(self, mask):
        return super().additive(mask) if mask.dtype != torch.bool else -math.inf * (~mask).double()


@mistake("half_precision_stays_close_and_keeps_its_dtype")
class MaskHalfOverflow(Function):
    """The fill, -1e9, is more than float16 can hold."""

    def score(self, query, key, factor):
        return query @ key.mT * factor

    def rules(self, scores, *masks):
        allowed = super().rules(scores.double(), *masks) == 0
        return torch.zeros_like(scores).masked_fill(~allowed, -1e9)


@mistake("padding_changes_nothing")
class PadQueryAxis(Function):
    """The padding mask of the keys is laid on the query axis."""

    def rules(self, scores, attn_mask, key_mask, *others):
        added = super().rules(scores, attn_mask, None, *others)
        if key_mask is not None:
            rows = key_mask[:, None, : scores.shape[-2], None]
            rows = F.pad(rows, (0, 0, 0, scores.shape[-2] - rows.shape[-2]), value=True)
            added = added + self.additive(rows)
        return added


@mistake("poison_at_padding_goes_nowhere")
class PoisonLetIn(Function):
    """NaN at a padded key gets weight 0, and 0 * NaN is NaN."""

    def clean(self, x, key_mask):
        return x


@mistake("a_query_without_keys_gives_zero")
class DeadRowNan(Function):
    """A query that may see nothing gives NaN."""

    def normalise(self, scores, added):
        return (scores + added).softmax(-1)


@mistake("a_query_without_keys_gives_zero")
class DeadRowUniform(Function):
    """A query that may see nothing attends to everything evenly."""

    def normalise(self, scores, added):
        return (scores + added.clamp(min=-1e30)).softmax(-1)


@mistake("gradients_equal_the_oracle")
class DeadRowCleanedLate(Function):
    """NaN is replaced by 0 after the softmax: the output is right, the gradient NaN."""

    def normalise(self, scores, added):
        return (scores + added).softmax(-1).nan_to_num(0.0)


@mistake("the_past_ignores_the_future")
class CausalUpper(Function):
    """The causal mask is the upper triangle: a query sees only the future."""

    def causal(self, distance):
        return distance >= 0


@mistake("the_past_ignores_the_future")
class CausalStrict(Function):
    """The causal mask leaves out the diagonal: a query does not see itself."""

    def causal(self, distance):
        return distance < 0


@mistake("the_past_ignores_the_future")
class CausalLeakOne(Function):
    """The causal mask is off by one: a query sees the next token."""

    def causal(self, distance):
        return distance <= 1


@mistake("a_step_equals_the_whole", in_training=False)
class CausalTopLeft(Function):
    """q_offset is ignored: one more query after a cache sees only the first key."""

    def distance(self, scores, q_offset):
        return super().distance(scores, 0)


@mistake("equals_the_oracle")
class CausalBottomRight(Function):
    """The last query always sees the last key, whatever q_offset says."""

    def distance(self, scores, q_offset):
        return super().distance(scores, scores.shape[-1] - scores.shape[-2])


@mistake("a_step_equals_the_whole", in_training=False)
class CausalOffsetNegated(Function):
    """q_offset is subtracted where it must be added."""

    def distance(self, scores, q_offset):
        return super().distance(scores, -q_offset)
