"""The script of the quiz in a real browser: what a reader does, and what the page then says."""

import pytest
from book.bookfiles import ROOT

QUESTION = """<p><strong>Question {n}.</strong> Two and two?</p>
<ol><li><p>Three, <code>or so</code></p></li><li>Four</li><li>Five</li><li>Six</li></ol>
<details class="quiz"><summary>Answers</summary>
<ol><li><p>No. Too few.</p></li><li><strong>Right.</strong> Count.</li><li>No, 5.</li><li>No, 6.</li></ol>
</details>"""
BROKEN = """<p>Not a question</p><details class="quiz"><summary>Answers</summary><ol><li>A</li></ol></details>"""


@pytest.fixture
def asked(page):
    """A function that shows ``body`` with the script of the quiz, and returns the page."""
    style, program = ROOT / "chapters/_static/book.css", ROOT / "chapters/_static/quiz.js"

    def show(body: str):
        page.set_content(f"<!doctype html><body><main>{body}</main>")
        page.add_style_tag(path=style)
        page.add_style_tag(content="html { --pst-color-primary: teal }")  # as the theme does
        page.add_script_tag(path=program)
        return page

    return show


@pytest.fixture
def two(asked):
    """The page with two questions."""
    return asked(QUESTION.format(n=1) + QUESTION.format(n=2))


def said(page, question: int = 0) -> str:
    return page.locator("form").nth(question).get_by_role("status").text_content()


def press(page, *keys: str):
    for key in keys:
        page.keyboard.press(key)


def focused(page) -> str:
    """What has the focus: the number of a radio button, or the text of another element."""
    return page.evaluate("document.activeElement.value || document.activeElement.textContent")


def test_a_choice_is_answered_by_its_own_explanation(two):
    form, explanations = two.locator("form").first, two.locator("details").first
    form.get_by_label("Three, or so").check()
    form.get_by_role("button").click()
    assert said(two) == "No. Too few."
    assert explanations.is_hidden()
    form.get_by_label("Five").check()
    assert said(two) == ""
    form.get_by_label("Four").check()
    form.get_by_role("button").click()
    assert said(two) == "Right. Count."
    assert explanations.is_visible()
    assert said(two, 1) == "" and two.locator("details").last.is_hidden()


def test_a_question_is_a_group_that_a_screen_reader_names(two):
    group = two.get_by_role("group", name="Question 2. Two and two?")
    radios = group.get_by_role("radio")
    assert group.locator("label").all_text_contents() == ["Three, or so", "Four", "Five", "Six"]
    assert len({radio.get_attribute("name") for radio in radios.all()}) == 1
    two.locator("form").last.get_by_role("button", name="Check").click()
    assert said(two, 1) == "Choose one of the four first."


def test_a_question_is_answered_by_keyboard_alone(two):
    press(two, "Tab", "Space")
    assert focused(two) == "0" and two.get_by_label("Three, or so").first.is_checked()
    press(two, "Enter")  # from a choice, Enter checks it
    assert said(two) == "No. Too few."
    press(two, "ArrowDown")
    assert focused(two) == "1" and two.get_by_label("Four").first.is_checked()
    assert said(two) == ""
    press(two, "Tab")
    assert focused(two) == "Check"
    press(two, "Enter")
    assert said(two) == "Right. Count."
    press(two, "Tab")
    assert focused(two) == "All four explanations"
    press(two, "Enter")
    assert two.locator("details").first.get_by_text("No. Too few.").is_visible()
    press(two, "Tab")  # one stop for the whole group, and then out of it
    assert focused(two) == "0"
    press(two, "Tab", "Space")
    assert said(two, 1) == "Choose one of the four first."


def test_the_focus_is_seen(two):
    press(two, "Tab")
    outline = two.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_what_is_no_question_stays_as_it_was(asked):
    page = asked(BROKEN)
    assert page.locator("form").count() == 0 and page.locator("details").is_visible()
