"""The wheel, in an environment that holds only what the package declares as its dependencies."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from book.bookfiles import ROOT, script

EXTRAS = [
    "matplotlib",
    "ipywidgets",
    "babel",
    "sacrebleu",
    "safetensors",
    "sentencepiece",
    "sklearn",
]
EXTRAS += ["tqdm", "keras", "onnx", "triton", "anywidget"]
# Modules that are written in an extra: what they need, and which extra brings it.
NEED = {
    "mha.flash.kernels": ("triton", "triton"),
    "mha.viz.explorer_live": ("anywidget", "viz"),
}
FROM = {"mha": ROOT / "mha", "mha/results": ROOT / "benchmarks/results"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the wheel, torch, numpy, jaxtyping and what those need, and nothing else."""
    tool, target = script("wheel"), tmp_path_factory.mktemp("site")
    wheel = tool.build(tmp_path_factory.mktemp("wheel"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True)
    tool.lend(["torch", "numpy", "jaxtyping"], target)
    return target


def run(site: Path, code: str) -> str:
    """What `code` prints in a Python that sees the standard library and `site` only."""
    start = f"import sys; sys.path.insert(0, {str(site)!r})\n"
    command = [sys.executable, "-I", "-S", "-c", start + code]
    done = subprocess.run(command, cwd=site, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def files(folder: Path) -> set[Path]:
    """The files below a folder, relative to it, but for those that tools leave behind."""
    found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {f for f in found if not any(part.startswith((".", "__pyc")) for part in f.parts)}


def test_wheel_holds_every_module_and_data_file(site):
    committed = {Path(name) / path for name, folder in FROM.items() for path in files(folder)}
    assert {Path("mha/py.typed"), Path("mha/results/__init__.py")} <= committed
    assert {Path("mha") / path for path in files(site / "mha")} == committed


def test_wheel_states_the_extras_and_the_address(site):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]
    [metadata] = site.glob("mha-*.dist-info/METADATA")
    stated = metadata.read_text(encoding="utf8")
    for extra in project["optional-dependencies"]:
        assert f"Provides-Extra: {extra}\n" in stated
    for label, url in project.get("urls", {}).items():
        assert f"Project-URL: {label}, {url}\n" in stated


def test_import_pulls_in_the_core_only(site):
    code = f"import mha; print(mha.__file__, [m for m in {EXTRAS} if m in sys.modules])"
    assert run(site, code).split() == [str(site / "mha/__init__.py"), "[]"]


def test_every_module_imports_without_the_extras(site):
    code = """
import importlib, importlib.util, pkgutil, mha
assert not [name for name in EXTRAS if importlib.util.find_spec(name)]
for module in pkgutil.walk_packages(mha.__path__, "mha."):
    if module.name not in NEED:
        print(importlib.import_module(module.name).__name__)
for name, (needs, extra) in NEED.items():
    try:
        importlib.import_module(name)
    except ImportError as error:
        assert str(error) == f'this part of mha needs {needs}: pip install "mha[{extra}]"', error
    else:
        raise AssertionError(name)
"""
    names = run(site, f"EXTRAS, NEED = {EXTRAS}, {NEED}\n{code}").split()
    assert {"mha.attention", "mha.data", "mha.results", "mha.training", "mha.viz"} <= set(names)


def test_module_works_with_the_core_only(site):
    code = """
import torch, mha
layer = mha.MultiHeadAttention(8, 2)
out, weights = layer(torch.randn(2, 3, 8), is_causal=True, return_weights=True)
out.sum().backward()
print(tuple(out.shape), tuple(weights.shape), layer.out_proj.weight.grad is not None)
"""
    assert run(site, code).strip() == "(2, 3, 8) (2, 2, 3, 3) True"


def test_explorer_brings_its_script_and_style(site):
    code = """
import mha.viz
explorer = mha.viz.AttentionExplorer([[1.0]], alt="one token and its weight")
print("<script" in explorer.html, ".mha-root" in explorer.html)
"""
    assert run(site, code).strip() == "True True"
