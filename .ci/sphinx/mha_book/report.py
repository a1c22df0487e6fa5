"""The directive ``execution-report``: where, with what and when the chapters were executed.

MyST-NB keeps for each chapter when and how long it ran, also where the result came from the cache
of an earlier build. This is asked when the page is written, after all chapters have been read.
"""

import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path

from docutils import nodes
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("torch", "numpy", "triton", "jupyter-book", "Sphinx", "myst-nb", "ipykernel")
HERE = "mha_execution_report"  # the mark of the page with the report


class Report(nodes.General, nodes.Element):
    """Where the report will stand."""


class ExecutionReport(SphinxDirective):
    """Takes no arguments and no content."""

    def run(self):
        NbMetadataCollector.set_doc_data(self.env, self.env.docname, HERE, True)
        return [Report()]


def commit() -> str:
    """The commit of the checkout, and whether files differ from it; "" without git."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain")
        return git("rev-parse", "--short", "HEAD") + (", with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def memory() -> str:
    """The memory of this machine, or "" where the system does not say."""
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return ""
    return f"{size / 2**30:.0f} GiB of memory"


def processor() -> str:
    """The name of the processor, as far as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def system() -> str:
    """The operating system, without the name of the machine."""
    try:
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {platform.machine()}"
    except OSError:
        return f"{platform.system()} {platform.release()}, {platform.machine()}"


def versions() -> str:
    """Versions of Python, of what the chapters run on and of what makes the pages."""
    found = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue  # triton is for Linux only
    return ", ".join(found)


def day(seconds: float) -> str:
    """A time as a date and the minute, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def facts() -> list[tuple[str, str]]:
    """What the report says of the build as a whole."""
    mha = f"mha {metadata.version('mha')}"
    at = commit()
    machine = [processor(), f"{os.cpu_count()} cores", memory()]
    return [
        ("Pages written", day(time.time())),
        ("Package", f"{mha}, commit {at}" if at else mha),
        ("Versions", versions()),
        ("Machine", ", ".join(filter(None, machine))),
        ("System", system()),
    ]


def executed(env) -> list[tuple[str, dict]]:
    """The pages that were executed, with what MyST-NB keeps of it, in the order of the book."""
    found = {name: data.get("exec_data") for name, data in env.nb_metadata.items()}
    order = [name for name in env.toctree_includes.get(env.config.root_doc, []) if name in found]
    return [(name, found[name]) for name in order if found[name] and found[name]["runtime"]]


def table(head: list[str], rows: list[list[nodes.Node]]) -> nodes.table:
    """A table of inline nodes; its columns are as wide as they must be."""

    def row(cells: list[nodes.Node]) -> nodes.row:
        return nodes.row("", *[nodes.entry("", nodes.paragraph("", "", cell)) for cell in cells])

    group = nodes.tgroup("", *[nodes.colspec(colwidth=1) for _ in head], cols=len(head))
    group += nodes.thead("", row([nodes.Text(name) for name in head]))
    group += nodes.tbody("", *[row(cells) for cells in rows])
    return nodes.table("", group, classes=["colwidths-auto"])


def fact_list(found: list[tuple[str, str]]) -> nodes.definition_list:
    """Facts as terms with their explanations."""
    items = [
        nodes.definition_list_item(
            "", nodes.term("", name), nodes.definition("", nodes.paragraph("", said))
        )
        for name, said in found
    ]
    return nodes.definition_list("", *items)


def report(app, docname: str) -> list[nodes.Node]:
    """The facts of this build, and a table of the chapters."""
    runs = executed(app.env)
    if not runs:
        said = "The chapters were not executed when these pages were made. Their outputs are those that are committed."
        return [fact_list(facts()), nodes.paragraph("", said)]
    rows, early, total = [], 0, 0.0
    for name, data in runs:
        title = nodes.Text(app.env.titles[name].astext())
        link = nodes.reference(
            "", "", title, internal=True, refuri=app.builder.get_relative_uri(docname, name)
        )
        now = data["mtime"] >= app.mha_build_began
        when = day(data["mtime"]) + ("" if now else ", kept")
        early, total = early + (not now), total + data["runtime"]
        rows.append([link, nodes.Text(f"{data['runtime']:.1f}"), nodes.Text(when)])
    said = f"{len(runs)} pages were executed, in {total / 60:.1f} minutes together. "
    said += f"{len(runs) - early} of them ran when these pages were made; {early} were kept from an earlier run."
    return [
        fact_list(facts()),
        nodes.paragraph("", said),
        table(["Chapter", "Seconds", "Executed"], rows),
    ]


def begin(app) -> None:
    app.mha_build_began = time.time()


def rewrite(app, env) -> list[str]:
    """The page with the report is written at every build: each has a date of its own."""
    metadata_of = NbMetadataCollector.get_doc_data(env)
    return [name for name, data in metadata_of.items() if data.get(HERE)]


def fill(app, doctree: nodes.document, docname: str) -> None:
    for node in list(doctree.findall(Report)):
        node.replace_self(report(app, docname))


def setup(app) -> None:
    app.add_directive("execution-report", ExecutionReport)
    app.add_node(Report)
    app.connect("builder-inited", begin)
    app.connect("env-updated", rewrite)
    app.connect("doctree-resolved", fill, priority=200)
