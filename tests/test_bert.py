"""mha.models.Bert and masked tokens: what is hidden, who sees whom, and GPT one mask apart."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

import mha
from mha import data, masks, models, training

PAD, MASK = 0, 4
ORDINARY = range(5, 25)
IGNORED = -100


# Vocabulary


@pytest.mark.parametrize("unk", [True, False])
def test_mask_is_the_last_special(unk):
    plain, masking = (data.Vocabulary(["abc"], unk=unk, mask=mask) for mask in (False, True))
    assert masking.mask_id == 3 + unk and masking.tokens[masking.mask_id] == "<mask>"
    assert plain.mask_id is None and "<mask>" not in plain
    assert plain.unk_id == masking.unk_id
    for vocabulary in (plain, masking):
        assert [vocabulary.tokens[i] for i in vocabulary.ordinary] == ["a", "b", "c"]
    assert masking.decode(masking.encode("cab"), sep="") == "cab"
    assert masking.decode([masking.mask_id, *masking.encode("b")]) == ["<mask>", "b"]


def test_mask_is_refused_as_a_token_where_it_is_a_special():
    with pytest.raises(ValueError, match="special token '<mask>'"):
        data.Vocabulary([["a", "<mask>"]], mask=True)
    assert data.Vocabulary([["a", "<mask>"]]).encode(["<mask>"]) == [4]


# Masking


def text(*shape, seed=0):
    """Random ordinary ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(ORDINARY.start, ORDINARY.stop, shape, generator=generator)


def hide(ids, seed=0, **options):
    options = {"mask_id": MASK, "ordinary": ORDINARY} | options
    return data.masked_tokens(ids, generator=torch.Generator().manual_seed(seed), **options)


def within(count, trials, p):
    """Whether a count is within five standard deviations of what a binomial expects."""
    return abs(count - trials * p) <= 5 * math.sqrt(trials * p * (1 - p))


@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_shares_are_those_of_the_paper(rate):
    ids = text(400, 500)
    inputs, targets = hide(ids, rate=rate)
    asked = targets != IGNORED
    count = int(asked.sum())
    assert within(count, ids.numel(), rate)
    assert within(int((inputs == MASK).sum()), count, 0.8)
    another = 1 - 1 / len(ORDINARY)  # a random token is now and then the right one
    assert within(int((asked & (inputs != MASK) & (inputs != ids)).sum()), count, 0.1 * another)
    assert within(int((asked & (inputs == ids)).sum()), count, 0.2 - 0.1 * another)


def test_every_place_and_every_ordinary_token_takes_part():
    ids = text(4000, 7)
    inputs, targets = hide(ids)
    asked = targets != IGNORED
    assert all(within(int(column.sum()), 4000, 0.15) for column in asked.T)
    per_text = torch.bincount(asked.sum(1), minlength=8)
    assert within(int(per_text[0]), 4000, 0.85**7)  # independent: some texts have no hole
    replaced = inputs[asked & (inputs != MASK) & (inputs != ids)]
    assert set(replaced.tolist()) == set(ORDINARY) == set(targets[asked].tolist())


def test_targets_hold_what_stood_there_and_nothing_else_is_touched():
    ids = text(60, 50)
    before = ids.clone()
    inputs, targets = hide(ids)
    asked = targets != IGNORED
    assert torch.equal(ids, before)
    assert torch.equal(targets[asked], ids[asked]) and torch.equal(inputs[~asked], ids[~asked])
    assert (targets.dtype, inputs.dtype) == (torch.int64, torch.int64)
    assert targets.shape == inputs.shape == ids.shape


def test_padding_and_specials_are_never_asked_nor_put_in():
    ids = text(200, 30)
    ids[:, 20:], ids[:, 0], ids[:, 7] = PAD, 1, 3
    inputs, targets = hide(ids, rate=1.0)
    ordinary = ids >= ORDINARY.start
    assert torch.equal(targets != IGNORED, ordinary)
    assert torch.equal(inputs[~ordinary], ids[~ordinary])
    assert set(inputs[ordinary].tolist()) == {MASK, *ORDINARY}


def test_ids_on_either_side_of_the_ordinary_ones_are_left_alone():
    ids = text(50, 30)
    _, targets = hide(ids, rate=1.0, ordinary=range(9, 20))
    assert torch.equal(targets != IGNORED, (ids >= 9) & (ids < 20))


def test_key_mask_counts_whatever_the_ids():
    ids = text(50, 30)
    real = masks.padding(torch.arange(50) % 31, max_len=30)
    inputs, targets = hide(ids, rate=1.0, key_mask=real)
    assert torch.equal(targets != IGNORED, real)
    assert torch.equal(inputs[~real], ids[~real])


def test_rates_at_the_ends():
    ids = text(20, 30)
    inputs, targets = hide(ids, rate=0.0)
    assert torch.equal(inputs, ids) and (targets == IGNORED).all()
    assert torch.equal(hide(ids, rate=1.0)[1], ids)


def test_the_generator_fixes_the_holes_and_each_call_draws_anew():
    ids, generator = text(20, 30), torch.Generator().manual_seed(3)
    options = {"mask_id": MASK, "ordinary": ORDINARY, "generator": generator}
    first, second = (data.masked_tokens(ids, **options) for _ in range(2))
    again = hide(ids, seed=3)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[1], second[1])


def test_masking_takes_any_shape():
    assert hide(text(30))[0].shape == (30,)
    assert hide(text(0, 5))[1].shape == (0, 5)


@pytest.mark.parametrize(
    ("ids", "options", "error", "message"),
    [
        (torch.ones(2, 3), {}, TypeError, "ids must be a tensor of integers, got torch.float32"),
        ([5, 6], {}, TypeError, "got list"),
        (text(2, 3).to(torch.uint8), {}, TypeError, "with a sign, .* got torch.uint8"),
        (text(2, 3), {"mask_id": 7}, ValueError, "mask_id.*range.5, 25.*got 7"),
        (text(2, 3), {"mask_id": None}, TypeError, "mask_id must be an int, got None"),
        (text(2, 3), {"ordinary": (5, 25)}, TypeError, r"range of ids, got \(5, 25\)"),
        (text(2, 3), {"ordinary": range(5, 5)}, ValueError, r"at least one id.*range\(5, 5\)"),
        (text(2, 3), {"ordinary": range(5, 25, 2)}, ValueError, "leave none out"),
        (text(2, 3), {"rate": 1.5}, ValueError, r"\[0, 1\], got 1.5"),
        (text(2, 3), {"key_mask": torch.ones(2, 3)}, TypeError, "bool tensor.*got torch.float32"),
        (
            text(2, 3),
            {"key_mask": torch.ones(2, 2).bool()},
            ValueError,
            r"\(2, 3\), got \(2, 2\)",
        ),
    ],
)
def test_masking_refusals(ids, options, error, message):
    with pytest.raises(error, match=message):
        hide(ids, **options)


# Bert

SIZES = {"embed_dim": 8, "num_heads": 2, "num_layers": 2, "max_length": 9, "ff_dim": 12}
both_positions = pytest.mark.parametrize("positions", ["rotary", "learned"])
V = ORDINARY.stop


def lively(model):
    """The model in float64, its weights far from 0, so that whatever is seen makes a difference."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.5)
    return model.double().eval()


def bert(**changes):
    return lively(models.Bert(V, **(SIZES | changes)))


def gpt(**changes):
    return lively(models.GPT(V, **(SIZES | changes)))


@both_positions
@torch.no_grad()
def test_bert_is_its_formula(positions):
    model, ids = bert(positions=positions, num_layers=1), text(2, 5)
    x = model.embedding.weight[ids]
    if positions == "learned":
        x = x + model.positions.weight[:5]
    block = model.blocks[0]
    x = x + block.attention(F.layer_norm(x, (8,)))
    hidden = F.gelu(block.feed_forward[0](F.layer_norm(x, (8,))))
    x = x + block.feed_forward[3](hidden)
    torch.testing.assert_close(model(ids), model.to_logits(F.layer_norm(x, (8,))))


@both_positions
@pytest.mark.parametrize("options", [{}, {"num_kv_heads": 1, "ff_dim": None, "dropout": 0.1}])
def test_gpt_and_bert_have_the_same_parameters_name_for_name(positions, options):
    options = SIZES | {"positions": positions} | options
    one, other = models.Bert(V, **options), models.GPT(V, **options)
    shapes = [{name: tuple(x.shape) for name, x in m.state_dict().items()} for m in (one, other)]
    assert list(shapes[0]) == list(shapes[1]) and shapes[0] == shapes[1]
    one.load_state_dict(other.state_dict())
    other.load_state_dict(one.state_dict())


@both_positions
@torch.no_grad()
def test_bert_under_a_causal_mask_is_the_gpt_with_its_weights(positions):
    reader, writer = bert(positions=positions), gpt(positions=positions)
    writer.load_state_dict(reader.state_dict())
    ids = text(3, 7)
    logits, weights = reader(ids, attn_mask=masks.causal(7), return_weights=True)
    expected, gpt_weights = writer(ids, return_weights=True)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(weights, gpt_weights, rtol=0, atol=1e-12)
    assert not torch.allclose(reader(ids), expected, atol=0.01)


@both_positions
@torch.no_grad()
def test_both_directions_are_seen_and_in_gpt_one(positions):
    for model, sees_what_follows in ((bert(positions=positions), True), (gpt(), False)):
        ids = text(3, 7)
        before = model(ids)
        for t in range(7):
            changed = ids.clone()
            changed[:, t] = (ids[:, t] - ORDINARY.start + 1) % len(ORDINARY) + ORDINARY.start
            moved = (model(changed) - before).abs().amax((0, 2))  # (T,)
            assert moved[t:].min() > 1e-6
            assert ((moved[:t] > 1e-6) == sees_what_follows).all()


@both_positions
@pytest.mark.parametrize("where", [range(5), range(4, 9), (0, 1, 4, 5, 8)], ids=str)
@torch.no_grad()
def test_a_padded_text_is_what_it_is_alone(positions, where):
    model, ids, where = bert(positions=positions), text(1, 5), torch.tensor(list(where))
    row = torch.full((1, 9), PAD).index_copy(1, where, ids)  # padding right, left or between
    batch = torch.cat([row, text(1, 9, seed=1)])
    logits, weights = model(batch, return_weights=True)
    alone, alone_weights = model(ids, return_weights=True)
    torch.testing.assert_close(logits[:1, where], alone, rtol=0, atol=1e-12)
    for w, expected in zip(weights, alone_weights, strict=True):
        torch.testing.assert_close(w[:1, :, where][..., where], expected, rtol=0, atol=1e-12)
        assert (w[0][..., row[0] == PAD] == 0).all()


@torch.no_grad()
def test_key_mask_is_obeyed_whatever_the_ids():
    model, ids = bert(), text(2, 6)
    real = masks.padding([6, 4])
    other = ids.masked_fill(~real, 9)
    assert not torch.equal(ids, other)
    given = model(ids, key_mask=real)
    torch.testing.assert_close(model(other, key_mask=real)[real], given[real])
    torch.testing.assert_close(model(ids.masked_fill(~real, PAD))[real], given[real])
    assert not torch.allclose(model(ids)[1, :4], given[1, :4])
    assert not torch.allclose(model(ids, key_mask=masks.padding([6, 6]))[real], given[real])


@torch.no_grad()
def test_another_pad_id():
    model, ids = bert(pad_id=7), text(1, 5).clamp(min=8)
    torch.testing.assert_close(model(F.pad(ids, (0, 2), value=7))[:, :5], model(ids))
    assert not torch.allclose(model(F.pad(ids, (0, 2), value=PAD))[:, :5], model(ids))


def test_texts_of_a_batch_do_not_mix():
    model, ids = bert(), text(3, 6)
    embedded = []
    model.embedding.register_forward_hook(lambda *call: embedded.append(call[2]))
    logits = model(ids)
    (gradient,) = torch.autograd.grad(logits[1].square().sum(), embedded[0])
    assert (gradient[[0, 2]] == 0).all() and gradient[1].abs().amax(-1).min() > 0
    for row, expected in zip(ids, logits, strict=True):
        torch.testing.assert_close(model(row[None])[0], expected)


@pytest.mark.parametrize("training_mode", [True, False])
def test_a_text_of_padding_alone_gives_no_nan(training_mode):
    model = bert().train(training_mode)
    ids = torch.cat([torch.full((1, 6), PAD), text(1, 6)])
    logits = model(ids)
    logits.square().sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(logits[1:], model(ids[1:]))


@torch.no_grad()
def test_the_order_counts():
    model, ids = bert(), text(1, 6)
    assert not torch.allclose(model(ids.flip(1)).flip(1), model(ids))
    model = bert(positions="learned")
    assert not torch.allclose(model(ids.flip(1)).flip(1), model(ids))
    model.positions.weight.zero_()
    torch.testing.assert_close(model(ids.flip(1)).flip(1), model(ids))


@torch.no_grad()
def test_asking_for_weights_changes_no_logit():
    model, ids = bert(), F.pad(text(2, 6), (0, 2))
    logits, weights = model(ids, return_weights=True)
    torch.testing.assert_close(logits, model(ids))
    assert [w.shape for w in weights] == [(2, 2, 8, 8)] * 2 and logits.shape == (2, 8, V)
    assert not torch.equal(weights[0], weights[1])
    for w in weights:
        torch.testing.assert_close(w.sum(-1), torch.ones_like(w[..., 0]))


@both_positions
def test_every_parameter_learns(positions):
    model, ids = bert(positions=positions), F.pad(text(8, 8), (0, 1))
    inputs, targets = hide(ids, rate=0.5)
    training.masked_token_loss(model, (inputs, targets)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    still = [name for name, p in model.named_parameters() if p.grad.abs().max() < 1e-12]
    assert all(name.endswith("k_proj.bias") for name in still)  # softmax ignores a common shift
    assert model.embedding.weight.grad[MASK].abs().max() > 0
    unseen = [number for number in range(V) if number not in inputs]
    assert (model.embedding.weight.grad[unseen] == 0).all()


def test_dropout_acts_in_training_only():
    model, ids = models.Bert(V, **SIZES, dropout=0.5), text(2, 5)
    assert not torch.equal(model(ids), model(ids))
    assert torch.equal(model.eval()(ids), model(ids))


@torch.no_grad()
def test_options_reach_every_block():
    model = bert(num_kv_heads=1, backend="reference")
    assert all(block.attention.num_kv_heads == 1 for block in model.blocks)
    assert all(block.attention.backend == "reference" for block in model.blocks)
    assert not any(block.attention.is_causal for block in model.blocks)
    assert models.Bert(V, **(SIZES | {"ff_dim": None})).blocks[1].feed_forward[0].out_features == 32
    assert all(type(block.attention) is mha.MultiHeadAttention for block in model.blocks)


@torch.no_grad()
def test_copies_compute_the_same_and_empty_batches_work():
    model, ids = bert(), text(2, 5)
    assert torch.equal(copy.deepcopy(model)(ids), model(ids))
    assert model(text(0, 5)).shape == (0, 5, V)
    assert model(text(2, 0)).shape == (2, 0, V)


def test_bert_compiles_in_one_graph():
    model, ids = bert(), F.pad(text(2, 5), (0, 2))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids), model(ids))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (text(5), r"ids must be \(B, T\), got \(5,\)"),
        (text(2, 10), r"max_length=9 tokens, got \(2, 10\)"),
        (torch.full((2, 3), V), "0 to vocab_size - 1 = 24, got 25 to 25"),
        (torch.full((2, 3), -100), "0 to vocab_size - 1 = 24, got -100 to -100"),
    ],
)
def test_bert_refuses_ids(ids, message):
    with pytest.raises(ValueError, match=message):
        bert()(ids)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": "sinusoidal"}, "'learned' or 'rotary', got 'sinusoidal'"),
        ({"max_length": 0}, "max_length must be at least 1, got 0"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"num_heads": 3}, "num_heads"),
        ({"num_kv_heads": 3}, "num_kv_heads must divide num_heads"),
        ({"backend": "other"}, "backend must be one of"),
    ],
)
def test_bert_refuses_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        bert(**changes)


def test_bert_refuses_masks():
    with pytest.raises(TypeError, match="key_mask must be bool"):
        bert()(text(2, 5), key_mask=torch.ones(2, 5))
    with pytest.raises(ValueError, match="key_mask"):
        bert()(text(2, 5), key_mask=torch.ones(2, 4).bool())


# Training


def test_masked_token_loss_is_the_mean_over_what_is_asked():
    model, ids = bert(), text(4, 8)
    inputs, targets = hide(ids, rate=0.4)
    log_p = model(inputs).log_softmax(-1)
    asked = [(b, t) for b in range(4) for t in range(8) if targets[b, t] != IGNORED]
    assert 0 < len(asked) < 32
    expected = -sum(log_p[b, t, ids[b, t]] for b, t in asked) / len(asked)
    torch.testing.assert_close(training.masked_token_loss(model, (inputs, targets)), expected)


def test_masked_token_loss_of_nothing_is_zero():
    model, ids = bert(), text(2, 5)
    loss = training.masked_token_loss(model, hide(ids, rate=0.0))
    loss.backward()
    assert loss.item() == 0.0
    assert all((p.grad == 0).all() for p in model.parameters())


class Middle:
    """Batches of a b a, c d c, ...: the middle follows from either side, and so do the ends."""

    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        while True:
            first = torch.randint(5, 15, (64, 1), generator=generator)
            ids = torch.cat([first, first + 10, first], dim=1)  # (B, 3)
            yield data.masked_tokens(ids, mask_id=MASK, ordinary=ORDINARY, generator=generator)


def test_bert_learns_to_fill_a_hole_from_what_follows():
    torch.manual_seed(0)
    model = models.Bert(V, embed_dim=32, num_heads=2, num_layers=1, max_length=3)
    training.fit(model, Middle(), training.masked_token_loss, steps=200, lr=1e-2, warmup=20)
    holes = torch.tensor([[MASK, first + 10, MASK] for first in range(5, 15)])
    with torch.no_grad():
        said = model(holes).argmax(-1)  # (10, 3)
    assert said[:, 0].tolist() == said[:, 2].tolist() == list(range(5, 15))


def test_the_plays_have_a_mask_where_asked_for():
    plain, masking = data.shakespeare(), data.shakespeare(mask=True)
    assert plain.vocabulary.mask_id is None and masking.vocabulary.mask_id == 3
    ids, shifted = plain.ids("held_out"), masking.ids("held_out")
    assert torch.equal(shifted, torch.where(ids < 3, ids, ids + 1))
    assert (shifted != masking.vocabulary.mask_id).all()
