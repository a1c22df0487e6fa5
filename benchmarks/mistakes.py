"""Which test catches which mistake: every faulty variant in tests/faulty against every property.

    python benchmarks/mistakes.py

Writes results/mistakes.json. Its rows are of two kinds, each with "kind", "function" or "module":
- one a property: "property" (its name) and "about" (what it asks);
- one a mistake, the correct code included, as "none": "mistake" (its slug), "about" (what is
  wrong), "fails" (the properties that say so) and "raises" (those that end in another error).
  Rows of modules also hold "taught" and "alone": the share of tokens, in [0, 1], that a small
  causal language model gets right in a copying task after training with this module, when it is
  given the right tokens so far, and when it must go on from its own. It is the median over the
  seeds; None where training ends in an error. See `train`. Mistakes that are not at work in
  training, such as those of a cache, have no such shares.
"""

import argparse
import statistics
import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from record import save
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import faulty
import function_properties
import properties

SEEDS = [0, 1, 2]
WORDS, LENGTH, BATCH, STEPS = 10, 6, 64, 300
KINDS = {
    "function": (function_properties.ALL, {"none": faulty.Function, **faulty.FUNCTIONS}),
    "module": (properties.ALL, {"none": faulty.Module, **faulty.MODULES}),
}


def first_line(thing) -> str:
    """What a property or a mistake says of itself."""
    return thing.__doc__.splitlines()[0]


def properties_of(kind: str) -> list[dict]:
    """A row for each property."""
    return [
        {"kind": kind, "property": name, "about": first_line(holds)}
        for name, holds in KINDS[kind][0].items()
    ]


def verdicts(kind: str, slug: str) -> dict:
    """The row of one mistake, training aside."""
    checks, variants = KINDS[kind]
    subject = variants[slug]() if kind == "function" else variants[slug]
    found = {name: faulty.verdict(holds, subject) for name, holds in checks.items()}
    about = "Correct." if slug == "none" else first_line(variants[slug])
    row = {"kind": kind, "mistake": slug, "about": about}
    return row | {v: [name for name in found if found[name] == v] for v in ("fails", "raises")}


class Copier(nn.Module):
    """One block of a causal language model, with the given attention; width 32, 4 heads."""

    def __init__(self, make):
        super().__init__()
        self.words = nn.Embedding(WORDS, 32)
        self.places = nn.Embedding(2 * LENGTH, 32)
        self.attention = make(32, 4, is_causal=True)
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(3))
        self.feed = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, WORDS)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (B, T) to scores of the next word (B, T, WORDS)."""
        x = self.words(ids) + self.places.weight[: ids.shape[1]]  # (B, T, E)
        x = x + self.attention(self.norms[0](x))
        x = x + self.feed(self.norms[1](x))
        return self.head(self.norms[2](x))


def train(make, seed: int) -> tuple[float, float]:
    """Learn to repeat LENGTH random words; shares of right words on fresh ones, taught and alone."""
    torch.manual_seed(seed)
    model, draw = Copier(make), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def batch() -> Tensor:
        return torch.randint(WORDS, (BATCH, LENGTH), generator=draw).repeat(1, 2)

    for _ in range(STEPS):
        ids = batch()
        scores = model(ids[:, :-1])[:, LENGTH - 1 :]  # (B, LENGTH, WORDS)
        loss = F.cross_entropy(scores.flatten(0, 1), ids[:, LENGTH:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    ids = batch()
    right = model(ids[:, :-1])[:, LENGTH - 1 :].argmax(-1) == ids[:, LENGTH:]
    written = ids[:, :LENGTH]
    for _ in range(LENGTH):
        written = torch.cat([written, model(written)[:, -1:].argmax(-1)], dim=1)
    alone = written[:, LENGTH:] == ids[:, LENGTH:]
    return right.double().mean().item(), alone.double().mean().item()


def learned(make) -> dict:
    """How well a model with this module learns: median over the seeds, two decimals."""
    try:
        runs = [train(make, seed) for seed in SEEDS]
    except RuntimeError:
        return {"taught": None, "alone": None}
    taught, alone = (round(statistics.median(shares), 2) for shares in zip(*runs, strict=True))
    return {"taught": taught, "alone": alone}


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    torch.set_num_threads(1)
    rows = []
    for kind, (_, variants) in KINDS.items():
        rows += properties_of(kind)
        for slug, variant in variants.items():
            row = verdicts(kind, slug)
            if kind == "module" and variant.in_training:
                row |= learned(partial(variant, **variant.options))
            rows.append(row)
            print(kind, slug, len(row["fails"] + row["raises"]), row.get("taught"), flush=True)
    about = "Which property catches which mistake, and what a model with the mistake learns."
    print(save("mistakes", about, rows, SEEDS))


if __name__ == "__main__":
    main()
