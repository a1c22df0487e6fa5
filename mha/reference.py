"""The definition of attention, in NumPy float64, forward and backward, written for reading.

Everything else in the package is tested against this file. It is slow and never approximates.

Rows are vectors: a linear map is ``x @ W + b``, with ``W`` of shape (inputs, outputs), as in the
formulas of Vaswani et al. (2017). PyTorch's ``nn.Linear`` stores the transpose;
``Parameters.from_module`` does the translation.

Axes: B batch, H heads, T queries, S keys, D width of one head, E width of the model.
"""

from typing import NamedTuple

import numpy as np


def softmax(scores: np.ndarray, axis: int = -1) -> np.ndarray:
    """Softmax along one axis; a slice that is -inf throughout gives zeros.

    Args:
        scores: any shape, log-odds.
        axis: the axis that sums to 1.
    Returns: weights, float64, the shape of ``scores``.
    Source: the subtraction of the maximum is exact and keeps exp from overflowing
        (Goodfellow et al. 2016, section 4.1).

    Examples:
        >>> import numpy as np
        >>> from mha import reference
        >>> reference.softmax(np.log([[1.0, 3.0], [2.0, 2.0]])).round(4).tolist()
        [[0.25, 0.75], [0.5, 0.5]]
        >>> reference.softmax(np.array([-np.inf, -np.inf])).tolist()  # nothing to be seen
        [0.0, 0.0]
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.shape[axis] == 0:
        return scores
    largest = scores.max(axis=axis, keepdims=True)
    largest = np.where(np.isneginf(largest), 0.0, largest)  # a dead slice has no maximum
    unnormalised = np.exp(scores - largest)
    total = unnormalised.sum(axis=axis, keepdims=True)
    return np.divide(unnormalised, total, out=np.zeros_like(unnormalised), where=total != 0)


def softmax_backward(weights: np.ndarray, grad_weights: np.ndarray, axis: int = -1) -> np.ndarray:
    """Gradient of the scores, given the gradient of the weights.

    For p = softmax(s), dp_j/ds_k = p_j (delta_jk - p_k), hence ds = p * (dp - sum(p * dp)).

    Args:
        weights: softmax(scores), any shape.
        grad_weights: the same shape, gradient of the loss with respect to ``weights``.
    Returns: gradient with respect to the scores, the same shape.

    Examples:
        >>> import numpy as np
        >>> from mha import reference
        >>> reference.softmax_backward(np.array([0.25, 0.75]), np.array([1.0, 0.0])).tolist()
        [0.1875, -0.1875]
    """
    inner = (weights * grad_weights).sum(axis=axis, keepdims=True)
    return weights * (grad_weights - inner)


def bias(
    shape: tuple[int, ...],
    attn_mask: np.ndarray | None = None,
    is_causal: bool = False,
    *,
    key_mask: np.ndarray | None = None,
    window: tuple[int | None, int | None] | None = None,
    q_offset: int | np.ndarray = 0,
) -> np.ndarray:
    """What is added to the scores: 0 where a query may look, -inf where not, or a float mask.

    All that depends on order is said in one distance, of key j from the position of query i:
    d = j - (i + q_offset). It is 0 at the query's own place, negative in its past.

    Args:
        shape: (..., H, T, S), the shape of the scores.
        attn_mask: bool (True = may attend) or float (added), broadcasts to ``shape``.
        is_causal: query i sees key j only if d <= 0.
        key_mask: bool (..., S), True = a real key; its leading axes are those before H.
        window: (left, right), query i sees key j only if -left <= d <= right; None on a side is
            no bound there.
        q_offset: position of the first query among the keys, one for all or (B,), one an example.
    Returns: float64, broadcastable to ``shape``; masks compose by AND.
    Errors: TypeError for an integer attn_mask.

    Examples:
        >>> import numpy as np
        >>> from mha import reference
        >>> reference.bias((2, 3), is_causal=True).tolist()  # (T, S)
        [[0.0, -inf, -inf], [0.0, 0.0, -inf]]
        >>> reference.bias((2, 3), window=(1, 0), q_offset=1).tolist()
        [[0.0, 0.0, -inf], [-inf, 0.0, 0.0]]
    """
    *_, length, size = shape
    added = np.zeros((length, size))
    if attn_mask is not None:
        attn_mask = np.asarray(attn_mask)
        is_bool = attn_mask.dtype == bool
        if not is_bool and attn_mask.dtype.kind != "f":
            raise TypeError(f"attn_mask must be bool or floating, got {attn_mask.dtype}")
        added = added + (np.where(attn_mask, 0.0, -np.inf) if is_bool else attn_mask)
    if key_mask is not None:
        added = added + np.where(key_mask, 0.0, -np.inf)[..., None, None, :]
    offset = np.asarray(q_offset)
    offset = offset[..., None, None, None] if offset.ndim else offset  # (B,) -> (B, 1, 1, 1)
    distance = np.arange(size) - (np.arange(length)[:, None] + offset)  # (T, S) or (B, 1, T, S)
    left, right = (None, None) if window is None else window
    allowed = np.ones(distance.shape, dtype=bool)
    if is_causal:
        allowed &= distance <= 0
    if left is not None:
        allowed &= distance >= -left
    if right is not None:
        allowed &= distance <= right
    return added + np.where(allowed, 0.0, -np.inf)


def cap(scores: np.ndarray, softcap: float | None) -> np.ndarray:
    """c tanh(s / c): nearly s where s is small, and never beyond c; None changes nothing.

    Args:
        scores: any shape.
        softcap: c, above 0.
    Returns: the shape of ``scores``.
    Source: Gemma Team (2024), section 2, "logit soft-capping".

    Examples:
        >>> import numpy as np
        >>> from mha import reference
        >>> reference.cap(np.array([-1000.0, 0.0, 1.0]), 30.0).round(3).tolist()
        [-30.0, 0.0, 1.0]
    """
    return scores if softcap is None else softcap * np.tanh(scores / softcap)


def cap_backward(capped: np.ndarray, grad: np.ndarray, softcap: float | None) -> np.ndarray:
    """Gradient of the scores, given that of ``capped = cap(scores, softcap)``.

    The derivative of c tanh(s / c) is 1 - tanh(s / c)^2.

    Args:
        capped: what ``cap`` returned, any shape.
        grad: the same shape, gradient of the loss with respect to ``capped``.
        softcap: c, or None.
    Returns: gradient with respect to the scores, the same shape.

    Examples:
        >>> import numpy as np
        >>> from mha import reference
        >>> reference.cap_backward(np.array([0.0, 15.0, 30.0]), np.ones(3), 30.0).tolist()
        [1.0, 0.75, 0.0]
    """
    return grad if softcap is None else grad * (1.0 - (capped / softcap) ** 2)


def repeat_heads(x: np.ndarray, num_heads: int) -> np.ndarray:
    """(..., H_kv, S, D) -> (..., H, S, D): query head h reads key head h // (H // H_kv).

    Args:
        x: (..., H_kv, S, D), keys or values.
        num_heads: H, the number of heads.
    Errors: ValueError if ``num_heads`` is not a multiple of H_kv.
    Source: Ainslie et al. (2023), section 2.2; H_kv = 1 is Shazeer (2019), one key head for all.

    Examples:
        >>> import numpy as np
        >>> from mha import reference
        >>> x = np.array([7, 9]).reshape(2, 1, 1)  # (H_kv, S, D)
        >>> reference.repeat_heads(x, 4).ravel().tolist()
        [7, 7, 9, 9]
    """
    if num_heads % x.shape[-3]:
        raise ValueError(f"num_heads must be a multiple of {x.shape[-3]}, got {num_heads}")
    return np.repeat(x, num_heads // x.shape[-3], axis=-3)


def repeat_heads_backward(grad: np.ndarray, num_kv_heads: int) -> np.ndarray:
    """(..., H, S, D) -> (..., H_kv, S, D): what was read by a group gets the sum of its gradients.

    Args:
        grad: (..., H, S, D), gradient with respect to what ``repeat_heads`` returned.
        num_kv_heads: H_kv.

    Examples:
        >>> import numpy as np
        >>> from mha import reference
        >>> grad = np.array([1, 2, 3, 4]).reshape(4, 1, 1)  # (H, S, D)
        >>> reference.repeat_heads_backward(grad, 2).ravel().tolist()
        [3, 7]
    """
    *lead, num_heads, size, width = grad.shape
    groups = grad.reshape(*lead, num_kv_heads, num_heads // num_kv_heads, size, width)
    return groups.sum(axis=-3)


def _operands(query, key, value, key_mask, enable_gqa):
    """float64 copies, a key head for each query head, and zeros at keys that are excluded."""
    query, key, value = (np.asarray(x, dtype=np.float64) for x in (query, key, value))
    if key_mask is not None:
        real = np.asarray(key_mask)[..., None, :, None]
        key, value = np.where(real, key, 0.0), np.where(real, value, 0.0)
    if enable_gqa:
        key, value = (repeat_heads(x, query.shape[-3]) for x in (key, value))
    return query, key, value


def _scores(query, key, scale, softcap):
    """The scores (..., H, T, S), scaled and capped, and the scale."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return cap(scale * (query @ np.swapaxes(key, -1, -2)), softcap), scale


def attention(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    attn_mask: np.ndarray | None = None,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    softcap: float | None = None,
    key_mask: np.ndarray | None = None,
    window: tuple[int | None, int | None] | None = None,
    q_offset: int | np.ndarray = 0,
    return_weights: bool = False,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """softmax(scale Q K^T + mask) V, for every head at once.

    Args:
        query: (..., H, T, D).
        key: (..., H, S, D), or (..., H_kv, S, D) with ``enable_gqa``.
        value: (..., H, S, D_v), or (..., H_kv, S, D_v) with ``enable_gqa``.
        attn_mask, is_causal, key_mask, window, q_offset: see ``bias``.
        scale: factor of the scores, 1/sqrt(D) by default.
        enable_gqa: several query heads share one key head, see ``repeat_heads``.
        softcap: bound of the scaled scores, before the mask, see ``cap``.
        return_weights: also return the weights.
    Returns: output (..., H, T, D_v), float64, and weights (..., H, T, S) if asked for.
        A query that may see nothing gets zeros in both.
    Source: Vaswani et al. (2017), equation 1.

    Examples:
        >>> import numpy as np
        >>> from mha import reference
        >>> query, key = np.zeros((1, 3, 4)), np.zeros((1, 5, 4))  # (H, T, D), (H, S, D): scores 0
        >>> value = np.arange(5.0).reshape(1, 5, 1)  # (H, S, D_v)
        >>> reference.attention(query, key, value, is_causal=True).round(4).tolist()  # (H, T, D_v)
        [[[0.0], [0.5], [1.0]]]
    """
    query, key, value = _operands(query, key, value, key_mask, enable_gqa)
    scores, _ = _scores(query, key, scale, softcap)  # (..., H, T, S)
    order = {"window": window, "q_offset": q_offset}
    weights = softmax(scores + bias(scores.shape, attn_mask, is_causal, key_mask=key_mask, **order))
    output = weights @ value  # (..., H, T, D_v)
    return (output, weights) if return_weights else output


def attention_backward(
    grad_output: np.ndarray,
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    attn_mask: np.ndarray | None = None,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    softcap: float | None = None,
    key_mask: np.ndarray | None = None,
    window: tuple[int | None, int | None] | None = None,
    q_offset: int | np.ndarray = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of query, key and value, given the gradient of the output.

    With P = softmax(S), S = scale Q K^T + mask, O = P V:
    dV = P^T dO,  dP = dO V^T,  dS = P * (dP - rowsum(P * dP)),  dQ = scale dS K,
    dK = scale dS^T Q. With a softcap, dS passes through it backward; with fewer key heads, dK
    and dV are summed over the query heads that share one.

    Args:
        grad_output: (..., H, T, D_v), gradient of the loss with respect to the output.
        the rest: as in ``attention``; query, key and value have equal axes before the heads.
    Returns: gradients of query (..., H, T, D), key (..., H, S, D), value (..., H, S, D_v), with
        H_kv for H in the last two with ``enable_gqa``.

    Examples:
        >>> import numpy as np
        >>> from mha import reference
        >>> query, key = np.zeros((1, 3, 4)), np.zeros((1, 5, 4))  # (H, T, D), (H, S, D)
        >>> value, grad_output = np.ones((1, 5, 2)), np.ones((1, 3, 2))  # (H, S, D_v), (H, T, D_v)
        >>> dq, dk, dv = reference.attention_backward(grad_output, query, key, value)
        >>> dv[0, :, 0].round(4).tolist()  # each key has a fifth of the weight of each of 3 queries
        [0.6, 0.6, 0.6, 0.6, 0.6]
    """
    q, k, v = _operands(query, key, value, key_mask, enable_gqa)
    grad_output = np.asarray(grad_output, dtype=np.float64)
    scores, scale = _scores(q, k, scale, softcap)  # (..., H, T, S)
    order = {"window": window, "q_offset": q_offset}
    weights = softmax(scores + bias(scores.shape, attn_mask, is_causal, key_mask=key_mask, **order))
    grad_value = np.swapaxes(weights, -1, -2) @ grad_output  # (..., H, S, D_v)
    grad_weights = grad_output @ np.swapaxes(v, -1, -2)  # (..., H, T, S)
    grad_scores = softmax_backward(weights, grad_weights)  # (..., H, T, S)
    grad_scores = cap_backward(scores, grad_scores, softcap)  # (..., H, T, S)
    grad_query = scale * (grad_scores @ k)  # (..., H, T, D)
    grad_key = scale * (np.swapaxes(grad_scores, -1, -2) @ q)  # (..., H, S, D)
    if enable_gqa:
        grad_key = repeat_heads_backward(grad_key, np.shape(key)[-3])  # (..., H_kv, S, D)
        grad_value = repeat_heads_backward(grad_value, np.shape(value)[-3])  # (..., H_kv, S, D_v)
    return grad_query, grad_key, grad_value


class Parameters(NamedTuple):
    """The four maps of multi-head attention, row-vector convention: ``x @ w + b``.

    w_q (E, H*D), w_k (E_k, H_kv*D), w_v (E_v, H_kv*D), w_o (H*D, E); a bias has the width of its
    map's result, or is 0.0 where there is none. Gradients come in the same form.

    Examples:
        >>> import numpy as np
        >>> from mha import reference
        >>> wide, narrow = np.zeros((8, 8)), np.zeros((8, 4))  # E = 8, H*D = 8, H_kv*D = 4
        >>> reference.Parameters(w_q=wide, w_k=narrow, w_v=narrow, w_o=wide).b_q  # no bias
        0.0
    """

    w_q: np.ndarray
    w_k: np.ndarray
    w_v: np.ndarray
    w_o: np.ndarray
    b_q: np.ndarray | float = 0.0
    b_k: np.ndarray | float = 0.0
    b_v: np.ndarray | float = 0.0
    b_o: np.ndarray | float = 0.0

    @classmethod
    def from_module(cls, module) -> "Parameters":
        """Read the weights of a module with ``q_proj``, ``k_proj``, ``v_proj`` and ``out_proj``.

        Args:
            module: a ``mha.MultiHeadAttention``, or any module with four such linear layers.
        Returns: float64 copies; ``nn.Linear`` keeps (outputs, inputs), so weights are transposed.

        Examples:
            >>> import mha
            >>> module = mha.MultiHeadAttention(8, 2, head_dim=3)
            >>> parameters = mha.reference.Parameters.from_module(module)
            >>> parameters.w_q.shape, parameters.w_o.shape  # (E, H*D), (H*D, E)
            ((8, 6), (6, 8))
        """
        maps = (module.q_proj, module.k_proj, module.v_proj, module.out_proj)
        weights = [m.weight.detach().cpu().double().numpy().T.copy() for m in maps]
        biases = [0.0 if m.bias is None else m.bias.detach().cpu().double().numpy() for m in maps]
        return cls(*weights, *biases)


def split_heads(x: np.ndarray, num_heads: int) -> np.ndarray:
    """(B, T, H*D) -> (B, H, T, D): head h owns the features h*D to (h+1)*D - 1.

    Examples:
        >>> import numpy as np
        >>> from mha import reference
        >>> reference.split_heads(np.arange(4).reshape(1, 1, 4), 2).tolist()
        [[[[0, 1]], [[2, 3]]]]
    """
    batch, length, width = x.shape
    x = x.reshape(batch, length, num_heads, width // num_heads)  # (B, T, H, D)
    return x.transpose(0, 2, 1, 3)  # (B, H, T, D)


def merge_heads(x: np.ndarray) -> np.ndarray:
    """(B, H, T, D) -> (B, T, H*D): the inverse of ``split_heads``.

    Examples:
        >>> import numpy as np
        >>> from mha import reference
        >>> x = np.arange(48).reshape(2, 3, 8)  # (B, T, H*D)
        >>> bool((reference.merge_heads(reference.split_heads(x, 2)) == x).all())
        True
    """
    batch, num_heads, length, width = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, length, num_heads * width)  # (B, T, H*D)


def multi_head_attention(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    parameters: Parameters,
    num_heads: int,
    attn_mask: np.ndarray | None = None,
    is_causal: bool = False,
    *,
    num_kv_heads: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    key_mask: np.ndarray | None = None,
    window: tuple[int | None, int | None] | None = None,
    q_offset: int | np.ndarray = 0,
    return_weights: bool = False,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Project, split into heads, attend, join the heads, apply W_O.

    Args:
        query: (B, T, E).
        key: (B, S, E_k).
        value: (B, S, E_v).
        parameters: the four maps.
        num_heads: H, the number of heads.
        num_kv_heads: H_kv, the heads that w_k and w_v make; H by default.
        scale, softcap: see ``attention``.
        attn_mask, is_causal, key_mask, window, q_offset: see ``bias``; attn_mask broadcasts to
            (B, H, T, S).
    Returns: output (B, T, E), and weights (B, H, T, S) if asked for.
    Source: Vaswani et al. (2017), section 3.2.2.

    Examples:
        >>> import numpy as np
        >>> import torch
        >>> import mha
        >>> module, x = mha.MultiHeadAttention(8, 2).double(), torch.randn(2, 3, 8).double()
        >>> parameters = mha.reference.Parameters.from_module(module)
        >>> output = mha.reference.multi_head_attention(x, x, x, parameters, num_heads=2)
        >>> np.allclose(output, module(x).detach())
        True
    """
    heads = num_heads, num_heads if num_kv_heads is None else num_kv_heads
    q, k, v = _project(query, key, value, parameters, heads, key_mask)
    options = {"scale": scale, "enable_gqa": True, "softcap": softcap}
    masks = {"key_mask": key_mask, "window": window, "q_offset": q_offset}
    joined, weights = attention(
        q, k, v, attn_mask, is_causal, **options, **masks, return_weights=True
    )
    output = merge_heads(joined) @ parameters.w_o + parameters.b_o  # (B, T, E)
    return (output, weights) if return_weights else output


def _project(query, key, value, parameters, heads, key_mask):
    """Queries (B, H, T, D), keys (B, H_kv, S, D) and values (B, H_kv, S, D) of every head."""
    query, key, value = _inputs(query, key, value, key_mask)
    p, (num_heads, num_kv_heads) = parameters, heads
    return (
        split_heads(query @ p.w_q + p.b_q, num_heads),
        split_heads(key @ p.w_k + p.b_k, num_kv_heads),
        split_heads(value @ p.w_v + p.b_v, num_kv_heads),
    )


def _inputs(query, key, value, key_mask):
    """float64 copies, with the rows that ``key_mask`` excludes set to zero."""
    query, key, value = (np.asarray(x, dtype=np.float64) for x in (query, key, value))
    if key_mask is not None:
        real = np.asarray(key_mask)[..., None]
        key, value = np.where(real, key, 0.0), np.where(real, value, 0.0)
    return query, key, value


def multi_head_attention_backward(
    grad_output: np.ndarray,
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    parameters: Parameters,
    num_heads: int,
    attn_mask: np.ndarray | None = None,
    is_causal: bool = False,
    *,
    num_kv_heads: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    key_mask: np.ndarray | None = None,
    window: tuple[int | None, int | None] | None = None,
    q_offset: int | np.ndarray = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Parameters]:
    """Gradients of the three inputs and of the eight parameters.

    Args:
        grad_output: (B, T, E), gradient of the loss with respect to the output.
        the rest: as in ``multi_head_attention``.
    Returns: gradients of query (B, T, E), key (B, S, E_k), value (B, S, E_v), and ``Parameters``
        that hold the gradients of the weights and biases.

    Examples:
        >>> import numpy as np
        >>> from mha import reference
        >>> x, memory = np.ones((2, 3, 8)), np.ones((2, 5, 8))  # (B, T, E), (B, S, E)
        >>> p = reference.Parameters(*np.ones((4, 8, 8)))
        >>> *inputs, grads = reference.multi_head_attention_backward(x, x, memory, memory, p, 2)
        >>> [grad.shape for grad in inputs], grads.w_o.shape
        ([(2, 3, 8), (2, 5, 8), (2, 5, 8)], (8, 8))
    """
    p, heads = parameters, (num_heads, num_heads if num_kv_heads is None else num_kv_heads)
    q, k, v = _project(query, key, value, p, heads, key_mask)
    options = {"scale": scale, "enable_gqa": True, "softcap": softcap}
    masks = {"key_mask": key_mask, "window": window, "q_offset": q_offset}
    query, key, value = _inputs(query, key, value, key_mask)
    joined = merge_heads(attention(q, k, v, attn_mask, is_causal, **options, **masks))
    grad_joined = split_heads(grad_output @ p.w_o.T, num_heads)  # (B, H, T, D)
    grads = attention_backward(grad_joined, q, k, v, attn_mask, is_causal, **options, **masks)
    dq, dk, dv = (merge_heads(g) for g in grads)  # (B, T, H*D) and twice (B, S, H_kv*D)
    pairs = ((query, dq), (key, dk), (value, dv), (joined, grad_output))
    grad_weights = [np.einsum("bti,bto->io", x, g) for x, g in pairs]
    grad_biases = [g.sum(axis=(0, 1)) for _, g in pairs]
    grad_inputs = dq @ p.w_q.T, dk @ p.w_k.T, dv @ p.w_v.T
    return *grad_inputs, Parameters(*grad_weights, *grad_biases)
