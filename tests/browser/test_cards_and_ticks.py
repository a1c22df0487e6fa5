"""Cards of terms and ticks at chapters, as a reader meets them in the built book."""

import re

import pytest
from book.bookfiles import ROOT

pytestmark = pytest.mark.book

CHAPTER = "chapters/10-1-positions.html"
OTHER = "chapters/10-2-alignment.html"
HOME = "chapters/index.html"
FULL = """const { setItem } = Storage.prototype;
Storage.prototype.setItem = function (key, value) {
  if (key.startsWith("mha")) throw new DOMException("full", "QuotaExceededError");
  setItem.call(this, key, value); };"""
BARE = """<p><a class="mha-term" href="#a" aria-describedby="card">term</a></p>
<div class="mha-card" id="card" role="tooltip" hidden>What it is.</div>
<div class="mha-progress" data-page="a"></div>"""


@pytest.fixture
def chapter(page, site):
    """A chapter, open at its start."""
    page.goto(site + CHAPTER)
    page.add_style_tag(content="html { scroll-behavior: auto !important }")
    return page


def term(page, number: int = 0):
    return page.locator("a.mha-term").nth(number)


def card_of(link):
    """The card that belongs to a term."""
    return link.page.locator(f"[id={link.get_attribute('aria-describedby')}]")


def open_cards(page) -> int:
    return page.locator(".mha-card:visible").count()


def button(page):
    return page.get_by_role("button", name="Mark this chapter as read")


def tick(page, address: str):
    """The ticks of a chapter, at the side or in the list on the first page."""
    return page.locator(f'.mha-tick[data-page="{address.removesuffix(".html")}"]')


def test_a_card_opens_under_the_pointer_and_stays_while_it_is_there(chapter):
    card = card_of(term(chapter))
    assert open_cards(chapter) == 0
    term(chapter).hover()
    card.wait_for(state="visible")
    assert len(card.locator("p").nth(1).text_content()) > 20
    card.hover()
    chapter.wait_for_timeout(500)
    assert card.is_visible()
    chapter.mouse.move(5, 5)
    card.wait_for(state="hidden")


def test_a_card_opens_on_focus_and_closes_on_escape(chapter):
    before = chapter.evaluate("document.documentElement.scrollHeight")
    term(chapter, 1).focus()
    assert card_of(term(chapter, 1)).is_visible()
    assert chapter.evaluate("document.documentElement.scrollHeight") == before
    term(chapter, 1).hover()
    chapter.mouse.move(5, 5)
    chapter.wait_for_timeout(500)
    assert card_of(term(chapter, 1)).is_visible()
    chapter.keyboard.press("Escape")
    assert open_cards(chapter) == 0
    assert term(chapter, 1).evaluate("link => link === document.activeElement")
    term(chapter).focus()
    term(chapter, 1).focus()
    assert open_cards(chapter) == 1
    term(chapter, 1).blur()
    card_of(term(chapter, 1)).wait_for(state="hidden")


def test_escape_closes_a_card_under_the_pointer(chapter):
    term(chapter).hover()
    card_of(term(chapter)).wait_for(state="visible")
    chapter.keyboard.press("Escape")
    assert open_cards(chapter) == 0


@pytest.mark.parametrize("width", [375, 1280])
def test_no_card_leaves_the_screen(chapter, width):
    chapter.set_viewport_size({"width": width, "height": 800})
    for number in range(chapter.locator("a.mha-term").count()):
        link = term(chapter, number)
        link.focus()
        box, at = card_of(link).bounding_box(), link.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
        assert box["y"] >= 0 and box["y"] + box["height"] <= 800
        assert box["y"] >= at["y"] + at["height"] or box["y"] + box["height"] <= at["y"]
        assert chapter.evaluate("document.documentElement.scrollWidth") <= width


def test_a_card_is_not_printed(chapter):
    term(chapter).focus()
    assert open_cards(chapter) == 1
    chapter.emulate_media(media="print")
    assert open_cards(chapter) == 0 and term(chapter).is_visible()


def test_a_term_is_an_ordinary_link_without_a_script(browser, site):
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(site + CHAPTER)
    link = tab.locator("a.mha-term").first
    link.hover()
    assert tab.locator(".mha-card:visible").count() == 0
    assert tab.locator(".mha-progress button").count() == 0
    link.click()
    name = re.search(r"appendix-glossary\.html#(term-[\w-]+)$", tab.url)[1]
    assert tab.locator(f"dt#{name}").is_visible()
    context.close()


def test_a_first_tap_shows_the_card_and_a_second_follows_the_link(browser, site):
    context = browser.new_context(has_touch=True, viewport={"width": 375, "height": 700})
    tab = context.new_page()
    tab.goto(site + CHAPTER)
    term(tab).tap()
    assert card_of(term(tab)).is_visible() and tab.url.endswith(CHAPTER)
    tab.locator("article h1").first.tap()
    card_of(term(tab)).wait_for(state="hidden")
    term(tab).tap()
    term(tab).tap()
    tab.wait_for_url("**/appendix-glossary.html#term-*")
    context.close()


def test_a_tick_is_kept_and_shown_everywhere(chapter, site):
    assert button(chapter).get_attribute("aria-pressed") == "false"
    assert tick(chapter, CHAPTER).text_content() == ""
    total = re.fullmatch(
        r"0 of (\d+) chapters read",
        chapter.locator(".mha-progress").get_by_role("status").inner_text(),
    )
    assert int(total[1]) == chapter.locator(".mha-tick").count() > 30
    box = button(chapter).bounding_box()
    assert box["height"] >= 24
    button(chapter).press("Space")
    assert button(chapter).get_attribute("aria-pressed") == "true"
    assert button(chapter).bounding_box()["width"] == box["width"]
    for address in (OTHER, HOME):
        chapter.goto(site + address)
        for mark in tick(chapter, CHAPTER).all():
            assert mark.text_content() == "✓" and mark.get_attribute("aria-label") == "read"
        assert tick(chapter, OTHER).first.text_content() == ""
    assert tick(chapter, CHAPTER).count() == 2
    assert chapter.locator(".mha-contents .mha-count").inner_text().startswith("1 of ")
    chapter.goto(site + CHAPTER)
    button(chapter).click()
    assert button(chapter).get_attribute("aria-pressed") == "false"
    assert tick(chapter, CHAPTER).text_content() == ""


def test_a_tick_appears_in_other_tabs(chapter, site):
    other = chapter.context.new_page()
    other.goto(site + OTHER)
    button(chapter).click()
    tick(other, CHAPTER).filter(has_text="✓").wait_for(state="attached")
    assert "1 of " in other.locator(".mha-progress .mha-count").inner_text()
    assert button(other).get_attribute("aria-pressed") == "false"


def test_ticks_move_nothing(chapter):
    """The places of a tick, and of the button, are there before they are filled."""
    mark = tick(chapter, CHAPTER)
    link = mark.locator("xpath=ancestor::a")
    before = mark.bounding_box()["width"], link.bounding_box()
    button(chapter).evaluate("button => button.click()")
    assert mark.text_content() == "✓"
    assert (mark.bounding_box()["width"], link.bounding_box()) == before
    room = chapter.locator(".mha-progress").bounding_box()["height"]
    chapter.evaluate("document.querySelector('.mha-progress').replaceChildren()")
    assert chapter.locator(".mha-progress").bounding_box()["height"] == room


def test_ticks_work_from_disk(page, html):
    page.goto((html / CHAPTER).as_uri())
    button(page).click()
    page.goto((html / OTHER).as_uri())
    assert tick(page, CHAPTER).text_content() == "✓"


def test_nothing_is_offered_that_cannot_be_kept(page, site):
    page.add_init_script(FULL)
    page.goto(site + CHAPTER)
    assert page.locator(".mha-progress").count() == 1
    assert page.locator(".mha-progress *").count() == 0


def test_cards_work_where_the_browser_refuses_its_storage(page):
    page.set_content(BARE)  # a page without an address may keep nothing
    assert (
        page.evaluate("() => { try { return !!localStorage } catch { return 'refused' } }")
        == "refused"
    )
    page.add_script_tag(path=ROOT / "chapters/_static/reading.js")
    term(page).focus()
    assert open_cards(page) == 1 and page.locator(".mha-progress *").count() == 0


@pytest.mark.parametrize("kept", ["{not json", "5", "null", '["chapters/gone", 7]'])
def test_what_is_no_list_of_chapters_does_no_harm(page, site, kept):
    page.goto(site + HOME)
    page.evaluate("kept => localStorage.setItem('mha-chapters-read', kept)", kept)
    page.goto(site + CHAPTER)
    assert page.locator(".mha-progress .mha-count").inner_text().startswith("0 of ")
    button(page).click()
    assert page.locator(".mha-progress .mha-count").inner_text().startswith("1 of ")


def test_queries_keys_and_values_have_their_colors(chapter):
    """In formulas, light and dark: three colors, none of them that of the text."""
    found = set()
    for dark in ("light", "dark"):
        chapter.evaluate("theme => { document.documentElement.dataset.theme = theme }", dark)
        letters = [chapter.locator(f"mjx-container .mha-{letter}").first for letter in "qk"]
        letters.append(chapter.locator("article p").first)
        seen = [letter.evaluate("node => getComputedStyle(node).color") for letter in letters]
        assert len(set(seen)) == 3
        found |= set(seen)
    assert len(found) == 6
