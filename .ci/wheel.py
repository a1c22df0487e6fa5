"""Run chapters against the built wheel, away from the checkout; `make test-wheel` runs this.

    python .ci/wheel.py [--constraints FILE] [--jobs N] chapters/*.ipynb

A fresh environment gets the pinned torch of .venv and what runs notebooks. The package is installed
as in Colab: by the first cell of a chapter, from MHA_SPEC. The first cell of every chapter is run,
and each chapter named, alone in an empty folder.

Versions are those of requirements.txt, and the outputs have to be those committed, to the letter.
FILE, a list of constraints for pip, names other versions; under these no cell may fail.
"""

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
IN_THE_WHEEL = ["mha", "benchmarks", "pyproject.toml", "README.md", "LICENSE"]
RUNNER = ["ipykernel", "nbval", "pytest-xdist"]
FROM_HERE = ["MHA_SPEC", "MPLBACKEND", "JUPYTER_PATH", "PYTHONPATH", "PYTHONHOME"]
CHECK = """
import mha
assert mha.__file__.startswith(sys.prefix), mha.__file__
assert torch.__version__ == {torch!r}, f"torch was replaced by {{torch.__version__}}"
"""


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


def lend(names: list[str], site: Path) -> None:
    """Copy installed distributions, with all they need, into the folder `site`.

    Files become hard links where the file system allows it: no second torch on the disk, and none
    to fetch. pip can remove or replace them there without harm to the originals.
    """
    for name in closure(names):
        for file in importlib.metadata.distribution(name).files:
            if ".." not in file.parts and not (site / file).exists():
                (site / file).parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(file.locate(), site / file)
                except OSError:
                    shutil.copy2(file.locate(), site / file)


def build(folder: Path) -> Path:
    """The wheel that `pip wheel --no-deps .` makes of a copy of the sources, below `folder`."""
    for name in IN_THE_WHEEL:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / "source" / name)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), "."]
    subprocess.run(pip, cwd=folder / "source", check=True)
    return next(folder.glob("mha-*.whl"))


def pins(folder: Path) -> Path:
    """The versions in requirements.txt, as a file of constraints below `folder`."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf8").splitlines()
    path = folder / "constraints.txt"
    path.write_text("\n".join(line for line in lines if "==" in line) + "\n")
    return path


def environment(folder: Path, lent: list[str]) -> str:
    """Make a fresh environment that holds the distributions `lent` by .venv; returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True)
    python = str(folder / "env" / "bin" / "python")
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    lend(lent, Path(site))
    return python


def first_cells() -> list[str]:
    """The first code cells of all chapters, each text once."""
    chapters = [nbformat.read(path, as_version=4) for path in ROOT.glob("chapters/*.ipynb")]
    firsts = [next(c for c in chapter.cells if c.cell_type == "code") for chapter in chapters]
    return sorted({cell.source for cell in firsts})


def alone(notebook: nbformat.NotebookNode, name: str, folder: Path) -> str:
    """Write a notebook into an empty folder of its own below `folder`; returns its path."""
    path = folder / "runs" / name / f"{name}.ipynb"
    path.parent.mkdir(parents=True)
    nbformat.write(notebook, path)
    return str(path)


def run(folder: Path, paths: list[Path], constraints: Path | None, jobs: int) -> int:
    """Do it all below the empty `folder`; 0 if nothing failed."""
    settings = {key: value for key, value in os.environ.items() if key not in FROM_HERE}
    if constraints:
        settings["PIP_CONSTRAINT"] = str(constraints)
        python = environment(folder, ["pip", "torch"])
        install = [python, "-m", "pip", "install", "-q", *RUNNER]
        subprocess.run(install, cwd=folder, env=settings, check=True)
    else:
        settings["PIP_CONSTRAINT"] = str(pins(folder))
        python = environment(folder, ["pip", "torch", *RUNNER])
    settings["MHA_SPEC"] = f"mha[chapters] @ {build(folder).as_uri()}"
    nbval = [python, "-m", "pytest", "-q", "--rootdir", str(folder), "-p", "no:cacheprovider"]
    nbval += ["--nbval-current-env", "--nbval-cell-timeout=600"]

    check = CHECK.format(torch=importlib.metadata.version("torch"))
    for number, source in enumerate(first_cells(), start=1):  # the first one installs the package
        cells = [nbformat.v4.new_code_cell(text) for text in (source, check)]
        first = alone(nbformat.v4.new_notebook(cells=cells), f"first-cell-{number}", folder)
        status = subprocess.run([*nbval, "--nbval-lax", first], cwd=folder, env=settings).returncode
        if status:
            return status

    strict = ["--nbval", "--nbval-sanitize-with", str(ROOT / "tests/nbval_sanitize.cfg")]
    nbval += ["--nbval-lax"] if constraints else strict
    copies = [alone(nbformat.read(path, as_version=4), path.stem, folder) for path in paths]
    nbval += ["-n", str(jobs), "--dist", "loadfile", *copies]
    return subprocess.run(nbval, cwd=folder, env=settings).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--constraints", type=lambda name: Path(name).resolve(strict=True))
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mha-") as folder:
        return run(Path(folder), options.notebooks, options.constraints, options.jobs)


if __name__ == "__main__":
    sys.exit(main())
