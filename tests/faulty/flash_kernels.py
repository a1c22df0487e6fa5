"""Mistakes of ``mha.flash.kernels``: name -> what is wrong, which passage becomes which, what tells."""

from faulty.flash import Mistake

MASKS = "masks_hide_what_they_hide"
ORDER = "windows_and_offsets_are_obeyed"
OUTPUT = "the_output_is_the_definitions"
GRAD_QUERY = "the_gradient_of_the_query_is_the_definitions"
GRAD_KEY = "the_gradient_of_the_key_is_the_definitions"
GRAD_VALUE = "the_gradient_of_the_value_is_the_definitions"
GROUPS = "grouped_heads_read_their_key_head_and_sum_its_gradients"
SOFTCAP = "the_softcap_bends_the_scores_and_their_gradients"
LOOSE = "a_loose_softcap_bends_nothing"
BIAS = "a_bias_by_distance_is_added"
DEAD = "a_row_that_sees_nothing_is_zero_and_harmless"
KEPT = "what_is_kept_of_a_row_is_its_top_and_total"
LOWEST = "rows_of_the_lowest_number_see_all_alike"
HUGE = "scores_may_be_huge"
PADDING = "what_padding_holds_goes_nowhere"
HALF = "half_types_are_summed_in_float32"
TOUCHED = "nothing_but_the_operands_is_touched"
VISITED = "tiles_that_nobody_sees_are_not_visited"
WALK = "a_walk_finds_the_tiles_that_are_seen_and_those_seen_whole"
BOUNDS = "bounds_and_offsets_may_be_of_any_size"
ADDRESSES = "addresses_have_64_bits"

KEY_TILE = "k = load_tile(key, k_strides, start, S, keep, D, BLOCK_K, BLOCK_D, EDGE)\n"
FORWARD = KEY_TILE + "            scores, _ = score_tile("
STEPS = "for n in range((t1 - t0) + (t3 - t2) if EDGE else t2 - t1):\n"
QUERY_SLOPE = """\
            if softcap is not None:
                ds *= 1.0 - bent * bent
            dq ="""
KEY_SLOPE = """\
                if softcap is not None:
                    ds *= 1.0 - bent * bent
                dk ="""
KERNELS = {
    "last-tile-dropped": Mistake(
        "A last tile that is not full is left out.",
        "    d = tl.cdiv(size, BLOCK)\n",
        "    d = size // BLOCK\n",
        OUTPUT,
    ),
    "tiles-one-late": Mistake(
        "Whole tiles are counted from 1.",
        "tile = b + n\n",
        "tile = b + n + 1\n",
        OUTPUT,
    ),
    "left-edge-twice": Mistake(
        "The tiles on the right edge are taken to follow those on the left.",
        "tl.where(n < b - a, a + n, c + n - (b - a))",
        "a + n",
        ORDER,
    ),
    "edges-skipped": Mistake(
        "The tiles on an edge are never visited.",
        STEPS + "            start = step_of(n, t0, t1, t2, EDGE) * BLOCK_K\n"
        "            j = start + tl.arange(0, BLOCK_K)\n"
        "            keep = key_mask_tile(key_mask, key_mask_strides, b, j, S)\n"
        "            " + FORWARD,
        "for n in range(0 if EDGE else t2 - t1):\n"
        "            start = step_of(n, t0, t1, t2, EDGE) * BLOCK_K\n"
        "            j = start + tl.arange(0, BLOCK_K)\n"
        "            keep = key_mask_tile(key_mask, key_mask_strides, b, j, S)\n"
        "            " + FORWARD,
        OUTPUT,
    ),
    "all-tiles-visited": Mistake(
        "Tiles beyond the right bound are visited: right numbers, twice the time.",
        "        d = tl.maximum(tl.cdiv(tl.minimum(tl.maximum(last + high + 1, 0), size), BLOCK), a)\n",
        "",
        VISITED,
    ),
    "nothing-whole": Mistake(
        "Under a left bound no tile counts as whole: right numbers, more comparisons.",
        "        b = tl.cdiv(tl.maximum(last + low, 0), BLOCK)\n",
        "        b = d\n",
        WALK,
    ),
    "whole-by-the-last-row": Mistake(
        "A tile counts as whole if the last row sees it whole, not the first.",
        "c = tl.minimum(tl.maximum(first + high + 1, 0), size) // BLOCK",
        "c = tl.minimum(tl.maximum(last + high + 1, 0), size) // BLOCK",
        ORDER,
    ),
    "causal-bound-of-the-first-row": Mistake(
        "The last tile of a block is the last that its first row sees.",
        "tl.maximum(last + high + 1, 0)",
        "tl.maximum(first + high + 1, 0)",
        ORDER,
    ),
    "left-bound-of-the-last-row": Mistake(
        "The first tile of a block is the first that its last row sees.",
        "a = tl.minimum(tl.maximum(first + low, 0) // BLOCK, d)",
        "a = tl.minimum(tl.maximum(last + low, 0) // BLOCK, d)",
        WALK,
    ),
    "whole-by-the-first-row": Mistake(
        "On the left a tile counts as whole if the first row sees it whole.",
        "b = tl.cdiv(tl.maximum(last + low, 0), BLOCK)",
        "b = tl.cdiv(tl.maximum(first + low, 0), BLOCK)",
        WALK,
    ),
    "diagonal-hidden": Mistake(
        "Causal is strict: no query sees the key at its own place.",
        "seen = seen & (j - i <= high)",
        "seen = seen & (j - i < high)",
        ORDER,
    ),
    "window-one-too-wide": Mistake(
        "A window reaches one key further back.",
        "seen = seen & (j - i >= low)",
        "seen = seen & (j - i >= low - 1)",
        ORDER,
    ),
    "sides-not-swapped": Mistake(
        "Seen from the keys, left and right stay what they are for the queries.",
        "    low_i = None if high is None else -high\n    high_i = None if low is None else -low\n",
        "    low_i = low\n    high_i = high\n",
        ORDER,
    ),
    "offset-of-the-first-example": Mistake(
        "All examples have the offset of the first.",
        "shift = tl.load(offsets + b)",
        "shift = tl.load(offsets)",
        ORDER,
    ),
    "offset-forgotten": Mistake(
        "The bounds are counted without q_offset.",
        "    shift = tl.cast(offset, tl.int64)\n",
        "    shift = tl.cast(0, tl.int64)\n",
        ORDER,
    ),
    "bounds-of-32-bits": Mistake(
        "Bounds are not cut before their last 32 bits are taken.",
        "tl.minimum(tl.maximum(x, -T), S).to(tl.int32)",
        "x.to(tl.int32)",
        BOUNDS,
    ),
    "rows-of-32-bits": Mistake(
        "Where a tile begins is computed in 32 bits.",
        "    start = base + first.to(tl.int64) * strides[2]  # 64 bits: beyond 2**31 numbers too\n"
        "    place = start + r.to(tl.int64)[:, None] * strides[2] + w[None, :] * strides[3]\n"
        "    if EDGE",
        "    start = base + first * strides[2]\n"
        "    place = start + r[:, None] * strides[2] + w[None, :] * strides[3]\n"
        "    if EDGE",
        ADDRESSES,
    ),
    "mask-of-32-bits": Mistake(
        "Where a column of the mask begins is computed in 32 bits.",
        "j.to(tl.int64) * mask_strides[3]",
        "j * mask_strides[3]",
        ADDRESSES,
    ),
    "mask-read-beyond": Mistake(
        "The mask of the last keys is read beyond its end.",
        "mask=(i < T) & (j < S), other=0)",
        "mask=(i < T) & (j >= 0), other=0)",
        TOUCHED,
    ),
    "rows-read-beyond": Mistake(
        "The last tile is read beyond the last row.",
        "        if EDGE:\n            inside = inside & (first + r < size)[:, None]\n",
        "",
        TOUCHED,
    ),
    "columns-read-beyond": Mistake(
        "Heads that fill no power of two are read beyond their width.",
        "        inside = (w < WIDTH)[None, :]\n        if EDGE",
        "        inside = (w < COLUMNS)[None, :]\n        if EDGE",
        TOUCHED,
    ),
    "rows-written-beyond": Mistake(
        "The last tile is written beyond the last row.",
        "    inside = (first + r < size)[:, None] & (w < WIDTH)[None, :]\n    tl.store",
        "    inside = (first + r >= 0)[:, None] & (w < WIDTH)[None, :]\n    tl.store",
        TOUCHED,
    ),
    "total-written-beyond": Mistake(
        "The totals of rows beyond the last are written over the next head's.",
        "tl.store(total + row, l, mask=i < T)",
        "tl.store(total + row, l)",
        TOUCHED,
    ),
    "keys-beyond-counted": Mistake(
        "The zeros behind the last key count as keys.",
        "        seen = (i < T) & (j < S)\n",
        "        seen = (i < T) & (j >= 0)\n",
        OUTPUT,
    ),
    "output-not-rescaled": Mistake(
        "What was summed of the values is not rescaled when a greater score comes.",
        "v, acc * rescale[:, None], UPCAST",
        "v, acc, UPCAST",
        OUTPUT,
    ),
    "total-not-rescaled": Mistake(
        "The total is not rescaled when a greater score comes.",
        "l = l * rescale + tl.sum(p, 1)",
        "l = l + tl.sum(p, 1)",
        OUTPUT,
    ),
    "stale-maximum": Mistake(
        "The greatest score so far is not kept for the next tile.",
        "            m = m_new\n",
        "",
        OUTPUT,
    ),
    "maximum-of-this-tile": Mistake(
        "The maximum is that of the tile at hand, without those before.",
        "m_new = tl.maximum(m, tl.max(scores, 1))",
        "m_new = tl.max(scores, 1)",
        HUGE,
    ),
    "no-maximum": Mistake(
        "No maximum is taken off the scores.",
        "m_new = tl.maximum(m, tl.max(scores, 1))",
        "m_new = tl.zeros_like(m)",
        HUGE,
    ),
    "minus-infinity-less-itself": Mistake(
        "Where a row has seen nothing yet, -inf is taken off -inf.",
        'tl.where(m_new == float("-inf"), 0.0, m_new)',
        "m_new",
        DEAD,
    ),
    "dead-row-divided-by-zero": Mistake(
        "The total of a row that sees nothing stays 0.",
        "    l = tl.where(l == 0.0, 1.0, l)",
        "    l = l",
        DEAD,
    ),
    "dead-row-keeps-minus-infinity": Mistake(
        "The top of a row that sees nothing stays -inf, for the backward pass to subtract.",
        'tl.where(m == float("-inf"), 0.0, m)',
        "m",
        DEAD,
    ),
    "epsilon-for-dead-rows": Mistake(
        "All totals are raised a little, so that none is 0.",
        "    l = tl.where(l == 0.0, 1.0, l)",
        "    l = l + 1e-6",
        KEPT,
    ),
    "natural-scores-by-powers-of-2": Mistake(
        "Under a float mask scores are natural, and their exponentials are not.",
        "return tl.exp(x) if NATURAL else tl.exp2(x)",
        "return tl.exp2(x)",
        MASKS,
    ),
    "all-scores-in-units-of-log-2": Mistake(
        "A float mask is multiplied by log2(e), which takes its lowest number to -inf.",
        "            scores += entry.to(tl.float32)\n",
        "            scores = (scores / 1.44 + entry.to(tl.float32)) * 1.44\n",
        LOWEST,
    ),
    "mask-inverted": Mistake(
        "A bool mask hides what it should show.",
        "tl.where(entry != 0, scores,",
        "tl.where(entry == 0, scores,",
        MASKS,
    ),
    "mask-of-the-first-head": Mistake(
        "All heads have the mask of the first.",
        "head_of(mask, mask_strides, b, h)",
        "head_of(mask, mask_strides, b, h * 0)",
        MASKS,
    ),
    "padding-seen": Mistake(
        "What the key mask excludes is seen, as zeros.",
        '        scores = tl.where(real, scores, float("-inf"))\n',
        "        scores = tl.where(real, scores, scores)\n",
        MASKS,
    ),
    "padding-read": Mistake(
        "Keys and values are read whatever the key mask says of them.",
        "            inside = inside & keep[:, None]\n",
        "            inside = inside & (r >= 0)[:, None]\n",
        PADDING,
    ),
    "bias-without-offset": Mistake(
        "Distances are counted without q_offset.",
        "tl.abs(j - i - shift)",
        "tl.abs(j - i)",
        BIAS,
    ),
    "key-without-scale": Mistake(
        "The gradient of the keys lacks the scale.",
        "dk * factor",
        "dk",
        GRAD_KEY,
    ),
    "key-with-the-scale-of-log-2": Mistake(
        "The gradient of the keys has the scale of the scores, log2(e) in it.",
        "dk * factor",
        "dk * scale",
        GRAD_KEY,
    ),
    "query-without-scale": Mistake(
        "The gradient of the queries lacks the scale.",
        "dq * (factor / l)[:, None]",
        "dq * (1.0 / l)[:, None]",
        GRAD_QUERY,
    ),
    "query-without-total": Mistake(
        "The gradient of the queries is not divided by the total.",
        "dq * (factor / l)[:, None]",
        "dq * factor",
        GRAD_QUERY,
    ),
    "delta-forgotten": Mistake(
        "The sum of P dP along a row is not taken off dP.",
        "ds = p * (product(do, v, UPCAST) - d[:, None])",
        "ds = p * product(do, v, UPCAST)",
        GRAD_QUERY,
    ),
    "delta-forgotten-by-the-keys": Mistake(
        "The same for the gradient of the keys.",
        "ds = p * (product(v, do, UPCAST) - d[None, :])",
        "ds = p * product(v, do, UPCAST)",
        GRAD_KEY,
    ),
    "weights-without-total": Mistake(
        "The weights that the values' gradient is summed with are not divided by their total.",
        "power(scores - m[None, :], NATURAL) * share[None, :]",
        "power(scores - m[None, :], NATURAL)",
        GRAD_VALUE,
    ),
    "group-of-another-key-head": Mistake(
        "The group of a key head is every H_kv-th query head.",
        "h = h_kv * GROUP + g",
        "h = g * (H // GROUP) + h_kv",
        GROUPS,
    ),
    "group-not-summed": Mistake(
        "A key's gradient is that of the first query head of its group.",
        "for g in range(GROUP):",
        "for g in range(1):",
        GROUPS,
    ),
    "query-slope-forgotten": Mistake(
        "The gradient of the queries passes the softcap as if it were not there.",
        QUERY_SLOPE,
        "            dq =",
        SOFTCAP,
    ),
    "key-slope-forgotten": Mistake(
        "The gradient of the keys passes the softcap as if it were not there.",
        KEY_SLOPE,
        "                dk =",
        SOFTCAP,
    ),
    "tanh-by-a-difference": Mistake(
        "Near 0 tanh is a difference of two numbers near 1, which has few digits.",
        "tl.where(y < 0.0625, near, ",
        "tl.where(y < 0.0, near, ",
        LOOSE,
    ),
    "output-summed-in-half": Mistake(
        "The output so far is rounded to the values' type after each tile.",
        "            m = m_new\n",
        "            acc = acc.to(v.dtype).to(tl.float32)\n            m = m_new\n",
        HALF,
    ),
    "interpreter-trusted": Mistake(
        "Half types are multiplied as they are in the interpreter, which cannot.",
        '"UPCAST": INTERPRETED and query.dtype != torch.float32,',
        '"UPCAST": False,',
        HALF,
    ),
}
