"""The checks of every text that no other tool brings; `make lint` runs this.

    python .ci/lint.py

- Spelling: codespell reads prose, code, and the cells of notebooks, but not their outputs.
- Form: lines end plainly, a file ends with one newline, YAML, TOML and JSON can be read, and no
  file is larger than a checkpoint may be.
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 4 * 2**20  # bytes
MARKERS = ("<<<<<<< ", ">>>>>>> ")  # of a merge that was not finished
READERS = {
    ".yml": yaml.safe_load,
    ".yaml": yaml.safe_load,
    ".cff": yaml.safe_load,
    ".toml": tomllib.loads,
    ".json": json.loads,
    ".ipynb": json.loads,
}


def files(folder: Path) -> Iterator[Path]:
    """The files below `folder`, without those that .gitignore names; needs no git."""
    ignored = [".git", *(ROOT / ".gitignore").read_text(encoding="utf8").split()]
    for path in sorted(folder.iterdir()):
        if not any(fnmatch(path.name, pattern.strip("/")) for pattern in ignored):
            yield from files(path) if path.is_dir() else [path]


def text_of(path: Path) -> str | None:
    """The text of a file as it is, or None if it holds no text."""
    data = path.read_bytes()
    try:
        return None if b"\0" in data else data.decode("utf8")
    except UnicodeDecodeError:
        return None


def faults(path: Path) -> Iterator[str]:
    """What is wrong with the form of one file."""
    if path.stat().st_size > LARGEST:
        yield f"larger than {LARGEST // 2**20} MB"
    text = text_of(path)
    if text is None:
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line != line.rstrip():
            yield f"line {number} ends with a blank"
        if line.startswith(MARKERS):
            yield f"line {number} is left from a merge"
    if text and (not text.endswith("\n") or text.endswith("\n\n")):
        yield "does not end with one newline"
    if reader := READERS.get(path.suffix):
        try:
            reader(text)
        except (ValueError, yaml.YAMLError) as error:
            yield f"cannot be read: {' '.join(str(error).split())}"


def cells_below(folder: Path, notebook: Path) -> None:
    """Write each cell of a notebook below `folder`, as a file that bears its number."""
    target = folder / notebook.relative_to(ROOT)
    target.mkdir(parents=True)
    for number, cell in enumerate(nbformat.read(notebook, as_version=4).cells, start=1):
        (target / f"cell {number}").write_text(cell.source + "\n", encoding="utf8")


def misspelled(paths: list[Path]) -> list[str]:
    """What codespell says of the files `paths`, by its settings in pyproject.toml."""
    plain = [str(path) for path in paths if path.suffix != ".ipynb" and text_of(path) is not None]
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            if path.suffix == ".ipynb":
                cells_below(Path(folder), path)
        command = [sys.executable, "-m", "codespell_lib", "--toml", str(ROOT / "pyproject.toml")]
        done = subprocess.run([*command, folder, *plain], capture_output=True, text=True)
        said = done.stdout + done.stderr
        lines = said.replace(f"{folder}/", "").replace(f"{ROOT}/", "").splitlines()
        return lines or ["codespell failed"] * bool(done.returncode)


def main() -> int:
    paths = list(files(ROOT))
    found = [f"{path.relative_to(ROOT)}: {fault}" for path in paths for fault in faults(path)]
    found += misspelled(paths)
    print("\n".join(found) or f"{len(paths)} files: spelling and form are fine")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
