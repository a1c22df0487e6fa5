"""Vision transformers on digits: patch sizes and heads, shuffled patches, and a convolution.

    python benchmarks/vision.py            # about 12 minutes on one idle core
    python benchmarks/vision.py --smoke    # tiny, in seconds; writes nothing

The recipe is that of chapter 6.2 with half the passes: 30 over the training pictures, augmented, in
batches of 64. A seed fixes split, initial weights, batches and shuffles. Each of the two models
takes the learning rate, of four, with the lowest held-out loss on a seed that the study does not
use. Runs that results/vision.json holds already are kept, not repeated; the file is written after
each run. `--fresh` starts from nothing.

Parts: "rate", the choice of the learning rates; "sweep", patch sizes and heads at equal width
(patches of one pixel with seeds 0 and 1 only, for the time they take); "control", other orders of
the patches, with positions and without, and the convolution. A row of these is one training run:
    model, patch_size (pixels to a side), heads, positions ("learned" or "none"), lr, seed.
    order        "as is"; "fixed", the patches shuffled in one way for all pictures, trained and
                 tested so; "fresh", shuffled anew for each picture each time it is seen. The
                 shuffle comes after the augmentation.
    accuracy     share of the 359 held-out pictures read right, 0 to 1.
    loss         their mean cross-entropy, nats.
    train_accuracy  share of the 1,438 training pictures, not augmented.
    moved        the accuracy on held-out pictures moved by one and by two pixels, each the mean
                 over four directions; null where the order is not "as is".
    augmented    the accuracy on held-out pictures that were augmented before the shuffle, as in
                 training; null where the order is not "fresh".
    parameters   of the whole model. flops: of a forward pass for one picture, torch's count.
    cpu_seconds  processor time of the training.
    distance_before, distance  in the sweep: mean attention distance in pixels over the held-out
                 pictures, before and after training, by layer and head; null for one patch.
    without      in the sweep: the accuracy with that head switched off, by layer and head.

Rows of part "blanking", one for each (seed, rule), the model of 2x2 patches and 4 heads:
    accuracy     with 0, 1, 2, ... patches of each held-out picture blanked in the order of the
                 rule, for which "effect" knows what blanking each patch alone did to the margin.
    effect       mean fall of the margin by the first patch alone, in logits.
    hits         share of the pictures whose first patch is the one with the largest effect.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from record import save
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import mha
from mha import data, models, results, training

SEEDS, RATE_SEED = (0, 1, 2), 100
PIXEL_SEEDS = (0, 1)  # of patches of one pixel, which take more time than all the rest
PATCHES, HEADS, RATES = (1, 2, 4, 8), (1, 2, 4, 8), (1e-3, 3e-3, 1e-2, 3e-2)
PASSES, BATCH = 30, 64
BLANKED = 7
ABOUT = "Vision transformers on digits: patches, heads, shuffles, and a convolution."


class Run(NamedTuple):
    """One training run."""

    part: str
    model: str  # "transformer" or "convolution"
    patch_size: int  # for the convolution, of the shuffle
    heads: int | None
    positions: str | None
    order: str
    lr: float
    seed: int


def rate_runs() -> list[Run]:
    """Both models at each learning rate."""
    kinds = (("transformer", 4, "learned"), ("convolution", None, None))
    return [
        Run("rate", model, 2, heads, positions, "as is", lr, RATE_SEED)
        for model, heads, positions in kinds
        for lr in RATES
    ]


def study_runs(rates: dict[str, float], seed: int) -> list[Run]:
    """Sweep and control for one seed; 2x2 patches with 4 heads and positions are in the sweep."""
    ours, theirs = rates["transformer"], rates["convolution"]
    sweep = [
        Run("sweep", "transformer", patch, heads, "learned", "as is", ours, seed)
        for patch, heads in itertools.product(PATCHES, HEADS)
        if patch > 1 or seed in PIXEL_SEEDS
    ]
    control = [
        Run("control", "transformer", 2, 4, positions, order, ours, seed)
        for positions in ("learned", "none")
        for order in ("as is", "fixed", "fresh")
        if (positions, order) != ("learned", "as is")
    ]
    shuffles = ((2, "as is"), (2, "fixed"), (1, "fixed"), (2, "fresh"))
    control += [
        Run("control", "convolution", patch, None, None, order, theirs, seed)
        for patch, order in shuffles
    ]
    return sweep + control


def shuffler(run: Run) -> Callable[[Tensor], Tensor]:
    """What the run does to the order of the patches; each call draws on where "fresh" does."""
    count = (8 // run.patch_size) ** 2
    generator = torch.Generator().manual_seed(run.seed)
    fixed = torch.randperm(count, generator=generator)  # (N,)

    def shuffle(images: Tensor) -> Tensor:
        if run.order == "as is":
            return images
        order = fixed
        if run.order == "fresh":
            order = torch.rand(len(images), count, generator=generator).argsort(1)  # (B, N)
        return models.shuffle_patches(images, run.patch_size, order)

    return shuffle


def build(run: Run, **sizes) -> nn.Module:
    """The model, with the initial weights of its seed."""
    torch.manual_seed(run.seed)
    if run.model == "convolution":
        return models.ConvolutionalNet(**({"width": 6} if sizes else {}))
    return models.VisionTransformer(
        patch_size=run.patch_size, num_heads=run.heads, positions=run.positions, **sizes
    )


def train(run: Run, *, passes: int = PASSES, **sizes) -> list[dict]:
    """Train and look: the run's row, and rows of part "blanking" where it has some."""
    split = data.digits(seed=run.seed)
    batches = data.image_batches(*split[:2], BATCH, seed=run.seed)
    shuffle, model = shuffler(run), build(run, **sizes)
    tests = [(shuffle(split.test_images), split.test_labels)]
    tests.append((shuffle(split.train_images), split.train_labels))
    before = distances(model, tests[0][0]) if run.part == "sweep" else None
    steps = passes * len(batches)
    start = time.process_time()
    training.fit(
        model,
        batches,
        lambda model, batch: training.image_loss(model, (shuffle(batch[0]), batch[1])),
        steps=steps,
        lr=run.lr,
        warmup=steps * 3 // 10,
        every=steps,
        seed=run.seed,
        progress=False,
    )
    seconds = time.process_time() - start
    row = {**run._asdict(), **scores(model, *tests), "moved": None, "augmented": None}
    if run.order == "as is":
        row["moved"] = [moved_accuracy(model, *tests[0], pixels) for pixels in (1, 2)]
    if run.order == "fresh":
        generator = torch.Generator().manual_seed(run.seed)
        images = shuffle(data.augment(split.test_images, generator))
        row["augmented"] = round(training.accuracy(model, images, split.test_labels), 4)
    row |= {"parameters": models.count_parameters(model), "flops": count_flops(model)}
    row["cpu_seconds"] = round(seconds, 1)
    if run.part != "sweep":
        return [row]
    row |= {"distance_before": before, "distance": distances(model, tests[0][0])}
    row["without"] = accuracy_without(model, *tests[0])
    watched = (run.patch_size, run.heads) == (2, 4)
    return [row, *(blanking(model, *tests[0], run.seed) if watched else [])]


@torch.no_grad()
def scores(model: nn.Module, test: tuple, train: tuple) -> dict:
    """Accuracy and loss on the held-out pictures, accuracy on those of the training."""
    return {
        "accuracy": round(training.accuracy(model, *test), 4),
        "loss": round(training.image_loss(model, test, label_smoothing=0.0).item(), 4),
        "train_accuracy": round(training.accuracy(model, *train), 4),
    }


def moved_accuracy(model: nn.Module, images: Tensor, labels: Tensor, pixels: int) -> float:
    """The mean accuracy over moves to the right, left, down and up; blank pixels come in."""
    p = pixels
    moves = ((p, -p, 0, 0), (-p, p, 0, 0), (0, 0, p, -p), (0, 0, -p, p))
    right = [training.accuracy(model, F.pad(images, move), labels) for move in moves]
    return round(sum(right) / 4, 4)


@torch.no_grad()
def distances(model: nn.Module, images: Tensor) -> list[list[float]] | None:
    """Mean attention distance in pixels, by layer and head; None for a single patch."""
    _, weights = model(images, return_weights=True)
    if weights[0].shape[-1] == 1:
        return None
    rows = [models.attention_distance(w, patch_size=model.patch_size) for w in weights]  # (H,) each
    return [[round(x, 3) for x in row.tolist()] for row in rows]


def accuracy_without(model: nn.Module, images: Tensor, labels: Tensor) -> list[list[float]]:
    """The accuracy with one head switched off, by layer and head."""
    found = []
    for block in model.blocks:
        row = []
        for head in range(block.attention.num_heads):
            with models.without_head(block.attention, head):
                row.append(round(training.accuracy(model, images, labels), 4))
        found.append(row)
    return found


@torch.no_grad()
def blanking(model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> list[dict]:
    """The rows of part "blanking" for one trained model."""
    _, weights = model(images, return_weights=True)
    patches = models.patchify(images, model.patch_size)  # (B, N, F)
    effects = models.blank_effects(model, images, labels, model.patch_size)  # (B, N)
    ink = patches.mean(-1)  # (B, N)
    luck = torch.rand(ink.shape, generator=torch.Generator().manual_seed(seed)) * (ink > 0)
    rules = {
        "rollout": models.attention_rollout(weights).mean(1),
        "last layer": weights[-1].mean((1, 2)),
        "first layer": weights[0].mean((1, 2)),
        "ink": ink,
        "chance": luck,
        "effect": effects,
    }
    return [
        {
            **{"part": "blanking", "rule": rule, "seed": seed},
            "accuracy": deletion(model, images, labels, score),
            "effect": round(effects.gather(1, score.argmax(1, keepdim=True)).mean().item(), 3),
            "hits": round((score.argmax(1) == effects.argmax(1)).double().mean().item(), 3),
        }
        for rule, score in rules.items()
    ]


def deletion(model: nn.Module, images: Tensor, labels: Tensor, score: Tensor) -> list[float]:
    """The accuracy with the 0, 1, 2, ... patches of the highest score blanked."""
    patches = models.patchify(images, model.patch_size)  # (B, N, F)
    rank = score.argsort(1, descending=True).argsort(1)[..., None]  # (B, N, 1)
    found = []
    for count in range(BLANKED):
        left = patches.masked_fill(rank < count, 0.0)
        left = models.unpatchify(left, model.patch_size, channels=1, width=images.shape[3])
        found.append(round(training.accuracy(model, left, labels), 4))
    return found


@torch.no_grad()
def count_flops(model: nn.Module) -> int:
    """FLOPs of a forward pass for one picture, on the readable path, which torch can count."""
    attentions = [m for m in model.modules() if isinstance(m, mha.MultiHeadAttention)]
    backends = [attention.backend for attention in attentions]
    for attention in attentions:
        attention.backend = "reference"
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 1, 8, 8))
    for attention, backend in zip(attentions, backends, strict=True):
        attention.backend = backend
    return counter.get_total_flops()


def best_rates(rows: list[dict]) -> dict[str, float]:
    """For each model the learning rate with the lowest held-out loss."""
    rows = [row for row in rows if row["part"] == "rate"]
    return {
        model: min((row for row in rows if row["model"] == model), key=lambda row: row["loss"])[
            "lr"
        ]
        for model in ("transformer", "convolution")
    }


def study(done: list[dict], seeds: list[int]) -> None:
    """Do what `done` does not hold yet, and save after each run."""

    def finish(runs: list[Run]) -> None:
        for run in runs:
            if any(row.items() >= run._asdict().items() for row in done):
                continue
            done.extend(train(run))
            save("vision", ABOUT, done, [*seeds, RATE_SEED])
            print(*done[-1].values() if run.part != "sweep" else (*run, done[-1]), flush=True)

    finish(rate_runs())
    for seed in seeds:
        finish(study_runs(best_rates(done), seed))


def smoke() -> None:
    """Each kind of run once, far too small and too short to mean anything."""
    sizes = {"embed_dim": 16, "ff_dim": 16, "num_layers": 1}
    rates = dict.fromkeys(("transformer", "convolution"), 3e-3)
    for run in [*rate_runs()[:1], *study_runs(rates, 0)]:
        if run.heads in (None, 4):
            for row in train(run, passes=1, **sizes):
                print(row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--fresh", action="store_true", help="repeat what has been recorded")
    parser.add_argument("--smoke", action="store_true", help="tiny runs that write nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.smoke:
        return smoke()
    new = options.fresh or "vision" not in results.names()
    study([] if new else results.load("vision")["rows"], list(options.seeds))


if __name__ == "__main__":
    main()
