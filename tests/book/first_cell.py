import importlib.util
import os
import subprocess
import sys

if importlib.util.find_spec("mha") is None:  # for example in Colab
    spec = os.environ.get("MHA_SPEC")
    if spec is None:
        raise ModuleNotFoundError(
            "mha is missing: install its wheel with [chapters], or name it in MHA_SPEC"
        )
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", spec], check=True)

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
torch.set_num_threads(1)
