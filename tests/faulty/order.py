"""Mistakes of the function: windows, an offset for each example, softcap, grouped heads."""

import torch

from faulty.plain import Function, mistake

GROUPED, CAPPED, BAND = {"num_kv_heads": 2}, {"softcap": 2.0}, {"window": (5, 0)}


@mistake("grouped_heads_read_key_heads_in_order", options=GROUPED)
class GqaTiled(Function):
    """Key heads are tiled, not repeated: query head h reads key head h modulo H_kv."""

    def repeat(self, x, num_heads):
        return x.repeat(1, num_heads // x.shape[1], 1, 1)


@mistake("grouped_heads_read_key_heads_in_order", options=GROUPED)
class GqaValuesTiled(Function):
    """Keys are repeated and values tiled: a head weighs by one key head and reads another."""

    def group(self, key, value, num_heads):
        tiled = value.repeat(1, num_heads // value.shape[1], 1, 1)
        return self.repeat(key, num_heads), tiled


@mistake("grouped_heads_read_key_heads_in_order", options=GROUPED)
class GqaFirstHead(Function):
    """All query heads read the first key head."""

    def repeat(self, x, num_heads):
        return x[:, :1].expand(-1, num_heads, -1, -1)


@mistake("the_softcap_bends_the_scores", options=CAPPED)
class SoftcapIgnored(Function):
    """The softcap is taken and never used."""

    def cap(self, scores, softcap):
        return scores


@mistake("the_softcap_bends_the_scores", options=CAPPED)
class SoftcapUnscaled(Function):
    """The softcap is tanh(s / c), never multiplied by c again: scores end at 1."""

    def cap(self, scores, softcap):
        return torch.tanh(scores / softcap)


@mistake("the_softcap_bends_the_scores", options=CAPPED)
class SoftcapClamped(Function):
    """Scores are cut off at c in place of bent."""

    def cap(self, scores, softcap):
        return scores.clamp(-softcap, softcap)


@mistake("the_softcap_bends_the_scores", options=CAPPED)
class SoftcapBeforeScale(Function):
    """The softcap bends the scores before they are scaled."""

    def __call__(self, query, *others, softcap=None, **options):
        self.softcap = softcap
        return super().__call__(query, *others, **options)

    def score(self, query, key, factor):
        scores = super().score(query, key, 1.0)
        return factor * (scores if self.softcap is None else self.cap(scores, self.softcap))


@mistake("the_softcap_bends_the_scores", options=CAPPED)
class SoftcapAfterMask(Function):
    """The softcap bends the masked scores: -inf becomes -c, and what is masked is seen."""

    def __call__(self, query, *others, softcap=None, **options):
        self.softcap = softcap
        return super().__call__(query, *others, **options)

    def normalise(self, scores, added):
        if self.softcap is None:
            return super().normalise(scores, added)
        return super().normalise(self.cap(scores + added, self.softcap), torch.zeros_like(added))


@mistake("a_window_sees_what_it_says", options=BAND)
class WindowIgnored(Function):
    """The window is taken and never used."""

    def band(self, distance, left, right):
        return torch.ones_like(distance, dtype=torch.bool)


@mistake("a_window_sees_what_it_says", options=BAND)
class WindowLeftShort(Function):
    """The window is one key short on the left, as if its own place counted in."""

    def within_left(self, distance, left):
        return distance > -left


@mistake("a_window_sees_what_it_says", options=BAND)
class WindowLeftLong(Function):
    """The window is one key too long on the left."""

    def within_left(self, distance, left):
        return distance >= -left - 1


@mistake("a_window_sees_what_it_says", options=BAND)
class WindowRightShort(Function):
    """The window is one key short on the right."""

    def within_right(self, distance, right):
        return distance < right


@mistake("a_window_sees_what_it_says", options=BAND, in_training=False)
class WindowRightLong(Function):
    """The window is one key too long on the right."""

    def within_right(self, distance, right):
        return distance <= right + 1


@mistake("a_window_sees_what_it_says", options=BAND)
class WindowSidesSwapped(Function):
    """The two sides of the window are exchanged."""

    def band(self, distance, left, right):
        return super().band(distance, right, left)


@mistake("a_window_sees_what_it_says", options={"window": (None, 0)})
class WindowNoneIsZero(Function):
    """A side of the window without a bound is taken as a bound of 0."""

    def band(self, distance, left, right):
        return super().band(distance, left or 0, right or 0)


@mistake("a_window_sees_what_it_says", options={"window": (5, 2)})
class WindowUncausal(Function):
    """A window makes the causal flag disappear."""

    def rules(self, scores, attn_mask, key_mask, is_causal, q_offset, window):
        is_causal = is_causal and window is None
        return super().rules(scores, attn_mask, key_mask, is_causal, q_offset, window)


@mistake("a_step_equals_the_whole", options=BAND, in_training=False)
class WindowOffsetIgnored(Function):
    """The window is laid from the first key on, whatever q_offset says."""

    def band(self, distance, left, right):
        return super().band(distance - distance[..., :1, :1], left, right)


@mistake("each_example_has_its_own_offset", in_training=False)
class OffsetOfFirstExample(Function):
    """The offset of the first example is used for all."""

    def offset(self, q_offset):
        return q_offset[0]


@mistake("each_example_has_its_own_offset", in_training=False)
class OffsetOfLongest(Function):
    """The largest offset in the batch is used for all examples."""

    def offset(self, q_offset):
        return q_offset.max()


@mistake("each_example_has_its_own_offset", in_training=False)
class OffsetOnHeads(Function):
    """An offset for each example is laid on the axis of the heads."""

    def offset(self, q_offset):
        return q_offset[:, None, None]
