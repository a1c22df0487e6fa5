"""Mistakes of the module: rotary positions, normed queries and keys, the cache."""

from dataclasses import replace

import torch

from faulty.plain import Module, mistake
from mha.positions import Rotary

TURNED, NORMED = {"rope": Rotary()}, {"qk_norm": "rms"}


@mistake("only_distances_count_for_a_rotation", options=TURNED)
class RopeOnValues(Module):
    """Values turn with their positions, as queries and keys do."""

    def arrange(self, q, k, v, places, key_places):
        return super().arrange(q, k, self.turn(v, key_places), places, key_places)


@mistake("only_distances_count_for_a_rotation", options=TURNED)
class RopeQueriesOnly(Module):
    """Queries turn with their positions, and keys do not."""

    def rotate(self, q, k, places, key_places):
        return self.turn(q, places), k


@mistake("only_distances_count_for_a_rotation", options=TURNED)
class RopeKeysBackward(Module):
    """Keys turn the other way: scores depend on the sum of two positions."""

    def rotate(self, q, k, places, key_places):
        return self.turn(q, places), self.turn(k, -key_places)


@mistake("a_rotation_is_a_product_of_complex_numbers", options=TURNED)
class RopePairsConfused(Module):
    """Neighbouring features are paired where the halves should be, and the other way round."""

    def turn(self, x, places):
        if self.rope is None:
            return x
        return replace(self.rope, interleaved=not self.rope.interleaved)(x, places)


@mistake("a_rotation_is_a_product_of_complex_numbers", options=TURNED)
class RopeBeforeSplit(Module):
    """All features of a token turn as one head: each head has other frequencies."""

    def turn(self, x, places):
        if self.rope is None:
            return x
        joined = self.rope(x.transpose(1, 2).flatten(2), places)  # (B, T, H*D)
        return joined.unflatten(2, (x.shape[1], x.shape[3])).transpose(1, 2)


@mistake("a_rotation_is_a_product_of_complex_numbers", options={"rope": Rotary(4)})
class RopeWholeHead(Module):
    """All features of a head turn, where only the first ones should."""

    def turn(self, x, places):
        return x if self.rope is None else replace(self.rope, dim=None)(x, places)


@mistake("a_token_takes_its_position_along", options=TURNED)
class RopeOverHeads(Module):
    """The axes of heads and tokens are confused: a head turns by its number."""

    def turn(self, x, places):
        if self.rope is None:
            return x
        return self.rope(x.transpose(1, 2), torch.arange(x.shape[1])).transpose(1, 2)


@mistake("a_token_takes_its_position_along", options=TURNED, in_training=False)
class RopePositionsIgnored(Module):
    """The positions that the caller gives are ignored."""

    def places(self, positions, query, cache):
        return super().places(None, query, cache)


@mistake("a_token_takes_its_position_along", options=TURNED, in_training=False)
class RopePositionsOfFirst(Module):
    """The positions of the first example are used for all."""

    def turn(self, x, places):
        return super().turn(x, places[0] if places.ndim == 2 else places)


@mistake("heads_are_normed_one_by_one_before_they_turn", options=NORMED)
class QkNormMissing(Module):
    """Queries and keys are not normed at all."""

    def norm(self, q, k):
        return q, k


@mistake("heads_are_normed_one_by_one_before_they_turn", options=NORMED)
class QkNormQueriesOnly(Module):
    """Queries are normed, and keys are not."""

    def norm(self, q, k):
        return super().norm(q, k)[0], k


@mistake("heads_are_normed_one_by_one_before_they_turn", options=NORMED)
class QkNormShared(Module):
    """Keys are normed with the weights of the queries' norm."""

    def norm(self, q, k):
        return (q, k) if self.q_norm is None else (self.q_norm(q), self.q_norm(k))


@mistake("heads_are_normed_one_by_one_before_they_turn", options=NORMED)
class QkNormAcrossHeads(Module):
    """All heads of a token are normed together, to one length."""

    def norm(self, q, k):
        if self.q_norm is None:
            return q, k
        return self.together(q) * self.q_norm.weight, self.together(k) * self.k_norm.weight

    def together(self, x):
        return x / x.square().mean((1, 3), keepdim=True).sqrt()


@mistake("heads_are_normed_one_by_one_before_they_turn", options={**NORMED, **TURNED})
class QkNormAfterRope(Module):
    """Queries and keys turn first, and are normed then."""

    def arrange(self, q, k, v, places, key_places):
        return *self.norm(*self.rotate(q, k, places, key_places)), v


@mistake("a_cache_changes_nothing", options=TURNED, in_training=False)
class RopeRestarts(Module):
    """With a cache, each call counts its positions from 0 again."""

    def first(self, cache):
        return 0


@mistake("padded_prompts_go_on_as_if_alone", options=TURNED, in_training=False)
class RopeByLongest(Module):
    """With a cache, all examples go on at the position of the longest one."""

    def first(self, cache):
        return cache.length


@mistake("a_cache_changes_nothing", options=TURNED, in_training=False)
class CacheUnturned(Module):
    """Keys go into the cache before they turn, and never turn."""

    def remember(self, cache, k, v, rules):
        back = -self.places(None, k[:, 0], cache)  # k[:, 0] is (B, T, D)
        return super().remember(cache, self.turn(k, back), v, rules)


@mistake("a_cache_changes_nothing", options=TURNED, in_training=False)
class CacheTurnedTwice(Module):
    """Keys go into the cache turned, and turn again when they are read."""

    def remember(self, cache, k, v, rules):
        k, v, rules = super().remember(cache, k, v, rules)
        return self.turn(k, torch.arange(k.shape[2])), v, rules


@mistake("a_cache_changes_nothing", in_training=False)
class CacheOffsetDropped(Module):
    """With a cache, the causal mask starts at the first key: a new token sees only that one."""

    def remember(self, cache, k, v, rules):
        k, v, rules = super().remember(cache, k, v, rules)
        return k, v, {**rules, "q_offset": 0}


@mistake("a_cache_changes_nothing", in_training=False)
class CacheUncausal(Module):
    """With a cache, the causal mask is left out, as if tokens always came one by one."""

    def remember(self, cache, k, v, rules):
        return super().remember(cache, k, v, {**rules, "is_causal": False})


@mistake("a_cache_changes_nothing", in_training=False)
class CacheUnread(Module):
    """Keys and values go into the cache, and each call attends to its own alone."""

    def remember(self, cache, k, v, rules):
        super().remember(cache, k, v, rules)
        return k, v, rules


@mistake("padded_prompts_go_on_as_if_alone", in_training=False)
class CachePaddingForgotten(Module):
    """Padding is masked in the call that brings it, and seen by all later ones."""

    def remember(self, cache, k, v, rules):
        given = rules["key_mask"]
        k, v, rules = super().remember(cache, k, v, rules)
        return k, v, rules if given is not None else {**rules, "key_mask": None}
