"""What may be there or not: optional dependencies, and someone who watches a notebook run."""

import importlib
import os
import sys
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Import ``module``, which the extra ``mha[extra]`` installs.

    Errors: ImportError naming the module and the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise ImportError(
            f'this part of mha needs {module.split(".")[0]}: pip install "mha[{extra}]"'
        ) from error


def watched() -> bool:
    """Whether someone may be watching: progress bars and controls are for them only.

    Nobody is where the environment says TQDM_DISABLE=1, and in a notebook that runs by itself (for
    the book, nbval or nbconvert): its requests forbid ``input()``, those of a front-end allow it.
    """
    if os.environ.get("TQDM_DISABLE", "0") not in ("", "0"):
        return False
    ipython = sys.modules.get("IPython")
    kernel = getattr(ipython and ipython.get_ipython(), "kernel", None)
    request = getattr(kernel, "get_parent", dict)()
    return request.get("content", {}).get("allow_stdin", True)
