"""mha.models.GPT: what a token sees, where it stands, and the same with and without caches."""

import itertools
import math

import pytest
import torch
from support import close

from mha import masks, models, training

V, T = 11, 9

VARIANTS = {
    "rotary": {},
    "learned": {"positions": "learned"},
    "one key head": {"num_kv_heads": 1},
    "banded": {"band": 3},
    "learned, banded, one key head": {"positions": "learned", "band": 2, "num_kv_heads": 1},
    "band of one": {"band": 1},
}
each_variant = pytest.mark.parametrize("name", VARIANTS)


def model(name="rotary", **options):
    """A small GPT in float64 with weights that make every token matter."""
    torch.manual_seed(1)
    sizes = {"embed_dim": 8, "num_heads": 2, "num_layers": 3, "max_length": 30}
    net = models.GPT(V, **sizes | VARIANTS[name] | options).double().eval()
    for parameter in net.parameters():
        parameter.data = 0.5 * torch.randn_like(parameter)
    return net


def text(*shape, seed=0):
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def padded(lengths, side, size=None):
    """Texts of these lengths: ids (B, T), with anything in the padding, and key_mask (B, T)."""
    size = max(lengths) if size is None else size
    ids, mask = text(len(lengths), size, seed=9), torch.zeros(len(lengths), size).bool()
    for row, length in enumerate(lengths):
        place = slice(0, length) if side == "right" else slice(size - length, size)
        ids[row, place], mask[row, place] = text(length, seed=20 + row), True
    return ids, mask


# What a token sees


@each_variant
def test_no_token_sees_a_later_one(name):
    net, ids = model(name), text(2, T)
    before = net(ids)
    assert before.shape == (2, T, V)
    for t in range(T):
        other = ids.clone()
        other[:, t] = (other[:, t] + 1) % V
        changed = (net(other) != before).flatten(2).any(-1)  # (B, T)
        assert not changed[:, :t].any() and changed[:, t].all()


def test_every_token_sees_all_before_it():
    net, ids = model(), text(1, T)
    for t in range(T):
        other = ids.clone()
        other[:, t] = (other[:, t] + 1) % V
        assert (net(other) != net(ids)).any(-1)[0, t:].all()


@each_variant
def test_examples_do_not_see_each_other(name):
    net, ids = model(name), text(3, T)
    rows = torch.cat([net(row[None]) for row in ids])
    close(net(ids), rows)


@pytest.mark.parametrize("band", [1, 2, 5])
def test_every_second_layer_is_banded(band):
    _, weights = model(num_layers=4, band=band)(text(2, T), return_weights=True)
    dense, banded = masks.causal(T), masks.window(T, left=band - 1, right=0)
    for layer, found in enumerate(weights):
        assert found.shape == (2, 2, T, T)
        seen = banded if layer % 2 else dense
        assert torch.equal(found > 0, seen.expand_as(found))
    assert int(banded.sum(-1).max()) == band


@each_variant
def test_weights_are_of_each_layer_and_change_nothing(name):
    net, ids = model(name), text(2, T)
    logits, weights = net(ids, return_weights=True)
    close(logits, net(ids))
    assert len(weights) == 3
    for found in weights:
        close(found.sum(-1), torch.ones(2, 2, T, dtype=torch.float64))


def test_band_and_key_heads_cost_what_they_should():
    def count(net):
        return sum(p.numel() for p in net.parameters())

    assert count(model()) == count(model("banded"))
    assert count(model()) - count(model("one key head")) == 3 * 2 * (8 * 4 + 4)  # keys and values
    assert count(model("learned")) - count(model()) == 30 * 8


def test_it_is_bert_one_mask_apart():
    net = model("learned")
    options = {"embed_dim": 8, "num_heads": 2, "num_layers": 3, "max_length": 30}
    bert = models.Bert(V, positions="learned", **options).double().eval()
    bert.load_state_dict(net.state_dict())
    ids = text(2, T) % (V - 1) + 1  # no padding
    close(bert(ids, attn_mask=masks.causal(T)), net(ids))
    assert not torch.allclose(bert(ids), net(ids))


# Where a token stands


@pytest.mark.parametrize("side", ["left", "right"])
@each_variant
def test_padding_moves_nothing(name, side):
    net, lengths = model(name), [4, 9, 1]
    ids, mask = padded(lengths, side)
    logits = net(ids, key_mask=mask)
    for row, length in enumerate(lengths):
        close(logits[row][mask[row]], net(text(1, length, seed=20 + row))[0])
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", ["rotary", "learned"])
def test_order_matters(name):
    net, ids = model(name, num_layers=1), torch.tensor([[1, 2, 3], [2, 1, 3]])
    logits = net(ids)
    assert not torch.allclose(logits[0, 2], logits[1, 2])


# Caches


@pytest.mark.parametrize("sizes", [[1] * 20, [2, 1, 2, 1, 2, 2, 1, 1, 2, 2, 2, 2]])
@each_variant
def test_chunks_equal_the_full_pass(name, sizes):
    """Twenty tokens: a band's cache of 2 to 6 slots slides several times."""
    net, ids = model(name), text(2, 20)
    caches = net.new_caches(2)
    sizes = [1] * 20 if net.band == 1 else sizes
    with torch.no_grad():
        parts = [net(part, caches=caches) for part in ids.split(sizes, 1)]
    close(torch.cat(parts, 1), net(ids))
    assert caches.seen == caches.slots == 20


@pytest.mark.parametrize("side", ["left", "right"])
@each_variant
def test_padded_prompts_go_on_as_each_does_alone(name, side):
    net, lengths = model(name), [2, 4, 1]
    ids, mask = padded(lengths, side)
    caches, new = net.new_caches(3), text(3, 12, seed=5)
    size = net.band or 4
    pieces = list(zip(ids.split(size, 1), mask.split(size, 1), strict=True))
    with torch.no_grad():
        prompt = torch.cat([net(i, key_mask=m, caches=caches) for i, m in pieces], 1)
        parts = [net(token, caches=caches) for token in new.split(1, 1)]
    for row, length in enumerate(lengths):
        alone = net(torch.cat([text(1, length, seed=20 + row), new[row : row + 1]], 1))[0]
        close(prompt[row][mask[row]], alone[:length])
        close(torch.cat(parts, 1)[row], alone[length:])
    assert caches.slots == 16 and (caches.seen == torch.tensor(lengths) + 12).all()


def test_a_banded_layer_keeps_twice_its_band():
    net = model("banded", num_layers=4, max_length=1000)
    assert [cache.max_len for cache in net.new_caches(2)] == [1000, 6, 1000, 6]
    assert [cache.max_len for cache in net.new_caches(2, 4)] == [4, 4, 4, 4]
    assert [cache.max_len for cache in net.new_caches(2, 1)] == [1, 3, 1, 3]
    assert [cache.max_len for cache in model(max_length=12).new_caches(2)] == [12, 12, 12]
    cache = model("one key head").new_caches(5)[0]
    assert cache.batch_size == 5 and "num_kv_heads=1" in repr(cache)


@pytest.mark.parametrize("padding", [False, True])
@each_variant
def test_texts_can_be_reordered(name, padding):
    net = model(name)
    ids, mask = padded([2, 1, 2], "left") if padding else (text(3, 2), None)
    caches, picked = net.new_caches(3), torch.tensor([2, 2, 1, 0])
    with torch.no_grad():
        for part in range(2):  # one by one, so that every band takes it
            options = {} if mask is None else {"key_mask": mask[:, part : part + 1]}
            net(ids[:, part : part + 1], caches=caches, **options)
        caches.reorder(picked)
        new = text(4, 1, seed=3)
        after = net(new, caches=caches)
    whole = torch.cat([ids[picked], new], 1)
    mask = None if mask is None else torch.cat([mask[picked], torch.ones(4, 1).bool()], 1)
    close(after, net(whole, key_mask=mask)[:, -1:])


# Refusals


def test_refusals():
    net, caches = model(max_length=6), model(max_length=6).new_caches(2)
    with torch.no_grad():
        net(text(2, 4), caches=caches)
        with pytest.raises(ValueError, match=r"at most max_length=6 .*counted, got 4 \+ 3"):
            net(text(2, 3), caches=caches)
    for call, message in (
        (lambda: net(text(2, 7)), "at most max_length=6 tokens"),
        (lambda: net(text(4)), r"ids must be \(B, T\), got \(4,\)"),
        (lambda: net(text(2, 3) + V), "ids must be 0 to vocab_size - 1 = 10"),
        (lambda: net(text(2, 3), key_mask=torch.ones(2, 4).bool()), "S=3 keys"),
        (lambda: model(band=0), "band must be at least 1, got 0"),
        (lambda: model(positions="none"), "positions must be .*, got 'none'"),
        (lambda: model(num_layers=3, num_kv_heads=3), "num_kv_heads must divide num_heads"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="key_mask must be bool"):
        net(text(2, 3), key_mask=torch.ones(2, 3))


@pytest.mark.parametrize("name", ["rotary", "learned, banded, one key head"])
def test_it_compiles_whole_and_learns_through_every_parameter(name):
    net, ids = model(name), text(2, T)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    close(compiled(ids), net(ids))
    training.language_model_loss(net, ids).backward()
    for path, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, path


# Scores


def test_loss_is_the_mean_of_the_next_tokens():
    net, ids = model(), text(3, T)
    log_p = net(ids).log_softmax(-1)
    wanted = [-log_p[b, t, ids[b, t + 1]] for b, t in itertools.product(range(3), range(T - 1))]
    close(training.language_model_loss(net, ids), torch.stack(wanted).mean())


def test_who_knows_nothing_loses_the_logarithm_of_the_vocabulary():
    net = model()
    net.to_logits.weight.data.zero_()
    net.to_logits.bias.data.zero_()
    assert abs(training.language_model_loss(net, text(3, T)).item() - math.log(V)) < 1e-12


def test_nats_count_each_token_once():
    net, ids = model(), text(24)
    net.train()
    losses = []
    for start in range(0, 20, 5):  # 23 tokens to tell: four times 5, and 3 are left
        log_p = net(ids[None, start : start + 5])[0].log_softmax(-1)
        losses += [-log_p[t, ids[start + t + 1]].item() for t in range(5)]
    wanted = sum(losses) / len(losses)
    for batch_size in (1, 3, 4):
        found = training.nats_per_token(net, ids, length=5, batch_size=batch_size)
        assert abs(found - wanted) < 1e-12
    assert net.training
    with pytest.raises(ValueError, match="length must be 1 to 23 for 24 ids, got 24"):
        training.nats_per_token(net, ids, length=24)


def test_nats_are_without_dropout():
    net, ids = model(dropout=0.5).train(), text(40)
    assert len({training.nats_per_token(net, ids, length=8) for _ in range(2)}) == 1


def test_a_text_that_repeats_is_learned():
    torch.manual_seed(0)
    net = models.GPT(V, embed_dim=16, num_heads=2, num_layers=2, max_length=24)
    ids = torch.tensor([1, 2, 3, 1, 2, 4]).repeat(40)  # what comes after 2 lies three steps back
    stream = iter(lambda: torch.stack([ids[s : s + 17] for s in torch.randint(6, (8,))]), None)
    options = {"steps": 120, "lr": 5e-3, "warmup": 10, "progress": False}
    training.fit(net, stream, training.language_model_loss, **options)
    assert training.nats_per_token(net, ids, length=24) < 0.15


@each_variant
def test_one_key_mask_serves_all_texts(name):
    """(1, T) and (T,) broadcast, as key masks do everywhere; caches know it afterwards."""
    net, ids = model(name), text(3, 3)
    real = torch.tensor([False, True, True])
    if net.band is not None and net.band < 3:
        pytest.skip("its cache takes fewer tokens at once")
    expected = net(ids, key_mask=real.expand(3, 3))
    with torch.no_grad():
        for mask in (real, real[None]):
            close(net(ids, key_mask=mask), expected)
            caches = net.new_caches(3)
            close(net(ids, key_mask=mask, caches=caches)[:, 1:], expected[:, 1:])
            caches.reorder(torch.tensor([2, 0]))
            assert caches.seen.tolist() == [2, 2]


def test_ids_must_be_integers():
    for wrong, got in ((torch.ones(2, 3), "torch.float32"), ([[1, 2]], "list")):
        with pytest.raises(TypeError, match=f"ids must be a tensor of integers, got {got}"):
            model()(wrong)


def test_a_score_that_fails_leaves_the_mode_as_it_was():
    net = model().train()
    with pytest.raises(ValueError, match="vocab_size"):
        training.nats_per_token(net, torch.full((9,), V), length=4)
    assert net.training


def test_what_a_banded_cache_refuses_no_layer_has_stored():
    net, ids = model("banded"), text(2, T)
    with torch.no_grad():
        caches = net.new_caches(2)
        for start, free in ((0, 6), (3, 4)):  # room for six, of which two stay behind
            with pytest.raises(ValueError, match=f"at most {free} at a time.*band of 3, got"):
                net(ids[:, start : start + free + 1], caches=caches)
            assert {cache.length for cache in caches} == {start}
            net(ids[:, start : start + 3], caches=caches)
        net(ids[:, 6:], caches=caches)
        assert caches.slots == T
