"""Every page at the width of a desktop, for readers who listen, use the keyboard or see little."""

import pytest
from built import COLORS, DESKTOP, EACH_KIND, PHONE, dress, findings, in_both_themes, unfold

pytestmark = pytest.mark.book

CHAPTER = "chapters/05-4-masks.html"  # code, output, figures, folded cells, formulas, a quiz
PICTURES = """() => [...document.querySelectorAll("img, canvas, svg, [role=img]")].flatMap((e) => {
  const inside = e.parentElement.closest("[role=img], button, summary");  // named by these
  if (inside || e.closest("[aria-hidden=true]")) return [];
  const group = e.localName === "canvas" && e.closest("[role=group][aria-label]");  // speaks for it
  const text = e.getAttribute("alt") ?? (group || e).getAttribute("aria-label") ?? "";
  const inner = e.querySelector(":scope > title")?.textContent.trim();
  const poor = text.trim().split(/\\s+/).length < 4 || /\\.(png|svg|jpe?g)\\b/.test(text);
  return poor || text === inner ? [`${text}: ${e.outerHTML.slice(0, 200)}`] : [];
})"""
# Where the focus is: its place in the order of the page, what it shows, and how it is marked.
FOCUS = """() => {
  const PARTS = ["#pst-skip-link", "#pst-primary-sidebar", ".bd-header-article", "main", "body"];
  const e = document.activeElement;
  if (e === document.body) return null;
  const box = e.getClientRects()[0] ?? e.getBoundingClientRect();  // a link may fill two lines
  const x = (Math.max(box.left, 0) + Math.min(box.right, innerWidth)) / 2;
  const y = (Math.max(box.top, 0) + Math.min(box.bottom, innerHeight)) / 2;
  const there = document.elementFromPoint(x, y);
  const marks = ({ outlineStyle, outlineWidth, boxShadow }) =>
    (outlineStyle !== "none" && parseFloat(outlineWidth) > 0) || boxShadow !== "none";
  return {
    place: [...document.querySelectorAll("*")].indexOf(e),
    html: e.outerHTML.slice(0, 160),
    part: PARTS.find((part) => e.closest(part)),
    seen: box.width > 0 && there !== null && (e.contains(there) || there.contains(e)),
    marked: [e, e.closest("form.bd-search") ?? e].some((part) => marks(getComputedStyle(part))),
  };
}"""
MOVING = """() => {
  const long = (list) => list.split(",").some((time) => parseFloat(time) > 0);
  return [...document.querySelectorAll("*")].flatMap((e) =>
    ["", "::before", "::after"].flatMap((part) => {
      const style = getComputedStyle(e, part);
      const moves = long(style.transitionDuration) ||
        (style.animationName !== "none" && long(style.animationDuration));
      return moves ? [`${e.outerHTML.slice(0, 100)}${part}`] : [];
    })).slice(0, 20);
}"""


@pytest.mark.parametrize("name", EACH_KIND)
def test_axe_finds_nothing(tab, site, name):
    tab.goto(site + name)
    unfold(tab)
    assert tab.evaluate(PICTURES) == []
    assert in_both_themes(tab) == {"light": [], "dark": []}


def test_axe_would_find_something(tab, site):
    """The measure itself: a poor picture, a poor color and a poor name do not pass."""
    tab.goto(site + CHAPTER)
    tab.evaluate(
        """() => document.querySelector("article").insertAdjacentHTML("beforeend",
             `<img alt="a.png"><p style="color: #888; background: #999">pale</p><button></button>`)"""
    )
    assert len(tab.evaluate(PICTURES)) == 1
    found = " ".join(findings(tab))
    assert "color-contrast: " in found and "button-name: " in found
    assert "pale" in " ".join(findings(tab, COLORS))


@pytest.mark.parametrize("name", [CHAPTER, "search.html"])
def test_tab_visits_all_in_order_and_shows_where_it_is(tab, site, name):
    tab.goto(site + name)
    unfold(tab)
    stops = []
    while len(stops) < 1000:
        tab.keyboard.press("Tab")
        stop = tab.evaluate(FOCUS)
        if stop is None:  # past the last stop, back to the browser
            break
        if not stop["seen"]:  # the card of the word before may lie over it for a moment
            tab.wait_for_timeout(500)
            stop = tab.evaluate(FOCUS)
        stops.append(stop)
    assert 20 < len(stops) < 1000, stops[-1]
    assert "Skip to main content" in stops[0]["html"]
    places = [stop["place"] for stop in stops]
    assert places == sorted(set(places)), "out of order, or a trap"
    assert [stop for stop in stops if not stop["seen"]] == []
    assert [stop for stop in stops if not stop["marked"]] == []
    parts = list(dict.fromkeys(stop["part"] for stop in stops))
    assert parts[:4] == ["#pst-skip-link", "#pst-primary-sidebar", ".bd-header-article", "main"]


def test_the_skip_link_skips(tab, site):
    tab.goto(site + CHAPTER)
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.closest('main') !== null")


@pytest.mark.parametrize("name", [CHAPTER, "search.html", "chapters/index.html"])
def test_nothing_moves_for_who_asks_for_less_motion(tab, site, name):
    tab.goto(site + name)
    assert tab.evaluate(MOVING) == []


def test_dialogs_pass_too(tab, site):
    tab.set_viewport_size(PHONE)
    tab.goto(site + CHAPTER)
    tab.locator(".primary-toggle").first.click()
    assert tab.get_by_role("dialog", name="Book").is_visible()
    assert findings(tab) == []
    tab.keyboard.press("Escape")
    tab.set_viewport_size(DESKTOP)
    tab.keyboard.press("Control+k")
    assert tab.get_by_role("dialog", name="Search").is_visible()
    for theme in ("light", "dark"):
        dress(tab, theme)
        assert findings(tab) == []


def test_chinese_says_that_it_is_chinese(tab, site):
    tab.goto(site + "chapters/appendix-glossary.html")
    languages = tab.evaluate(
        """() => {
          const walk = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
          const found = {};
          while (walk.nextNode()) {
            const chinese = walk.currentNode.data.match(/\\p{Script=Han}/gu)?.length ?? 0;
            const language = walk.currentNode.parentElement.closest("[lang]").lang;
            if (chinese) found[language] = (found[language] ?? 0) + chinese;
          }
          return found;
        }"""
    )
    assert set(languages) == {"zh"} and languages["zh"] > 100
