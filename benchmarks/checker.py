"""What the checker says of one mistake at a time, and whether a model with it still learns.

    python benchmarks/checker.py

Writes results/checker.json. Each row is one class of tests/check/specimens/plain.py with one
mistake, and first a correct one of tests/check/specimens/correct.py, as "none":
- "mistake" (its slug) and "class" (its name);
- "findings" and "notes": the slugs that `mha.check` reports;
- "checks": each line of the report and whether it passed: true, false, null for not tried;
- "taught" and "alone": the share of tokens, in [0, 1], that a small causal language model gets
  right in a copying task after training with this class, when it is given the right tokens so
  far, and when it must go on from its own; median over the seeds, see mistakes.py. Null where it
  was not trained, or not to the end;
- "why": why there are no shares, or "".
"""

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from mistakes import SEEDS, learned
from record import save
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/check"))

import specimens

from mha.check import Report, binding
from mha.check.guard import Guard
from mha.check.lab import SIZES
from mha.check.modules import Examination
from mha.check.simulate import Probe

CORRECT = "Textbook"
DROPOUT = 0.1  # for the mistakes of dropout
NO_DEAD_ROW = "at work only where a query may see nothing"
IDLE = {
    "AddedMaskNanCleanedLate": NO_DEAD_ROW,
    "MaskNanCleanedLate": NO_DEAD_ROW,
    "causal-top-left": "at work only with a cache",
    "cross-self": "at work only between two sequences",
    "cross-reversed": "at work only between two sequences",
    "dead-row-nan": NO_DEAD_ROW,
    "dead-row-uniform": NO_DEAD_ROW,
    "device-buffer": "at work only on a GPU",
    "dtype-leak": "at work only in other number formats",
    "mask-half-overflow": "at work only in float16",
    "pad-query-axis": "at work only with padding",
    "weights-after-dropout": "at work only in the weights returned",
}
"""Slug or class -> when it matters: mistakes that change nothing in the copying task."""


def subjects() -> dict[str, list[specimens.Specimen]]:
    """Slug -> the classes with this mistake alone."""
    specimens.load()
    right = next(c for c in specimens.CORRECT if getattr(c.subject, "__name__", "") == CORRECT)
    found = {"none": [specimens.Specimen((), right.subject, right.check, right.options)]}
    for one in specimens.SPECIMENS:
        if one.subject.__module__ == "specimens.plain" and len(one.slugs) == 1:
            found.setdefault(one.slugs[0], []).append(one)
    return found


def examine(one: specimens.Specimen) -> tuple[Examination, Report]:
    """As `mha.check.multi_head_attention` does it, with what was learned of the class."""
    declared = {"mask": None, "weights": None, **one.options}
    with Guard(one.subject, seconds=60, sizes=SIZES) as guard:
        exam = Examination(one.subject, guard, declared)
        exam.run()
    return exam, Report(one.subject.__name__, tuple(exam.findings), tuple(exam.checks))


def verdict(slug: str, one: specimens.Specimen) -> dict:
    """The row of one class, training aside."""
    report = examine(one)[1]
    return {
        "mistake": slug,
        "class": report.subject,
        "findings": [found.slug for found in report.findings if found.severity == "mistake"],
        "notes": [found.slug for found in report.findings if found.severity == "note"],
        "checks": {check.name: check.passed for check in report.checks},
    }


class Unguarded:
    """In place of a `Guard`: training takes longer than a check may."""

    def call(self, fn, *args, **kwargs):
        return fn(*args, **kwargs)


class Called(nn.Module):
    """A learner's class in a causal model, called in its own way."""

    def __init__(self, exam, dropout, width, heads, is_causal):
        super().__init__()
        sizes, kv_heads = exam.lab.sizes | {"E": width}, heads // 2
        self.module = binding.construct(exam.subject, sizes, heads, dropout, kv_heads)
        form = exam.mask_form
        if form is not None and exam.named("mask-inverted"):  # as it is meant, not as it works
            form = binding.MaskForm(form.shape, form.dtype, "attend")
        exam.guard = Unguarded()
        self.adapter = replace(exam.adapter(self.module), mask_form=form, heads=heads)
        self.flag = form is None

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, E) to (B, T, E)."""
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        mask = mask.expand(x.shape[0], 1, -1, -1)  # (B, 1, T, T)
        probe = Probe(x, x, x, causal=True) if self.flag else Probe(x, x, x, mask)
        return self.adapter(probe)[0]


def training(slug: str, exam: Examination) -> dict:
    """What a model with this class learns, or why there is none."""
    can_be_causal = (
        exam.mask_form is not None
        or "causal" in exam.arguments.names
        or exam.built_in
        or (exam.match is not None and exam.match.recipe.rule != "right")
    )
    idle = IDLE.get(slug) or IDLE.get(exam.subject.__name__)
    why = idle or ("" if can_be_causal else "it cannot be made causal")
    if why:
        return {"taught": None, "alone": None, "why": why}
    rate = DROPOUT if slug.startswith("dropout") else 0.0
    shares = learned(partial(Called, exam, rate))
    return shares | {"why": "training ends in an error" if shares["taught"] is None else ""}


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    torch.set_num_threads(1)
    rows = []
    for slug, found in subjects().items():
        for one in found:
            row = verdict(slug, one) | training(slug, examine(one)[0])
            rows.append(row)
            print(slug, row["class"], row["findings"], row["taught"], row["alone"], flush=True)
    about = "What the checker says of one mistake at a time, and what a model with it learns."
    print(save("checker", about, rows, SEEDS))


if __name__ == "__main__":
    main()
