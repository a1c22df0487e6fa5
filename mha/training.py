"""One training loop for every model here, and the scores the book reports."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mha._extras import require, watched
from mha.data import TranslationBatch
from mha.data.masked_tokens import IGNORED


class Row(NamedTuple):
    """One line of a `History`: the state after ``step`` steps."""

    step: int
    loss: float  # mean over the steps since the row before
    lr: float  # learning rate of the last step
    metric: float | None  # held-out score, where one was asked for
    seconds: float  # since the start, by the wall clock


@dataclass
class History:
    """What happened in training: a small table. ``print(history)`` shows it."""

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
        steps: batches to train on. lr: highest learning rate. warmup: steps to reach it.
        weight_decay: of AdamW. clip: largest norm of all gradients together.
        evaluate: function of the model, in eval mode without gradients, giving a held-out score;
            higher is better.
        every: steps between two rows of the history; the last step has a row too.
        patience: stop after so many rows in turn without a better score; None never stops.
        seed: of torch's random numbers (dropout), set at the start.
        progress: show a bar (needs tqdm), unless nobody watches (as with TQDM_DISABLE=1).
    Returns: `History`.
    Errors: ValueError for options out of range, patience without evaluate, and batches that run
        out; FloatingPointError for a loss that is not finite; ImportError without tqdm.
    """
    _check(steps, warmup, every, patience, evaluate)
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    history, best, best_row, losses, start = History(), -math.inf, 0, [], time.perf_counter()
    stream = _endless(batches)
    for step in _counter(steps, progress):
        model.train()
        optimizer.param_groups[0]["lr"] = lr * warmup_cosine(step, steps=steps, warmup=warmup)
        loss = loss_fn(model, next(stream))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        losses.append(loss.detach())
        if step % every and step != steps:
            continue
        mean = torch.stack(losses).mean().item()
        if not math.isfinite(mean):
            raise FloatingPointError(f"the loss is {mean} by step {step}")
        metric = _score(model, evaluate)
        seconds = time.perf_counter() - start
        history.rows.append(Row(step, mean, optimizer.param_groups[0]["lr"], metric, seconds))
        losses = []
        if metric is not None and metric > best:
            best, best_row = metric, len(history.rows)
        if patience is not None and len(history.rows) - best_row >= patience:
            history.stopped_early = step < steps
            break
    return history


def _check(steps, warmup, every, patience, evaluate) -> None:
    if steps < 1 or every < 1:
        raise ValueError(f"steps and every must be at least 1, got {steps} and {every}")
    if not 0 <= warmup <= steps:
        raise ValueError(f"warmup must be 0 to steps={steps}, got {warmup}")
    if patience is not None and (patience < 1 or evaluate is None):
        raise ValueError(f"patience must be at least 1 and needs evaluate, got {patience}")


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    while True:
        count = 0
        for count, batch in enumerate(batches, start=1):  # noqa: B007
            yield batch
        if count == 0:
            raise ValueError("batches ran out: pass a list or a Batches, which can start again")


def _counter(steps: int, progress: bool) -> Iterable[int]:
    if not progress or not watched():
        return range(1, steps + 1)
    return require("tqdm", "data").tqdm(range(1, steps + 1), desc="training", unit="step")


@torch.no_grad()
def _score(model: nn.Module, evaluate: Callable[[nn.Module], float] | None) -> float | None:
    model.eval()
    return None if evaluate is None else float(evaluate(model))


def translation_loss(model: nn.Module, batch: TranslationBatch) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats of the target tokens, padding left out, for a `Translator`."""
    logits = model(batch.source_ids, batch.target_in, source_mask=batch.source_mask)  # (B, T, V)
    return F.cross_entropy(
        logits.flatten(0, 1), batch.target_out.flatten(), ignore_index=model.pad_id
    )


def language_model_loss(model: nn.Module, ids: Int[Tensor, "B T+1"]) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats of each token after those before it, for a `GPT`.

    Args: ids (B, T + 1), as of `mha.data.text_batches`: T to read, and the T that follow them.
    """
    logits = model(ids[:, :-1])  # (B, T, V)
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def masked_token_loss(
    model: nn.Module, batch: tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]
) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats of the tokens asked for, for a `Bert`; 0 where none is.

    Args: batch, (inputs, targets) as of `mha.data.masked_tokens`.
    """
    inputs, targets = batch
    logits = model(inputs).flatten(0, 1)  # (B*T, V)
    loss = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="sum")
    return loss / (targets != IGNORED).sum().clamp(min=1)


def image_loss(
    model: nn.Module, batch: tuple[Tensor, Tensor], *, label_smoothing: float = 0.1
) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats of the labels, for a model of images (B, C, h, w) to logits."""
    images, labels = batch
    return F.cross_entropy(model(images), labels, label_smoothing=label_smoothing)


@torch.no_grad()
def nats_per_token(
    model: nn.Module, ids: Int[Tensor, " N"], *, length: int, batch_size: int = 64
) -> float:
    """Mean cross-entropy of a long text's tokens, in eval mode, for a `GPT`: nats, lower is better.

    The text is cut into stretches that the model reads one by one, each from nothing: within a
    stretch the first token is told from one token before it, the last from ``length``. So all
    tokens but the first count, each once, but for fewer than ``length`` at the end.

    Args: ids (N,), the text; length T, tokens read at once; batch_size, stretches at once.
    Errors: ValueError for a text shorter than T + 1.
    """
    if length < 1 or len(ids) <= length:
        raise ValueError(f"length must be 1 to {len(ids) - 1} for {len(ids)} ids, got {length}")
    training = model.training
    stretches = ids.unfold(0, length + 1, length)  # (n, T + 1): one ends where the next begins
    model.eval()
    try:
        parts = stretches.split(batch_size)
        losses = [language_model_loss(model, part) * len(part) for part in parts]
    finally:
        model.train(training)
    return float(torch.stack(losses).sum()) / len(stretches)


@torch.no_grad()
def exact_match(
    model: nn.Module, batch: TranslationBatch, *, beam_size: int = 1, batch_size: int = 256
) -> float:
    """Share of the pairs that a `Translator` translates without a single wrong token, 0 to 1.

    Args: batch, all the pairs; beam_size as of `Translator.translate`; batch_size, pairs at once.
    """
    limit = batch.target_out.shape[1]  # what is longer than every target is wrong
    right = 0
    for start in range(0, len(batch.source_ids), batch_size):
        source_ids, source_mask, _, target = (t[start : start + batch_size] for t in batch)
        said = model.translate(
            source_ids, source_mask=source_mask, beam_size=beam_size, max_length=limit
        )  # (b, L)
        said = F.pad(said, (0, limit - said.shape[1]), value=model.pad_id)  # (b, T)
        right += int((said == target).all(dim=1).sum())
    return right / len(batch.source_ids)


@torch.no_grad()
def accuracy(
    model: nn.Module,
    images: Float[Tensor, "N C h w"],
    labels: Int[Tensor, " N"],
    *,
    batch_size: int = 512,
) -> float:
    """Share of the images whose likeliest class is the label, 0 to 1, in eval mode."""
    training = model.training
    model.eval()
    chunks = zip(images.split(batch_size), labels.split(batch_size), strict=True)
    right = sum(int((model(x).argmax(-1) == y).sum()) for x, y in chunks)
    model.train(training)
    return right / len(labels)
