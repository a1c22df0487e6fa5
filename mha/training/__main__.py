"""The command line: ``python -m mha.training translate --pair en-es``."""

import argparse
import sys
from collections.abc import Sequence

import torch

from mha.training import translate


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m mha.training", description="Train a model.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    sub = commands.add_parser(
        "translate",
        help="a translator of sentences",
        description="Train a translator of sentences. Killed or stopped, the same command goes on "
        "where it was, with the same losses as without the break.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    sub.set_defaults(run=translate.run)
    add = sub.add_argument
    add("--pair", choices=sorted(translate.PAIRS), default="en-es", help="languages, from and to")
    add("--out", help="folder to write to (default: translate-PAIR)")
    add("--steps", type=int, default=8_000, help="batches in all; the learning rate follows them")
    add("--minutes", type=float, help="stop this run after so long, at the next row of the table")
    add("--seed", type=int, default=0, help="of weights, order and dropout")
    add("--device", type=_device, default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, default=1, help="of the processor")
    add("--every", type=int, default=250, help="steps between two rows, and two checkpoints")
    add("--pieces", type=int, default=4_000, help="subwords, of both languages together")
    add("--embed-dim", type=int, default=128)
    add("--num-heads", type=int, default=8)
    add("--num-layers", type=int, default=2, help="in the encoder, and as many in the decoder")
    add("--ff-dim", type=int, default=512)
    add("--dropout", type=float, default=0.1)
    add("--label-smoothing", type=float, default=0.1)
    add("--batch-size", type=int, default=128, help="pairs in a batch")
    add("--lr", type=float, default=2e-3, help="highest learning rate")
    add("--warmup", type=int, default=400, help="steps to reach it")
    return top


def _device(name: str) -> str:
    """The name, if there is such a device."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise argparse.ArgumentTypeError(f"there is no {name!r}: {error}") from error
    return name


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, or 1 with a sentence on stderr."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = parser().parse_args(arguments)
    options.command = arguments
    options.out = options.out or f"translate-{options.pair}"
    try:
        torch.set_num_threads(options.threads)
        history = options.run(options)
    except (ValueError, RuntimeError, FloatingPointError, ImportError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(history)
    return 0


if __name__ == "__main__":
    sys.exit(main())
