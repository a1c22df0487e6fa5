"""The package as a whole: what an import loads, what it exports, and whether its hints are true."""

import subprocess
import sys
from pathlib import Path

import pytest

import mha
from mha._extras import require

ROOT = Path(__file__).parent.parent


def run(code):
    """Run code in a fresh interpreter; its standard output."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_import_loads_torch_numpy_and_jaxtyping_only():
    optional = ["matplotlib", "babel", "sklearn", "tqdm", "IPython", "pandas", "triton", "scipy"]
    code = (
        "import sys, torch, numpy, jaxtyping; before = set(sys.modules)\n"
        "import mha\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        f"print(sorted(new - {{'mha'}} - set(sys.stdlib_module_names)), "
        f"sorted(set({optional}) & new), 'mha.viz' in sys.modules)"
    )
    assert run(code).strip() == "[] [] False"


def test_submodules_load_when_asked_for():
    code = "import mha; print(*(getattr(mha, n).__name__ for n in mha.__all__))"
    names = run(code).split()
    assert "mha.masks" in names
    assert "mha.models" in names
    assert set(mha.__all__) <= set(dir(mha))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mha.nothing  # noqa: B018


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'needs matplotlib: pip install "mha\[viz\]"'):
        require("matplotlib.figure", "viz")


def test_another_missing_module_is_not_blamed_on_the_extra(tmp_path, monkeypatch):
    (tmp_path / "broken_extra.py").write_text("import no_such_module_of_its_own")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_module_of_its_own"):
        require("broken_extra", "viz")


def test_type_hints_are_true_when_checked():
    code = (
        "from jaxtyping import install_import_hook\n"
        "hook = install_import_hook('mha', 'beartype.beartype')\n"
        "hook.__enter__()\n"
        "import torch, mha\n"
        "q, k, v = torch.ones(2, 2, 3, 4), torch.ones(2, 2, 5, 4), torch.ones(2, 2, 5, 6)\n"
        "m = torch.ones(2, 5, dtype=torch.bool)\n"
        "for b in ('reference', 'sdpa'):\n"
        "    for w in (False, True):\n"
        "        mha.scaled_dot_product_attention(q, k, v, key_mask=m, is_causal=True,\n"
        "            return_weights=w, backend=b)\n"
        "x, y = torch.ones(2, 3, 8), torch.ones(2, 5, 8)\n"
        "for c in (mha.heads.LoopedHeads, mha.heads.BatchedHeads, mha.MultiHeadAttention):\n"
        "    c(8, 2)(x, y, key_mask=m); c(8, 2)(x, y, return_weights=True)\n"
        "mha.heads.merge_heads(mha.heads.split_heads(x, 2))\n"
        "masks = mha.masks\n"
        "masks.causal(3, 5); masks.window(3, left=1); masks.padding(torch.tensor([1, 2]))\n"
        "masks.padding(ids=torch.ones(2, 3, dtype=torch.long)); masks.padding([1, 2])\n"
        "masks.from_additive(masks.to_additive(m)); masks.to_torch(m[:, None], m, num_heads=2)\n"
        "masks.from_torch(m[:, None].repeat(2, 1, 1), ~m, num_heads=2)\n"
        "masks.from_keras(masks.to_keras(m[:, None], m))\n"
        "masks.from_transformers(masks.to_transformers(m[:, None], m))\n"
        "mha.positions.sinusoidal(5, 8)\n"
        "try:\n"
        "    mha.heads.merge_heads(torch.ones(2, 3, 8))\n"
        "except Exception as error:\n"
        "    print(type(error).__name__)\n"
    )
    assert run(code).strip() == "TypeCheckError"


def test_version_stands_in_one_place_only():
    line = f'version = "{mha.__version__}"'
    assert line in (ROOT / "pyproject.toml").read_text()
