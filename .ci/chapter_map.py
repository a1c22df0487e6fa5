"""The map of the book: chapter x module x test x exercise, read from the sources.

`page` gives the text of chapters/appendix-map.md, which .ci/appendix.py writes. What a chapter or a
test uses of the package is told from its code, which is parsed and never run: imports of `mha`, and
chains of attributes such as `mha.masks.causal`, each led back to the module that defines the name.
"""

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from sources import ROOT, cells, chapters, headings, markdown, number, title

PAGE = ROOT / "chapters/appendix-map.md"
TOGETHER = ("mha.viz", "mha.check", "mha.results")  # tools: shown as one, whatever their files
NO_TESTS = "by way of the modules that use it"
HEAD = """# Map of the book · 地图

Which chapter teaches what, which code it uses, which tests hold that code, and what you can do there. To find a topic, look for its name on this page: each chapter lists the terms of [the glossary](appendix-glossary.md) that lead to it.

Modules and files are those of the repository: `mha.masks` lies in `mha/masks.py`, and its tests in `tests/`. The dots of an exercise say how hard it is. All of this is read from the sources, so it is as they are.
"""


@cache
def file_of(module: str) -> Path | None:
    """The file of a module of the package, or None if `module` is none."""
    if module.split(".")[:2] == ["mha", "results"]:  # see pyproject.toml
        return ROOT / "benchmarks/results/__init__.py" if module == "mha.results" else None
    base = ROOT / module.replace(".", "/")
    options = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in options if path.exists()), None)


@cache
def imported(module: str) -> dict[str, str]:
    """What the file of a module imports from the package: name -> dotted path."""
    return aliases(ast.parse(file_of(module).read_text(encoding="utf8")))


def aliases(tree: ast.AST) -> dict[str, str]:
    """The names that a piece of code binds to the package or to parts of it, with dotted paths."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] == "mha":
                    found[name.asname or "mha"] = name.name if name.asname else "mha"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mha":
            found |= {n.asname or n.name: f"{node.module}.{n.name}" for n in node.names}
    return found


@cache
def resolve(path: str) -> tuple[str, str]:
    """The module that defines what a dotted path leads to, and the name there, or ""."""
    module, *names = path.split(".")
    while names:
        if file_of(f"{module}.{names[0]}"):
            module = f"{module}.{names.pop(0)}"
        elif names[0] in imported(module) and imported(module)[names[0]] != path:
            return resolve(imported(module)[names[0]])
        else:
            return module, names[0]
    return module, ""


def uses(code: str) -> Counter[tuple[str, str]]:
    """What a piece of code uses of the package: (module, name) -> how often."""
    tree = ast.parse(code)
    known = aliases(tree)
    chains = [*known.values()]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):  # import mha.masks
            chains += [n.name for n in node.names if n.name.startswith("mha.")]
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if isinstance(node, ast.Name) and node.id in known:
            chains.append(".".join([known[node.id], *reversed(parts)]))
    return Counter(filter(lambda use: use[0] != "mha", map(resolve, chains)))


def gathered(module: str) -> str:
    """The module as the map shows it: tools as one, and packages for their `__init__`."""
    return next((tool for tool in TOGETHER if f"{module}.".startswith(f"{tool}.")), module)


@cache
def chapter_uses(path: Path) -> dict[str, list[str]]:
    """The modules that the cells of one chapter use, with the names used, sorted."""
    code = "\n\n".join(cell.source for cell in cells(path) if cell.cell_type == "code")
    found = defaultdict(set)
    for module, name in uses(code):
        found[gathered(module)] |= {name} - {""}
    found = {module: found[module] for module in found if module in modules()}
    return {module: sorted(found[module], key=str.casefold) for module in sorted(found)}


@cache
def test_files() -> list[Path]:
    """The tests of the package; those of the book's pages test no module."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [path for path in files if path.parent.name not in ("book", "browser")]


@cache
def test_uses() -> dict[str, Counter[str]]:
    """For each module, the test files that use it, by how often they do."""
    found = defaultdict(Counter)
    for path in test_files():
        for (module, _), count in uses(path.read_text(encoding="utf8")).items():
            found[gathered(module)][path.relative_to(ROOT).as_posix()] += count
    return found


def bears(test: str, module: str) -> bool:
    """Whether a test file is named after a module: test_masks.py, or test_flash_kernels.py."""
    package, name = module.split(".")[-2:]
    return bool(re.search(rf"/test_({package}_)?{name}(_\w+)?\.py$", test))


def tests(module: str) -> tuple[list[str], list[str]]:
    """The test files, or the folder, named after a module, and the others that use it by name.

    Some tests import what a module defines by way of its package, or run it in a process of its
    own; such a file counts for its name.
    """
    files = [path.relative_to(ROOT).as_posix() for path in test_files()]
    folder = f"tests/{module.rpartition('.')[2]}/"
    named = [file for file in files if bears(file, module)]
    if any(file.startswith(folder) for file in files):
        named = [folder]
    used = test_uses().get(module, Counter())
    return named, sorted(file for file in used if not file.startswith(tuple(named)))


def code(names: Iterable[str]) -> str:
    """Names as code, with commas between."""
    return ", ".join(f"`{name}`" for name in names)


def nearest_tests(module: str) -> str:
    """The tests named after a module, or the one that uses it most, or how else it is tested."""
    used = test_uses().get(module, Counter())
    most = sorted(used, key=lambda file: (-used[file], file))[:1]
    return code(tests(module)[0] or most) or NO_TESTS


def exercises(path: Path) -> list[str]:
    """The exercises of one chapter, as links with their marks."""
    anchors = dict(headings(markdown(path)))
    found = re.findall(r"^### (Exercise \d+: .+)\n\n\*(.+)\*$", markdown(path), re.MULTILINE)
    return [f"[{name}]({path.name}#{anchors[name]}), {marks}" for name, marks in found]


def terms(path: Path) -> list[str]:
    """The terms of the glossary whose entries lead to one chapter."""
    glossary = (ROOT / "chapters/appendix-glossary.md").read_text(encoding="utf8")
    entries = re.findall(r"^(.+) · .+\n: (.+)$", glossary, re.MULTILINE)
    return [term for term, said in entries if f"]({path.name}" in said]


def chapter_entry(path: Path) -> str:
    """What the map says of one chapter."""
    lines = [f"### [{title(path)}]({path.name})", ""]
    if about := terms(path):
        lines.append(f"- Terms: {', '.join(about)}")
    lines.append("- Code and its tests:")
    for module, names in chapter_uses(path).items():
        used = f" ({code(names)})" if names and module not in TOGETHER else ""
        lines.append(f"  - `{module}`{used}: {nearest_tests(module)}")
    if tasks := exercises(path):
        lines += ["- To do:", *(f"  - {task}" for task in tasks)]
    return "\n".join(lines) + "\n"


def about(module: str) -> str:
    """The first sentence of the docstring of a module."""
    doc = ast.get_docstring(ast.parse(file_of(module).read_text(encoding="utf8"))) or ""
    first = " ".join(re.split(r"(?<=\.)\s|\n\n", doc)[0].split())
    return first.replace("``", "`").rstrip(".:") + "."


def module_entry(module: str, used_in: list[Path]) -> str:
    """What the map says of one module."""
    links = ", ".join(f"[{number(path)}]({path.name})" for path in used_in)
    lines = [f"`{module}`", f": {about(module)}", "", f"  - Chapters: {links or 'none'}"]
    named, others = tests(module)
    if named or not others:
        lines.append(f"  - Tests: {code(named) or NO_TESTS}")
    lines += [f"  - Used in tests: {code(Path(file).stem for file in others)}"] if others else []
    return "\n".join(lines) + "\n"


@cache
def modules() -> list[str]:
    """The public modules of the package that define something, as the map shows them."""
    found = set(TOGETHER)
    for path in (ROOT / "mha").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if not any(part.startswith("_") for part in module.split(".")):
            found.add(gathered(module))
    body = {m: ast.parse(file_of(m).read_text(encoding="utf8")).body for m in found - {"mha"}}
    kinds = (ast.FunctionDef, ast.ClassDef)
    return sorted(m for m in body if m in TOGETHER or any(isinstance(n, kinds) for n in body[m]))


def page() -> str:
    """The text of the map."""
    text = f"{HEAD}\n## By chapter · 按章节\n"
    for path in chapters():
        text += f"\n{chapter_entry(path)}"
    text += "\n## By module · 按模块\n\n"
    text += "The chapters whose cells use a module, the tests that are named after it, and other tests that use it.\n"
    used = {path: chapter_uses(path) for path in chapters()}
    for module in modules():
        text += f"\n{module_entry(module, [path for path in used if module in used[path]])}"
    return text
