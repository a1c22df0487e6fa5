"""Multi-head attention with one mistake each, after mistakes that people really make.

``Plain`` is right, and written so that each step can be replaced. Every class below it replaces
one step by a wrong one. test_mutations.py asks that the properties catch each of them.
"""

import math

import torch
import torch.nn.functional as F

import mha


class Plain(mha.MultiHeadAttention):
    """Correct, step by step. Subclasses break one step."""

    fill = float("-inf")

    def forward(
        self,
        query,
        key=None,
        value=None,
        *,
        attn_mask=None,
        key_mask=None,
        is_causal=None,
        return_weights=False,
    ):
        key = query if key is None else key
        value = key if value is None else value
        is_causal = self.is_causal if is_causal is None else is_causal
        if key_mask is not None:
            if key is query:
                query = self.clean_query(query, key_mask)
            key, value = self.clean(key, key_mask), self.clean(value, key_mask)
        q, k, v = self.project(query, key, value)
        scores = self.score(q, k)
        added = self.rules(scores, attn_mask, key_mask, is_causal)
        weights = self.normalise(scores, added)
        dropped = self.drop(weights)
        joined = self.merge(self.join(dropped, v).to(v.dtype))
        output = self.output(joined)
        return (output, self.shown(weights, dropped).to(v.dtype)) if return_weights else output

    def clean(self, x, key_mask):
        return x.masked_fill(~key_mask[..., None], 0.0)

    def clean_query(self, x, key_mask):
        return x.masked_fill(~key_mask[..., None] & ~x.isfinite(), 0.0)

    def project(self, query, key, value):
        return (
            self.split(self.q_proj(query)),
            self.split(self.k_proj(key)),
            self.split(self.v_proj(value)),
        )

    def split(self, x):
        return x.view(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)

    def merge(self, x):
        return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], self.embed_dim)

    def score(self, q, k):
        return q.double() @ k.double().mT / math.sqrt(self.head_dim)

    def causal(self, length, size):
        return torch.ones(length, size, dtype=torch.bool).tril()

    def rules(self, scores, attn_mask, key_mask, is_causal):
        """What is added to the scores, (B, H, T, S)."""
        added = torch.zeros_like(scores)
        if attn_mask is not None:
            added = added + self.additive(attn_mask)
        if key_mask is not None:
            added = added + self.additive(key_mask[:, None, None, :])
        if is_causal:
            added = added + self.additive(self.causal(*scores.shape[-2:]))
        return added

    def additive(self, mask):
        if mask.dtype != torch.bool:
            return mask.double()
        return torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, self.fill)

    def normalise(self, scores, added):
        scores = scores + added
        dead = (added == float("-inf")).all(-1, keepdim=True)
        return scores.masked_fill(dead, 0.0).softmax(-1).masked_fill(dead, 0.0)

    def drop(self, weights):
        return F.dropout(weights, self.dropout, self.training)

    def join(self, weights, v):
        return weights @ v.double()

    def output(self, joined):
        return self.out_proj(joined)

    def shown(self, weights, dropped):
        return weights


class ScaleModelDim(Plain):
    def score(self, q, k):
        return q.double() @ k.double().mT / math.sqrt(self.embed_dim)


class ScaleMissing(Plain):
    def score(self, q, k):
        return q.double() @ k.double().mT


class ScaleMultiplied(Plain):
    def score(self, q, k):
        return q.double() @ k.double().mT * math.sqrt(self.head_dim)


class ScaleLinear(Plain):
    def score(self, q, k):
        return q.double() @ k.double().mT / self.head_dim


class SplitNoTranspose(Plain):
    def split(self, x):
        return x.reshape(x.shape[0], self.num_heads, x.shape[1], self.head_dim)


class MergeNoTranspose(Plain):
    def merge(self, x):
        return x.reshape(x.shape[0], x.shape[2], self.embed_dim)


class SplitAndMergeWrong(SplitNoTranspose, MergeNoTranspose):
    pass


class SplitDimMajor(Plain):
    def split(self, x):
        return x.view(*x.shape[:2], self.head_dim, self.num_heads).permute(0, 3, 1, 2)


class MergeDimMajor(Plain):
    def merge(self, x):
        return x.permute(0, 2, 3, 1).reshape(x.shape[0], x.shape[2], self.embed_dim)


class BatchMixed(Plain):
    def split(self, x):
        batch, length, _ = x.shape
        return x.reshape(length, batch, self.num_heads, self.head_dim).permute(1, 2, 0, 3)


class HeadsAveraged(Plain):
    def merge(self, x):
        return x.mean(1).repeat(1, 1, self.num_heads)


class HeadsIgnored(Plain):
    def split(self, x):
        return x[:, None]

    def score(self, q, k):
        return q.double() @ k.double().mT / math.sqrt(self.embed_dim)

    def shown(self, weights, dropped):
        return weights.expand(-1, self.num_heads, -1, -1)


class SoftmaxOverQueries(Plain):
    def normalise(self, scores, added):
        dead = (added == float("-inf")).all(-1, keepdim=True)
        return (scores + added).masked_fill(dead, 0.0).softmax(-2).masked_fill(dead, 0.0)


class SoftmaxOverHeads(Plain):
    def normalise(self, scores, added):
        return (scores + added).clamp(min=-1e30).softmax(1)


class ScoresTransposed(Plain):
    def score(self, q, k):
        if q.shape[-2] != k.shape[-2]:
            return super().score(q, k)
        return k.double() @ q.double().mT / math.sqrt(self.head_dim)


class MaskInverted(Plain):
    def additive(self, mask):
        return super().additive(~mask if mask.dtype == torch.bool else mask)


class MaskIgnored(Plain):
    def rules(self, scores, attn_mask, key_mask, is_causal):
        return torch.zeros_like(scores)


class AttnMaskIgnoredWhenCausal(Plain):
    def rules(self, scores, attn_mask, key_mask, is_causal):
        return super().rules(scores, None if is_causal else attn_mask, key_mask, is_causal)


class KeyMaskIgnoredWhenCausal(Plain):
    def rules(self, scores, attn_mask, key_mask, is_causal):
        return super().rules(scores, attn_mask, None if is_causal else key_mask, is_causal)


class MaskAfterSoftmax(Plain):
    def normalise(self, scores, added):
        finite = added.masked_fill(added == float("-inf"), 0.0)
        return (scores + finite).softmax(-1) * (added != float("-inf"))


class MaskMultiplied(Plain):
    def normalise(self, scores, added):
        return (scores * (added != float("-inf"))).softmax(-1)


class MaskAddedBool(Plain):
    def additive(self, mask):
        return mask.double()


class MaskFillSmall(Plain):
    fill = -10.0


class MaskFillFinite(Plain):
    fill = -1e9


class MaskNan(Plain):
    def additive(self, mask):
        return super().additive(mask) if mask.dtype != torch.bool else -math.inf * (~mask).double()


class MaskHalfOverflow(Plain):
    def score(self, q, k):
        return q @ k.mT / math.sqrt(self.head_dim)

    def rules(self, scores, attn_mask, key_mask, is_causal):
        allowed = super().rules(scores.double(), attn_mask, key_mask, is_causal) == 0
        return torch.zeros_like(scores).masked_fill(~allowed, -1e9)


class PadQueryAxis(Plain):
    def rules(self, scores, attn_mask, key_mask, is_causal):
        added = super().rules(scores, attn_mask, None, is_causal)
        if key_mask is not None:
            rows = key_mask[:, None, : scores.shape[-2], None]
            rows = F.pad(rows, (0, 0, 0, scores.shape[-2] - rows.shape[-2]), value=True)
            added = added + self.additive(rows)
        return added


class DeadRowNan(Plain):
    def normalise(self, scores, added):
        return (scores + added).softmax(-1)


class DeadRowUniform(Plain):
    def normalise(self, scores, added):
        return (scores + added.clamp(min=-1e30)).softmax(-1)


class DeadRowCleanedLate(Plain):
    def normalise(self, scores, added):
        return (scores + added).softmax(-1).nan_to_num(0.0)


class CausalUpper(Plain):
    def causal(self, length, size):
        return torch.ones(length, size, dtype=torch.bool).triu()


class CausalStrict(Plain):
    def causal(self, length, size):
        return torch.ones(length, size, dtype=torch.bool).tril(-1)


class CausalLeakOne(Plain):
    def causal(self, length, size):
        return torch.ones(length, size, dtype=torch.bool).tril(1)


class CausalBottomRight(Plain):
    def causal(self, length, size):
        return torch.ones(length, size, dtype=torch.bool).tril(size - length)


class KeyValueSwapped(Plain):
    def project(self, query, key, value):
        return super().project(query, value, key)


class QueryKeyShared(Plain):
    def project(self, query, key, value):
        q, _, v = super().project(query, key, value)
        return q, self.split(self.q_proj(key)), v


class KeyValueShared(Plain):
    def project(self, query, key, value):
        q, k, _ = super().project(query, key, value)
        return q, k, self.split(self.k_proj(value))


class HeadWeightsShared(Plain):
    def project(self, query, key, value):
        return tuple(x[:, :1].expand_as(x) for x in super().project(query, key, value))


class OutProjMissing(Plain):
    def output(self, joined):
        return joined


class BiasMissing(Plain):
    def output(self, joined):
        return F.linear(joined, self.out_proj.weight)


class DropoutInEval(Plain):
    def drop(self, weights):
        return F.dropout(weights, self.dropout, training=True)


class DropoutOnScores(Plain):
    def normalise(self, scores, added):
        return super().normalise(F.dropout(scores, self.dropout, self.training), added)

    def drop(self, weights):
        return weights


class DropoutUnscaled(Plain):
    def drop(self, weights):
        return super().drop(weights) * (1 - self.dropout if self.training else 1.0)


class WeightsAfterDropout(Plain):
    def shown(self, weights, dropped):
        return dropped


class NotDifferentiable(Plain):
    def score(self, q, k):
        return super().score(q.detach(), k)


class DtypeLeak(Plain):
    def output(self, joined):
        return super().output(joined).double()


class WeightsKeptOnModule(Plain):
    def shown(self, weights, dropped):
        self.attention = weights
        return weights


class AveragedWeights(Plain):
    def shown(self, weights, dropped):
        return weights.mean(1, keepdim=True).expand_as(weights)


class PoisonLetIn(Plain):
    def clean(self, x, key_mask):
        return x


class PoisonedQueryLetIn(Plain):
    def clean_query(self, x, key_mask):
        return x


class PaddedQueryErased(Plain):
    def clean_query(self, x, key_mask):
        return x.masked_fill(~key_mask[..., None], 0.0)


class TwoSoftmaxes(Plain):
    def normalise(self, scores, added):
        return super().normalise(super().normalise(scores, added), added)


class OutProjTwice(Plain):
    def output(self, joined):
        return self.out_proj(self.out_proj(joined))


class CosineScores(Plain):
    def score(self, q, k):
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        return super().score(q, k)
