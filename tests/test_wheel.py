"""The wheel, in an environment that holds only what the package declares as its dependencies."""

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
IN_THE_WHEEL = ["mha", "pyproject.toml", "README.md", "LICENSE"]
EXTRAS = ["matplotlib", "babel", "sklearn", "tqdm"]

pytestmark = pytest.mark.slow


def closure(names: list[str]) -> set[str]:
    """The installed distributions that `names` need to run, themselves included."""
    found: set[str] = set()
    queue = list(names)
    while queue:
        name = canonicalize_name(queue.pop())
        if name not in found:
            found.add(name)
            for text in importlib.metadata.requires(name) or []:
                requirement = Requirement(text)
                if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                    queue.append(requirement.name)
    return found


def link_distribution(name: str, target: Path) -> None:
    """Make an installed distribution importable from the folder `target`."""
    distribution = importlib.metadata.distribution(name)
    tops = {Path(file).parts[0] for file in distribution.files if ".." not in Path(file).parts}
    for top in tops - {"__pycache__"}:
        source = Path(distribution.locate_file(top))
        if source.exists() and not (target / top).exists():
            (target / top).symlink_to(source)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that `pip wheel --no-deps .` makes of a copy of the sources."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in IN_THE_WHEEL:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(made)]
    subprocess.run([*pip, "."], cwd=source, check=True)
    return next(made.glob("mha-*.whl"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """A folder with the wheel, torch, numpy, jaxtyping and what those need, and nothing else."""
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True)
    for name in closure(["torch", "numpy", "jaxtyping"]):
        link_distribution(name, target)
    return target


def run(site: Path, code: str) -> str:
    """What `code` prints in a Python that sees the standard library and `site` only."""
    start = f"import sys; sys.path.insert(0, {str(site)!r})\n"
    command = [sys.executable, "-I", "-S", "-c", start + code]
    done = subprocess.run(command, cwd=site, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel_holds_every_module_and_data_file(site):
    files = [path.relative_to(ROOT) for path in (ROOT / "mha").rglob("*") if path.is_file()]
    left_by_tools = (".", "__pycache__")
    committed = {f for f in files if not any(part.startswith(left_by_tools) for part in f.parts)}
    installed = {path.relative_to(site) for path in (site / "mha").rglob("*") if path.is_file()}
    assert Path("mha/py.typed") in installed
    assert installed == committed


def test_import_pulls_in_the_core_only(site):
    code = f"import mha; print(mha.__file__, [m for m in {EXTRAS} if m in sys.modules])"
    assert run(site, code).split() == [str(site / "mha/__init__.py"), "[]"]


def test_every_module_imports_without_the_extras(site):
    code = """
import importlib, importlib.util, pkgutil, mha
assert not [name for name in EXTRAS if importlib.util.find_spec(name)]
for module in pkgutil.walk_packages(mha.__path__, "mha."):
    print(importlib.import_module(module.name).__name__)
"""
    names = run(site, f"EXTRAS = {EXTRAS}\n{code}").split()
    assert {"mha.attention", "mha.data", "mha.models", "mha.training", "mha.viz"} <= set(names)


def test_module_works_with_the_core_only(site):
    code = """
import torch, mha
layer = mha.MultiHeadAttention(8, 2)
out, weights = layer(torch.randn(2, 3, 8), is_causal=True, return_weights=True)
out.sum().backward()
print(tuple(out.shape), tuple(weights.shape), layer.out_proj.weight.grad is not None)
"""
    assert run(site, code).strip() == "(2, 3, 8) (2, 2, 3, 3) True"
