"""The online softmax, in NumPy float64: attention that meets its keys one after the other.

softmax(s) V needs two sums over all keys, of exp(s - m) and of exp(s - m) v, where m is the
greatest score, which is known only at the end. So take the greatest so far. When a greater one
comes, multiply what was summed by exp(m_old - m_new), and go on.

Axes: H heads, T queries, S keys, n keys of one block, D width of one head, D_v of one value.
Source: Milakov and Gimelshein (2018), algorithm 3; for attention Dao et al. (2022), section 3.1.
"""

from typing import NamedTuple

import numpy as np

from mha import reference


class State(NamedTuple):
    """What is kept of the keys that one query has met, at first of none.

    maximum: their greatest score; total: the sum of exp(score - maximum); output (D_v,): the sum of
    exp(score - maximum) times the value.

    Examples:
        >>> import numpy as np
        >>> from mha.flash.rows import State, step
        >>> state = step(State(), np.zeros(2), np.array([[1.0], [3.0]]))  # two keys with score 0
        >>> float(state.maximum), float(state.total), state.output.tolist(), state.average.tolist()
        (0.0, 2.0, [4.0], [2.0])
    """

    maximum: float = -np.inf
    total: float = 0.0
    output: np.ndarray | float = 0.0

    @property
    def average(self) -> np.ndarray | float:
        """Attention to the keys met so far, (D_v,); 0 if none of them was to be seen."""
        return self.output / self.total if self.total > 0 else 0.0 * self.output


def step(state: State, scores: np.ndarray, values: np.ndarray) -> State:
    """The state after one more block of n keys, at least one.

    Args:
        state: of the keys met before.
        scores: (n,), -inf where hidden.
        values: (n, D_v).

    Examples:
        >>> import numpy as np
        >>> from mha.flash.rows import State, step
        >>> state = step(State(), np.array([0.0]), np.array([[1.0]]))
        >>> state = step(state, np.log([3.0]), np.array([[5.0]]))  # three times the weight
        >>> state.average.round(4).tolist()
        [4.0]
    """
    maximum = max(state.maximum, scores.max())
    safe = 0.0 if maximum == -np.inf else maximum  # nothing to be seen yet
    weights, rescale = np.exp(scores - safe), np.exp(state.maximum - safe)  # (n,), one number
    total = rescale * state.total + weights.sum()
    output = rescale * state.output + weights @ values  # (D_v,)
    return State(maximum, total, output)


def merge(one: State, other: State) -> State:
    """The state after the keys of both; so keys may be split among tiles, blocks or machines.

    Examples:
        >>> import numpy as np
        >>> from mha.flash.rows import State, merge, step
        >>> one = step(State(), np.zeros(2), np.array([[1.0], [3.0]]))
        >>> other = step(State(), np.zeros(1), np.array([[8.0]]))
        >>> one.average.tolist(), other.average.tolist(), merge(one, other).average.tolist()
        ([2.0], [8.0], [4.0])
    """
    maximum = max(one.maximum, other.maximum)
    safe = 0.0 if maximum == -np.inf else maximum
    first, second = np.exp(one.maximum - safe), np.exp(other.maximum - safe)
    total = first * one.total + second * other.total
    return State(maximum, total, first * one.output + second * other.output)


def online_softmax(scores: np.ndarray, values: np.ndarray, *, block: int = 1) -> list[State]:
    """The states of one query: before its first key, and after each block of keys.

    Args:
        scores: (S,), -inf where hidden.
        values: (S, D_v).
        block: keys to a step.
    Returns: 1 + ceil(S / block) states; ``average`` of the last is softmax(scores) @ values.

    Examples:
        >>> import numpy as np
        >>> from mha.flash.rows import online_softmax
        >>> states = online_softmax(np.zeros(3), np.array([[0.0], [1.0], [2.0]]))
        >>> [state.average.tolist() for state in states]  # before the first key, and after each
        [[0.0], [0.0], [0.5], [1.0]]
    """
    states = [State(output=np.zeros(np.shape(values)[1]))]
    for first in range(0, len(scores), block):
        tile = slice(first, first + block)
        states.append(step(states[-1], scores[tile], values[tile]))
    return states


def attention_by_rows(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    *,
    attn_mask: np.ndarray | None = None,
    is_causal: bool = False,
    key_mask: np.ndarray | None = None,
    window: tuple[int | None, int | None] | None = None,
    q_offset: int | np.ndarray = 0,
    scale: float | None = None,
    softcap: float | None = None,
) -> np.ndarray:
    """softmax(scale Q K^T + mask) V, one query at a time, and one key at a time.

    Args:
        query: (..., H, T, D).
        key: (..., H_kv, S, D); H is a multiple of H_kv, query head h reads key head
            h // (H // H_kv).
        value: (..., H_kv, S, D_v).
        attn_mask, is_causal, key_mask, window, q_offset, scale, softcap: as in
            ``mha.reference.attention``.
    Returns: (..., H, T, D_v), float64; zeros for a query that may see nothing.
    Errors: as of ``mha.reference.attention``.
    Source: as of this module.

    Examples:
        >>> import numpy as np
        >>> import mha
        >>> query = np.zeros((2, 3, 4))  # (H, T, D): all scores are 0
        >>> key, value = np.ones((1, 5, 4)), np.arange(5.0).reshape(1, 5, 1)  # (H_kv, S, D or D_v)
        >>> mha.flash.attention_by_rows(query, key, value, is_causal=True)[0].round(4).tolist()
        [[0.0], [0.5], [1.0]]
    """
    query, key, value = reference._operands(query, key, value, key_mask, enable_gqa=True)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    shape = *query.shape[:-1], key.shape[-2]  # (..., H, T, S)
    order = {"window": window, "q_offset": q_offset}
    mask = reference.bias(shape, attn_mask, is_causal, key_mask=key_mask, **order)
    mask = np.broadcast_to(mask, shape)
    output = np.empty((*query.shape[:-1], value.shape[-1]))  # (..., H, T, D_v)
    for row in np.ndindex(query.shape[:-1]):  # (..., h, i)
        scores = reference.cap(scale * (key[row[:-1]] @ query[row]), softcap) + mask[row]  # (S,)
        output[row] = online_softmax(scores, value[row[:-1]])[-1].average
    return output
