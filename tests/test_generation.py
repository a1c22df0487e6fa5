"""Generation: what may be said, how it is drawn, and the same text however it is computed."""

import itertools
import math

import pytest
import torch
from support import randn
from test_gpt import VARIANTS, V, each_variant, model, padded, text

from mha import models

# What may be said


def kept_by_definition(logits, temperature, top_k, top_p):
    """Ids that stay, for one row of logits, straight from the definition."""
    ranked = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if temperature == 0:
        return {ranked[0]}
    ranked = ranked[:top_k]
    if top_p in (None, 1.0):
        return set(ranked)
    mass = [math.exp(logits[i] / temperature) for i in ranked]
    for count in range(1, len(ranked) + 1):
        if sum(mass[:count]) / sum(mass) >= top_p:
            return set(ranked[:count])
    return set(ranked)


ROWS = torch.tensor(
    [
        [0.3, -1.0, 2.2, 0.9, 0.1, -3.0],
        [1.0, 2.0, 2.0, 1.0, 2.0, 0.0],  # ties
        [0.0] * 6,
        [30.0, 0.0, 0.0, 0.0, 0.0, 0.0],  # one certain
        [-40.0, -41.0, -39.0, -44.0, -40.5, -43.0],
    ]
)


@pytest.mark.parametrize("top_p", [None, 0.05, 0.3, 0.6, 0.95, 1.0])
@pytest.mark.parametrize("top_k", [None, 1, 2, 3, 5, 6, 9])
@pytest.mark.parametrize("temperature", [0, 0.3, 1.0, 2.5])
def test_filter_is_its_definition(temperature, top_k, top_p):
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    before = ROWS.clone()
    found = models.filtered(ROWS, **options)
    assert torch.equal(ROWS, before) and found.dtype == torch.float64
    for row, logits in zip(found, ROWS, strict=True):
        kept = {i for i, x in enumerate(row.tolist()) if x > -math.inf}
        assert kept == kept_by_definition(logits.tolist(), **options)
        scale = temperature or 1.0
        for i in kept:
            assert row[i].item() == pytest.approx(logits[i].item() / scale, rel=1e-6)


def test_among_many_that_are_equal_the_first_stay():
    found = models.filtered(torch.zeros(2, 1000), top_k=3)
    assert (found > -torch.inf).nonzero()[:, 1].tolist() == [0, 1, 2] * 2


def test_filter_takes_any_leading_axes():
    logits = torch.randn(2, 3, 7)
    found = models.filtered(logits, top_k=4, top_p=0.7)
    assert torch.equal(found[1, 2], models.filtered(logits[1, 2], top_k=4, top_p=0.7))


def test_top_p_counts_what_top_k_left():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    assert (models.filtered(logits, top_p=0.5) > -torch.inf).tolist() == [True, True, False, False]
    both = models.filtered(logits, top_k=2, top_p=0.5)  # 4/7 of what is left
    assert (both > -torch.inf).tolist() == [True, False, False, False]


def test_temperature_comes_before_top_p():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    cold = models.filtered(logits, temperature=0.2, top_p=0.7)  # .4 ** 5 is most of it
    assert (cold > -torch.inf).tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": -0.1}, "temperature must be 0 or more and finite, got -0.1"),
        ({"temperature": math.inf}, "temperature must be 0 or more and finite, got inf"),
        ({"temperature": math.nan}, "temperature must be 0 or more and finite, got nan"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        models.filtered(ROWS, **options)
    with pytest.raises(ValueError, match=message):
        models.generate(model(), text(2, 3), max_new_tokens=2, **options)
    with pytest.raises(TypeError, match="top_k must be an int, got 2.0"):
        models.filtered(ROWS, top_k=2.0)


# How it is drawn


def test_a_draw_is_where_the_sums_exceed_the_chance():
    logits = torch.tensor([0.5, 0.0, 0.25, 0.25]).log()
    chances = [0.0, 0.25, 0.499, 0.5001, 0.7, 0.7501, 1 - 2**-53]
    found = models.drawn(logits.expand(7, 4), torch.tensor(chances, dtype=torch.float64))
    assert found.tolist() == [0, 0, 0, 2, 2, 3, 3]


def test_draws_follow_the_probabilities():
    logits = torch.randn(9)
    logits[4] = -torch.inf
    chances = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    counts = models.drawn(logits.expand(100_000, 9), chances).bincount(minlength=9)
    torch.testing.assert_close(counts / 1e5, logits.softmax(-1), atol=2e-5, rtol=0)
    assert counts[4] == 0


def test_what_has_no_probability_is_never_drawn():
    """Sums of many small numbers miss 1 a little, and the tokens behind must not profit."""
    short = 0
    for seed in range(20):
        logits = randn(1000, seed=seed)
        logits[[0, *range(900, 1000)]] = -torch.inf
        chances = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
        assert models.drawn(logits.expand(2, 1000), chances).tolist() == [1, 899]
        short += bool(logits.softmax(-1).cumsum(-1)[-1] <= chances[1])
    assert short > 0


# However it is computed


OPTIONS = {
    "greedy": {"temperature": 0},
    "sampled": {},
    "cool, top_k": {"temperature": 0.7, "top_k": 3},
    "warm, top_p": {"temperature": 1.5, "top_p": 0.8},
}
LENGTHS = [4, 7, 1]


def by_hand(net, prompt, count, seed, **options):
    """The definition: read it all, filter, draw, append."""
    ids, generator = prompt.tolist(), torch.Generator().manual_seed(seed)
    chances = torch.rand(count, generator=generator, dtype=torch.float64)
    for chance in chances:
        with torch.no_grad():
            logits = net(torch.tensor([ids]))[0, -1]
        ids.append(int(models.drawn(models.filtered(logits, **options), chance)))
    return ids[len(prompt) :]


@pytest.mark.parametrize("how", OPTIONS)
@each_variant
def test_each_prompt_goes_on_as_alone_by_hand(name, how):
    net = model(name)
    alone = [
        by_hand(net, text(length, seed=20 + row), 18, 5 + row, **OPTIONS[how])
        for row, length in enumerate(LENGTHS)
    ]
    for side, use_cache in itertools.product(("left", "right"), (True, False)):
        prompts, mask = padded(LENGTHS, side, size=8)
        options = {"max_new_tokens": 18, "key_mask": mask, "use_cache": use_cache, "seed": 5}
        ids, lengths = models.generate(net, prompts, **options, **OPTIONS[how])
        assert ids.tolist() == alone, (side, use_cache)
        assert ids.dtype == torch.int64 and lengths.tolist() == [18] * 3


@pytest.mark.parametrize("use_cache", [True, False])
@each_variant
def test_prompts_of_equal_length_need_no_mask(name, use_cache):
    net, prompts = model(name), text(2, 6)
    ids = models.generate(net, prompts, max_new_tokens=15, seed=3, use_cache=use_cache).ids
    assert ids.tolist() == [by_hand(net, prompts[b], 15, 3 + b) for b in range(2)]


def test_texts_differ_where_their_seeds_do():
    prompts = text(1, 5).expand(4, 5)
    options = {"max_new_tokens": 12}
    found = models.generate(model(), prompts, **options, seed=7).ids.tolist()
    assert len({tuple(row) for row in found}) == 4
    assert models.generate(model(), prompts, **options, seed=8).ids.tolist()[:3] == found[1:]
    greedy = models.generate(model(), prompts, **options, temperature=0).ids
    assert torch.equal(greedy, greedy[:1].expand(4, 12))


def test_a_cache_is_read_once_for_each_token():
    net, read = model(), []
    net.register_forward_hook(lambda module, args, output: read.append(args[0].shape[1]))
    models.generate(net, text(2, 6), max_new_tokens=4)
    assert read == [6, 1, 1, 1]
    read.clear()
    models.generate(net, text(2, 6), max_new_tokens=4, use_cache=False)
    assert read == [6, 7, 8, 9]


# Where it ends


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_text_ends_where_it_says_so(use_cache):
    net = model()
    prompts, mask = padded(LENGTHS, "left")
    options = {"max_new_tokens": 20, "key_mask": mask, "use_cache": use_cache, "seed": 1}
    full = models.generate(net, prompts, **options).ids.tolist()
    stop = full[0][6]
    ends = [row.index(stop) + 1 if stop in row else 20 for row in full]
    ids, lengths = models.generate(net, prompts, **options, stop_id=stop, pad_id=77)
    assert lengths.tolist() == ends and len(set(ends)) > 1 and ids.shape == (3, max(ends))
    for row, wanted, end in zip(ids.tolist(), full, ends, strict=True):
        assert row == wanted[:end] + [77] * (max(ends) - end)


def test_all_texts_at_an_end_end_it():
    net = model()
    prompts = text(1, 3).expand(2, 3)
    said = models.generate(net, prompts, max_new_tokens=9, temperature=0).ids[0].tolist()
    stop = said[-1]
    ids = models.generate(net, prompts, max_new_tokens=9, temperature=0, stop_id=stop).ids
    assert ids.shape[1] == said.index(stop) + 1


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("name", VARIANTS)
def test_max_length_can_be_filled(name, use_cache):
    """The last token is said and not read, so one more than max_length fits."""
    net, prompts = model(name, max_length=8), text(2, 5)
    options = {"use_cache": use_cache, "temperature": 0}
    ids = models.generate(net, prompts, max_new_tokens=4, **options).ids
    longer = model(name, max_length=8)
    assert ids[0].tolist() == by_hand(longer, prompts[0], 4, 0, temperature=0)
    with pytest.raises(ValueError, match=r"fit into the model's max_length=8, got 5 \+ 5"):
        models.generate(net, prompts, max_new_tokens=5, **options)


def test_refusals():
    net = model()
    empty = torch.tensor([[True, True], [False, False]])
    for change, message in (
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"prompts": text(3)}, r"prompts must be \(B, T\), got \(3,\)"),
        ({"key_mask": empty}, r"each prompt must have a token, got lengths \[2, 0\]"),
        ({"key_mask": empty[:, :1]}, "S=2 keys"),
    ):
        options = {"prompts": text(2, 2), "max_new_tokens": 2} | change
        with pytest.raises(ValueError, match=message):
            models.generate(net, options.pop("prompts"), **options)


# What it leaves alone


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_chance_are_left_as_they_were(training):
    net, prompts = model(dropout=0.5).train(training), text(2, 4)
    state = torch.get_rng_state()
    first = models.generate(net, prompts, max_new_tokens=10).ids
    assert torch.equal(torch.get_rng_state(), state) and net.training is training
    assert torch.equal(models.generate(net.eval(), prompts, max_new_tokens=10).ids, first)


def test_mode_is_put_back_after_an_error():
    net = model().train()
    with pytest.raises(ValueError, match="ids must be 0 to vocab_size"):
        models.generate(net, text(2, 4) + V, max_new_tokens=3)
    assert net.training


# What may come in


def test_what_stands_behind_the_end_is_never_read():
    """So a pad_id that is no token does no harm, nor does it on a GPU."""
    net, prompts = model(), text(3, 4)
    stop_id = int(models.generate(net, prompts, max_new_tokens=1).ids[0, 0])
    options = {"max_new_tokens": 6, "stop_id": stop_id}
    expected = models.generate(net, prompts, **options)
    assert expected.lengths.tolist().count(1) in (1, 2)  # one text ends at once, one goes on
    behind = torch.arange(expected.ids.shape[1]) >= expected.lengths[:, None]
    for use_cache in (True, False):
        found = models.generate(net, prompts, **options, pad_id=-1, use_cache=use_cache)
        assert torch.equal(found.ids, expected.ids.masked_fill(behind, -1))


@pytest.mark.parametrize("temperature", [1e-30, 1e-310, 5e-324])
def test_a_tiny_temperature_leaves_the_best_token(temperature):
    logits = randn(4, V) * 50
    kept = models.filtered(logits, temperature=temperature).softmax(-1)
    assert torch.equal(kept.argmax(-1), logits.argmax(-1)) and kept.amax(-1).eq(1).all()


@pytest.mark.parametrize("use_cache", [True, False])
def test_prompts_may_be_of_any_integers_and_none_at_all(use_cache):
    net, prompts = model(), text(2, 4)
    options = {"max_new_tokens": 3, "use_cache": use_cache}
    expected = models.generate(net, prompts, **options)
    found = models.generate(net, prompts.int(), **options)
    assert torch.equal(found.ids, expected.ids) and found.ids.dtype == torch.int64
    assert models.generate(net, prompts[:0], **options).ids.shape == (0, 3)
    for wrong, got in ((prompts.float(), "torch.float32"), ([[1, 2]], "list")):
        with pytest.raises(TypeError, match=f"prompts must be a tensor of integers, got {got}"):
            models.generate(net, wrong, **options)
