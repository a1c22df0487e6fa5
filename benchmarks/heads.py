"""Heads at equal width: 1, 2, 4 and 8 heads in the models of chapters 6.1 and 6.2.

    python benchmarks/heads.py                      # half an hour on one idle core
    python benchmarks/heads.py --seeds 0 1 2 3 4

A seed fixes split, initial weights and batches. Models that differ in heads alone have parameters
of the same shapes, so with the same seed they start from the same numbers and read the same
batches: compare them seed by seed. Runs that results/heads.json holds already are kept, not
repeated; the file is written after each run. `--fresh` starts from nothing.

The tasks are "dates" and "digits", by the recipes of those chapters, and "few dates": the first
with a tenth of the training pairs.

Rows of part "training", one for each (task, heads, seed):
    score        share of held-out examples that are right, 0 to 1: 2,000 dates that are right in
                 every character, or 359 pictures.
    train_score  the same on examples of the training set: its first 2,000 dates (all 1,000 of the
                 few), or its 1,438 pictures as they are (training saw them turned and moved).
    loss, train_loss   mean cross-entropy on these, nats per character or per picture.
    parameters   of the whole model.
    flops        of one forward pass for one example: a date of 20 characters, or a picture.
                 Counted by torch, and by the formula of chapter 4.5, which must agree.
    cpu_seconds  processor time of the training, its small held-out checks included.
    steps, scores   those checks: share right of 200 held-out dates or of all held-out pictures.

Rows of part "time", one for each (length, backend, heads): forward and backward of one
self-attention layer on (batch, length, embed_dim). All heads and backends take turns, round after
round.
    ms       processor time of the fastest round, milliseconds.
    ratio    median over the rounds of: time / time of one head with this backend in this round;
             low and high are the quartiles.
"""

import argparse
import itertools
import statistics
import time

import torch
from record import save
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import mha
from mha import data, models, results, training

HEADS = (1, 2, 4, 8)
TASKS = ("dates", "digits", "few dates")
SEEDS = (0, 1, 2)
SIZES = ((64, 32, 128), (1, 1024, 512))  # (batch, length, embed_dim) of the timed layers
ABOUT = "Heads at equal width on dates and digits: scores, losses, parameters, FLOPs, time."


def train_dates(
    heads: int, seed: int, *, pairs: int = 10_000, steps: int = 600, count: int = 2_000, **sizes
) -> dict:
    """One run of the recipe of chapter 6.1 on `pairs` dates; `count` are scored. Returns a row."""
    train, held_out = data.dates(pairs, count, seed=seed)
    vocabularies = data.date_vocabularies(train)
    batches = data.translation_batches(train, *vocabularies, 64, seed=seed)
    few, held_out, seen = (
        data.translation_batch(part, *vocabularies)
        for part in (held_out[:200], held_out, train[:count])
    )
    torch.manual_seed(seed)
    model = models.Translator(*map(len, vocabularies), num_heads=heads, **sizes)
    start = time.process_time()
    history = training.fit(
        model,
        batches,
        training.translation_loss,
        steps=steps,
        lr=1e-3,
        warmup=steps // 6,
        evaluate=lambda model: training.exact_match(model, few),
        every=steps // 6,
        progress=False,
    )
    seconds = time.process_time() - start
    tests = [
        (training.exact_match(model, batch), _loss(training.translation_loss, model, batch))
        for batch in (held_out, seen)
    ]
    flops = count_flops(model, few.source_ids[:1, :1].expand(1, 20), few.target_in[:1])
    return _row(model, tests, flops, seconds, history)


def train_few_dates(heads: int, seed: int) -> dict:
    """As `train_dates`, with a tenth of the pairs: overfitting gets its chance. Returns a row."""
    return train_dates(heads, seed, pairs=1_000)


def train_digits(heads: int, seed: int, *, passes: int = 60, **sizes) -> dict:
    """One run of the recipe of chapter 6.2. Returns a row."""
    split = data.digits(seed=seed)
    batches = data.image_batches(*split[:2], 64, seed=seed)
    torch.manual_seed(seed)
    model = models.VisionTransformer(num_heads=heads, **sizes)
    steps = passes * len(batches)
    start = time.process_time()
    history = training.fit(
        model,
        batches,
        training.image_loss,
        steps=steps,
        lr=3e-3,
        warmup=steps * 3 // 10,
        evaluate=lambda model: training.accuracy(model, *split[2:]),
        every=steps // 6,
        progress=False,
    )
    seconds = time.process_time() - start
    tests = [
        (training.accuracy(model, *part), _loss(_plain_image_loss, model, part))
        for part in (split[2:], split[:2])
    ]
    return _row(model, tests, count_flops(model, split.test_images[:1]), seconds, history)


def _plain_image_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return training.image_loss(model, batch, label_smoothing=0.0)


@torch.no_grad()
def _loss(loss_fn, model: nn.Module, batch) -> float:
    return loss_fn(model, batch).item()


def _row(model, tests, flops, seconds, history) -> dict:
    (score, loss), (train_score, train_loss) = tests
    table = history.columns()
    return {
        "score": round(score, 4),
        "train_score": round(train_score, 4),
        "loss": round(loss, 4),
        "train_loss": round(train_loss, 4),
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops": flops,
        "cpu_seconds": round(seconds, 1),
        "steps": table["step"],
        "scores": [round(score, 4) for score in table["metric"]],
    }


@torch.no_grad()
def count_flops(model: nn.Module, *example: Tensor) -> int:
    """FLOPs of a forward pass by torch's counter, on the readable path, which it can count.

    Errors: AssertionError if the formula of chapter 4.5 gives another number.
    """
    attentions = [m for m in model.modules() if isinstance(m, mha.MultiHeadAttention)]
    backends = [attention.backend for attention in attentions]
    for attention in attentions:
        attention.backend = "reference"
    with FlopCounterMode(display=False) as counter:
        model(*example)
    for attention, backend in zip(attentions, backends, strict=True):
        attention.backend = backend
    flops = counter.get_total_flops()
    assert flops == flops_by_formula(model, *example), (flops, flops_by_formula(model, *example))
    return flops


def flops_by_formula(model: nn.Module, *example: Tensor) -> int:
    """The same from sizes alone: two FLOPs for each multiply-add of a product."""
    E = model.to_logits.in_features
    K = model.to_logits.out_features
    if isinstance(model, models.Translator):
        S, T = (ids.shape[1] for ids in example)
        F = model.encoder[0].feed_forward[0].out_features
        encoder = _attention(S, S, E) + 4 * S * E * F
        decoder = _attention(T, T, E) + _attention(T, S, E) + 4 * T * E * F
        return len(model.encoder) * (encoder + decoder) + 2 * T * E * K
    N, E = model.positions.shape
    F = model.blocks[0].feed_forward[0].out_features
    block = _attention(N, N, E) + 4 * N * E * F
    return 2 * N * model.embed.in_features * E + len(model.blocks) * block + 2 * E * K


def _attention(T: int, S: int, E: int) -> int:
    """Four maps, scores and weighted sums of T queries and S keys at width E: no H in it."""
    return 4 * E * E * (T + S) + 4 * T * S * E


def time_layers(batch: int, length: int, embed_dim: int, *, rounds: int) -> list[dict]:
    """Forward and backward of one layer, all heads and backends in turn. Returns the rows."""
    torch.manual_seed(0)
    x = torch.randn(batch, length, embed_dim, requires_grad=True)  # (B, T, E)
    runs = list(itertools.product(("reference", "sdpa"), HEADS))
    layers = {run: mha.MultiHeadAttention(embed_dim, run[1], backend=run[0]) for run in runs}
    times = {run: [] for run in runs}
    for number in range(rounds + 1):  # the first round warms up
        for run, layer in layers.items():
            start = time.process_time()
            layer(x).sum().backward()
            if number:
                times[run].append(1000 * (time.process_time() - start))
    rows = []
    for (backend, heads), mine in times.items():
        ratios = [a / b for a, b in zip(mine, times[backend, 1], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        size = {"batch": batch, "length": length, "embed_dim": embed_dim}
        row = {"part": "time", **size, "backend": backend, "heads": heads, "rounds": rounds}
        figures = {"ms": min(mine), "ratio": middle, "low": low, "high": high}
        rows.append({**row, **{name: round(figure, 3) for name, figure in figures.items()}})
    return rows


def run(done: list[dict], seeds: list[int]) -> None:
    """Do what `done` does not hold yet, and save after each run."""
    if not any(row["part"] == "time" for row in done):
        for size in SIZES:
            done += time_layers(*size, rounds=30)
        _save(done)
    finished = {(row["task"], row["heads"], row["seed"]) for row in done if "task" in row}
    train = {"dates": train_dates, "digits": train_digits, "few dates": train_few_dates}
    for task, seed, heads in itertools.product(TASKS, seeds, HEADS):
        if (task, heads, seed) in finished:
            continue
        row = {"part": "training", "task": task, "heads": heads, "seed": seed}
        done.append({**row, **train[task](heads, seed)})
        _save(done)
        print(done[-1], flush=True)


def _save(rows: list[dict]) -> None:
    save("heads", ABOUT, rows, sorted({row["seed"] for row in rows if "seed" in row}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--fresh", action="store_true", help="repeat what has been recorded")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = [] if options.fresh or "heads" not in results.names() else results.load("heads")["rows"]
    run(kept, options.seeds)


if __name__ == "__main__":
    main()
