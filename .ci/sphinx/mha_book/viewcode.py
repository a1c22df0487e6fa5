"""Pages of source code, made by Sphinx's own extension, and what it leaves undone.

- A property leads to its source too, as a method does.
- A link back to the reference may name a class by the package where the reference names it by its
  module; each such link is led to the entry that there is.
- Each page has a way to the list of all of them, and that list has no lists right inside lists,
  which HTML does not allow.
"""

import importlib
import re
from functools import partial, reduce
from html import escape

LIST = "_modules/index"
BACK = re.compile(r'(id="([^"]*)">\s*<a class="viewcode-back" href="[^"#]*#)([^"]*)')


def follow(app, module: str, name: str) -> str | None:
    """The module in which a property is defined; Sphinx finds that of anything else."""
    owner, _, last = name.rpartition(".")
    holder = reduce(getattr, owner.split("."), importlib.import_module(module)) if owner else None
    return holder.__module__ if isinstance(getattr(holder, last, None), property) else None


def _led_back(entries: dict, module: str, link: re.Match) -> str:
    """A link back to the reference, with an anchor that is there."""
    before, name, target = link.groups()
    inside = f"{module}.{name}"
    return before + (inside if target not in entries and inside in entries else target)


def mend(app, pagename: str, _template, context: dict, _doctree) -> None:
    """Mend the page of one module, or the list of all."""
    if pagename == LIST:
        head, _, entries = context["body"].partition("<ul")
        context["body"] = f"{head}<ul>{''.join(re.findall('<li>.*?</li>', entries))}</ul>"
    elif pagename.startswith("_modules/"):
        module = pagename.removeprefix("_modules/").replace("/", ".")
        back = partial(_led_back, app.env.domains["py"].objects, module)
        uri = escape(app.builder.get_relative_uri(pagename, LIST))
        body = BACK.sub(back, context["body"])
        context["body"] = f'<p><a href="{uri}">All source files</a></p>\n{body}'


def setup(app) -> None:
    app.setup_extension("sphinx.ext.viewcode")
    app.connect("viewcode-follow-imported", follow)
    app.connect("html-page-context", mend)
