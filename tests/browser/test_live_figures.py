"""Every explorer in the built book, used as a reader would: it says what it shows."""

import re

import pytest
from built import BUILT, PAGES, dress

pytestmark = pytest.mark.book

WITH = [name for name in PAGES if 'data-mha="' in (BUILT / name).read_text(encoding="utf8")]


def numbers(figure) -> list[float]:
    """The numbers beside the keys that can be seen."""
    shown = figure.locator(".mha-key .mha-number").all_inner_texts()
    return [float(text) for text in shown if text.strip()]


def said(figure) -> str:
    """The line that says in words what is chosen."""
    return figure.locator("[role=status]").inner_text()


def test_six_chapters_or_more_have_one():
    assert len([name for name in WITH if name.startswith("chapters/")]) >= 6


def test_only_pages_with_a_live_figure_carry_its_script():
    for name in set(PAGES) - set(WITH):
        assert "mha-explorer" not in (BUILT / name).read_text(encoding="utf8"), name


@pytest.mark.parametrize("name", WITH)
def test_each_head_and_token_can_be_looked_at(page, site, name):
    page.goto(site + name)
    figure = page.locator(".mha-explorer").first
    figure.scroll_into_view_if_needed()
    heads = figure.get_by_role("radiogroup", name="all heads").get_by_role("radio")
    lines = set()
    for head in heads.all():
        head.click()
        token = figure.locator(".mha-query [role=option]:visible").last
        if token.get_attribute("aria-selected") != "true":  # a second click would let it go
            token.click()
        found, line = numbers(figure), said(figure)
        first = float(re.search(r"\((\d\.\d+)\)", line)[1])
        assert first == max(found) <= 1, line
        lines.add(line)
    assert len(lines) == heads.count() > 1


@pytest.mark.parametrize("name", WITH)
def test_it_works_by_keyboard_and_in_the_dark(page, site, name):
    page.goto(site + name)
    dress(page, "dark")
    figure = page.locator(".mha-explorer").first
    start = figure.locator(".mha-query [role=option]:visible").first
    start.click()
    before = said(figure)
    page.keyboard.press("ArrowDown")
    assert said(figure) != before
    figure.get_by_role("radio", name="heat map").press("Space")
    assert figure.locator("canvas").first.is_visible()
    for picture in figure.locator("canvas:visible").all()[:1]:
        assert (
            picture.evaluate(
                """(e) => new Set(e.getContext("2d").getImageData(0, 0, e.width, e.height).data).size"""
            )
            > 2
        )


def test_another_text_is_another_figure(page, site):
    [name] = [name for name in WITH if "06-4" in name]
    page.goto(site + name)
    figure = page.locator(".mha-explorer").first
    tokens = figure.locator(".mha-key [role=option]")
    first = tokens.all_inner_texts()
    figure.get_by_role("combobox").select_option(index=2)
    assert tokens.all_inner_texts() != first
    page.keyboard.press("Tab")
    figure.get_by_role("slider").press("Home")
    assert figure.locator(".mha-query [role=option]:visible").count() == 1
