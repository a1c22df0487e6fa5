"""mha.data.lookback, mha.models.lookback, and the study in benchmarks/ that rests on them."""

import itertools
import sys

import pytest
import torch
import torch.nn.functional as F

from mha import data, models, results, training

each_kind = pytest.mark.parametrize("kind", models.LOOKBACK_KINDS)


def batch(distance, size=16, **options):
    return next(data.lookback_batches(distance, size, **options))


def model(kind, **options):
    return models.lookback_model(kind, **options).double().eval()


# The task


@pytest.mark.parametrize("distance", [1, 5, 12])
def test_answer_lies_the_distance_before_the_end_and_nowhere_else(distance):
    ids, answers = batch(distance, 4000)
    assert ids.shape == (4000, distance + 1) and answers.shape == (4000,)
    for back in range(distance + 1):
        share = (ids[:, -1 - back] == answers).double().mean()
        assert share == 1 if back == distance else abs(share - 1 / 8) < 0.03


def test_every_symbol_is_drawn_alike_at_every_place():
    ids, _ = batch(6, 4000, symbols=5)
    share = F.one_hot(ids, 5).double().mean(0)  # (L, symbols)
    assert ((share - 1 / 5).abs() < 0.03).all()


def test_seed_fixes_the_stream_and_every_call_starts_it_anew():
    stream = data.lookback_batches(7, 3, seed=1)
    first, second = next(stream)[0], next(stream)[0]
    again = [ids for ids, _ in itertools.islice(data.lookback_batches(7, 3, seed=1), 2)]
    assert torch.equal(first, again[0]) and torch.equal(second, again[1])
    assert not torch.equal(first, second)
    assert not torch.equal(first, batch(7, 3, seed=2)[0])


@pytest.mark.parametrize("wrong", [{"distance": 0}, {"batch_size": 0}, {"symbols": 1}])
def test_task_refuses_what_makes_no_sense(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be at least"):
        data.lookback_batches(**{"distance": 4, "batch_size": 2, **wrong})


# The models


@pytest.mark.parametrize("options", [{}, {"symbols": 20}, {"embed_dim": 96}, {"positions": False}])
def test_counts_are_equal_within_two_percent(options):
    counts = [
        models.count_parameters(models.lookback_model(kind, **options))
        for kind in models.LOOKBACK_KINDS
    ]
    assert max(counts) <= 1.02 * min(counts)


def test_count_is_of_all_parameters():
    mixer = torch.nn.Linear(4, 3)  # 15
    whole = models.Lookback(mixer, 3, symbols=5, embed_dim=4)
    assert models.count_parameters(whole) == 5 * 4 + 15 + (3 * 5 + 5)


@each_kind
def test_no_position_sees_a_later_one(kind):
    net, (ids, _) = model(kind), batch(40, 2)
    before = net(ids)
    assert before.shape == (2, 41, 8)
    for cut in (1, 17, 40):
        changed = ids.clone()
        changed[:, cut:] = (changed[:, cut:] + 1) % 8
        after = net(changed)
        torch.testing.assert_close(after[:, :cut], before[:, :cut], rtol=0, atol=1e-12)
        assert (after[:, cut] != before[:, cut]).any(-1).all()


@each_kind
def test_how_far_back_the_last_position_sees(kind):
    gradient = models.gradient_by_distance(model(kind), batch(128, 2)[0])
    seen = torch.ones(129, dtype=torch.bool)
    if kind == "convolution":
        seen = torch.arange(129) <= 32
    assert torch.equal(gradient > 0, seen)


@pytest.mark.parametrize("layers, kernel, dilation", [(1, 3, 1), (3, 4, 1), (3, 3, 2), (2, 2, 5)])
def test_reach_of_a_convolution_is_what_the_gradient_says(layers, kernel, dilation):
    mixer = models.CausalConvolution(6, 5, layers=layers, kernel=kernel, dilation=dilation)
    for layer in mixer.layers:  # all positive, so that no ReLU shuts
        torch.nn.init.uniform_(layer.weight)
    x = torch.rand(1, 40, 6, requires_grad=True)  # (B, L, E)
    mixer(x)[0, -1].sum().backward()
    seen = x.grad[0].abs().sum(-1).flip(0).nonzero().max().item()  # (L,)
    assert seen == mixer.reach == sum((kernel - 1) * dilation**n for n in range(layers))


def test_attention_without_positions_sees_a_bag():
    ids = batch(12, 4)[0]
    mixed = torch.cat((ids[:, torch.randperm(12)], ids[:, 12:]), dim=1)  # all but the last
    blind, sighted = model("attention", positions=False), model("attention")
    torch.testing.assert_close(blind(ids)[:, -1], blind(mixed)[:, -1])
    assert (sighted(ids)[:, -1] - sighted(mixed)[:, -1]).abs().max() > 1e-3


def test_patient_gate_keeps_what_it_says():
    mixer = models.Recurrent(3, 4, memory=50)
    for weight in (mixer.weight_ih_l0, mixer.weight_hh_l0):
        torch.nn.init.zeros_(weight)
    with torch.no_grad():
        mixer.bias_ih_l0[8:], mixer.bias_hh_l0[8:] = 0.0, 0.0  # the new state is 0
    _, state = torch.nn.GRU.forward(mixer, torch.zeros(1, 10, 3), torch.ones(1, 1, 4))
    torch.testing.assert_close(state, torch.full((1, 1, 4), (1 - 1 / 50) ** 10))


def test_patient_gru_starts_with_a_longer_memory():
    ids = batch(64, 4)[0]
    plain, patient = (
        models.gradient_by_distance(model(kind), ids) for kind in ("GRU", "patient GRU")
    )
    assert plain[64] / plain[0] < 1e-6 and patient[64] / patient[0] > 0.1


def test_models_refuse_what_makes_no_sense():
    with pytest.raises(ValueError, match=r"kind must be one of GRU, .*; got 'LSTM'"):
        models.lookback_model("LSTM")
    with pytest.raises(ValueError, match="memory must be above 1 step, got 1"):
        models.Recurrent(3, 4, memory=1)


@each_kind
def test_seed_fixes_a_model(kind):
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(models.lookback_model(kind).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


# Scores and gradients


def test_gradient_is_the_norm_of_the_jacobian_at_the_last_position():
    net, ids = model("attention"), batch(5, 2)[0]
    squares = []
    for row in ids:
        x = net.embed(row[None]).detach()  # (1, L, E)
        jacobian = torch.autograd.functional.jacobian(lambda x: net.read(x)[0, -1], x)
        squares.append(jacobian[:, 0].square().sum((0, 2)))  # (V, 1, L, E) -> (L,)
    expected = torch.stack(squares).mean(0).sqrt().flip(0)  # (L,), from the end backwards
    torch.testing.assert_close(models.gradient_by_distance(net, ids), expected)


def test_loss_and_accuracy_read_the_last_position_only():
    ids, answers = batch(3, 20)
    told = F.one_hot(answers, 8).double()[:, None].expand(-1, 4, -1).clone()  # (B, L, V)
    told[:, :-1] = 100 * torch.randn(20, 3, 8)

    def knows(ids):
        return told

    assert models.lookback_accuracy(knows, (ids, answers)) == 1
    wrong = torch.where(torch.arange(20) < 5, (answers + 1) % 8, answers)
    assert models.lookback_accuracy(knows, (ids, wrong)) == 0.75
    expected = torch.logsumexp(told[0, -1], -1) - 1  # of a one among seven zeros
    torch.testing.assert_close(models.lookback_loss(knows, (ids, answers)), expected)


def test_attention_learns_what_a_convolution_cannot_reach():
    accuracy = {}
    for kind in ("attention", "convolution"):
        torch.manual_seed(0)
        net = models.lookback_model(kind)
        stream = data.lookback_batches(40, 32)
        options = {"steps": 120, "lr": 3e-3, "warmup": 20, "progress": False}
        training.fit(net, stream, models.lookback_loss, **options)
        accuracy[kind] = models.lookback_accuracy(net, batch(40, 1000, seed=9))
    assert accuracy["attention"] > 0.9 and accuracy["convolution"] < 0.2


# The recorded study


@pytest.fixture(scope="module")
def script(request):
    """benchmarks/distance.py as a module."""
    folder = str(request.config.rootpath / "benchmarks")
    sys.path.insert(0, folder)
    try:
        import distance
    finally:
        sys.path.remove(folder)
    return distance


def test_best_rate_takes_accuracy_first_and_speed_second(script):
    def row(lr, accuracy, steps_to_90, kind="GRU"):
        return {
            "model": kind, "lr": lr, "accuracy": accuracy, "steps": 500, "steps_to_90": steps_to_90
        }  # fmt: skip

    rows = [row(1e-3, 0.9, 100), row(3e-3, 1.0, 300), row(1e-2, 1.0, 200), row(3e-2, 0.1, None)]
    rows += [row(3e-2, 1.0, 50, "attention"), row(1e-3, 0.5, None, "attention")]
    assert script.best_rate(rows, "GRU") == 1e-2
    assert script.best_rate(rows, "attention") == 3e-2


def test_one_run_says_what_it_did(script):
    row = script.train("study", "attention", 8, 3e-3, 0, steps=100)
    assert row["accuracy"] > 0.9 and row["steps_to_90"] in (50, 100)
    assert row["parameters"] == models.count_parameters(models.lookback_model("attention"))


def test_recorded_study_is_whole_and_of_these_models(script):
    rows = results.load("distance")["rows"]
    sweep = [row for row in rows if row["part"] == "sweep"]
    rates = {kind: script.best_rate(sweep, kind) for kind in script.KINDS}
    seeds, distances = script.SEEDS, script.DISTANCES
    wanted = set(
        itertools.product(
            ["sweep"], script.KINDS, script.SWEEP_DISTANCES, script.RATES, [script.SWEEP_SEED]
        )
    )
    for kind in script.KINDS:
        wanted |= set(itertools.product(["study"], [kind], distances, [rates[kind]], seeds))
    other = rates["convolution"]
    wanted |= set(itertools.product(["other rate"], ["GRU"], distances, [other], seeds))
    done = [tuple(row[k] for k in ("part", "model", "distance", "lr", "seed")) for row in rows]
    assert len(done) == len(wanted) and set(done) == wanted
    for row in rows:
        assert row["steps"] == script.STEPS
        count = models.count_parameters(models.lookback_model(row["model"]))
        assert row["parameters"] == count


def test_what_is_recorded_is_not_run_again(script, monkeypatch, tmp_path):
    (tmp_path / "distance.json").touch()
    row = {"part": "sweep", "model": "GRU", "distance": 8, "lr": 0.1, "seed": 5, "steps": 500}
    runs, saved = [], []
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    monkeypatch.setattr(script.results, "load", lambda name: {"rows": [dict(row)]})
    monkeypatch.setattr(script, "save", lambda name, about, rows, seeds: saved.append(len(rows)))
    monkeypatch.setattr(script, "train", lambda *run: runs.append(run) or {"run": run})
    script.Record().run("sweep", "GRU", [8, 16], 0.1, [5])
    assert runs == [("sweep", "GRU", 16, 0.1, 5)] and saved == [2]
