"""The whole state of a training, in one file: weights, the optimizer's memory, chance, the table."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mha import _files

MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""What AdamW remembers of each parameter."""


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
    if torch.cuda.is_available():
        tensors["chance.cuda"] = torch.cuda.get_rng_state()
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
        raise ValueError(f"checkpoint {path} must be of a training with {options}, got {made}")
    own = _weights(model)
    found = {n[6:]: tuple(t.shape) for n, t in tensors.items() if n.startswith("model.")}
    if found != {name: tuple(tensor.shape) for name, tensor in own.items()}:
        raise ValueError(f"checkpoint {path} must hold the model that is trained, got another")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[f"model.{name}"])
    for name, parameter in model.named_parameters():
        if f"step.{name}" in tensors:
            moments = {moment: tensors[f"{moment}.{name}"] for moment in MOMENTS}
            optimizer.state[parameter] = {m: t.to(parameter.device) for m, t in moments.items()}
    torch.set_rng_state(tensors["chance"])
    if torch.cuda.is_available() and "chance.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["chance.cuda"])
    return about["rows"]


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers by name, each once, though two modules may share it."""
    parameters = dict(model.named_parameters())
    saved = model.state_dict(keep_vars=True)
    buffers = {name: b for name, b in model.named_buffers() if name in saved}
    return parameters | buffers
