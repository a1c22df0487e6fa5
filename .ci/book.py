"""Build the book into _build/html; `make book` runs this with the Python of .venv.

Three digests decide what is done, so that mere time stamps, or a missing git, change nothing:
- what the chapters' results rest on (package, pins, recorded benchmarks): when it changes, the
  cache of executed chapters is thrown away, because that cache looks at a chapter's own code only;
- what every page rests on (that, the configuration, the extension, styles and scripts): when it
  changes, or when the last build was not good, every page is rendered afresh, because Sphinx
  reports a warning only where it renders a page again: after a failed build, the next would pass;
- everything the pages are made from: when it is that of the last good build, there is nothing to
  do. Otherwise only texts have changed since a build without warnings, and Sphinx renders those.
"""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"
RESULTS_REST_ON = ["mha", "requirements.txt", "pyproject.toml", "benchmarks"]
EXTENSION = [
    ".ci/book.py",
    ".ci/inventories",
    ".ci/sphinx",
    "package-lock.json",
    "chapters/_static",
]
FRAME_RESTS_ON = [*RESULTS_REST_ON, *EXTENSION, "_config.yml", "_toc.yml"]
PAGES_REST_ON = [*FRAME_RESTS_ON, "chapters"]


def digest(names: list[str]) -> str:
    """Hash of the Python version and of every file at or below `names`, by path and content.

    Folders such as __pycache__ and .ipynb_checkpoints, which tools leave behind, do not count.
    """
    total = hashlib.sha256(sys.version.encode())
    for name in names:
        top = ROOT / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            by_tools = any(p.startswith((".", "__")) for p in path.relative_to(top).parts[:-1])
            if path.is_file() and not by_tools:
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                total.update(f"{path.relative_to(ROOT).as_posix()} {content}\n".encode())
    return total.hexdigest()


def recorded(stamp: Path) -> str | None:
    """The digest that an earlier build left in `stamp`, or None."""
    return stamp.read_text() if stamp.exists() else None


def main() -> int:
    results, frame, pages = map(digest, (RESULTS_REST_ON, FRAME_RESTS_ON, PAGES_REST_ON))
    cache_stamp, frame_stamp, good_stamp = (
        BUILD / f"{name}.sha256" for name in ("cache", "frame", "good")
    )
    index = BUILD / "html" / "index.html"

    if recorded(good_stamp) != pages or not index.exists():
        if recorded(cache_stamp) != results:
            shutil.rmtree(BUILD, ignore_errors=True)
        if recorded(frame_stamp) != frame or not good_stamp.exists():
            for folder in (BUILD / "html", BUILD / ".doctrees"):
                shutil.rmtree(folder, ignore_errors=True)
        BUILD.mkdir(exist_ok=True)
        good_stamp.unlink(missing_ok=True)
        cache_stamp.write_text(results)
        frame_stamp.write_text(frame)
        jupyter_book = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
        options = ["build", "-W", "-n", "--keep-going", str(ROOT)]
        status = subprocess.run([*jupyter_book, *options], cwd=ROOT, check=False).returncode
        if status:
            print("The book was not built: see the warnings and errors above.", file=sys.stderr)
            return status
        good_stamp.write_text(pages)
    print(f"The book is at {index.as_uri()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
