"""Execute chapters in place, so that they are committed with their outputs; see `make notebooks`.

    python .ci/notebooks.py chapters/*.ipynb
    python .ci/notebooks.py --tidy chapters/*.ipynb     arranges the metadata, and runs nothing
    python .ci/notebooks.py --check chapters/*.ipynb    says what is left to do, and writes nothing

The same code gives the same file: cell ids come from the source, metadata that names a machine or
a time is dropped, and split streams are joined.
"""

import argparse
import hashlib
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def cell_id(cell: nbformat.NotebookNode) -> str:
    """The name of a cell: a hash of its source."""
    return hashlib.sha256(f"{cell.cell_type} {cell.source}".encode()).hexdigest()[:8]


def stable_ids(notebook: nbformat.NotebookNode) -> None:
    """Name each cell after its source, so that inserting a cell renames no other."""
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        name = cell_id(cell)
        seen[name] = seen.get(name, 0) + 1
        cell.id = name if seen[name] == 1 else f"{name}-{seen[name]}"


def fold(metadata: dict) -> None:
    """Fold a solution: in the book by the tag hide-cell, in Colab as a form."""
    others = [tag for tag in metadata["tags"] if tag not in ("solution", "hide-cell")]
    metadata["tags"] = ["solution", "hide-cell", *others]
    metadata["cellView"] = "form"
    prompts = {"code_prompt_show": "Solution", "code_prompt_hide": "Solution"}
    metadata["mystnb"] = {**metadata.get("mystnb", {}), **prompts}


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Leave in the metadata only what readers and tools need."""
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    notebook.nbformat_minor = 5
    stable_ids(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in notebook.cells:
        kept = {key: cell.metadata[key] for key in ("tags", "mystnb") if cell.metadata.get(key)}
        if "solution" in kept.get("tags", []):
            fold(kept)
        cell.metadata = nbformat.from_dict(kept)
    if code and "hide-input" not in code[0].metadata.get("tags", []):
        code[0].metadata["tags"] = [*code[0].metadata.get("tags", []), "hide-input"]


def execute(path: Path) -> None:
    """Run one notebook in its own folder and write it back; leaves the file alone on an error."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=600,
        coalesce_streams=True,
        store_widget_state=False,
        resources=resources,
    ).execute()
    tidy(notebook)
    nbformat.validate(notebook)
    nbformat.write(notebook, path)


def unrun(notebook: nbformat.NotebookNode, tidied: nbformat.NotebookNode) -> list[str]:
    """The sources of code that was edited since it ran: an id is a hash of what was executed."""
    pairs = zip(notebook.cells, tidied.cells, strict=True)
    return [cell.source for cell, to in pairs if cell.cell_type == "code" and cell.id != to.id]


def left_to_do(path: Path) -> str:
    """What is to be done before the notebook at `path` can be committed, or ""."""
    notebook, tidied = (nbformat.read(path, as_version=4) for _ in range(2))
    tidy(tidied)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    if edited := unrun(notebook, tidied):
        first = edited[0].partition("\n")[0]
        return f"was edited since it ran, at `{first}`; run: make notebook NB={path}"
    if counts != list(range(1, len(counts) + 1)):
        return f"was not run from top to bottom; run: make notebook NB={path}"
    for cell, expected in zip(notebook.cells, tidied.cells, strict=True):
        expected.id = cell.id  # of prose, where it matters to nobody
    return (
        "" if notebook == tidied else "holds metadata of a machine or an editor; run: make format"
    )


def tidy_file(path: Path) -> None:
    """Write a notebook back tidied; code keeps its ids, which tell what was last executed."""
    notebook, tidied = (nbformat.read(path, as_version=4) for _ in range(2))
    tidy(tidied)
    for cell, expected in zip(notebook.cells, tidied.cells, strict=True):
        expected.id = cell.id if cell.cell_type == "code" else expected.id
    if tidied != notebook:
        nbformat.write(tidied, path)
        print(f"{path} is tidy now")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument(
        "--check", action="store_true", help="say what is left to do; write nothing"
    )
    parser.add_argument("--tidy", action="store_true", help="arrange the metadata; run nothing")
    return parser.parse_args()


def main() -> int:
    asked = options()
    if asked.check:
        found = [f"{path} {text}" for path in asked.notebooks if (text := left_to_do(path))]
        print("\n".join(found) or f"{len(asked.notebooks)} notebooks are tidy, and run in order")
        return int(bool(found))
    for path in asked.notebooks:
        if asked.tidy:
            tidy_file(path)
            continue
        start = time.perf_counter()
        try:
            execute(path)
        except CellExecutionError as error:
            print(f"{path}\n{error}", file=sys.stderr)
            return 1
        print(f"{path}  {time.perf_counter() - start:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
