"""Accuracy against distance: models of equal size name the symbol that stood T steps back.

Writes results/distance.json, in about 12 CPU minutes on one thread. What the file holds already is
kept, so a study that was stopped goes on; delete the file to start afresh. Every run: 500 steps of
`mha.training.fit`, 64 fresh sequences a step, an alphabet of 8 (chance 0.125).

Each model's learning rate is chosen by a sweep of its own: four rates, distances 32 and 128, a
seed that the study does not use. The rate of the highest mean accuracy wins, and of equals the
one that needs fewer steps to 90 %.

Rows: part ("sweep"; "study", each model at the rate chosen for it; "other rate", the GRU at the
rate of the convolution), model, distance T (steps), lr (the highest learning rate), seed, steps
(of training), parameters (count), accuracy (share of 1,000 held-out sequences after the last
step, 0 to 1), steps_to_90 (steps to an accuracy of 0.9, looked at every 50; null if never).
"""

import argparse

import torch
from record import RESULTS, save

from mha import data, models, results, training

DISTANCES = (8, 16, 32, 64, 128)
SWEEP_DISTANCES = (32, 128)
SEEDS = (0, 1, 2)
SWEEP_SEED, TEST_SEED = 100, 10_000
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
KINDS = ("GRU", "attention", "convolution")
STEPS, BATCH, EVERY = 500, 64, 50


def train(part: str, kind: str, distance: int, lr: float, seed: int, steps: int = STEPS) -> dict:
    """One run: train a fresh model, and say how it does."""
    torch.manual_seed(seed)
    model = models.lookback_model(kind)
    test = next(data.lookback_batches(distance, 1000, seed=TEST_SEED))
    history = training.fit(
        model,
        data.lookback_batches(distance, BATCH, seed=seed),
        models.lookback_loss,
        steps=steps,
        lr=lr,
        warmup=50,
        every=EVERY,
        seed=seed,
        progress=False,
        evaluate=lambda m: models.lookback_accuracy(m, test),
    )
    reached = [row.step for row in history.rows if row.metric >= 0.9]
    return {
        "part": part,
        "model": kind,
        "distance": distance,
        "lr": lr,
        "seed": seed,
        "steps": steps,
        "parameters": models.count_parameters(model),
        "accuracy": round(history.rows[-1].metric, 3),
        "steps_to_90": reached[0] if reached else None,
    }


def best_rate(rows: list[dict], kind: str) -> float:
    """The rate with the highest accuracy over the distances; of equals the one sooner at 90 %."""

    def merit(lr: float) -> tuple[float, float]:
        mine = [row for row in rows if (row["model"], row["lr"]) == (kind, lr)]
        steps = sum(row["steps_to_90"] or row["steps"] for row in mine)
        return round(sum(row["accuracy"] for row in mine), 3), -steps

    return max(RATES, key=merit)


class Record:
    """The rows so far, written down after each run."""

    def __init__(self):
        known = (RESULTS / "distance.json").exists()
        self.rows = results.load("distance")["rows"] if known else []

    def run(self, part: str, kind: str, distances, lr: float, seeds) -> None:
        """Train at every distance with every seed, unless that was done before."""
        for distance in distances:
            for seed in seeds:
                wanted = [part, kind, distance, lr, seed, STEPS]
                if wanted not in [list(row.values())[:6] for row in self.rows]:
                    self.rows.append(train(part, kind, distance, lr, seed))
                    about = "Accuracy in naming the symbol T steps back, for models of equal size."
                    save("distance", about, self.rows, [*SEEDS, SWEEP_SEED])
                    print(*self.rows[-1].values(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    torch.set_num_threads(1)
    record = Record()
    for kind in KINDS:
        for lr in RATES:
            record.run("sweep", kind, SWEEP_DISTANCES, lr, [SWEEP_SEED])
    sweep = [row for row in record.rows if row["part"] == "sweep"]
    for kind in KINDS:
        record.run("study", kind, DISTANCES, best_rate(sweep, kind), SEEDS)
    record.run("other rate", "GRU", DISTANCES, best_rate(sweep, "convolution"), SEEDS)


if __name__ == "__main__":
    main()
