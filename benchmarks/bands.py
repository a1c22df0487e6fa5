"""Dense against banded: what it saves a GPT that every second layer sees a band only.

    python benchmarks/bands.py                       # 3 minutes on one idle core
    python benchmarks/bands.py --lengths 256 --repeats 3 --steps 50

Two models of one size take turns: "dense", and "banded", whose layers 2, 4, ... see the last BAND
tokens (`mha.models.GPT`, band=...). How time is measured: see measure.py.

Rows of part "time", one text of `length` tokens, a vocabulary of 67:
    mode       "forward"; "forward+backward"; "decoding", the last STEPS tokens one by one with
               caches that hold those before (a copy of the caches is made first, and its time
               counts), per token. The last logits are shown to be those of a forward without cache.
    ms         median time, milliseconds; low and high are the quartiles.
    ratio      median over the rounds of: time / the dense model's time.
Rows of part "cache":
    kib        keys and values of all layers, 1024 bytes; ratio, to the dense model's.
Rows of part "loss": both models trained on the plays with the same batches and seed, T = 128.
    train      nats per character over the last steps; nats, on the first HELD characters of the
               plays held out, read 128 at a time. The band is LOSS_BAND.
"""

import argparse
import copy
import itertools
from collections.abc import Callable

import measure
import torch
from record import save

from mha import data, models, training

BAND, LOSS_BAND, STEPS, CONTEXT, HELD = 128, 16, 32, 128, 50_000
VOCABULARY = 67
MODES = ("forward", "forward+backward", "decoding")
ABOUT = "A GPT with dense layers against one whose every second layer is banded: time, cache, loss."


def make_model(options, length: int, band: int | None) -> models.GPT:
    """A GPT for texts of `length` tokens; the same weights for every band."""
    torch.manual_seed(options.seed)
    sizes = {"embed_dim": options.embed_dim, "num_heads": options.heads, "max_length": length}
    model = models.GPT(VOCABULARY, **sizes, num_layers=options.layers, band=band)
    return model.to(options.device, options.dtype).eval()


def make_call(model: models.GPT, ids: torch.Tensor, mode: str) -> Callable:
    """One mode as a function without arguments."""
    if mode == "forward":
        return torch.no_grad()(lambda: model(ids))
    if mode == "forward+backward":
        return lambda: training.language_model_loss(model, ids).backward()
    filled = model.new_caches(len(ids))
    before, after = ids[:, :-STEPS], ids[:, -STEPS:].split(1, 1)
    with torch.no_grad():
        for part in before.split(model.band or before.shape[1], 1):
            model(part, caches=filled)

    @torch.no_grad()
    def decode():
        caches = copy.deepcopy(filled)
        return [model(token, caches=caches) for token in after][-1]

    measure.assert_same("with caches", decode(), model(ids)[:, -1:])
    return decode


def measure_time(options, length: int, mode: str) -> list[dict]:
    """Both models at one length in one mode. Returns the rows."""
    ids = torch.randint(VOCABULARY, (1, length), device=options.device)
    bands = {"dense": None, "banded": BAND}
    calls = {
        name: make_call(make_model(options, length, band), ids, mode)
        for name, band in bands.items()
    }
    samples = measure.in_turn(calls, repeats=options.repeats, device=options.device)
    each, rows = STEPS if mode == "decoding" else 1, []
    for name, mine in samples.items():
        times = dict(zip(("low", "ms", "high"), measure.spread(mine), strict=True))
        figures = {key: round(1000 * times[key] / each, 3) for key in ("ms", "low", "high")}
        figures["ratio"] = round(measure.ratio(mine, samples["dense"]), 3)
        place = {"part": "time", "mode": mode, "length": length, "model": name, "band": bands[name]}
        rows.append({**place, **figures, "rounds": len(mine)})
    return rows


def measure_cache(options, length: int) -> list[dict]:
    """What the caches of both models take at one length. Returns the rows."""
    rows, dense = [], None
    for name, band in (("dense", None), ("banded", BAND)):
        model = make_model(options, length, band)
        total = 0
        for block, cache in zip(model.blocks, model.new_caches(1), strict=True):
            width = block.attention.num_kv_heads * block.attention.head_dim
            total += 2 * cache.max_len * width * options.dtype.itemsize
        dense = dense or total
        place = {"part": "cache", "length": length, "model": name, "band": band}
        rows.append({**place, "kib": total / 1024, "ratio": round(total / dense, 3)})
    return rows


def measure_loss(options, plays: data.Shakespeare, name: str, seed: int) -> dict:
    """One run: train a fresh model on the plays, and say how it does. Returns the row."""
    torch.manual_seed(seed)
    band = LOSS_BAND if name == "banded" else None
    size = len(plays.vocabulary)
    model = models.GPT(size, embed_dim=64, num_heads=4, num_layers=4, max_length=CONTEXT, band=band)
    batches = data.text_batches(plays.ids(), CONTEXT, 16, seed=seed)
    schedule = {"steps": options.steps, "lr": 5e-3, "warmup": min(40, options.steps)}
    history = training.fit(
        model, batches, training.language_model_loss, **schedule, seed=seed, progress=False
    )
    nats = training.nats_per_token(model, plays.ids("held_out")[:HELD], length=CONTEXT)
    place = {"part": "loss", "model": name, "band": band, "seed": seed, "steps": options.steps}
    return {**place, "train": round(history.rows[-1].loss, 3), "nats": round(nats, 3)}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=(256, 1024, 4096))
    parser.add_argument("--embed-dim", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7, help="rounds")
    parser.add_argument("--steps", type=int, default=300, help="of each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2), help="of training")
    measure.add_options(parser)
    return measure.parse(parser)


def main() -> None:
    options, rows = parse(), []
    for length in options.lengths:
        for mode in MODES:
            rows += measure_time(options, length, mode)
        rows += measure_cache(options, length)
        for row in rows[-2 * len(MODES) - 2 :]:
            print(*row.values(), flush=True)
    plays = data.shakespeare()
    for seed, name in itertools.product(options.seeds, ("dense", "banded")):
        rows.append(measure_loss(options, plays, name, seed))
        print(*rows[-1].values(), flush=True)
    save("bands", ABOUT, rows, sorted({options.seed, *options.seeds}))


if __name__ == "__main__":
    main()
