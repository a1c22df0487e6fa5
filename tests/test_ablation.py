"""Heads switched off, the loss of each sentence, intervals, and removal one after another."""

import pytest
import torch

from mha import data, models, training
from mha.models import TranslatorHead

SIZES = {"embed_dim": 16, "num_heads": 4, "num_layers": 3, "ff_dim": 16, "shared": True}


@pytest.fixture
def translator():
    torch.manual_seed(0)
    return models.Translator(20, 20, dropout=0.5, **SIZES).eval()


@pytest.fixture
def batch():
    ids = torch.randint(3, 20, (4, 7), generator=torch.Generator().manual_seed(0))
    target = torch.cat((torch.ones(4, 1, dtype=torch.int64), ids[:, :5]), dim=1)
    out = torch.cat((ids[:, :5], torch.full((4, 1), 2)), dim=1)
    target[1, 3:], out[1, 3:] = 0, 0
    return data.TranslationBatch(ids, torch.ones(4, 7, dtype=torch.bool), target, out)


# Which heads there are, and being without them


def test_heads_are_all_and_each_once(translator):
    heads = models.translator_heads(translator)
    assert len(set(heads)) == len(heads) == 3 * 3 * 4
    assert heads[0] == ("encoder", 0, 0) and heads[13] == ("decoder", 0, 1)
    assert heads[-1] == ("cross", 2, 3) and str(heads[-1]) == "cross 2.3"
    modules = {id(head.attention(translator)) for head in heads}
    assert len(modules) == 9


def test_a_part_there_is_not_is_refused(translator):
    with pytest.raises(ValueError, match="part must be .* got 'self'"):
        TranslatorHead("self", 0, 0).attention(translator)


@pytest.mark.parametrize("part", ["encoder", "decoder", "cross"])
def test_a_head_without_is_one_whose_output_columns_are_zero(translator, batch, part):
    off = [TranslatorHead(part, 1, 2), TranslatorHead("cross", 2, 0)]
    reading = batch.source_ids, batch.target_in
    before = translator(*reading)
    with models.without_heads(translator, off):
        without = translator(*reading)
    torch.testing.assert_close(translator(*reading), before)
    assert (without - before).abs().max() > 1e-4
    with torch.no_grad():
        for head in off:
            head.attention(translator).out_proj.weight[:, 4 * head.head : 4 * head.head + 4] = 0
    torch.testing.assert_close(translator(*reading), without)


def test_heads_are_back_when_one_of_them_is_refused(translator, batch):
    reading = batch.source_ids, batch.target_in
    before = translator(*reading)
    off = [TranslatorHead("cross", 0, 1), TranslatorHead("cross", 0, 4)]
    with (
        pytest.raises(ValueError, match="head must be 0 to 3, got 4"),
        models.without_heads(translator, off),
    ):
        raise AssertionError("a head there is not was switched off")
    torch.testing.assert_close(translator(*reading), before)


# The loss of each pair


def test_nats_of_pairs_add_up_to_the_loss(translator, batch):
    translator.train()
    nats = models.pair_nats(translator, [batch, batch])
    assert translator.training and nats.dtype == torch.float64
    translator.eval()
    assert nats[:, 1].tolist() == [6, 3, 6, 6] * 2
    torch.testing.assert_close(nats[:4], nats[4:])
    loss = training.translation_loss(translator, batch)
    assert (nats[:, 0].sum() / nats[:, 1].sum()).item() == pytest.approx(loss.item(), rel=1e-5)
    second = data.TranslationBatch(*(tensor[1:2] for tensor in batch))
    alone = training.translation_loss(translator, second)
    assert (nats[1, 0] / 3).item() == pytest.approx(alone.item(), rel=1e-5)


# Intervals


def mean(means):
    return means[:, 0]


def test_interval_of_a_mean_is_that_of_theory():
    values = torch.randn(400, 1, generator=torch.Generator().manual_seed(1))
    low, high = models.bootstrap(values, mean)
    error = (values.std() / 20).item()
    middle = values.mean().item()
    assert low.item() == pytest.approx(middle - 1.96 * error, abs=0.2 * error)
    assert high.item() == pytest.approx(middle + 1.96 * error, abs=0.2 * error)
    narrow = models.bootstrap(values, mean, confidence=0.5)
    assert low < narrow[0] < narrow[1] < high
    assert (narrow[1] - narrow[0]).item() == pytest.approx(2 * 0.674 * error, rel=0.15)


def test_interval_repeats_and_depends_on_the_seed():
    values = torch.randn(50, 1, generator=torch.Generator().manual_seed(1))
    assert models.bootstrap(values, mean) == models.bootstrap(values, mean)
    assert models.bootstrap(values, mean) != models.bootstrap(values, mean, seed=1)


def test_several_statistics_share_their_draws():
    values = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    low, high = models.bootstrap(values, lambda means: means, samples=700)
    assert low.shape == high.shape == (3,)
    for column in range(3):
        alone = models.bootstrap(values[:, [column]], mean, samples=700)
        torch.testing.assert_close(torch.stack(alone), torch.stack((low, high))[:, column])


def test_interval_of_a_difference_is_on_the_same_sentences():
    draw = torch.Generator().manual_seed(1)
    before = torch.randn(300, generator=draw) * 10
    both = torch.stack((before, before + 1 + 0.1 * torch.randn(300, generator=draw)), dim=1)
    low, high = models.bootstrap(both, lambda means: means[:, 1] - means[:, 0])
    assert 0.97 < low < 1 < high < 1.03


def test_interval_covers_the_truth_as_often_as_it_says():
    draw, inside = torch.Generator().manual_seed(2), 0
    for seed in range(200):
        values = torch.rand(60, 1, generator=draw)
        low, high = models.bootstrap(values, mean, confidence=0.8, samples=300, seed=seed)
        inside += low < 0.5 < high
    assert 140 <= inside <= 178  # 160 expected, give or take three standard errors


@pytest.mark.parametrize("values", [torch.ones(3), torch.ones(0, 2), torch.ones(2, 2, 2)])
def test_values_must_be_rows(values):
    with pytest.raises(ValueError, match="values must be"):
        models.bootstrap(values, mean)


@pytest.mark.parametrize("option", [{"confidence": 0}, {"confidence": 1.0}, {"samples": 0}])
def test_confidence_and_samples_must_make_sense(option):
    with pytest.raises(ValueError, match="confidence must be above 0 and below 1"):
        models.bootstrap(torch.ones(2, 1), mean, **option)


# Removal

ALONE = {"a": 3.0, "b": 1.0, "c": 2.0, "d": 9.0}


def together(gone):
    """Being without both b and c costs 10 more than being without each: they stand in."""
    return 5 + sum(ALONE[part] for part in gone) + 10 * ({"b", "c"} <= {*gone})


def test_cheapest_first_and_asked_anew_each_time():
    gone = models.remove_greedily(together, "abcd", limit=30)
    assert gone == [("b", 6), ("a", 9), ("d", 18), ("c", 30)]


def test_it_stops_at_the_limit():
    assert models.remove_greedily(together, "abcd", limit=17.9) == [("b", 6), ("a", 9)]
    assert models.remove_greedily(together, "abcd", limit=9) == [("b", 6), ("a", 9)]
    assert models.remove_greedily(together, "abcd", limit=5.9) == []
    assert models.remove_greedily(together, "", limit=5) == []


def test_few_tries_spare_calls_and_may_miss():
    calls = []

    def cost(gone):
        calls.append(gone)
        return together(gone)

    gone = models.remove_greedily(cost, "abcd", limit=30, tries=1)
    assert [part for part, _ in gone] == ["b", "c", "a", "d"]
    assert calls == [(), *zip("abcd"), ("b", "c"), ("b", "c", "a"), ("b", "c", "a", "d")]
    assert models.remove_greedily(together, "abcd", limit=30, tries=2)[1] == ("a", 9)


def test_what_parts_cost_alone_need_not_be_found_out_again():
    calls = []

    def cost(gone):
        calls.append(gone)
        return together(gone)

    gone = models.remove_greedily(cost, "abcd", limit=9, tries=2, alone=ALONE)
    assert gone == [("b", 6), ("a", 9)]
    assert calls[:3] == [(), ("b",), ("c",)] and ALONE == {"a": 3, "b": 1, "c": 2, "d": 9}


def test_tries_must_be_positive():
    with pytest.raises(ValueError, match="tries must be at least 1 or None, got 0"):
        models.remove_greedily(together, "abcd", limit=30, tries=0)
