"""One training loop for every model here."""

import collections
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mha._extras import require, watched
from mha.training import _state


class Row(NamedTuple):
    """One line of a `History`: the state after ``step`` steps.

    Examples:
        >>> from mha import training
        >>> row = training.Row(step=50, loss=1.25, lr=1e-3, metric=None, seconds=0.5)
        >>> row.step, row.loss
        (50, 1.25)
    """

    step: int
    loss: float  # mean over the steps since the row before
    lr: float  # learning rate of the last step
    metric: float | None  # held-out score, where one was asked for
    seconds: float  # since the start, by the wall clock


@dataclass
class History:
    """What happened in training: a small table. ``print(history)`` shows it.

    Attributes:
        rows: list of `Row`, in their order.
        stopped_early: whether training ended before its last step.

    Examples:
        >>> from mha import training
        >>> first = training.Row(step=50, loss=1.25, lr=1e-3, metric=None, seconds=0.5)
        >>> history = training.History([first, training.Row(100, 0.75, 1e-4, 0.9, 1.0)])
        >>> print(history)
          step     loss        lr  metric  seconds
            50   1.2500  1.00e-03       -      0.5
           100   0.7500  1.00e-04  0.9000      1.0
        >>> history.columns()["loss"]
        [1.25, 0.75]
    """

    rows: list[Row] = field(default_factory=list)
    stopped_early: bool = False

    def columns(self) -> dict[str, list]:
        """The table by columns: step, loss, lr, metric, seconds."""
        return {name: [getattr(row, name) for row in self.rows] for name in Row._fields}

    def __str__(self) -> str:
        lines = [f"{'step':>6} {'loss':>8} {'lr':>9} {'metric':>7} {'seconds':>8}"]
        for step, loss, lr, metric, seconds in self.rows:
            score = "-" if metric is None else f"{metric:.4f}"
            lines.append(f"{step:>6} {loss:>8.4f} {lr:>9.2e} {score:>7} {seconds:>8.1f}")
        return "\n".join(lines)


def warmup_cosine(step: int, *, steps: int, warmup: int) -> float:
    """Factor on the learning rate of step 1 to ``steps``: a straight rise, then half a cosine.

    It is 1 at step ``warmup`` and falls towards 0, which it would reach at step ``steps + 1``.

    Args:
        step: 1 to steps.
        steps: of the whole training.
        warmup: steps of the rise, 0 to steps.
    Returns: 0 to 1.
    Source: the cosine, Loshchilov and Hutter 2017, section 3, without restarts.

    Examples:
        >>> from mha import training
        >>> factors = [training.warmup_cosine(n, steps=7, warmup=2) for n in range(1, 8)]
        >>> [round(factor, 2) for factor in factors]
        [0.5, 1.0, 0.93, 0.75, 0.5, 0.25, 0.07]
    """
    if step <= warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps + 1 - warmup)))


def fit(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: Callable[[nn.Module, Any], Tensor],
    *,
    steps: int,
    lr: float = 1e-3,
    warmup: int = 100,
    weight_decay: float = 0.01,
    clip: float = 1.0,
    evaluate: Callable[[nn.Module], float] | None = None,
    every: int = 50,
    patience: int | None = None,
    seconds: float | None = None,
    checkpoint: Path | str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> History:
    """Train ``model`` in place: AdamW, gradients clipped, `warmup_cosine`.

    The same model, batches, options and seed give the same losses on the same machine. The model
    is left in eval mode with the weights of the last step, whether or not they scored best.

    Args:
        model: any module; it is trained where it is.
        batches: iterable, passed over again as often as it takes.
        loss_fn: function of model and batch, giving the loss, a scalar tensor.
        steps: batches to train on.
        lr: highest learning rate.
        warmup: steps to reach it, 0 to steps.
        weight_decay: of AdamW.
        clip: largest norm of all gradients together.
        evaluate: function of the model, in eval mode without gradients, giving a held-out score;
            higher is better.
        every: steps between two rows of the history; the last step has a row too.
        patience: stop after so many rows in turn without a better score; None never stops.
        seconds: stop at the first row after so much time, by the wall clock. The learning rate
            still follows ``steps``.
        checkpoint: a file of safetensors that holds the whole state of training. It is written
            anew with each row, at once, so that a whole one is there whenever training is killed;
            and where it exists, training goes on from it, with the same losses as without the
            break, given the same options and new, equal ``batches``.
        seed: of torch's random numbers (dropout), set at the start.
        progress: show a bar (needs tqdm), unless nobody watches (as with TQDM_DISABLE=1).
    Returns: `History`, with the rows from before a break.
    Errors: ValueError for options out of range, patience without evaluate, batches that run out,
        and a checkpoint of other options or another model; FloatingPointError for a loss that is
        not finite; ImportError without tqdm, or safetensors for a checkpoint.
    Source: AdamW, Loshchilov and Hutter 2019.

    Examples:
        >>> import torch
        >>> from mha import training
        >>> x = torch.linspace(-1, 1, 20)[:, None]  # (20, 1)
        >>> model, batches = torch.nn.Linear(1, 1), [(x, 3 * x + 1)]
        >>> loss = lambda model, batch: (model(batch[0]) - batch[1]).square().mean()
        >>> options = {"lr": 0.1, "warmup": 10, "weight_decay": 0.0, "every": 100}
        >>> history = training.fit(model, batches, loss, steps=200, progress=False, **options)
        >>> round(model.weight.item(), 1), round(model.bias.item(), 1)
        (3.0, 1.0)
        >>> history.columns()["step"], history.stopped_early
        ([100, 200], False)
    """
    _check(steps, warmup, every, patience, evaluate, seconds, checkpoint)
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    options = {"steps": steps, "lr": lr, "warmup": warmup, "weight_decay": weight_decay}
    options |= {"clip": clip, "every": every, "seed": seed}
    history = History()
    if checkpoint is not None and Path(checkpoint).exists():
        history.rows = [Row(*row) for row in _state.load(checkpoint, model, optimizer, options)]
    done, before = (history.rows[-1].step, history.rows[-1].seconds) if history.rows else (0, 0.0)
    stream, losses, start = _endless(batches), [], time.perf_counter() - before
    _skip(stream, done, seed, model)
    over = _out_of_patience(history.rows, patience)  # before the break
    history.stopped_early = over and done < steps
    for step in _counter(done, done if over else steps, progress):
        losses.append(_step(model, next(stream), loss_fn, optimizer, step, options))
        if step % every and step != steps:
            continue
        mean, metric = _mean(losses, step), _score(model, evaluate)
        now = time.perf_counter() - start
        history.rows.append(Row(step, mean, optimizer.param_groups[0]["lr"], metric, now))
        losses = []
        if checkpoint is not None:
            _state.save(checkpoint, model, optimizer, options, history.rows)
        late = seconds is not None and now - before >= seconds
        if late or _out_of_patience(history.rows, patience):
            history.stopped_early = step < steps
            break
    model.eval()
    return history


def _step(model, batch, loss_fn, optimizer, step: int, options: dict) -> Tensor:
    """One step of the optimizer; returns the loss before it."""
    model.train()
    factor = warmup_cosine(step, steps=options["steps"], warmup=options["warmup"])
    optimizer.param_groups[0]["lr"] = options["lr"] * factor
    loss = loss_fn(model, batch)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), options["clip"])
    optimizer.step()
    return loss.detach()


def _mean(losses: list[Tensor], step: int) -> float:
    mean = torch.stack(losses).mean().item()
    if not math.isfinite(mean):
        raise FloatingPointError(f"the loss is {mean} by step {step}")
    return mean


def _out_of_patience(rows: list[Row], patience: int | None) -> bool:
    best, since = -math.inf, 0
    for row in rows:
        better = row.metric is not None and row.metric > best
        best, since = (row.metric, 0) if better else (best, since + 1)
    return patience is not None and since >= patience


def _check(steps, warmup, every, patience, evaluate, seconds, checkpoint) -> None:
    if steps < 1 or every < 1:
        raise ValueError(f"steps and every must be at least 1, got {steps} and {every}")
    if not 0 <= warmup <= steps:
        raise ValueError(f"warmup must be 0 to steps={steps}, got {warmup}")
    if patience is not None and (patience < 1 or evaluate is None):
        raise ValueError(f"patience must be at least 1 and needs evaluate, got {patience}")
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds must be above 0, got {seconds}")
    if checkpoint is not None and not Path(checkpoint).parent.is_dir():
        raise ValueError(f"checkpoint must be in a folder that is there, got {checkpoint}")


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    while True:
        count = 0
        for count, batch in enumerate(batches, start=1):  # noqa: B007
            yield batch
        if count == 0:
            raise ValueError("batches ran out: pass a list or a Batches, which can start again")


def _skip(stream: Iterator[Any], done: int, seed: int, model: nn.Module) -> None:
    """Take the batches that were trained on already, and leave chance as it is.

    It begins as it did for them, for batches whose order is drawn from it.
    """
    with torch.random.fork_rng(_state.gpus(model)):
        torch.manual_seed(seed)
        collections.deque(itertools.islice(stream, done), maxlen=0)


def _counter(done: int, steps: int, progress: bool) -> Iterable[int]:
    left = range(done + 1, steps + 1)
    if not progress or not watched():
        return left
    bar = require("tqdm", "data").tqdm
    return bar(left, desc="training", unit="step", initial=done, total=steps)


@torch.no_grad()
def _score(model: nn.Module, evaluate: Callable[[nn.Module], float] | None) -> float | None:
    model.eval()
    return None if evaluate is None else float(evaluate(model))
