"""A real browser for the tests: Playwright's core drives the Chromium that the machine has.

`page` is a fresh tab that fails its test, at the end, on any error the page reported. `site` is the
address of the built book, `html` its folder. Without a browser each test is skipped, or fails
where CI is set: there a missing browser is a mistake.
"""

import os
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from book.bookfiles import HTML, script
from built import BUILT

BROWSER = script("browser")  # finds one for the build too


def missing(sentence: str):
    """Skip the test, or fail it in CI, with a sentence that says what to install."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(sentence)


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """One headless Chromium for the tests of a file.

    Not for the whole session: as long as Playwright runs, its event loop lives in this thread, and
    the tests of other files that start one of their own would fail.
    """
    found = BROWSER.find()
    if found is None:
        missing(BROWSER.ADVICE)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing(
            "needs playwright beside a browser: pip install playwright; apt-get install chromium"
        )
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser) -> Iterator:
    """A tab of its own, 1280 x 900, where every error that the page reports fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    said = []
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("console", lambda message: message.type == "error" and said.append(message.text))
    yield tab
    context.close()
    assert not said, said


@pytest.fixture(scope="module")
def tab(browser) -> Iterator:
    """One tab for the pages of a file, 1280 x 900; what moves would have other colors on its way."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    yield context.new_page()
    context.close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Say nothing: a test prints nothing."""


@pytest.fixture(scope="session")
def html() -> Path:
    """The folder of the built book, which must be that of this checkout."""
    if BUILT == HTML:
        build, stamp = script("book"), HTML.parent / "good.sha256"
        assert stamp.exists(), "no good build: run make book"
        assert stamp.read_text() == build.digest(build.PAGES_REST_ON), "stale pages: run make book"
    return BUILT


@pytest.fixture(scope="session")
def site(html) -> Iterator[str]:
    """The address of the built book on a small local server, such as http://127.0.0.1:4567/."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=html))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
