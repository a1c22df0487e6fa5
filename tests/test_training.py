"""mha.training: the schedule, the loop and what it records, early stop, and the scores."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mha import data, models, training


def schedule(steps, warmup):
    return [training.warmup_cosine(s, steps=steps, warmup=warmup) for s in range(1, steps + 1)]


def line(seed=0):
    """A small regression: model, batches and loss."""
    torch.manual_seed(seed)
    x = torch.randn(8, 3)
    return nn.Linear(3, 1), [(x, x.sum(1, keepdim=True))], squared


def squared(model, batch):
    return F.mse_loss(model(batch[0]), batch[1])


def fit(*arguments, **options):
    return training.fit(*arguments, **({"warmup": 0, "progress": False} | options))


# Schedule


def test_schedule_by_hand():
    got = schedule(7, 4)  # a rise of four, then half a cosine in four parts, the last left out
    expected = [0.25, 0.5, 0.75, 1.0, 0.5 + 0.5 * math.sqrt(0.5), 0.5, 0.5 - 0.5 * math.sqrt(0.5)]
    assert got == pytest.approx(expected)


@pytest.mark.parametrize("warmup", [0, 1, 30])
def test_schedule_rises_falls_and_stays_above_zero(warmup):
    got = schedule(30, warmup)
    assert all(0 < factor <= 1 for factor in got)
    assert got[:warmup] == sorted(got[:warmup]) and got[warmup:] == sorted(got[warmup:])[::-1]


def test_the_learning_rate_follows_the_schedule():
    history = fit(*line(), steps=7, warmup=4, lr=0.1, every=1)
    assert history.columns()["lr"] == pytest.approx([0.1 * f for f in schedule(7, 4)])


# The loop


def test_steps_are_adamw_with_clipped_gradients():
    model, batches, loss_fn = line()
    by_hand, _, _ = line()
    optimizer = torch.optim.AdamW(by_hand.parameters(), weight_decay=0.3)
    for factor in schedule(4, 1):
        optimizer.zero_grad()
        loss_fn(by_hand, batches[0]).backward()
        norm = torch.stack([p.grad.norm() for p in by_hand.parameters()]).norm()
        for p in by_hand.parameters():
            p.grad *= min(1.0, 0.5 / norm)
        optimizer.param_groups[0]["lr"] = 0.7 * factor
        optimizer.step()
    fit(model, batches, loss_fn, steps=4, warmup=1, lr=0.7, weight_decay=0.3, clip=0.5)
    for ours, theirs in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_fit_lowers_the_loss_and_records_means():
    model, batches, loss_fn = line()
    start = loss_fn(model, batches[0]).item()
    single = fit(*line(), steps=40, lr=0.05, every=1).columns()
    table = fit(model, batches, loss_fn, steps=40, lr=0.05, every=15).columns()
    assert table["step"] == [15, 30, 40]
    losses = single["loss"]
    assert losses[0] == pytest.approx(start)
    means = [sum(part) / len(part) for part in (losses[:15], losses[15:30], losses[30:])]
    assert table["loss"] == pytest.approx(means)
    assert losses[-1] < 0.1 * start
    assert table["metric"] == [None] * 3
    assert table["seconds"] == sorted(table["seconds"]) and table["seconds"][0] > 0


def test_the_same_seed_gives_the_same_losses():
    pairs, _ = data.dates(200, 0)
    vocabularies = data.date_vocabularies(pairs)

    def losses(seed):
        torch.manual_seed(5)
        model = models.Translator(*map(len, vocabularies), embed_dim=16, ff_dim=16, dropout=0.1)
        torch.randn(seed)  # the state of torch's generator on entry must not matter
        batches = data.translation_batches(pairs, *vocabularies, 16, seed=3)
        history = fit(model, batches, training.translation_loss, steps=5, every=1, seed=seed)
        return history.columns()["loss"]

    assert losses(1) == losses(1)
    assert losses(1) != losses(2)


def test_batches_are_passed_over_again():
    seen = []
    fit(nn.Linear(1, 1), [1, 2, 3], recorder(seen), steps=7)
    assert seen == [1, 2, 3, 1, 2, 3, 1]


def recorder(seen):
    def loss_fn(model, batch):
        seen.append(batch)
        return model.weight.sum()

    return loss_fn


def test_an_iterator_that_runs_out_is_refused():
    with pytest.raises(ValueError, match="batches ran out"):
        fit(nn.Linear(1, 1), iter([1, 2, 3]), recorder([]), steps=4)


def test_modes_and_gradients_while_training_and_scoring():
    model, batches, loss_fn = line()
    model.eval()
    modes = []

    def loss_in_training(model, batch):
        modes.append(model.training)
        return loss_fn(model, batch)

    def evaluate(model):
        modes.append((model.training, torch.is_grad_enabled()))
        return 0.0

    fit(model, batches, loss_in_training, steps=4, every=2, evaluate=evaluate)
    scored = (False, False)
    assert modes == [True, True, scored, True, True, scored]
    assert not model.training and torch.is_grad_enabled()


def test_a_loss_that_is_not_finite_is_an_error():
    with pytest.raises(FloatingPointError, match="the loss is nan by step 2"):
        fit(nn.Linear(1, 1), [1], lambda m, _: m.weight.sum() * math.nan, steps=9, every=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "at least 1, got 0 and 50"),
        ({"steps": 3, "every": 0}, "at least 1, got 3 and 0"),
        ({"steps": 3, "warmup": 4}, "warmup must be 0 to steps=3, got 4"),
        ({"steps": 3, "patience": 1}, "patience must be at least 1 and needs evaluate, got 1"),
        ({"steps": 3, "patience": 0, "evaluate": len}, "patience must be at least 1"),
    ],
)
def test_fit_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        fit(*line(), **options)


# Early stop


@pytest.mark.parametrize(
    ("scores", "patience", "rows", "stopped"),
    [
        ([0.1, 0.3, 0.2, 0.3, 0.9], 2, 4, True),  # equal is not better
        ([0.1, 0.3, 0.2, 0.4, 0.3], 2, 5, False),
        ([0.5, 0.4, 0.3, 0.2, 0.1], 4, 5, False),  # patience ends with the last step
        ([0.5, 0.4, 0.3, 0.2, 0.1], None, 5, False),
        ([-3.0, -4.0, -2.0, -1.0, 0.0], 1, 2, True),
    ],
)
def test_early_stop(scores, patience, rows, stopped):
    score = iter(scores)
    options = {"steps": 10, "every": 2, "patience": patience}
    history = fit(*line(), evaluate=lambda model: next(score), **options)
    assert history.columns()["metric"] == scores[:rows]
    assert history.columns()["step"][-1] == 2 * rows
    assert history.stopped_early is stopped


# History and progress


def test_history_prints_a_table():
    rows = [training.Row(50, 1.25, 1e-3, None, 3.21), training.Row(100, 0.5, 5e-4, 0.975, 12.0)]
    assert str(training.History(rows)).splitlines() == [
        "  step     loss        lr  metric  seconds",
        "    50   1.2500  1.00e-03       -      3.2",
        "   100   0.5000  5.00e-04  0.9750     12.0",
    ]


@pytest.mark.parametrize(
    ("progress", "variable", "shown"),
    [(True, None, True), (True, "0", True), (True, "1", False), (False, None, False)],
)
def test_progress_bar(progress, variable, shown, capfd, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    if variable is not None:
        monkeypatch.setenv("TQDM_DISABLE", variable)
    fit(*line(), steps=3, progress=progress)
    out, err = capfd.readouterr()
    assert out == "" and ("3/3" in err) is shown


def test_an_early_stop_closes_the_bar(capfd, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    fit(*line(), steps=9, every=1, patience=1, evaluate=lambda model: 0.0, progress=True)
    assert capfd.readouterr().err.endswith("\n")


def test_without_tqdm_the_extra_is_named(monkeypatch):
    import sys

    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match=r'needs tqdm: pip install "mha\[data\]"'):
        fit(*line(), steps=1, progress=True)
    fit(*line(), steps=1)


# Losses and scores


def tiny_translator():
    return models.Translator(9, 7, embed_dim=8, num_heads=2, num_layers=1, ff_dim=8).eval()


def batch_of(sources, targets):
    source_ids, source_mask = data.pad(sources)
    target_in, _ = data.pad([[1, *target] for target in targets])
    target_out, _ = data.pad([[*target, 2] for target in targets])
    return data.TranslationBatch(source_ids, source_mask, target_in, target_out)


@torch.no_grad()
def test_translation_loss_is_the_mean_over_real_tokens():
    model = tiny_translator()
    sources, targets = [[4, 5, 6], [7]], [[3, 4, 5, 6], [5]]
    nats = []
    for source, target in zip(sources, targets, strict=True):
        log_p = model(torch.tensor([source]), torch.tensor([[1, *target]]))[0].log_softmax(-1)
        nats += [-log_p[t, token].item() for t, token in enumerate([*target, 2])]
    loss = training.translation_loss(model, batch_of(sources, targets))
    assert loss.item() == pytest.approx(sum(nats) / 7, abs=1e-5)


@torch.no_grad()
def test_image_loss_smooths_the_labels():
    model, images, labels = models.VisionTransformer(), torch.randn(3, 1, 8, 8), [4, 0, 9]
    log_p = model(images).log_softmax(-1)
    expected = -(0.9 * log_p[range(3), labels] + 0.1 * log_p.mean(-1)).mean()
    torch.testing.assert_close(training.image_loss(model, (images, torch.tensor(labels))), expected)


class Parrot(nn.Module):
    """A translator that says what it was told to."""

    pad_id = 0

    def __init__(self, answers):
        super().__init__()
        self.answers, self.calls = answers, []

    def translate(self, source_ids, *, source_mask, beam_size, max_length):
        self.calls.append((len(source_ids), beam_size, max_length))
        answers = [self.answers[i] for i in source_ids[:, 0].tolist()]
        return data.pad([answer[:max_length] for answer in answers])[0]


def test_exact_match_counts_whole_sequences():
    targets = [[3, 4], [5], [6, 3, 4], [3, 3]]
    answers = [[3, 4, 2], [5, 2], [6, 3, 5, 2], [3, 3, 3, 2]]  # right, right, wrong, too long
    batch = batch_of([[0], [1], [2], [3]], targets)
    model = Parrot(answers)
    assert training.exact_match(model, batch, beam_size=3, batch_size=3) == 0.5
    assert model.calls == [(3, 3, 4), (1, 3, 4)]


def test_exact_match_notices_a_missing_end():
    assert training.exact_match(Parrot([[3, 4, 4]]), batch_of([[0]], [[3, 4]])) == 0.0
    assert training.exact_match(Parrot([[3, 4]]), batch_of([[0]], [[3, 4]])) == 0.0


def test_accuracy_by_hand():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.9))  # the image is the logits
    images = torch.eye(4).reshape(4, 1, 2, 2)
    labels = torch.tensor([0, 1, 2, 0])
    assert training.accuracy(model, images, labels, batch_size=3) == 0.75
    assert model.training


def test_translator_learns_dates_a_little():
    pairs, _ = data.dates(400, 0)
    vocabularies = data.date_vocabularies(pairs)
    model = models.Translator(*map(len, vocabularies), embed_dim=32, ff_dim=32)
    batches = data.translation_batches(pairs, *vocabularies, 32)
    history = fit(model, batches, training.translation_loss, steps=60, lr=5e-3, every=20)
    losses = history.columns()["loss"]
    assert losses[0] > losses[1] > losses[2] and losses[2] < 1.5


def test_vision_transformer_learns_digits():
    digits = data.digits()
    model = models.VisionTransformer(embed_dim=32, ff_dim=32)
    batches = data.image_batches(digits.train_images, digits.train_labels, 64, augmented=False)
    fit(model, batches, training.image_loss, steps=60, lr=5e-3, warmup=10)
    assert training.accuracy(model, digits.test_images, digits.test_labels) > 0.5
