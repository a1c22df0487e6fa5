"""What several modules of this folder ask of a page."""

import re

from docutils import nodes

_CHAPTER = re.compile(r"(\d+(?:\.\d+)?)\s")


def ancestors(node: nodes.Node):
    """The nodes around ``node``, from the inside to the outside."""
    while node.parent is not None:
        node = node.parent
        yield node


def inside(node: nodes.Node, kinds: tuple[type, ...]) -> bool:
    """Whether ``node`` stands in one of these ``kinds``."""
    return any(isinstance(around, kinds) for around in ancestors(node))


def sections(node: nodes.Node) -> set[str]:
    """The ids of the sections around ``node``, and their names in links of the sources."""
    around = [part for part in ancestors(node) if isinstance(part, nodes.section)]
    return {name for part in around for name in [*part["ids"], part.get("slug")] if name}


def join_texts(doctree: nodes.document) -> None:
    """Make one text of those that follow each other: MyST cuts a paragraph at its line ends."""
    for parent in [node for node in doctree.findall(nodes.TextElement) if len(node) > 1]:
        joined = []
        for child in parent.children:
            if joined and isinstance(child, nodes.Text) and isinstance(joined[-1], nodes.Text):
                joined[-1] = nodes.Text(joined[-1] + child)
            else:
                joined.append(child)
        parent.children = []
        parent.extend(joined)


def chapter_number(doctree: nodes.document) -> str:
    """The number in the title of the page, such as "4.2", or ""."""
    title = next(iter(doctree.findall(nodes.title)), None)
    found = _CHAPTER.match(title.astext()) if title is not None else None
    return found[1] if found else ""


def stem(docname: str) -> str:
    """The last part of the name of a page."""
    return docname.rsplit("/", 1)[-1]
