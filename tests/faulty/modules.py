"""Mistakes of the module: heads, the four maps, padding, dropout, train and eval."""

import torch
import torch.nn.functional as F

from faulty.plain import Module, mistake


@mistake("equals_the_oracle", "gradients_equal_the_oracle")
class ScaleModelDim(Module):
    """Scores are divided by sqrt(E), the width of the model."""

    def factor(self):
        return self.embed_dim**-0.5


@mistake("the_past_ignores_the_future")
class SplitNoTranspose(Module):
    """Heads are split by one reshape, without a transpose: positions mix into heads."""

    def split(self, x):
        return x.reshape(x.shape[0], self.heads(x), x.shape[1], self.head_dim)


@mistake("the_past_ignores_the_future")
class MergeNoTranspose(Module):
    """Heads are merged by one reshape, without transposing back."""

    def merge(self, x):
        return x.reshape(x.shape[0], x.shape[2], self.embed_dim)


@mistake("keys_have_no_order_and_queries_keep_theirs")
class SplitAndMergeWrong(SplitNoTranspose, MergeNoTranspose):
    """Both: split and merge without a transpose."""


@mistake("a_head_can_be_cut_out")
class SplitDimMajor(Module):
    """Heads are interleaved at the split: head h owns the features h, h + H, h + 2H."""

    def split(self, x):
        return x.view(*x.shape[:2], self.head_dim, self.heads(x)).permute(0, 3, 1, 2)


@mistake("a_head_can_be_cut_out")
class MergeDimMajor(Module):
    """Heads are interleaved at the merge."""

    def merge(self, x):
        return x.permute(0, 2, 3, 1).reshape(x.shape[0], x.shape[2], self.embed_dim)


@mistake("examples_are_independent")
class BatchMixed(Module):
    """Batch and time are folded in the wrong order: examples meet."""

    def split(self, x):
        batch, length, _ = x.shape
        return x.reshape(length, batch, self.heads(x), self.head_dim).permute(1, 2, 0, 3)


@mistake("a_head_can_be_cut_out")
class HeadsSummed(Module):
    """Heads are averaged in place of joined side by side."""

    def merge(self, x):
        return x.mean(1).repeat(1, 1, self.num_heads)


@mistake("the_number_of_heads_matters")
class HeadsIgnored(Module):
    """Nothing is split: the head count changes nothing."""

    def split(self, x):
        return x[:, None]

    def shown(self, weights):
        return weights.expand(-1, self.num_heads, -1, -1)


@mistake("equals_the_oracle")
class KvSwapped(Module):
    """The keys' map gets the values, and the values' map the keys."""

    def project(self, query, key, value):
        return super().project(query, value, key)


@mistake("every_parameter_learns")
class QkShared(Module):
    """Keys are made by the queries' map."""

    def project(self, query, key, value):
        q, _, v = super().project(query, key, value)
        return q, self.split(self.q_proj(key)), v


@mistake("every_parameter_learns")
class KvShared(Module):
    """Values are made by the keys' map."""

    def project(self, query, key, value):
        q, k, _ = super().project(query, key, value)
        return q, k, self.split(self.k_proj(value))


@mistake("every_parameter_learns")
class QkvShared(Module):
    """One map makes queries, keys and values."""

    def project(self, query, key, value):
        return tuple(self.split(self.q_proj(x)) for x in (query, key, value))


@mistake("each_key_reaches_each_query")
class CrossSelf(Module):
    """Cross-attention reads keys and values from the sentence that asks."""

    def project(self, query, key, value):
        return super().project(query, query, query)


@mistake("has_the_right_shape", "equals_the_oracle")
class CrossReversed(Module):
    """Cross-attention takes its queries from the memory, keys and values from who asks."""

    def project(self, query, key, value):
        return super().project(key, query, query)


@mistake("a_head_can_be_cut_out")
class HeadWeightsShared(Module):
    """The maps of head 0 are used for all heads."""

    def project(self, query, key, value):
        return tuple(x[:, :1].expand_as(x) for x in super().project(query, key, value))


@mistake("every_parameter_learns")
class OutProjMissing(Module):
    """The output map W_O exists and is never applied."""

    def output(self, joined):
        return joined


@mistake("a_query_without_keys_gives_the_output_bias")
class OutProjTwice(Module):
    """The output map W_O is applied twice."""

    def output(self, joined):
        return self.out_proj(self.out_proj(joined))


@mistake("empty_axes_work")
class BiasMissing(Module):
    """The bias of the output map exists and is not added."""

    def output(self, joined):
        return F.linear(joined, self.out_proj.weight)


@mistake("poison_at_padding_goes_nowhere")
class PoisonInMaps(Module):
    """NaN at a padded key passes through the maps: their gradients are NaN."""

    def clean(self, x, key_mask):
        return x


@mistake("poison_at_padding_goes_nowhere_in_self_attention")
class PoisonInQuery(Module):
    """In self-attention, NaN at a padded key passes through the queries' map."""

    def clean_query(self, x, key_mask):
        return x


@mistake("poison_at_padding_goes_nowhere_in_self_attention")
class PaddedQueryErased(Module):
    """In self-attention, a padded token is blanked as a query too."""

    def clean_query(self, x, key_mask):
        return x.masked_fill(~key_mask[..., None], 0.0)


@mistake("the_past_ignores_the_future")
class CausalDefaultIgnored(Module):
    """A module that was built causal is causal only where the call says so again."""

    def causal(self, is_causal):
        return bool(is_causal)


@mistake("dropout_acts_in_training_only_and_is_unbiased")
class DropoutInEval(Module):
    """Dropout goes on in eval mode."""

    def dropout_now(self):
        return self.dropout


@mistake("no_mode_changes_the_result")
class MaskIgnoredInTraining(Module):
    """Masks are used in eval mode only."""

    def masks(self, rules):
        return {} if self.training else rules


@mistake("no_mode_changes_the_result")
class MaskIgnoredWithoutGrad(Module):
    """A fast path, taken while gradients are off, forgets the masks."""

    def masks(self, rules):
        return rules if torch.is_grad_enabled() else {}


@mistake("nothing_is_kept_on_the_module")
class WeightsKept(Module):
    """The weights are kept on the module, and the graph with them."""

    def shown(self, weights):
        self.attention = weights
        return weights
