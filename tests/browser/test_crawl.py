"""Every page of the built book, reached by its links: it asks nobody outside, and nothing breaks."""

import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from built import BUILT, DOOR, PAGES, unfold, weight

pytestmark = pytest.mark.book

LIMIT = 900_000  # bytes a page may weigh with all that it loads
IDS = "() => [...document.querySelectorAll('[id], a[name]')].map((e) => e.id || e.name)"
LINKS = "() => [...document.querySelectorAll('a, form, link[rel=index]')].map((e) => e.href || e.action)"
LOADED = "document.readyState === 'complete' && document.fonts.status === 'loaded'"


@dataclass
class Visit:
    """What one page did while it was open."""

    links: list[str]
    ids: set[str]
    asked: set[str] = field(default_factory=set)  # the files of the book that it loaded
    outside: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def watch(tab, base: str) -> Visit:
    """A record that fills while the tab is at work; it begins anew with each page."""
    visit = Visit([], set())

    def on_request(request):
        if request.url.startswith(base):
            visit.asked.add(unquote(urlsplit(request.url.removeprefix(base)).path))
        elif not request.url.startswith(("data:", "blob:")):
            visit.outside.append(request.url)

    def on_response(response):
        if response.status >= 400:
            visit.errors.append(f"{response.status} {response.url}")

    tab.on("request", on_request)
    tab.on("response", on_response)
    tab.on("requestfailed", lambda r: visit.errors.append(f"{r.failure} {r.url}"))
    tab.on("pageerror", lambda error: visit.errors.append(str(error)))
    tab.on("console", lambda m: m.type == "error" and visit.errors.append(m.text))
    return visit


def visited(browser, base: str) -> dict[str, Visit]:
    """Name of a page -> what it did, for all pages that links lead to from the first."""
    visits, waiting = {}, [DOOR]
    context = browser.new_context(reduced_motion="reduce")
    while waiting:
        name = waiting.pop()
        tab = context.new_page()
        visit = watch(tab, base)
        tab.goto(base + name)
        if name == DOOR:  # sends the reader on by itself
            tab.wait_for_url(re.compile(r"/chapters/"))
        tab.wait_for_function(LOADED)
        unfold(tab)
        visit.links, visit.ids = tab.evaluate(LINKS), set(tab.evaluate(IDS))
        tab.close()
        visits[name] = visit
        for link in visit.links:
            target = page_of(link, base)
            if target and target.endswith(".html") and target not in [*visits, *waiting]:
                waiting.append(target)
    context.close()
    return visits


def page_of(link: str, base: str) -> str | None:
    """The file of the book that a link leads to, or None for one that leads elsewhere."""
    return unquote(urlsplit(link.removeprefix(base)).path) if link.startswith(base) else None


@pytest.fixture(scope="module", params=["http", "disk"])
def base(request) -> str:
    """Where the book is: on a server, then on a stick."""
    if request.param == "disk":
        return request.getfixturevalue("html").as_uri() + "/"
    return request.getfixturevalue("site")


@pytest.fixture(scope="module")
def visits(browser, base) -> dict[str, Visit]:
    return visited(browser, base)


def test_every_page_is_reached_by_links(visits):
    assert set(visits) == {DOOR, *PAGES}


def test_no_page_asks_another_host(visits):
    assert {name: visit.outside for name, visit in visits.items() if visit.outside} == {}


def test_no_page_reports_an_error(visits):
    assert {name: visit.errors for name, visit in visits.items() if visit.errors} == {}


def test_no_link_leads_to_nothing(visits, base):
    broken = []
    for name, visit in visits.items():
        for link in visit.links:
            target = page_of(link, base)
            if target is None:
                assert not link.startswith("file:"), f"{name} leads out of the book: {link}"
                continue
            anchor = unquote(urlsplit(link).fragment)
            exists = (BUILT / target).is_file() or target == ""
            if not exists or (anchor and target in visits and anchor not in visits[target].ids):
                broken.append(f"{name}: {link.removeprefix(base)}")
    assert broken == []


def test_no_page_is_heavier_than_it_may(visits):
    weights = {name: weight(visit.asked) for name, visit in visits.items()}
    assert min(weights.values()) > 10_000  # a page with its style sheets and scripts
    assert {name: total for name, total in weights.items() if total > LIMIT} == {}


def test_formulas_are_typeset(visits, page, base):
    page.goto(urljoin(base, "chapters/04-2-scores.html"))
    formulas = page.locator("article div.math mjx-container")
    assert formulas.count() >= 5
    assert min(box.bounding_box()["width"] for box in formulas.all() if box.is_visible()) > 10
