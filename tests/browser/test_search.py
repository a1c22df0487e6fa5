"""The search of the book: it finds the right page first, over http and from disk."""

import pytest

pytestmark = pytest.mark.book

FIRST = {
    "square root": "chapters/04-2-scores.html",
    "causal": "chapters/05-4-masks.html",
    "KV cache": "chapters/10-3-cache.html",
    "Rotary": "chapters/api-positions.html",  # names of code lead to their entries
    "scaled_dot_product_attention": "chapters/api-mha.html",
    "split_heads": "chapters/api-heads.html",
}


def results(page) -> list[str]:
    """The files that the search found, in order, each once."""
    page.get_by_text("Search finished, found").wait_for()
    links = page.locator("#search-results ul.search li > a").evaluate_all(
        "links => links.map((link) => link.href.split(/[?#]/)[0])"
    )
    return list(dict.fromkeys(links))


@pytest.mark.parametrize(("asked", "expected"), FIRST.items())
def test_the_right_page_comes_first(page, site, asked, expected):
    page.goto(site + "chapters/index.html")
    page.keyboard.press("Control+k")
    page.keyboard.type(asked)
    page.keyboard.press("Enter")
    assert results(page)[0] == site + expected


def test_the_search_works_from_disk(page, html):
    page.goto((html / "chapters/index.html").as_uri())
    page.keyboard.press("Control+k")
    page.keyboard.type("square root")
    page.keyboard.press("Enter")
    first = results(page)[0]
    page.locator("#search-results ul.search li > a").first.click()
    page.wait_for_url(lambda url: url.startswith(first))
    assert first == (html / FIRST["square root"]).as_uri()
    assert page.locator("article h1").is_visible()


def test_what_is_nowhere_is_not_found(page, site):
    page.goto(site + "search.html?q=qwertzuiop")
    page.get_by_text("did not match any documents").wait_for()
    assert page.locator("#search-results ul.search li").count() == 0
