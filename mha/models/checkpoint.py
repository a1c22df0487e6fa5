"""Trained translators as files: weights, sizes, pieces of words, and where they come from."""

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mha import _files
from mha.data.subwords import Subwords

if TYPE_CHECKING:
    from mha.models.translator import Translator

CHECKPOINTS = Path(str(files("mha"))) / "checkpoints"
"""The folder of those that come with the package."""


def save_translator(
    path: Path | str,
    model: "Translator",
    about: dict[str, Any],
    *,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a translator of sentences down: `Translator.from_checkpoint` reads it.

    Args:
        path: of the file, of safetensors; a file that is there is replaced, at once.
        model: has ``subwords``.
        about: what is to be known of it (command, seed, machine, date): values that JSON can hold.
        dtype: of the weights in the file.
    Errors: ValueError for a model without subwords; ImportError without safetensors.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from mha import models
        >>> model = models.Translator(4000, 4000, embed_dim=8, shared=True)
        >>> model.subwords = models.Translator.from_checkpoint("en-es").subwords
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "mine.safetensors"
        ...     models.save_translator(path, model, {"seed": 0})
        ...     print(models.Translator.from_checkpoint(path).about)
        {'seed': 0}
    """
    if model.subwords is None:
        raise ValueError("model must have subwords, got a Translator without")
    tensors = {name: p.to(dtype) for name, p in model.named_parameters()}  # a shared one once
    tensors["subwords"] = torch.frombuffer(bytearray(model.subwords.to_bytes()), dtype=torch.uint8)
    _files.write(path, tensors, {"config": model.config, "about": about})


def load(kind: type["Translator"], source: Path | str) -> "Translator":
    """The translator in a file, or one of those that come with the package, by name.

    Errors: ValueError for a name or a path that is not there, listing the names, and for a file
        that holds no translator; ImportError without safetensors or sentencepiece.
    """
    own = sorted(path.stem for path in CHECKPOINTS.glob("*.safetensors"))
    path = CHECKPOINTS / f"{source}.safetensors" if str(source) in own else Path(source)
    if not path.is_file():
        raise ValueError(f"source must be a file or one of {', '.join(own)}, got {str(source)!r}")
    tensors, about = _files.read(path)
    if not about.keys() >= {"config", "about"} or "subwords" not in tensors:
        raise ValueError(f"{path} holds no translator")
    try:
        model = kind(**about["config"])
        model.subwords = Subwords.from_bytes(tensors.pop("subwords").numpy().tobytes())
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} holds no translator that can be made here: {error}") from error
    model.about = about["about"]
    pieces, size = len(model.subwords), model.config["source_size"]
    if pieces != size:
        raise ValueError(f"{path} has {pieces} pieces for a vocabulary of {size}")
    parameters = dict(model.named_parameters())
    if _shapes(parameters) != _shapes(tensors):
        raise ValueError(f"{path} holds weights of another model than its config says")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
    return model.eval()


def _shapes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}
