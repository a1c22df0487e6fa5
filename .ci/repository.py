"""Write the address of the repository wherever the book names it; `make repository` runs this.

    python .ci/repository.py https://github.com/OWNER/NAME      "" takes the address away again

pyproject.toml states the address, as the URL "Repository" of the project. Every other place is a
passage that reads one way without an address and another way with it, and holds the lines on both
sides, so that a forgotten address does not go unseen. All of them change together
or, when one does not read as expected, none does.
"""

import re
import sys
import tomllib
from pathlib import Path

import nbformat
from notebooks import cell_id

ROOT = Path(__file__).resolve().parent.parent
ADDRESS = re.compile(r"https://github\.com/[A-Za-z0-9-]+/(?!.*\.git$)[A-Za-z0-9._-]*[A-Za-z0-9_-]")
WHEEL = "mha-0.1.0-py3-none-any.whl[chapters]"

# (file, the passage without an address, the passage with one)
PLACES = [
    (
        "pyproject.toml",
        "\n[project.optional-dependencies]\n",
        '\n[project.urls]\nRepository = "{url}"\n\n[project.optional-dependencies]\n',
    ),
    (
        "CITATION.cff",
        "license: MIT\nkeywords:\n",
        'license: MIT\nrepository-code: "{url}"\nkeywords:\n',
    ),
    (
        "_config.yml",
        "repository:\n  branch:",
        "repository:\n  url: {url}\n  branch:",
    ),
    (
        "_config.yml",
        "launch_buttons:\n  notebook_interface:",
        "launch_buttons:\n  colab_url: https://colab.research.google.com\n  notebook_interface:",
    ),
    (
        "_config.yml",
        "use_repository_button: false\n      use_issues_button: false\n",
        "use_repository_button: true\n      use_issues_button: true\n",
    ),
    (
        "README.md",
        "```console\n$ make book ",
        "```console\n$ git clone {url}\n$ cd {name}\n$ make book ",
    ),
    (
        "README.md",
        "Colab lacks the package. `pip wheel --no-deps .` writes it into one file: upload that next "
        f'to the notebook, and run `%pip install "./{WHEEL}"` before the first cell.',
        "[Open the algorithm, step by step, in Colab]"
        "(https://colab.research.google.com/github/{slug}/blob/main/chapters/03-algorithm.ipynb): "
        "its first cell installs the package. In the built book, the rocket at the top of a "
        "chapter opens that one.",
    ),
    (
        "README.md",
        "  license = {MIT}\n}\n",
        "  license = {MIT},\n  url     = {{url}}\n}\n",
    ),
    (
        "chapters/index.md",
        "In a copy of this repository, with `make`",
        "In a copy of [this book's repository]({url}), with `make`",
    ),
    (
        "chapters/index.md",
        "Colab, like any other notebook service, lacks the package. `pip wheel --no-deps .` in "
        "your copy writes it into one file: upload that next to the notebook, and run "
        f'`%pip install "./{WHEEL}"` before the first cell.',
        "The rocket at the top of a chapter opens it in Colab, where the first cell installs the "
        "package.",
    ),
]
FIRST_CELL = (
    '    spec = os.environ.get("MHA_SPEC")\n'
    "    if spec is None:\n"
    "        raise ModuleNotFoundError(\n"
    '            "mha is missing: install its wheel with [chapters], or name it in MHA_SPEC"\n'
    "        )\n",
    '    book = "mha[chapters] @ git+{url}"\n    spec = os.environ.get("MHA_SPEC", book)\n',
)


def address() -> str:
    """The address that pyproject.toml states, or "" if it states none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]
    return project.get("urls", {}).get("Repository", "")


def check(url: str) -> None:
    """Raises ValueError for what is not the address of a repository in the form used here."""
    if url and not ADDRESS.fullmatch(url):
        raise ValueError(
            f"URL: got {url!r}, expected https://github.com/OWNER/NAME, without a slash or .git "
            "at the end (Colab opens notebooks from GitHub)"
        )


def passage(without: str, having: str, url: str) -> str:
    """One passage as it reads for the address `url`, which may be ""."""
    slug = url.removeprefix("https://github.com/")
    filled = having.replace("{url}", url).replace("{slug}", slug)
    return filled.replace("{name}", slug.rpartition("/")[2]) if url else without


def replaced(text: str, where: str, before: str, after: str) -> str:
    """`text` with `before`, which must stand in it once, changed to `after`."""
    if text.count(before) != 1:
        count = text.count(before)
        raise ValueError(f"{where}: expected once, found {count} times:\n{before}")
    return text.replace(before, after)


def notebook_for(path: Path, before: str, after: str) -> str:
    """The notebook at `path` with another first code cell; its outputs stay as they are."""
    notebook = nbformat.read(path, as_version=4)
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
    cell.source = replaced(cell.source, str(path), before, after)
    cell.id = cell_id(cell)
    return nbformat.writes(notebook) + "\n"


def rewrite(url: str) -> dict[Path, str]:
    """Every file that names the address, as it reads for the address `url`."""
    check(url)
    now = address()
    texts: dict[Path, str] = {}
    for name, *forms in [*PLACES, ("tests/book/first_cell.py", *FIRST_CELL)]:
        text = texts.get(ROOT / name) or (ROOT / name).read_text(encoding="utf8")
        texts[ROOT / name] = replaced(text, name, passage(*forms, now), passage(*forms, url))
    before, after = passage(*FIRST_CELL, now), passage(*FIRST_CELL, url)
    for path in sorted((ROOT / "chapters").glob("*.ipynb")):
        texts[path] = notebook_for(path, before, after)
    return texts


def main() -> int:
    try:
        texts = rewrite(sys.argv[1])
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    for path, text in texts.items():
        path.write_text(text, encoding="utf8")
    print(f"The book's repository is {sys.argv[1] or 'nowhere yet'} ({len(texts)} files)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
