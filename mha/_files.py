"""Files of safetensors: named tensors and a few words about them, written at once or not at all."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mha._extras import require


def write(path: Path | str, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write tensors, and under each name of ``about`` what JSON can hold.

    A file of that name is replaced by the whole new one, or, whatever happens, stays as it is.

    Errors: ImportError without safetensors.
    """
    path = Path(path)
    data = require("safetensors.torch", "data").save(
        # copies, since the library refuses tensors that share memory
        {n: t.detach().clone(memory_format=torch.contiguous_format) for n, t in tensors.items()},
        metadata={name: json.dumps(value, ensure_ascii=False) for name, value in about.items()},
    )
    write_bytes(path, data)


def write_bytes(path: Path, data: bytes) -> None:
    """Make them the whole of the file at ``path``, at once or not at all."""
    scratch = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        with scratch.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def read(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write` wrote: tensors, on the CPU, and the rest.

    Errors: FileNotFoundError; ValueError for a file that is not of this kind.
    """
    library = require("safetensors", "data")
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with library.safe_open(path, framework="pt") as file:
            # copies, since what the library gives lies in the file, which may be replaced
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
            about = {name: json.loads(text) for name, text in (file.metadata() or {}).items()}
    except (library.SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a checkpoint of mha: {error}") from error
    return tensors, about
