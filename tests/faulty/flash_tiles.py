"""Mistakes of ``mha.flash.tiles``: name -> what is wrong, which passage becomes which, what tells."""

from faulty.flash import Mistake

MASKS = "masks_hide_what_they_hide"
ORDER = "windows_and_offsets_are_obeyed"
OUTPUT = "the_output_is_the_definitions"
GRAD_QUERY = "the_gradient_of_the_query_is_the_definitions"
GRAD_KEY = "the_gradient_of_the_key_is_the_definitions"
GRAD_VALUE = "the_gradient_of_the_value_is_the_definitions"
GROUPS = "grouped_heads_read_their_key_head_and_sum_its_gradients"
SOFTCAP = "the_softcap_bends_the_scores_and_their_gradients"
BIAS = "a_bias_by_distance_is_added"
DEAD = "a_row_that_sees_nothing_is_zero_and_harmless"
KEPT = "what_is_kept_of_a_row_is_its_top_and_total"
LOWEST = "rows_of_the_lowest_number_see_all_alike"
HUGE = "scores_may_be_huge"
PADDING = "what_padding_holds_goes_nowhere"
OPERANDS = "operands_stay_as_they_were"
LAYOUT = "the_layout_in_memory_does_not_matter"
HALF = "half_types_are_summed_in_float32"
MEMORY = "nothing_of_all_queries_and_keys_is_made"
WHOLE = "keys_and_values_are_not_copied_whole"
SKIPPED = "tiles_that_nobody_sees_are_not_visited"

FORWARD_TILES = """\
        summed = q.new_zeros(*q.shape[:2], value.shape[-1])  # (B*H_kv, G*t, D_v)
        for columns in _blocks(rules.visible(rows, key.shape[2]), block_k):
"""
BACKWARD_TILES = """\
        dq = torch.zeros_like(q)
        for columns in _blocks(rules.visible(rows, key.shape[2]), block_k):
"""
SLOPE = "            slope = None if softcap is None else 1.0 - (scores / softcap).square()\n"
MASK = "            _mask(scores, query, key, rules, rows, columns)\n"
WEIGHTS = "            weights = scores.sub_(m).exp_().div_(z)\n"
SUM_KEYS = "grad_key[:, columns].baddbmm_(grad_scores.mT, q)"

TILES = {
    "tiles-overlap": Mistake(
        "Each tile holds one key too many, which the next tile holds too.",
        "min(start + size, where.stop)",
        "min(start + size + 1, where.stop)",
        OUTPUT,
    ),
    "tiles-leave-gaps": Mistake(
        "The next tile starts one key too late.",
        "range(where.start, where.stop, size)",
        "range(where.start, where.stop, size + 1)",
        OUTPUT,
    ),
    "last-tile-dropped": Mistake(
        "A last tile that is not full is left out.",
        FORWARD_TILES,
        FORWARD_TILES + "            if columns.stop - columns.start < block_k:\n"
        "                continue\n",
        OUTPUT,
    ),
    "last-tile-dropped-backward": Mistake(
        "The backward pass leaves out a last tile that is not full.",
        BACKWARD_TILES,
        BACKWARD_TILES + "            if columns.stop - columns.start < block_k:\n"
        "                continue\n",
        GRAD_VALUE,
    ),
    "output-not-rescaled": Mistake(
        "What was summed of the values is not rescaled when a greater score comes.",
        "summed.mul_(rescale).baddbmm_",
        "summed.baddbmm_",
        OUTPUT,
    ),
    "total-not-rescaled": Mistake(
        "The total is not rescaled when a greater score comes.",
        "total.mul_(rescale).add_",
        "total.add_",
        OUTPUT,
    ),
    "maximum-of-the-first-tile": Mistake(
        "The maximum is that of the first tile in which a row sees a key, and stays.",
        "torch.maximum(top, scores.amax(-1, keepdim=True))",
        'torch.where(top == float("-inf"), scores.amax(-1, keepdim=True), top)',
        HUGE,
    ),
    "maximum-of-this-tile": Mistake(
        "The maximum is that of the tile at hand, without those before.",
        "torch.maximum(top, scores.amax(-1, keepdim=True))",
        "scores.amax(-1, keepdim=True)",
        HUGE,
    ),
    "no-maximum": Mistake(
        "No maximum is taken off the scores.",
        "torch.maximum(top, scores.amax(-1, keepdim=True))",
        "torch.zeros_like(top)",
        HUGE,
    ),
    "minus-infinity-less-itself": Mistake(
        "Where a row has seen nothing yet, -inf is taken off -inf.",
        'new_top.masked_fill(new_top == float("-inf"), 0.0)',
        "new_top",
        DEAD,
    ),
    "dead-row-divided-by-zero": Mistake(
        "The total of a row that sees nothing stays 0.",
        "total.masked_fill_(dead, 1.0)",
        "pass",
        DEAD,
    ),
    "dead-row-keeps-minus-infinity": Mistake(
        "The top of a row that sees nothing stays -inf, for the backward pass to subtract.",
        "top.masked_fill_(dead, 0.0)",
        "pass",
        DEAD,
    ),
    "epsilon-for-dead-rows": Mistake(
        "All totals are raised a little, so that none is 0.",
        "total.masked_fill_(dead, 1.0)",
        "total.add_(1e-6)",
        KEPT,
    ),
    "bound-of-the-first-row": Mistake(
        "The last tile of a block is the last that its first row sees.",
        FORWARD_TILES,
        FORWARD_TILES.replace("visible(rows,", "visible(slice(rows.start, rows.start + 1),"),
        ORDER,
    ),
    "bound-of-the-first-row-backward": Mistake(
        "The backward pass ends at the last key that the first row of a block sees.",
        BACKWARD_TILES,
        BACKWARD_TILES.replace("visible(rows,", "visible(slice(rows.start, rows.start + 1),"),
        ORDER,
    ),
    "bound-without-offset": Mistake(
        "The keys that a block sees are counted without q_offset.",
        FORWARD_TILES,
        FORWARD_TILES.replace("rules.visible", "rules._replace(q_offset=0).visible"),
        ORDER,
    ),
    "all-tiles-visited": Mistake(
        "Tiles that nobody sees are visited: right numbers, twice the time.",
        FORWARD_TILES,
        FORWARD_TILES.replace("rules.visible(rows, key.shape[2])", "slice(0, key.shape[2])"),
        SKIPPED,
    ),
    "mask-of-the-first-tile": Mistake(
        "Each tile gets the mask of the first tile of its row.",
        "rules.part(rows, columns)",
        "rules.part(rows, slice(0, columns.stop - columns.start))",
        MASKS,
    ),
    "mask-of-the-first-block": Mistake(
        "Each block gets the mask of the first queries.",
        "rules.part(rows, columns)",
        "rules.part(slice(0, rows.stop - rows.start), columns)",
        BIAS,
    ),
    "tile-unmasked": Mistake(
        "A bool mask is made and not applied.",
        'scores.masked_fill_(~mask, float("-inf"))',
        "pass",
        MASKS,
    ),
    "mask-inverted": Mistake(
        "A bool mask hides what it should show.",
        "masked_fill_(~mask,",
        "masked_fill_(mask,",
        MASKS,
    ),
    "backward-unmasked": Mistake(
        "The backward pass computes its weights without the mask.",
        SLOPE + MASK,
        SLOPE,
        MASKS,
    ),
    "key-without-scale": Mistake(
        "The gradient of the keys lacks the scale.",
        SUM_KEYS,
        SUM_KEYS.replace(", q)", ", q / scale)"),
        GRAD_KEY,
    ),
    "query-without-scale": Mistake(
        "The gradient of the queries lacks the scale.",
        "dq.mul_(scale)",
        "dq",
        GRAD_QUERY,
    ),
    "delta-forgotten": Mistake(
        "The sum of P * dP along a row is not taken off dP.",
        ".sub_(delta).mul_(weights)",
        ".mul_(weights)",
        GRAD_QUERY,
    ),
    "delta-of-the-operands": Mistake(
        "Delta is summed over all rows of a block and not over each.",
        "(do * o).sum(-1, keepdim=True)",
        "(do * o).sum((-2, -1), keepdim=True)",
        GRAD_KEY,
    ),
    "weights-without-total": Mistake(
        "The weights of the backward pass are not divided by their total.",
        WEIGHTS,
        WEIGHTS.replace(".div_(z)", ""),
        GRAD_VALUE,
    ),
    "log-sum-kept": Mistake(
        "Weights are rebuilt from top + log(total), in which a huge top drowns the logarithm.",
        WEIGHTS,
        "            weights = scores.sub_(m + z.log()).exp_()\n",
        LOWEST,
    ),
    "keys-gradient-overwritten": Mistake(
        "The gradient of a tile of keys is that of the last block of queries alone.",
        SUM_KEYS,
        "grad_key[:, columns] = torch.bmm(grad_scores.mT, q)",
        GRAD_KEY,
    ),
    "values-gradient-overwritten": Mistake(
        "The gradient of a tile of values is that of the last block of queries alone.",
        "grad_value[:, columns].baddbmm_(weights.mT, do)",
        "grad_value[:, columns] = torch.bmm(weights.mT, do)",
        GRAD_VALUE,
    ),
    "group-not-summed": Mistake(
        "A key's gradient is that of the first query head of its group.",
        SUM_KEYS,
        "first = rows.stop - rows.start\n"
        "            grad_key[:, columns].baddbmm_(grad_scores[:, :first].mT, q[:, :first])",
        GROUPS,
    ),
    "groups-dealt-like-cards": Mistake(
        "Query head h reads key head h modulo H_kv.",
        "x[:, :, rows].unflatten(1, (groups, -1))",
        "x[:, :, rows].unflatten(1, (-1, groups)).transpose(1, 2)",
        GROUPS,
    ),
    "softcap-slope-forgotten": Mistake(
        "The gradient passes the softcap as if it were not there.",
        "            if slope is not None:\n                grad_scores.mul_(slope)\n",
        "",
        SOFTCAP,
    ),
    "softcap-slope-of-masked-scores": Mistake(
        "The slope of the softcap is taken after the mask, at -inf.",
        SLOPE + MASK,
        MASK + SLOPE,
        SOFTCAP,
    ),
    "softcap-not-in-backward": Mistake(
        "The backward pass rebuilds its scores without the softcap.",
        "_capped(torch.bmm(q, k.mT), softcap)  # (B*H_kv, G*t, s)\n            slope",
        "torch.bmm(q, k.mT)\n            slope",
        SOFTCAP,
    ),
    "padding-read": Mistake(
        "Keys and values are read whatever the key mask says of them.",
        "if key_mask is not None:",
        "if False:",
        PADDING,
    ),
    "padding-blanked-in-a-copy": Mistake(
        "Padding is blanked in a copy of all keys, for each tile anew.",
        "tile = tile.masked_fill(~key_mask[:, None, columns, None], 0.0)",
        "tile = x.masked_fill(~key_mask[:, None, :, None], 0.0)[:, :, columns].to(dtype)",
        WHOLE,
    ),
    "half-sums": Mistake(
        "Half types are summed in half.",
        "torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype",
        "x.dtype",
        HALF,
    ),
    "query-scaled-in-place": Mistake(
        "The scale is multiplied into the caller's queries.",
        "        q = q * scale\n",
        "        q = q.mul_(scale)\n",
        OPERANDS,
    ),
    "layout-assumed": Mistake(
        "Rows are read as if they lay behind one another in memory.",
        "block.flatten(2, 3).flatten(0, 1).to(dtype)",
        "block.as_strided((x.shape[0] * groups, block.shape[2] * block.shape[3], x.shape[3]), "
        "(block.stride(1), block.stride(3), 1), block.storage_offset()).to(dtype)",
        LAYOUT,
    ),
    "whole-rows": Mistake(
        "A tile holds all keys that its rows see.",
        FORWARD_TILES,
        FORWARD_TILES.replace("block_k)", "key.shape[2])"),
        MEMORY,
    ),
    "mask-of-all": Mistake(
        "The mask of all queries and keys is made, then cut.",
        "rules.part(rows, columns).simplified(*size).mask(q, k)",
        "Rules(rules.mask(query, key)).part(rows, columns).mask(q, k)",
        MEMORY,
    ),
}
