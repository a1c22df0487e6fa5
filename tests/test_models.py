"""mha.models: the blocks' formulas, what the models must not see, decoding, ablation, patches."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import mha
from mha import data, models
from mha.positions import sinusoidal

PAD, BOS, EOS = 0, 1, 2


def translator(**changes):
    options = {"embed_dim": 8, "num_heads": 2, "num_layers": 2, "ff_dim": 12, "max_length": 9}
    model = models.Translator(11, 7, **(options | changes))
    return model.double().eval()


def source(*lengths, size=11):
    """Ids (B, S) without special tokens, padded on the right."""
    return data.pad([torch.randint(4, size, (length,)).tolist() for length in lengths])[0]


# Blocks


def test_feed_forward_is_its_formula():
    ff = models.FeedForward(6, 10)
    x = torch.randn(2, 3, 6)
    inner = torch.clamp(x @ ff[0].weight.T + ff[0].bias, min=0)  # (2, 3, 10)
    torch.testing.assert_close(ff(x), inner @ ff[3].weight.T + ff[3].bias)


def test_encoder_block_is_pre_norm():
    block, x = models.EncoderBlock(8, 2, 12), torch.randn(2, 5, 8)
    key_mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    y = x + block.attention(F.layer_norm(x, (8,)), key_mask=key_mask)
    y = y + block.feed_forward(F.layer_norm(y, (8,)))
    torch.testing.assert_close(block(x, key_mask=key_mask), y)


def test_decoder_block_is_pre_norm_and_leaves_the_memory_as_it_is():
    block, x, memory = models.DecoderBlock(8, 2, 12), torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    y = x + block.self_attention(F.layer_norm(x, (8,)), is_causal=True)
    y = y + block.cross_attention(F.layer_norm(y, (8,)), memory, key_mask=mask)
    y = y + block.feed_forward(F.layer_norm(y, (8,)))
    torch.testing.assert_close(block(x, memory, memory_mask=mask), y)


def test_dropout_acts_in_training_only():
    block, x = models.EncoderBlock(8, 2, 12, dropout=0.5), torch.randn(2, 5, 8)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


def test_all_attention_is_our_own():
    for model, count in ((translator(), 2 + 2 * 2), (models.VisionTransformer(), 2)):
        kinds = [type(m) for m in model.modules() if "attention" in type(m).__name__.lower()]
        assert kinds == [mha.MultiHeadAttention] * count


# Translator


def test_embedding_is_scaled_and_positions_added():
    model, ids = translator(num_layers=0), source(5, 5)
    x = math.sqrt(8) * model.source_embedding.weight[ids] + sinusoidal(5, 8, dtype=torch.float64)
    torch.testing.assert_close(model.encode(ids), F.layer_norm(x, (8,)), atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_padding_the_source_changes_nothing():
    model, ids, target = translator(), source(5, 3), torch.randint(3, 7, (2, 4))
    longer = F.pad(ids, (0, 3))
    torch.testing.assert_close(model(longer, target), model(ids, target))
    alone = model(ids[1:, :3], target[1:])
    torch.testing.assert_close(model(ids, target)[1:], alone)


@torch.no_grad()
def test_source_mask_is_obeyed_whatever_the_ids():
    model, ids, target = translator(), source(5, 5), torch.randint(3, 7, (2, 4))
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    other = torch.where(mask, ids, ids % 7 + 4)
    assert not torch.equal(ids, other)
    same = model(other, target, source_mask=mask)
    torch.testing.assert_close(model(ids, target, source_mask=mask), same)
    assert not torch.allclose(model(ids, target), model(other, target))


@torch.no_grad()
def test_no_logit_depends_on_a_later_target_token():
    model, ids, target = translator(), source(5, 3), torch.randint(3, 7, (2, 6))
    before = model(ids, target)
    for t in range(6):
        changed = target.clone()
        changed[:, t] = (target[:, t] - 2) % 4 + 3
        after = model(ids, changed)
        torch.testing.assert_close(after[:, :t], before[:, :t])
        assert (after[:, t:] - before[:, t:]).abs().amax((0, 2)).min() > 1e-9


@torch.no_grad()
def test_the_order_of_the_source_counts():
    model, ids, target = translator(), torch.tensor([[4, 5, 6]]), torch.tensor([[1, 3]])
    assert not torch.allclose(model(ids, target), model(ids.flip(1), target))


@torch.no_grad()
def test_asking_for_weights_changes_no_logit():
    model, ids, target = translator(), source(5, 3), torch.randint(3, 7, (2, 4))
    logits, weights = model(ids, target, return_weights=True)
    torch.testing.assert_close(logits, model(ids, target))
    assert [w.shape for w in weights.encoder] == [(2, 2, 5, 5)] * 2
    assert [w.shape for w in weights.decoder] == [(2, 2, 4, 4)] * 2
    assert [w.shape for w in weights.cross] == [(2, 2, 4, 5)] * 2
    for w in itertools.chain(*weights):
        torch.testing.assert_close(w.sum(-1), torch.ones_like(w[..., 0]))
    assert all(w[1, :, :, 3:].abs().max() == 0 for w in weights.encoder + weights.cross)
    assert all(w.triu(1).abs().max() == 0 for w in weights.decoder)


@torch.no_grad()
def test_weights_are_those_of_each_layer_in_turn():
    model, ids, target = translator(), source(5, 4), torch.randint(3, 7, (2, 4))
    seen = []
    for block in [*model.encoder, *model.decoder]:
        for name in ("attention", "self_attention", "cross_attention"):
            if hasattr(block, name):
                getattr(block, name).register_forward_hook(lambda *call: seen.append(call[2][1]))
    _, weights = model(ids, target, return_weights=True)
    in_turn = [*weights.encoder]
    for own, cross in zip(weights.decoder, weights.cross, strict=True):
        in_turn += [own, cross]
    assert all(a is b for a, b in zip(seen, in_turn, strict=True))


def test_every_parameter_learns():
    model = translator()
    model(source(5, 3, 4), torch.randint(3, 7, (3, 4))).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    still = [name for name, p in model.named_parameters() if p.grad.abs().max() < 1e-12]
    assert all(name.endswith("k_proj.bias") for name in still)  # softmax ignores a common shift


@torch.no_grad()
def test_state_dict_and_deepcopy_round_trip():
    model, ids, target = translator(), source(5, 3), torch.randint(3, 7, (2, 4))
    expected = model(ids, target)
    other = translator()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(ids, target), expected)
    assert torch.equal(copy.deepcopy(model)(ids, target), expected)


@pytest.mark.parametrize(
    ("source_ids", "target_ids", "message"),
    [
        (torch.ones(2, 10).long(), torch.ones(2, 3).long(), r"source_ids.*max_length=9.*\(2, 10\)"),
        (torch.ones(2, 3).long(), torch.ones(2, 10).long(), r"target_ids.*max_length=9.*\(2, 10\)"),
        (
            torch.ones(3).long(),
            torch.ones(2, 3).long(),
            r"source_ids must be \(B, length\).*\(3,\)",
        ),
    ],
)
def test_translator_refusals(source_ids, target_ids, message):
    with pytest.raises(ValueError, match=message):
        translator()(source_ids, target_ids)


# Decoding


def said(ids):
    """Lists of tokens up to and with <eos>, checking that only padding follows it."""
    rows = []
    for row in ids.tolist():
        length = row.index(EOS) + 1 if EOS in row else len(row)
        assert set(row[length:]) <= {PAD} and not {PAD, BOS} & set(row[:length])
        rows.append(row[:length])
    return rows


def lively(seed):
    """A random translator whose next-token distributions are far from even."""
    torch.manual_seed(seed)
    model = translator(max_length=7)
    with torch.no_grad():
        model.to_logits.weight *= 3
    return model


@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_greedy_is_the_argmax_of_the_full_forward_at_each_step(seed):
    model, ids = lively(seed), source(5, 3, 4)
    for row, tokens in zip(ids, said(models.greedy(model, ids)), strict=True):
        prefix = [BOS]
        while len(prefix) <= 7 and prefix[-1] != EOS:
            logits = model(row[row != PAD][None], torch.tensor([prefix]))[0, -1]
            logits[[PAD, BOS]] = -torch.inf
            prefix.append(logits.argmax().item())
        assert tokens == prefix[1:]


@pytest.mark.parametrize("seed", range(4))
def test_a_beam_of_one_is_greedy(seed):
    model, ids = lively(seed), source(5, 3, 4, 2, 6)
    ids_1, _ = models.beam_search(model, ids, beam_size=1)
    assert said(ids_1) == said(models.greedy(model, ids))
    assert torch.equal(model.translate(ids), models.greedy(model, ids))


@torch.no_grad()
def log_p_of(model, row, tokens):
    """Sum of the log-probabilities of ``tokens``, by one full forward."""
    logits = model(row[None], torch.tensor([[BOS, *tokens[:-1]]]))[0]
    logits[:, [PAD, BOS]] = -torch.inf
    return logits.log_softmax(-1)[range(len(tokens)), tokens].sum().item()


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_beam_that_holds_everything_finds_the_best_there_is(seed, penalty):
    torch.manual_seed(seed)
    model = models.Translator(11, 5, embed_dim=8, num_heads=2, num_layers=1)
    model.double().eval()
    with torch.no_grad():
        model.to_logits.weight *= 3
    ids = source(5, 4)
    options = {"length_penalty": penalty, "max_length": 4}
    got, scores = models.beam_search(model, ids, beam_size=40, **options)
    every = [
        [*beginning, EOS] for n in range(4) for beginning in itertools.product((3, 4), repeat=n)
    ]
    for row, tokens, score in zip(ids, said(got), scores.tolist(), strict=True):
        row = row[row != PAD]
        best = max(every, key=lambda t: log_p_of(model, row, t) / len(t) ** penalty)
        assert tokens == best
        assert score == pytest.approx(log_p_of(model, row, best) / len(best) ** penalty, abs=1e-5)


@pytest.mark.parametrize("size", [2, 3, 8])
def test_beams_of_a_batch_do_not_mix(size):
    model, ids = lively(5), source(5, 3, 6, 4)
    together, scores = models.beam_search(model, ids, beam_size=size)
    for row, tokens, score in zip(ids, said(together), scores, strict=True):
        alone, alone_score = models.beam_search(model, row[row != PAD][None], beam_size=size)
        assert said(alone) == [tokens]
        torch.testing.assert_close(score[None], alone_score)


class Table:
    """A translator whose next-token probabilities are written down: table(tokens so far)."""

    pad_id, bos_id, eos_id = PAD, BOS, EOS

    def __init__(self, size, max_length, table):
        self.size, self.max_length, self.table = size, max_length, table

    def source_mask(self, ids, given):
        return ids != PAD

    def encode(self, ids, source_mask):
        return torch.zeros(*ids.shape, 1)

    def new_caches(self, batch_size, source_length, max_length):
        return Prefixes(batch_size)

    def decode(self, ids, memory, source_mask, caches=None):
        ids = ids if caches is None else caches.append(ids)
        logits = torch.full((len(ids), 1, self.size), -torch.inf)
        for row, prefix in zip(logits, ids.tolist(), strict=True):
            for token, p in self.table(tuple(prefix[1:])).items():
                row[0, token] = math.log(p)
        return logits


class Prefixes:
    """What a `Table` has for caches: the tokens so far."""

    def __init__(self, batch_size):
        self.ids = torch.zeros(batch_size, 0, dtype=torch.int64)

    def append(self, ids):
        self.ids = torch.cat((self.ids, ids), dim=1)
        return self.ids

    def reorder(self, index, memory=True):
        self.ids = self.ids[index]


SOURCE = torch.tensor([[4, 5], [4, 5]])


def test_beam_finds_what_greedy_misses():
    table = {
        (): {3: 0.6, 4: 0.4},
        (3,): {EOS: 0.4, 3: 0.3, 4: 0.3},
        (4,): {EOS: 0.9, 3: 0.1},
    }
    model = Table(5, 4, lambda prefix: table.get(prefix, {EOS: 1.0}))
    assert said(models.greedy(model, SOURCE)) == [[3, EOS]] * 2
    ids, scores = models.beam_search(model, SOURCE, beam_size=2, length_penalty=0.0)
    assert said(ids) == [[4, EOS]] * 2
    torch.testing.assert_close(scores, torch.tensor([0.36, 0.36]).log())


def test_length_penalty_decides_between_short_and_long():
    table = {(): {EOS: 0.5, 3: 0.5}, (3,): {3: 1.0}, (3, 3): {EOS: 0.9, 4: 0.1}}
    model = Table(5, 6, lambda prefix: table.get(prefix, {EOS: 1.0}))
    short, short_score = models.beam_search(model, SOURCE, beam_size=2, length_penalty=0.0)
    long, long_score = models.beam_search(model, SOURCE, beam_size=2, length_penalty=1.0)
    assert (said(short)[0], said(long)[0]) == ([EOS], [3, 3, EOS])
    torch.testing.assert_close(short_score[0], torch.tensor(0.5).log())
    torch.testing.assert_close(long_score[0], torch.tensor(0.45).log() / 3)


def test_a_finished_sequence_pushed_out_of_the_beam_is_remembered():
    even = dict.fromkeys(range(3, 23), 0.047) | {EOS: 0.06}  # every way on is unlikely
    table = {(): {EOS: 0.3, 3: 0.7}, (3,): {3: 0.5, 4: 0.5}}
    model = Table(23, 5, lambda prefix: table.get(prefix, even))
    ids, scores = models.beam_search(model, SOURCE, beam_size=2)
    assert said(ids) == [[EOS]] * 2 and ids.shape == (2, 1)
    torch.testing.assert_close(scores, torch.tensor([0.3, 0.3]).log())


def test_a_finished_sequence_keeps_its_place_in_the_beam():
    table = {(): {EOS: 0.6, 3: 0.3, 4: 0.1}, (3,): {3: 0.6, 4: 0.4}, (3, 4): {EOS: 1.0}}
    model = Table(5, 4, lambda prefix: table.get(prefix, {3: 0.5, 4: 0.5}))
    narrow, _ = models.beam_search(model, SOURCE, beam_size=2, length_penalty=2.0)
    wide, score = models.beam_search(model, SOURCE, beam_size=3, length_penalty=2.0)
    assert (said(narrow)[0], said(wide)[0]) == ([EOS], [3, 4, EOS])
    torch.testing.assert_close(score[0], torch.tensor(0.12).log() / 9)


def test_a_finished_sequence_keeps_its_score_while_others_go_on():
    table = {(): {EOS: 0.6, 3: 0.4}, (3,): {3: 0.5, 4: 0.5}}
    model = Table(5, 6, lambda prefix: table.get(prefix, {3: 0.5, 4: 0.5}))
    ids, scores = models.beam_search(model, SOURCE, beam_size=3)
    assert said(ids) == [[EOS]] * 2
    torch.testing.assert_close(scores, torch.tensor([0.6, 0.6]).log())


def test_what_never_ends_is_cut_off():
    model = Table(5, 6, lambda prefix: {3: 0.75, 4: 0.25})
    assert models.greedy(model, SOURCE, max_length=4).tolist() == [[3] * 4] * 2
    ids, scores = models.beam_search(model, SOURCE, beam_size=3, max_length=4)
    assert ids.tolist() == [[3] * 4] * 2
    torch.testing.assert_close(scores, torch.tensor([0.75, 0.75]).log())


def test_decoding_stops_when_all_have_ended():
    calls = []
    model = Table(5, 6, lambda prefix: calls.append(prefix) or {EOS: 1.0})
    assert models.greedy(model, SOURCE).shape == (2, 1) and len(calls) == 2
    calls.clear()
    assert models.beam_search(model, SOURCE, beam_size=3)[0].shape == (2, 1) and len(calls) == 6


def test_padding_and_bos_are_never_said():
    model = Table(5, 3, lambda prefix: {PAD: 0.5, BOS: 0.3, 3: 0.1, EOS: 0.1 * len(prefix) + 0.01})
    assert said(models.greedy(model, SOURCE)) == [[3, EOS]] * 2
    ids, scores = models.beam_search(model, SOURCE, beam_size=2)
    assert said(ids) == [[3, EOS]] * 2
    expected = (math.log(0.1 / 0.11) + math.log(0.11 / 0.21)) / 2
    torch.testing.assert_close(scores, torch.full((2,), expected))


def test_empty_batch():
    model, none = translator(), torch.zeros(0, 4, dtype=torch.int64)
    assert models.greedy(model, none).shape == (0, 0)
    assert models.beam_search(model, none, beam_size=2)[0].shape == (0, 0)


def test_translate_puts_the_mode_back_and_needs_no_gradient():
    model, ids = lively(0), source(5, 3)
    expected = model.translate(ids, beam_size=3)
    noisy = translator(max_length=7, dropout=0.5)
    noisy.load_state_dict(model.state_dict())
    noisy.train()
    assert torch.equal(noisy.translate(ids, beam_size=3), expected)
    assert noisy.training and noisy.decoder[0].self_attention.training
    _, scores = models.beam_search(noisy, ids, beam_size=2)
    assert not scores.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_size": 0}, "beam_size must be at least 1, got 0"),
        ({"beam_size": 2, "length_penalty": -1.0}, "length_penalty must not be negative, got -1.0"),
        ({"beam_size": 2, "max_length": 10}, "1 to the model's 9, got 10"),
        ({"max_length": 0}, "1 to the model's 9, got 0"),
    ],
)
def test_decoding_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        translator().translate(source(3), **options)


# One head off


@pytest.mark.parametrize("head", range(3))
@torch.no_grad()
def test_without_head_is_zeroing_the_columns_of_out_proj(head):
    attention = mha.MultiHeadAttention(12, 3)
    zeroed = copy.deepcopy(attention)
    zeroed.out_proj.weight.view(12, 3, 4)[:, head] = 0  # (E, H*D) -> (E, H, D)
    x, memory = torch.randn(2, 3, 12), torch.randn(2, 5, 12)
    whole = attention(x, memory)
    with models.without_head(attention, head):
        torch.testing.assert_close(attention(x, memory), zeroed(x, memory))
        assert not torch.allclose(attention(x, memory), whole)
    assert torch.equal(attention(x, memory), whole)


@pytest.mark.parametrize("length", [1, 3])
def test_without_head_gives_the_same_gradients(length):
    attention = mha.MultiHeadAttention(12, 3)
    zeroed = copy.deepcopy(attention)
    with torch.no_grad():
        zeroed.out_proj.weight[:, 4:8] = 0
    x = torch.randn(2, length, 12)
    zeroed(x).square().sum().backward()
    with models.without_head(attention, 1):
        attention(x).square().sum().backward()
    torch.testing.assert_close(attention.v_proj.weight.grad, zeroed.v_proj.weight.grad)
    torch.testing.assert_close(attention.q_proj.weight.grad, zeroed.q_proj.weight.grad)


@torch.no_grad()
def test_without_head_uses_the_modules_own_head_width():
    attention = mha.MultiHeadAttention(8, 2, head_dim=5)
    zeroed = copy.deepcopy(attention)
    zeroed.out_proj.weight[:, 5:] = 0
    x = torch.randn(2, 3, 8)
    with models.without_head(attention, 1):
        torch.testing.assert_close(attention(x), zeroed(x))


@torch.no_grad()
def test_without_every_head_only_the_bias_is_left():
    attention = mha.MultiHeadAttention(8, 2)
    with models.without_head(attention, 0), models.without_head(attention, 1):
        out, weights = attention(torch.randn(2, 3, 8), return_weights=True)
    torch.testing.assert_close(out, attention.out_proj.bias.expand(2, 3, 8))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 3))


def test_without_head_ends_with_an_error_too():
    attention, x = mha.MultiHeadAttention(8, 2), torch.randn(2, 3, 8)
    whole = attention(x)
    with pytest.raises(KeyError), models.without_head(attention, 0):
        raise KeyError
    assert torch.equal(attention(x), whole)


@pytest.mark.parametrize("head", [-1, 2])
def test_without_head_refuses_a_head_there_is_not(head):
    with (
        pytest.raises(ValueError, match=f"head must be 0 to 1, got {head}"),
        models.without_head(mha.MultiHeadAttention(8, 2), head),
    ):
        pass


# Vision


def test_patchify_by_hand():
    image = torch.arange(12).reshape(1, 1, 2, 6)
    assert models.patchify(image, 2).tolist() == [[[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]]


def test_patchify_puts_channels_first_within_a_patch():
    image = torch.arange(8).reshape(1, 2, 2, 2)
    assert models.patchify(image, 2).tolist() == [[[0, 1, 2, 3, 4, 5, 6, 7]]]


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_unpatchify_is_the_inverse(size):
    images = torch.randn(2, 3, 6, 12)
    patches = models.patchify(images, size)
    assert patches.shape == (2, 72 // size**2, 3 * size**2)
    assert torch.equal(models.unpatchify(patches, size, channels=3, width=12), images)


def vision(**changes):
    options = {"embed_dim": 8, "ff_dim": 12, "num_heads": 2, "num_classes": 5}
    return models.VisionTransformer(**(options | changes)).double().eval()


def shuffle_patches(images):
    patches = models.patchify(images, 2)
    order = torch.randperm(patches.shape[1])
    return models.unpatchify(patches[:, order], 2, channels=1, width=8)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
@torch.no_grad()
def test_positions_alone_tell_the_patches_order(positions):
    model, images = vision(positions=positions), torch.randn(2, 1, 8, 8).double()
    mixed = shuffle_patches(images)
    assert not torch.allclose(model(mixed), model(images))
    model.positions.zero_()
    torch.testing.assert_close(model(mixed), model(images))


def test_positions_are_learned_or_not():
    assert "positions" in dict(vision().named_parameters())
    fixed = vision(positions="sinusoidal")
    assert "positions" not in dict(fixed.named_parameters())
    torch.testing.assert_close(fixed.positions.float(), sinusoidal(16, 8))


@torch.no_grad()
def test_the_answer_is_read_from_the_mean_of_the_patches():
    model, images = vision(num_layers=0), torch.randn(2, 1, 8, 8).double()
    x = model.embed(models.patchify(images, 2)) + model.positions
    expected = model.to_logits(F.layer_norm(x, (8,)).mean(1))
    torch.testing.assert_close(model(images), expected)


@torch.no_grad()
def test_vision_weights_change_no_logit():
    model, images = vision(patch_size=4), torch.randn(3, 1, 8, 8).double()
    logits, weights = model(images, return_weights=True)
    torch.testing.assert_close(logits, model(images))
    assert logits.shape == (3, 5) and [w.shape for w in weights] == [(3, 2, 4, 4)] * 2
    torch.testing.assert_close(weights[1].sum(-1), torch.ones(3, 2, 4).double())
    assert not torch.equal(weights[0], weights[1])


def test_vision_every_parameter_learns():
    model = vision()
    model(torch.randn(3, 1, 8, 8).double()).square().sum().backward()
    still = [name for name, p in model.named_parameters() if p.grad.abs().max() < 1e-12]
    assert all(name.endswith("k_proj.bias") for name in still)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: models.patchify(torch.zeros(8, 8), 2), r"\(B, C, h, w\), got \(8, 8\)"),
        (lambda: models.patchify(torch.zeros(1, 1, 8, 6), 4), "got 4 for 8x6"),
        (
            lambda: models.unpatchify(torch.zeros(1, 6, 5), 2, channels=1, width=4),
            r"\(B, N, 4\).*got \(1, 6, 5\)",
        ),
        (
            lambda: models.unpatchify(torch.zeros(1, 5, 4), 2, channels=1, width=4),
            r"multiple of.*4/2, got \(1, 5, 4\)",
        ),
        (lambda: vision(patch_size=3), "must divide image_size 8, got 3"),
        (lambda: vision(positions="rotary"), "'learned' or 'sinusoidal', got 'rotary'"),
        (lambda: vision()(torch.zeros(2, 3, 8, 8)), r"\(1, 8, 8\).*got \(2, 3, 8, 8\)"),
    ],
)
def test_vision_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
