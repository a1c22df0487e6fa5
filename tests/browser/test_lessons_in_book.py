"""The lessons in the built book: all six are there, alive, and right at where they start."""

import re

import pytest
from built import BUILT, PAGES, dress
from lessons import close, said

from mha.viz import lessons

pytestmark = pytest.mark.book

WITH = [name for name in PAGES if 'data-lesson="' in (BUILT / name).read_text(encoding="utf8")]


def test_every_lesson_stands_in_a_chapter():
    kinds = {getattr(lessons, name)().title for name in lessons.__all__}
    pages = "".join((BUILT / name).read_text(encoding="utf8") for name in WITH)
    assert set(re.findall(r'\{"alt":"[^"]*","title":"([^"]*)"', pages)) == kinds


@pytest.mark.parametrize("name", WITH)
def test_each_is_alive_in_both_themes(page, site, name):
    page.goto(site + name)
    for figure in page.locator(".mha-lesson").all():
        figure.scroll_into_view_if_needed()
        before = said(figure)
        dress(page, "dark")
        slider = figure.get_by_role("slider").first
        if slider.count():
            slider.press("End" if slider.input_value() != slider.get_attribute("max") else "Home")
        else:
            figure.locator("[role=radio][aria-checked=false]").first.click()
        assert said(figure) != before
        assert not figure.locator(":scope > .mha-figure").is_visible()


def test_the_row_of_chapter_12_ends_on_its_exact_value(page, site):
    [name] = [name for name in WITH if "12-1" in name]
    page.goto(site + name)
    figure = page.locator(".mha-lesson")
    figure.get_by_role("slider", name="tiles read").press("End")
    values = figure.evaluate("el => el.values")
    close(values["average"], values["exact"])
    assert "which is the exact row" in said(figure)
