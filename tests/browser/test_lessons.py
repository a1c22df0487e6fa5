"""What is asked of every lesson: small, by keyboard, for all eyes, on paper, without a script."""

import inspect
import re

import pytest
from built import PHONE, findings
from lessons import opened, said

from mha.viz import lessons
from mha.viz.live_page import asset, joined

LESSONS = [getattr(lessons, name) for name in lessons.__all__]
of_each = pytest.mark.parametrize("kind", LESSONS, ids=lambda kind: kind.__name__)


@of_each
def test_its_script_is_small_and_asks_for_nothing_from_outside(kind):
    lesson = kind()
    assert len(asset(lesson.scripts[-1]).encode()) < 6_000
    text = joined(lesson.scripts + lesson.styles).replace("http://www.w3.org/", "")
    assert not re.search(r"https?:|innerHTML|outerHTML|\beval\b|fetch|@import|url\(", text)
    assert len(inspect.getsource(inspect.getmodule(kind)).splitlines()) < 200


@of_each
def test_it_is_the_same_to_the_letter_each_time(kind):
    assert kind().html == kind().html


@of_each
def test_every_control_answers_to_the_keyboard(page, tmp_path, kind):
    figure = opened(page, kind(), tmp_path)
    sliders = figure.get_by_role("slider").all()
    told = {said(figure)}
    for slider in sliders:
        before = slider.get_attribute("aria-valuetext")
        slider.press(
            "ArrowRight" if slider.input_value() != slider.get_attribute("max") else "Home"
        )
        assert slider.get_attribute("aria-valuetext") != before
        told.add(said(figure))
    for radio in figure.locator("[role=radio][aria-checked=false]").all():
        if radio.get_attribute("aria-checked") == "false":
            radio.evaluate(
                "e => e.closest('[role=radiogroup]').querySelector('[tabindex=\"0\"]').focus()"
            )
            page.keyboard.press("ArrowRight")
            told.add(said(figure))
    assert len(told) > 1


@of_each
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_keeps_a_reader_out(page, tmp_path, kind, scheme):
    page.emulate_media(color_scheme=scheme)
    figure = opened(page, kind(), tmp_path)
    figure.locator("summary").click()
    assert findings(page) == []


@of_each
def test_it_fits_a_phone(page, tmp_path, kind):
    page.set_viewport_size(PHONE)
    opened(page, kind(), tmp_path)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


@of_each
def test_on_paper_stands_the_still_picture_and_the_lesson_in_words(page, tmp_path, kind):
    figure = opened(page, kind(), tmp_path)
    still, live = figure.locator(":scope > .mha-figure"), figure.locator(":scope > .mha-root")
    assert live.is_visible() and not still.is_visible()
    page.emulate_media(media="print")
    assert still.is_visible() and not live.is_visible()
    assert figure.locator("details p").last.is_visible()


@of_each
def test_without_a_script_it_says_the_same_in_words(browser, tmp_path, kind):
    context = browser.new_context(java_script_enabled=False)
    lesson = kind()
    figure = opened(context.new_page(), lesson, tmp_path)
    assert figure.get_by_role("img").get_attribute("aria-label") == lesson.alt
    figure.locator("summary").click()
    assert figure.locator("details p").all_inner_texts() == lesson.words
    assert len(" ".join(lesson.words).split()) > 60
    context.close()


@of_each
def test_a_running_notebook_gets_a_widget_with_the_same_script(kind):
    live = kind()._wake()
    assert live._esm == joined(kind().scripts) + "export default { render };\n"
    assert live.state["words"] == kind().words


@of_each
def test_its_color_does_not_hang_on_the_page(page, tmp_path, kind):
    """A notebook puts the widget into an element that has no class of ours."""
    figure = opened(page, kind(), tmp_path)
    figure.evaluate("el => el.classList.remove('mha-lesson')")
    root = page.locator(".mha-root")
    assert root.evaluate("e => getComputedStyle(e).getPropertyValue('--c')") == "#7645e0"
