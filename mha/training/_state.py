"""The whole state of a training, in one file: weights, the optimizer's memory, chance, the table."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mha import _files

MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""What AdamW remembers of each parameter."""

ADVICE = "name another file, or remove this one to start anew"


def save(
    path: Path | str,
    model: nn.Module,
    optimizer: torch.optim.AdamW,
    options: dict[str, Any],
    rows: list[tuple],
) -> None:
    """Replace the file at ``path``, at once, by the state after the last of ``rows``."""
    tensors = {f"model.{name}": tensor for name, tensor in _weights(model).items()}
    for name, parameter in model.named_parameters():
        for moment in MOMENTS if parameter in optimizer.state else ():
            tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment]
    tensors["chance"] = torch.get_rng_state()
    for gpu in gpus(model)[:1]:
        tensors["chance.cuda"] = torch.cuda.get_rng_state(gpu)
    _files.write(path, tensors, {"options": options, "rows": [list(row) for row in rows]})


def load(
    path: Path | str, model: nn.Module, optimizer: torch.optim.AdamW, options: dict[str, Any]
) -> list[list]:
    """Put everything back where `save` took it from; returns the rows.

    Errors: ValueError for a file of other options or another model.
    """
    tensors, about = _files.read(path)
    if about.get("options") != options:
        made = about.get("options")
        raise ValueError(
            f"checkpoint {path} must be of a training with {options}, got {made}: {ADVICE}"
        )
    own = _weights(model)
    found = {n[6:]: (t.shape, t.dtype) for n, t in tensors.items() if n.startswith("model.")}
    if found != {name: (tensor.shape, tensor.dtype) for name, tensor in own.items()}:
        raise ValueError(
            f"checkpoint {path} must hold the model that is trained, got another: {ADVICE}"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[f"model.{name}"])
        for name, parameter in model.named_parameters():
            if f"step.{name}" in tensors:
                moments = {moment: tensors[f"{moment}.{name}"] for moment in MOMENTS}
                optimizer.state[parameter] = {m: _beside(parameter, t) for m, t in moments.items()}
    torch.set_rng_state(tensors["chance"])
    for gpu in gpus(model)[:1]:
        if "chance.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["chance.cuda"], gpu)
    return about["rows"]


def gpus(model: nn.Module) -> list[torch.device]:
    """The CUDA devices with parameters of the model: they have random numbers of their own."""
    return list(dict.fromkeys(p.device for p in model.parameters() if p.is_cuda))


def _beside(parameter: Tensor, moment: Tensor) -> Tensor:
    """On the parameter's device, and in its order in memory, by which the fused AdamW goes."""
    if moment.shape != parameter.shape:  # the number of steps
        return moment.to(parameter.device)
    return torch.empty_like(parameter, dtype=moment.dtype).copy_(moment)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers by name, each once, though two modules may share it."""
    parameters = dict(model.named_parameters())
    saved = model.state_dict(keep_vars=True)
    buffers = {name: b for name, b in model.named_buffers() if name in saved}
    return parameters | buffers
