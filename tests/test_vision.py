"""Rollout, distances, blanking, shuffled patches, the convolution, and the script on all of them."""

import importlib
import itertools
import sys
from collections import Counter
from pathlib import Path

import nbformat
import pytest
import torch
import torch.nn.functional as F
from support import close, randn
from torch import nn

from mha import data, models, results, training

ROOT = Path(__file__).resolve().parents[1]
TINY = {"embed_dim": 16, "ff_dim": 16, "num_layers": 1}


def weights_like(*shape, seed=0):
    """Rows that add up to one."""
    return randn(*shape, seed=seed).softmax(-1)


# rollout


def test_rollout_by_hand():
    first = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]])  # (B, H, N, N) = (1, 1, 2, 2)
    second = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
    # (I + second) / 2 @ (I + first) / 2, in this order: each place copies place 1 in the second
    expected = torch.tensor([[[0.625, 0.375], [0.25, 0.75]]])
    close(models.attention_rollout([first, second]), expected, 0)
    other = models.attention_rollout([second, first])
    assert not torch.allclose(other, expected)


def test_rollout_takes_the_mean_over_heads_which_may_differ_in_number():
    layers = [weights_like(2, 3, 4, 4), weights_like(2, 1, 4, 4, seed=1)]
    alone = [layer.mean(1, keepdim=True) for layer in layers]
    rolled = models.attention_rollout(tuple(layers))
    close(rolled, models.attention_rollout(alone))
    close(rolled.sum(-1), torch.ones(2, 4))


@pytest.mark.parametrize("residual", [0.0, 0.3, 1.0])
def test_rollout_is_exact_where_layers_do_nothing_but_mix(residual):
    layers = [weights_like(2, 3, 5, 5, seed=n) for n in range(3)]
    x = y = randn(2, 5, 7, seed=9)
    for layer in layers:
        y = residual * y + (1 - residual) * (layer.mean(1) @ y)
    rolled = models.attention_rollout(layers, residual=residual)
    close(rolled @ x, y)
    assert rolled.shape == (2, 5, 5) and rolled.dtype == torch.float64
    if residual == 1:
        close(rolled, torch.eye(5).expand(2, 5, 5), 0)


def test_rollout_of_a_model():
    model = models.VisionTransformer(**TINY | {"num_layers": 3})
    _, weights = model(torch.rand(2, 1, 8, 8), return_weights=True)
    rolled = models.attention_rollout(weights)
    assert rolled.shape == (2, 16, 16) and (rolled > 0).all()
    close(rolled.sum(-1), torch.ones(2, 16), 1e-6)


W = torch.ones(2, 1, 4, 4) / 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: models.attention_rollout([]), "weights must hold at least one layer, got none"),
        (lambda: models.attention_rollout([W], residual=1.5), "residual must be 0 to 1, got 1.5"),
        (
            lambda: models.attention_rollout([W, W[0]]),
            r"weights\[1\] must be \(B, H, N, N\), got \(1, 4, 4\)",
        ),
        (
            lambda: models.attention_rollout([W, W[:1]]),
            r"got \(2, 1, 4, 4\) and \(1, 1, 4, 4\)",
        ),
        (
            lambda: models.attention_rollout([W, W[..., :3, :3]]),
            r"got \(2, 1, 4, 4\) and \(2, 1, 3, 3\)",
        ),
        (lambda: models.attention_distance(W[:, :, :3]), r"weights must be .*\(2, 1, 3, 4\)"),
        (lambda: models.attention_distance(W, columns=3), "columns must divide .* got 3 for 4"),
        (lambda: models.patch_distances(12), "columns must be given .* got count 12"),
        (
            lambda: models.shuffle_patches(torch.zeros(2, 1, 4, 4), 2, torch.arange(3)),
            r"order must be \(4,\) or \(2, 4\), got \(3,\)",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# distance


def test_patch_distances_by_hand():
    # 0 1 2
    # 3 4 5
    apart = models.patch_distances(6, columns=3)
    assert apart[0].tolist() == pytest.approx([0, 1, 2, 1, 2**0.5, 5**0.5])
    assert apart[4].tolist() == pytest.approx([2**0.5, 1, 2**0.5, 1, 0, 1])
    assert torch.equal(apart, apart.T)
    close(models.patch_distances(4, patch_size=2), 2 * models.patch_distances(4, columns=2), 0)


def test_distance_of_heads_that_look_at_known_places():
    itself, first, even = torch.eye(6), torch.zeros(6, 6), torch.ones(6, 6)
    first[:, 0] = 1
    weights = torch.stack((6 * itself, 6 * first, even))[None].double() / 6  # (1, 3, 6, 6)
    apart = models.patch_distances(6, columns=3)
    expected = torch.stack((torch.zeros(()), apart[0].mean(), apart.mean()))
    close(models.attention_distance(weights, columns=3), expected)
    close(models.attention_distance(weights, columns=3, patch_size=4), 4 * expected)


def test_distance_is_the_mean_over_pictures():
    weights = weights_like(3, 2, 4, 4)
    each = [models.attention_distance(w[None]) for w in weights]
    close(models.attention_distance(weights), torch.stack(each).mean(0))


# blanking


def test_effect_of_a_patch_is_what_it_adds_to_the_margin():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 2, dtype=torch.float64))
    images, labels = randn(3, 2, 4, 4), torch.tensor([0, 1, 1])
    images[1, :, :2, :2] = 0
    across = model[1].weight[0] - model[1].weight[1]  # (32,)
    parts = images * across.view(2, 4, 4) * torch.tensor([1, -1, -1])[:, None, None, None]
    expected = models.patchify(parts, 2).sum(-1)  # (B, N)
    effects = models.blank_effects(model, images, labels, 2)
    close(effects, expected)
    assert effects[1, 0] == 0 and not effects.requires_grad


def test_rivals_of_the_margin_leave_the_label_out():
    class Fixed(nn.Module):
        def forward(self, images):
            return images[:, 0, 0] * 1.0

    image = torch.tensor([[[[5.0, 1.0], [0.0, 0.0]]]])  # logits 5 and 1, label 0
    effects = models.blank_effects(Fixed(), image, torch.tensor([0]), 1)
    assert effects.tolist() == [[5.0, -1.0, 0.0, 0.0]]


# shuffled patches


def test_shuffle_by_hand():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    moved = models.shuffle_patches(image, 2, torch.tensor([3, 0, 1, 2]))
    rows = [[10, 11, 0, 1], [14, 15, 4, 5], [2, 3, 8, 9], [6, 7, 12, 13]]
    assert moved[0, 0].tolist() == rows


def test_each_picture_may_have_an_order_of_its_own():
    images = torch.rand(3, 2, 4, 8)
    order = torch.stack([torch.randperm(8) for _ in range(3)])
    moved = models.shuffle_patches(images, 2, order)
    for one, image, own in zip(moved, images, order, strict=True):
        assert torch.equal(one, models.shuffle_patches(image[None], 2, own)[0])
    assert torch.equal(models.shuffle_patches(moved, 2, order.argsort(1)), images)


def net(**changes):
    options = {"embed_dim": 16, "num_heads": 2, "ff_dim": 24, "num_layers": 2}
    return models.VisionTransformer(**options | changes).double().eval()


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_without_positions_no_order_is_seen(patch_size):
    bag = net(patch_size=patch_size, positions="none")
    images = randn(3, 1, 8, 8)
    order = torch.rand(3, (8 // patch_size) ** 2).argsort(1)
    moved = models.shuffle_patches(images, patch_size, order)
    close(bag(moved), bag(images))
    ordered = net(patch_size=patch_size)
    assert not torch.allclose(ordered(moved), ordered(images), atol=1e-4)
    names = {"positions"}
    assert set(ordered.state_dict()) - set(bag.state_dict()) == names


def test_a_fixed_shuffle_is_another_numbering_of_the_positions():
    """Training included: the same run, number by number, if the vectors move along."""
    order = torch.randperm(16)
    images, labels = randn(12, 1, 8, 8), torch.arange(12) % 10
    plain, other = net(), net()
    other.load_state_dict(plain.state_dict())
    with torch.no_grad():
        other.positions.copy_(plain.positions[order])
    moved = models.shuffle_patches(images, 2, order)
    close(other(moved), plain(images))
    options = {"steps": 5, "warmup": 0, "lr": 1e-2, "every": 1, "progress": False}
    runs = [
        training.fit(model, [(pictures, labels)], training.image_loss, **options).columns()["loss"]
        for model, pictures in ((plain, images), (other, moved))
    ]
    assert runs[0] == pytest.approx(runs[1], abs=1e-9) and runs[0][4] < runs[0][0]
    assert not torch.allclose(plain.positions, other.positions, atol=1e-2)
    close(other.positions, plain.positions[order], 1e-7)


# the convolution


def test_convolution_is_as_large_as_the_transformer():
    ours, theirs = models.VisionTransformer(), models.ConvolutionalNet()
    counts = [models.count_parameters(model) for model in (ours, theirs)]
    assert counts == [69_066, 69_160]
    logits = theirs(torch.rand(3, 1, 8, 8))
    assert logits.shape == (3, 10)
    assert models.ConvolutionalNet(channels=3, num_classes=4)(torch.rand(2, 3, 6, 5)).shape == (
        2,
        4,
    )


def test_convolution_by_hand():
    model, x = models.ConvolutionalNet(channels=2, width=3).double(), randn(2, 2, 8, 6)
    images, kernels = x, [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    for number, kernel in enumerate(kernels):
        x = F.pad(x, (1, 1, 1, 1))  # zeros around
        x = F.conv2d(x, kernel.weight, kernel.bias).relu()
        x = F.max_pool2d(x, 2) if number == 1 else x
    expected = x.flatten(2).sum(-1) / 12 @ model.to_logits.weight.T + model.to_logits.bias
    close(model(images), expected)


def test_a_place_of_the_last_layer_sees_ten_by_ten_pixels():
    model = models.ConvolutionalNet(width=4).double()
    for p in model.parameters():
        nn.init.constant_(p, 0.1)
    image = torch.linspace(1, 2, 400, dtype=torch.float64).view(1, 1, 20, 20).requires_grad_()
    # all pixels of a pooling window count, not the largest alone
    model.layers[4] = nn.AvgPool2d(2)
    model.layers(image)[0, 0, 5, 5].backward()
    seen = image.grad[0, 0].nonzero()
    assert (seen.max(0).values - seen.min(0).values + 1).tolist() == [10, 10]


def test_convolution_sees_the_order_and_not_the_place():
    model = models.ConvolutionalNet().double()
    image = torch.zeros(1, 1, 32, 32, dtype=torch.float64)
    image[..., 14:18, 14:18] = randn(4, 4)
    moved = image.roll((2, -2), (2, 3))  # by whole pooling windows, far from the rim
    close(model(moved), model(image))
    digits = randn(2, 1, 8, 8)
    shuffled = models.shuffle_patches(digits, 2, torch.randperm(16))
    assert not torch.allclose(model(shuffled), model(digits), atol=1e-4)


# the script


@pytest.fixture(scope="module")
def script():
    """benchmarks/vision.py as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("vision")


@pytest.fixture(scope="module")
def recorded():
    return results.load("vision")


def key(script, row):
    return script.Run(*(row[name] for name in script.Run._fields))


def wanted(script, recorded):
    rates = script.best_rates(recorded["rows"])
    seeds = [seed for seed in recorded["seeds"] if seed != script.RATE_SEED]
    assert seeds == list(script.SEEDS)
    runs = [script.study_runs(rates, seed) for seed in seeds]
    return [*script.rate_runs(), *itertools.chain(*runs)]


def test_every_run_is_recorded_once(script, recorded):
    runs = [row for row in recorded["rows"] if row["part"] != "blanking"]
    assert Counter(key(script, row) for row in runs) == Counter(wanted(script, recorded))
    rest = [(row["seed"], row["rule"]) for row in recorded["rows"] if row["part"] == "blanking"]
    assert len(rest) == len(set(rest)) == 6 * len(script.SEEDS)


def test_rates_lie_inside_the_range_that_was_tried(script, recorded):
    for rate in script.best_rates(recorded["rows"]).values():
        assert min(script.RATES) < rate < max(script.RATES)


def test_recorded_counts_are_what_the_code_gives_now(script, recorded):
    seen = set()
    for row in recorded["rows"]:
        if row["part"] == "blanking" or (kind := key(script, row)[1:5]) in seen:
            continue
        seen.add(kind)
        model = script.build(key(script, row))
        counts = models.count_parameters(model), script.count_flops(model)
        assert counts == (row["parameters"], row["flops"]), row
    assert len(seen) == 16 + 1 + 2  # the sweep, no positions, the convolution by shuffled patches


def test_recorded_distances_before_training_are_what_the_code_gives_now(script, recorded):
    (row,) = (
        row
        for row in recorded["rows"]
        if (row["part"], row.get("patch_size"), row.get("heads"), row["seed"]) == ("sweep", 4, 2, 1)
    )
    model, split = script.build(key(script, row)), data.digits(seed=1)
    found = script.distances(model, split.test_images)
    close(torch.tensor(found), torch.tensor(row["distance_before"]), 2e-3)


def test_with_one_patch_the_number_of_heads_changes_rounding_alone(script, recorded):
    for seed in script.SEEDS:
        rows = [
            row
            for row in recorded["rows"]
            if row["part"] == "sweep" and row["patch_size"] == 8 and row["seed"] == seed
        ]
        assert len(rows) == len(script.HEADS)
        for name, slack in (("accuracy", 0.0085), ("loss", 0.01)):  # 0.0085: three pictures
            scores = [row[name] for row in rows]
            assert max(scores) - min(scores) < slack, (seed, name, scores)
    images = torch.rand(3, 1, 8, 8)
    one, many = net(patch_size=8, num_heads=1), net(patch_size=8, num_heads=8)
    many.load_state_dict(one.state_dict())
    assert torch.equal(one(images.double()), many(images.double()))


def test_blanking_starts_from_the_accuracy_of_the_run(recorded):
    for row in recorded["rows"]:
        if row["part"] != "blanking":
            continue
        (run,) = (
            r
            for r in recorded["rows"]
            if (r["part"], r.get("patch_size"), r.get("heads"), r["seed"])
            == ("sweep", 2, 4, row["seed"])
        )
        assert row["accuracy"][0] == run["accuracy"]
        assert (row["hits"] == 1) == (row["rule"] == "effect")


def test_shuffles_come_after_the_choice_of_the_run(script):
    images = torch.rand(5, 1, 8, 8)
    run = script.Run("control", "transformer", 2, 4, "none", "as is", 1e-3, 3)
    assert script.shuffler(run)(images) is images
    fixed = script.shuffler(run._replace(order="fixed"))
    moved = fixed(images)
    assert torch.equal(fixed(images), moved) and not torch.equal(moved, images)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    assert torch.equal(moved, models.shuffle_patches(images, 2, order))
    fresh = script.shuffler(run._replace(order="fresh"))
    moved = fresh(images)
    assert not torch.equal(fresh(images), moved)
    assert torch.equal(script.shuffler(run._replace(order="fresh"))(images), moved)
    same = torch.equal(*(fresh(images[:1].expand(2, 1, 8, 8))))
    assert not same  # each picture by itself


def test_moves_go_in_four_directions(script):
    class Corner(nn.Module):
        def forward(self, images):
            return torch.stack((0.5 - images[:, 0, 0, 0], images[:, 0, 0, 0] - 0.5), 1)

    image = torch.zeros(1, 1, 3, 3)
    image[0, 0, 0, 1] = 1  # in the corner after a move to the left
    label = torch.tensor([1])
    assert script.moved_accuracy(Corner(), image, label, 1) == 0.25
    assert script.moved_accuracy(Corner(), image, label, 2) == 0
    assert script.moved_accuracy(Corner(), image, torch.tensor([0]), 2) == 1


def test_deletion_blanks_the_highest_first(script):
    class Sum(nn.Module):
        patch_size = 4

        def forward(self, images):
            total = images.sum((1, 2, 3))
            return torch.stack((total, 20 - total), 1)

    images = torch.ones(1, 1, 8, 8)
    images[..., 4:, 4:] = 0  # three patches of 16: the sum is 48
    score = torch.tensor([[3.0, 1.0, 2.0, 4.0]])
    found = script.deletion(Sum(), images, torch.tensor([0]), score)
    assert found[:5] == [1, 1, 1, 1, 0] and len(found) == script.BLANKED


@pytest.mark.slow
def test_small_runs_give_the_rows_that_are_recorded(script, recorded, monkeypatch):
    rows = {row["part"]: row for row in recorded["rows"]}
    run = script.Run("sweep", "transformer", 2, 4, "learned", "as is", 3e-3, 0)
    row, *blanked = script.train(run, passes=1, **TINY)
    assert set(row) == set(rows["sweep"]) and set(blanked[0]) == set(rows["blanking"])
    assert len(blanked[0]["accuracy"]) == len(rows["blanking"]["accuracy"]) == script.BLANKED
    again, *_ = script.train(run, passes=1, **TINY)
    assert again["loss"] == row["loss"]
    bag = run._replace(part="control", positions="none")
    (plain,), (fresh,) = (
        script.train(bag._replace(order=order), passes=1, **TINY) for order in ("as is", "fresh")
    )
    assert set(plain) == set(rows["control"])
    assert plain["loss"] == pytest.approx(fresh["loss"], abs=1e-3) and fresh["moved"] is None


def test_recipe_is_that_of_the_chapters(script, recorded, monkeypatch):
    seen = []

    def fit(model, batches, loss_fn, **options):
        seen.append((len(batches), options))
        raise StopIteration

    monkeypatch.setattr(training, "fit", fit)
    with pytest.raises(StopIteration):
        script.train(script.Run("control", "transformer", 2, 4, "learned", "as is", 3e-3, 0))
    ((epoch, options),) = seen
    assert (options["steps"], options["lr"], options["warmup"]) == (30 * epoch, 3e-3, 9 * epoch)
    first, second = chapter("06-2-digits"), chapter("06-6-patches")
    assert '{"steps": 60 * epoch, "lr": 3e-3, "warmup": 18 * epoch}' in first
    assert '{"steps": 30 * epoch, "warmup": 9 * epoch, "lr": rates[name]}' in second
    assert script.best_rates(recorded["rows"]) == {"transformer": 3e-3, "convolution": 1e-2}
    assert 'rates = {"transformer": 3e-3, "convolution": 1e-2}' in second


def chapter(name: str) -> str:
    cells = nbformat.read(ROOT / f"chapters/{name}.ipynb", as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


def test_only_missing_runs_are_made(script, recorded, monkeypatch):
    made, saved = [], []
    gone = wanted(script, recorded)[-1]
    kept = [r for r in recorded["rows"] if r["part"] == "blanking" or key(script, r) != gone]

    def train(run):
        made.append(run)
        return [{**run._asdict(), "loss": 1.0}]

    monkeypatch.setattr(script, "train", train)
    monkeypatch.setattr(script, "save", lambda *what: saved.append(what))
    script.study(kept, list(script.SEEDS))
    assert made == [gone] and len(saved) == 1
    assert len(saved[0][2]) == len(recorded["rows"]) and saved[0][3] == recorded["seeds"]


@pytest.mark.slow
def test_smoke_runs_each_kind_and_writes_nothing(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks/vision.py", "--smoke"])
    monkeypatch.setattr(script, "save", None)  # must not be called
    script.main()
    printed = capsys.readouterr().out
    assert all(f"'order': '{order}'" in printed for order in ("as is", "fixed", "fresh"))
    assert all(f"'part': '{part}'" in printed for part in ("rate", "sweep", "control", "blanking"))
    assert "'convolution'" in printed and "'none'" in printed
