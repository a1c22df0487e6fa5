"""Mistakes of the function: scale, softmax, dropout, gradients, dtype, device, results."""

import math

import torch
import torch.nn.functional as F

from faulty.plain import Function, mistake


@mistake("the_scale_multiplies_the_scores")
class ScaleMissing(Function):
    """Scores are not divided by sqrt(D)."""

    def factor(self, query, scale):
        return 1.0 if scale is None else scale


@mistake("the_scale_multiplies_the_scores")
class ScaleMultiplied(Function):
    """Scores are multiplied by sqrt(D)."""

    def factor(self, query, scale):
        return math.sqrt(query.shape[-1]) if scale is None else scale


@mistake("the_scale_multiplies_the_scores")
class ScaleLinear(Function):
    """Scores are divided by D."""

    def factor(self, query, scale):
        return 1.0 / query.shape[-1] if scale is None else scale


@mistake("the_scale_multiplies_the_scores")
class ScaleIgnored(Function):
    """The scale that the caller gives is ignored."""

    def factor(self, query, scale):
        return super().factor(query, None)


@mistake("equals_the_oracle")
class ScaleValueWidth(Function):
    """Scores are divided by the root of the width of a value, not of a key."""

    def __call__(self, query, key, value, *rest, scale=None, **options):
        scale = value.shape[-1] ** -0.5 if scale is None else scale
        return super().__call__(query, key, value, *rest, scale=scale, **options)


@mistake("equals_the_oracle")
class ScoresTransposed(Function):
    """Where T = S, scores are K Q^T in place of Q K^T."""

    def score(self, query, key, factor):
        if query.shape[-2] != key.shape[-2]:
            return super().score(query, key, factor)
        return super().score(key, query, factor)


@mistake("equals_the_oracle")
class CosineScores(Function):
    """Queries and keys are normalized to length 1: the angle is the score."""

    def score(self, query, key, factor):
        return super().score(F.normalize(query, dim=-1), F.normalize(key, dim=-1), factor)


@mistake("rows_of_weights_sum_to_one")
class SoftmaxQueries(Function):
    """The softmax runs over the queries."""

    def normalise(self, scores, added):
        dead = (added == float("-inf")).all(-1, keepdim=True)
        return (scores + added).masked_fill(dead, 0.0).softmax(-2).masked_fill(dead, 0.0)


@mistake("rows_of_weights_sum_to_one", "heads_and_examples_are_independent")
class SoftmaxHeads(Function):
    """The softmax runs over the heads."""

    def normalise(self, scores, added):
        return (scores + added).clamp(min=-1e30).softmax(1)


@mistake("equals_the_oracle")
class SoftmaxTwice(Function):
    """The softmax is taken of weights that are softmaxed already."""

    def normalise(self, scores, added):
        return super().normalise(super().normalise(scores, added), added)


@mistake("large_scores_do_not_break_a_mask")
class SoftmaxOverflow(Function):
    """The softmax does not subtract the largest score: exp overflows."""

    def normalise(self, scores, added):
        powers = (scores + added).exp()
        total = powers.sum(-1, keepdim=True)
        return powers / total.masked_fill(total == 0, 1.0)


@mistake("empty_axes_work")
class EmptyKeysRaise(Function):
    """The largest score is subtracted by hand, and there is none where there are no keys."""

    def normalise(self, scores, added):
        top = (scores + added).amax(-1, keepdim=True)
        return super().normalise(scores - top.clamp(min=-1e30).detach(), added)


@mistake("dropout_is_unbiased")
class DropoutOnScores(Function):
    """Dropout acts on the scores, before the softmax."""

    def __call__(self, query, key, value, attn_mask=None, dropout_p=0.0, *rest, **options):
        self.probability = dropout_p
        return super().__call__(query, key, value, attn_mask, 0.0, *rest, **options)

    def normalise(self, scores, added):
        return super().normalise(self.drop(scores, self.probability), added)


@mistake("dropout_is_unbiased")
class DropoutUnscaled(Function):
    """The weights that dropout keeps are not divided by 1 - p."""

    def drop(self, weights, dropout_p):
        return super().drop(weights, dropout_p) * (1 - dropout_p)


@mistake("dropout_is_unbiased")
class DropoutIgnored(Function):
    """The dropout probability is taken and never used."""

    def drop(self, weights, dropout_p):
        return weights


@mistake("rows_of_weights_sum_to_one")
class WeightsAfterDropout(Function):
    """The weights that are returned are those after dropout."""

    def shown(self, weights, dropped):
        return dropped


@mistake("equals_the_oracle")
class WeightsAveraged(Function):
    """The weights that are returned are the mean over the heads."""

    def shown(self, weights, dropped):
        return weights.mean(1, keepdim=True).expand_as(weights)


@mistake("weights_asked_for_change_no_output")
class WeightsChangeOutput(Function):
    """Asking for weights takes another path, which has no dropout."""

    def __call__(self, query, key, value, attn_mask=None, dropout_p=0.0, *rest, **options):
        dropout_p = 0.0 if options.get("return_weights") else dropout_p
        return super().__call__(query, key, value, attn_mask, dropout_p, *rest, **options)


@mistake("gradients_equal_the_oracle")
class NotDifferentiable(Function):
    """The query is detached: nothing before it learns."""

    def score(self, query, key, factor):
        return super().score(query.detach(), key, factor)


@mistake("inputs_are_left_alone")
class InputsOverwritten(Function):
    """The query is scaled in place, in the caller's own tensor."""

    def score(self, query, key, factor):
        query.data.mul_(factor)
        return super().score(query, key, 1.0)


@mistake("half_precision_stays_close_and_keeps_its_dtype")
class DtypeLeak(Function):
    """The result stays in float64, whatever came in."""

    def finish(self, result, value):
        return result


@mistake("everything_stays_on_its_device")
class DeviceBuffer(Function):
    """The causal mask is made on the CPU at each call, wherever the inputs are."""

    def distance(self, scores, q_offset):
        return super().distance(torch.empty(scores.shape), q_offset)


@mistake("equals_the_oracle")
class ValueWidthAssumed(Function):
    """The output takes the shape of the query, as if values were as wide as keys."""

    def join(self, weights, value):
        return super().join(weights, value).reshape(*weights.shape[:-1], self.width)

    def score(self, query, key, factor):
        self.width = query.shape[-1]
        return super().score(query, key, factor)
