"""Optional dependencies: import them where they are used, and say which extra brings a missing one."""

import importlib
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
