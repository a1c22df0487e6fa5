"""Every page at the width of a phone, with all that folds unfolded."""

import pytest
from built import EACH_KIND, PHONE, in_both_themes, unfold

pytestmark = pytest.mark.book

# The innermost elements that stick out to the right, for the message.
WIDE = """() => {
  const wide = [...document.querySelectorAll("main *")].filter((e) =>
    e.getBoundingClientRect().right > screen.width + 1);
  return wide.filter((e) => !wide.some((other) => other !== e && e.contains(other)))
    .slice(0, 3).map((e) => e.outerHTML.slice(0, 200));
}"""


@pytest.fixture(scope="module")
def tab(browser):
    """One tab for all pages."""
    context = browser.new_context(
        viewport=PHONE, reduced_motion="reduce", has_touch=True, is_mobile=True
    )
    yield context.new_page()
    context.close()


@pytest.mark.parametrize("name", EACH_KIND)
def test_a_page_fits_and_axe_finds_nothing(tab, site, name):
    tab.goto(site + name)
    unfold(tab)
    scrolled = tab.evaluate("document.scrollingElement.scrollWidth")
    assert scrolled <= PHONE["width"], tab.evaluate(WIDE)
    assert in_both_themes(tab) == {"light": [], "dark": []}
