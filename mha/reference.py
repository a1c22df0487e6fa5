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
    """
    inner = (weights * grad_weights).sum(axis=axis, keepdims=True)
    return weights * (grad_weights - inner)


def bias(
    shape: tuple[int, ...],
    attn_mask: np.ndarray | None = None,
    is_causal: bool = False,
    *,
    key_mask: np.ndarray | None = None,
    q_offset: int = 0,
) -> np.ndarray:
    """What is added to the scores: 0 where a query may look, -inf where not, or a float mask.

    Args:
        shape: (..., H, T, S), the shape of the scores.
        attn_mask: bool (True = may attend) or float (added), broadcasts to ``shape``.
        is_causal: query i sees key j only if j <= i + q_offset.
        key_mask: bool (..., S), True = a real key; its leading axes are those before H.
        q_offset: position of the first query among the keys.
    Returns: float64, broadcastable to ``shape``; masks compose by AND.
    Errors: TypeError for an integer attn_mask.
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
    if is_causal:
        position = np.arange(length)[:, None] + q_offset  # (T, 1)
        added = added + np.where(np.arange(size)[None, :] <= position, 0.0, -np.inf)
    return added


def _operands(query, key, value, key_mask):
    """float64 copies, with keys and values that ``key_mask`` excludes set to zero."""
    query, key, value = (np.asarray(x, dtype=np.float64) for x in (query, key, value))
    if key_mask is not None:
        real = np.asarray(key_mask)[..., None, :, None]
        key, value = np.where(real, key, 0.0), np.where(real, value, 0.0)
    return query, key, value


def attention(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    attn_mask: np.ndarray | None = None,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    key_mask: np.ndarray | None = None,
    q_offset: int = 0,
    return_weights: bool = False,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """softmax(scale Q K^T + mask) V, for every head at once.

    Args:
        query: (..., H, T, D).
        key: (..., H, S, D).
        value: (..., H, S, D_v).
        attn_mask, is_causal, key_mask, q_offset: see ``bias``.
        scale: factor of the scores, 1/sqrt(D) by default.
        return_weights: also return the weights.
    Returns: output (..., H, T, D_v), float64, and weights (..., H, T, S) if asked for.
        A query that may see nothing gets zeros in both.
    Source: Vaswani et al. (2017), equation 1.
    """
    query, key, value = _operands(query, key, value, key_mask)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = scale * (query @ np.swapaxes(key, -1, -2))  # (..., H, T, S)
    added = bias(scores.shape, attn_mask, is_causal, key_mask=key_mask, q_offset=q_offset)
    weights = softmax(scores + added)
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
    key_mask: np.ndarray | None = None,
    q_offset: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of query, key and value, given the gradient of the output.

    With P = softmax(S), S = scale Q K^T + mask, O = P V:
    dV = P^T dO,  dP = dO V^T,  dS = P * (dP - rowsum(P * dP)),  dQ = scale dS K,
    dK = scale dS^T Q.

    Args:
        grad_output: (..., H, T, D_v), gradient of the loss with respect to the output.
        the rest: as in ``attention``; query, key and value have equal leading axes.
    Returns: gradients of query (..., H, T, D), key (..., H, S, D), value (..., H, S, D_v).
    """
    masks = {"key_mask": key_mask, "q_offset": q_offset}
    _, weights = attention(
        query, key, value, attn_mask, is_causal, scale=scale, return_weights=True, **masks
    )
    query, key, value = _operands(query, key, value, key_mask)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    grad_value = np.swapaxes(weights, -1, -2) @ grad_output  # (..., H, S, D_v)
    grad_weights = grad_output @ np.swapaxes(value, -1, -2)  # (..., H, T, S)
    grad_scores = softmax_backward(weights, grad_weights)  # (..., H, T, S)
    grad_query = scale * (grad_scores @ key)  # (..., H, T, D)
    grad_key = scale * (np.swapaxes(grad_scores, -1, -2) @ query)  # (..., H, S, D)
    return grad_query, grad_key, grad_value


class Parameters(NamedTuple):
    """The four maps of multi-head attention, row-vector convention: ``x @ w + b``.

    w_q (E, H*D), w_k (E_k, H*D), w_v (E_v, H*D), w_o (H*D, E); a bias has the width of its
    map's result, or is 0.0 where there is none. Gradients come in the same form.
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
        """
        maps = (module.q_proj, module.k_proj, module.v_proj, module.out_proj)
        weights = [m.weight.detach().cpu().double().numpy().T.copy() for m in maps]
        biases = [0.0 if m.bias is None else m.bias.detach().cpu().double().numpy() for m in maps]
        return cls(*weights, *biases)


def split_heads(x: np.ndarray, num_heads: int) -> np.ndarray:
    """(B, T, H*D) -> (B, H, T, D): head h owns the features h*D to (h+1)*D - 1."""
    batch, length, width = x.shape
    x = x.reshape(batch, length, num_heads, width // num_heads)  # (B, T, H, D)
    return x.transpose(0, 2, 1, 3)  # (B, H, T, D)


def merge_heads(x: np.ndarray) -> np.ndarray:
    """(B, H, T, D) -> (B, T, H*D): the inverse of ``split_heads``."""
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
    scale: float | None = None,
    key_mask: np.ndarray | None = None,
    return_weights: bool = False,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Project, split into heads, attend, join the heads, apply W_O.

    Args:
        query: (B, T, E).
        key: (B, S, E_k).
        value: (B, S, E_v).
        parameters: the four maps.
        num_heads: H.
        attn_mask, is_causal, key_mask: see ``bias``; attn_mask broadcasts to (B, H, T, S).
    Returns: output (B, T, E), and weights (B, H, T, S) if asked for.
    Source: Vaswani et al. (2017), section 3.2.2.
    """
    q, k, v = _project(query, key, value, parameters, num_heads, key_mask)
    joined, weights = attention(
        q, k, v, attn_mask, is_causal, scale=scale, key_mask=key_mask, return_weights=True
    )
    output = merge_heads(joined) @ parameters.w_o + parameters.b_o  # (B, T, E)
    return (output, weights) if return_weights else output


def _project(query, key, value, parameters, num_heads, key_mask):
    """Queries (B, H, T, D), keys (B, H, S, D) and values (B, H, S, D) of every head."""
    query, key, value = _inputs(query, key, value, key_mask)
    p = parameters
    return (
        split_heads(query @ p.w_q + p.b_q, num_heads),
        split_heads(key @ p.w_k + p.b_k, num_heads),
        split_heads(value @ p.w_v + p.b_v, num_heads),
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
    scale: float | None = None,
    key_mask: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Parameters]:
    """Gradients of the three inputs and of the eight parameters.

    Args:
        grad_output: (B, T, E), gradient of the loss with respect to the output.
        the rest: as in ``multi_head_attention``.
    Returns: gradients of query (B, T, E), key (B, S, E_k), value (B, S, E_v), and ``Parameters``
        that hold the gradients of the weights and biases.
    """
    p, masks = parameters, {"scale": scale, "key_mask": key_mask}
    q, k, v = _project(query, key, value, p, num_heads, key_mask)
    query, key, value = _inputs(query, key, value, key_mask)
    joined = merge_heads(attention(q, k, v, attn_mask, is_causal, **masks))  # (B, T, H*D)
    grad_joined = split_heads(grad_output @ p.w_o.T, num_heads)  # (B, H, T, D)
    grads = attention_backward(grad_joined, q, k, v, attn_mask, is_causal, **masks)
    dq, dk, dv = (merge_heads(g) for g in grads)  # (B, T, H*D) and twice (B, S, H*D)
    pairs = ((query, dq), (key, dk), (value, dv), (joined, grad_output))
    grad_weights = [np.einsum("bti,bto->io", x, g) for x, g in pairs]
    grad_biases = [g.sum(axis=(0, 1)) for _, g in pairs]
    grad_inputs = dq @ p.w_q.T, dk @ p.w_k.T, dv @ p.w_v.T
    return *grad_inputs, Parameters(*grad_weights, *grad_biases)
