"""Train a translator of sentences; ``python -m mha.training translate --help`` tells how."""

import json
import shlex
from argparse import Namespace
from collections.abc import Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mha import _files, data, viz
from mha._machine import machine, versions
from mha.models import Translator, save_translator
from mha.training.loop import History, Row, fit
from mha.training.scores import nats_per_target_token, translation_loss, translation_scores

PAIRS = {"en-es": "tatoeba", "en-zh": "libreoffice_zh"}
"""What can be translated here, and the function of `mha.data` that has the sentences."""

TOKENIZE = {"en-es": "13a", "en-zh": "zh"}
"""How the words of the target language are told apart, to be counted by BLEU."""

STATE = "training.safetensors"
"""The file to go on from."""

MAY_DIFFER = {"run", "command", "out", "minutes", "device", "threads"}
"""Options that may change from run to run of one training."""

MAX_LENGTH = 128
"""Positions of a model; pairs with a longer text are left out of training, and counted."""

SAMPLE = 200
"""Validation sentences that are translated for each row of the table."""


def run(options: Namespace, sentences: data.Sentences | None = None) -> History:
    """Train, or go on training, and write what there is to see into the folder ``options.out``.

    The files there: ``training.safetensors``, the state to go on from, replaced with each row of
    the table; and at the end ``translator.safetensors``, which `Translator.from_checkpoint` reads,
    ``metrics.tsv``, the table, and ``curve.svg``, a picture of it. ``options.json`` has the options
    that a run must share with the one before.

    Args: options, those of the command line; sentences, other ones than those of the pair.
    Returns: the history, over all runs in this folder.
    Errors: as of `fit`, and of the data of the pair; ValueError for a folder with a training of
        other options.
    """
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    keep_options(out, options)
    sentences = getattr(data, PAIRS[options.pair])() if sentences is None else sentences
    texts = (text for pair in sentences.train for text in (pair.source, pair.target))
    subwords = data.Subwords.train(texts, options.pieces)
    train = fitting(sentences.train, subwords)
    validation = fitting(sentences.validation, subwords)
    left_out = len(sentences.train) - len(train)
    print(f"{len(train):,} pairs to train on, {left_out} too long; {subwords}", flush=True)
    model = new_model(options, subwords)
    history = fit(
        model,
        data.translation_batches(train, subwords, subwords, options.batch_size, seed=options.seed),
        partial(_loss, device=options.device, label_smoothing=options.label_smoothing),
        steps=options.steps,
        lr=options.lr,
        warmup=options.warmup,
        every=options.every,
        evaluate=partial(
            sample_bleu,
            references=data.references(validation),
            tokenize=TOKENIZE[options.pair],
        ),
        seconds=None if options.minutes is None else 60 * options.minutes,
        checkpoint=out / STATE,
        seed=options.seed,
    )
    batches = data.translation_batches(validation, subwords, subwords, 64, shuffle=False)
    nats = nats_per_target_token(model, (batch.to(options.device) for batch in batches))
    about = _about(options, history, len(train)) | {"validation_nats": round(nats, 4)}
    save_translator(out / "translator.safetensors", model, about)
    write_table(out, history)
    return history


def keep_options(out: Path, options: Namespace) -> None:
    """Write the options down; where there is a training to go on with, they must be the same."""
    path = out / "options.json"
    wanted = {name: value for name, value in vars(options).items() if name not in MAY_DIFFER}
    if not (out / STATE).exists():
        _files.write_bytes(path, json.dumps(wanted, indent=1).encode())
    elif path.exists():
        found = json.loads(path.read_text(encoding="utf8"))
        other = [name for name in wanted if found.get(name) != wanted[name]]
        if other:
            had, want = (
                ", ".join(f"{name}={values.get(name)}" for name in other)
                for values in (found, wanted)
            )
            raise ValueError(
                f"{out} holds a training with {had}, got {want}: "
                "name another folder with --out, or remove this one to start anew"
            )


def new_model(options: Namespace, subwords: data.Subwords) -> Translator:
    """An untrained translator of the sizes in ``options``, which its seed alone decides on."""
    torch.manual_seed(options.seed)
    model = Translator(
        len(subwords),
        len(subwords),
        embed_dim=options.embed_dim,
        num_heads=options.num_heads,
        num_layers=options.num_layers,
        ff_dim=options.ff_dim,
        dropout=options.dropout,
        max_length=MAX_LENGTH,
        shared=True,
    )
    model.subwords = subwords
    return model.to(options.device)


def fitting(pairs: Sequence[data.SentencePair], subwords: data.Subwords) -> list[data.SentencePair]:
    """The pairs whose texts, with the piece that ends them, are no longer than MAX_LENGTH."""
    return [
        pair
        for pair in pairs
        if max(len(subwords.encode(text)) for text in (pair.source, pair.target)) < MAX_LENGTH
    ]


def sample_bleu(
    model: Translator,
    references: dict[str, list[str]],
    count: int = SAMPLE,
    *,
    tokenize: str = "13a",
) -> float:
    """BLEU of the first ``count`` sources, translated greedily."""
    sources = list(references)[:count]
    said = model.translate(sources)
    right = [references[source] for source in sources]
    return translation_scores(said, right, tokenize=tokenize).bleu


def write_table(out: Path, history: History) -> None:
    """The history as text, tab-separated, and as a picture."""
    columns = history.columns()
    rows = zip(*columns.values(), strict=True)
    lines = ["\t".join(columns), *("\t".join(map(str, row)) for row in rows)]
    (out / "metrics.tsv").write_text("\n".join(lines) + "\n", encoding="utf8")
    viz.curves(
        {"training loss": (columns["step"], columns["loss"])},
        xlabel="step",
        ylabel="nats per piece",
        alt="The training loss falls with the number of steps.",
    ).save(out / "curve.svg")


def _loss(model: nn.Module, batch: data.TranslationBatch, *, device: str, label_smoothing: float):
    return translation_loss(model, batch.to(device), label_smoothing=label_smoothing)


def _about(options: Namespace, history: History, pairs: int) -> dict[str, Any]:
    """Where the weights come from."""
    last = history.rows[-1]
    return {
        "command": "python -m mha.training " + shlex.join(options.command),
        "pair": options.pair,
        "seed": options.seed,
        "steps": last.step,
        "seconds": round(last.seconds),
        "machine": machine(options.device),
        "threads": torch.get_num_threads(),
        "versions": versions(["sentencepiece", "sacrebleu"]),
        "date": date.today().isoformat(),
        "training_pairs": pairs,
        "rows": [_rounded(row) for row in history.rows],
    }


def _rounded(row: Row) -> list[float]:
    """Step, loss, learning rate, BLEU of the sample, and seconds since the start."""
    return [
        row.step,
        round(row.loss, 4),
        float(f"{row.lr:.4g}"),
        round(row.metric, 2),
        round(row.seconds),
    ]
