"""What a reader does with the built book: themes, folded cells, copying, leafing, print."""

import re

import pytest
from book.bookfiles import pages
from built import DESKTOP, PAGES, dress, unfold

pytestmark = pytest.mark.book

PAGES_IN_ORDER = [f"{name}.html" for name in pages()]
CHAPTER = "chapters/05-4-masks.html"
PAPER = {"width": 718, "height": 1000}  # A4 without its margins, in CSS pixels
# Each text of a figure that has too little contrast to what is painted below it, as "ratio: text".
FAINT = """() => {
  const pen = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const known = new Map();
  const rgba = (color) => {
    if (!known.has(color)) {
      pen.clearRect(0, 0, 1, 1);
      pen.fillStyle = "transparent";  // "none" and patterns, which are no color, leave it so
      pen.fillStyle = color;
      pen.fillRect(0, 0, 1, 1);
      known.set(color, [...pen.getImageData(0, 0, 1, 1).data].map((v) => v / 255));
    }
    return known.get(color);
  };
  const over = (top, alpha, below) => below.map((v, i) => top[i] * alpha + v * (1 - alpha));
  const luminance = (color) => {
    const [r, g, b] = color.map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const opacity = (e) => e && e.localName !== "svg"
    ? getComputedStyle(e).opacity * opacity(e.parentElement) : 1;
  const layers = (e, x, y) => {  // what an element paints at a point, each a color and its alpha
    const style = getComputedStyle(e);
    if (!(e instanceof SVGGeometryElement)) return [[style.backgroundColor, 1]];
    const point = new DOMPoint(x, y).matrixTransform(e.getScreenCTM().inverse());
    return [
      [style.fill, e.isPointInFill(point) * style.fillOpacity * opacity(e)],
      [style.stroke, e.isPointInStroke(point) * style.strokeOpacity * opacity(e)],
    ];
  };
  const faint = [];
  for (const text of document.querySelectorAll("article svg text")) {
    if (text.ownerSVGElement.querySelector("image")) continue;  // a picture has no one color
    if (!text.textContent.trim() || !text.checkVisibility({ visibilityProperty: true })) continue;
    text.scrollIntoView({ block: "center", inline: "center" });
    const box = text.getBoundingClientRect();
    const x = (box.left + box.right) / 2, y = (box.top + box.bottom) / 2;
    const stack = document.elementsFromPoint(x, y).filter((e) => !text.contains(e));
    let ground = [1, 1, 1];
    for (const [paint, alpha] of stack.reverse().flatMap((e) => layers(e, x, y))) {
      const color = rgba(paint);
      ground = over(color, alpha * color[3], ground);
    }
    const style = getComputedStyle(text), ink = rgba(style.fill);
    const seen = over(ink, ink[3] * style.fillOpacity * opacity(text), ground);
    const [a, b] = [luminance(seen), luminance(ground)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) faint.push(`${ratio.toFixed(2)}: ${text.textContent.trim()} ${style.fill}`);
  }
  return faint.slice(0, 10);
}"""
LOST_ON_PAPER = """() => {
  const article = document.querySelector("article"), width = document.documentElement.clientWidth;
  const lost = [];
  for (const e of article.querySelectorAll("details > :not(summary), mjx-container, pre, svg, img")) {
    if (e.closest("button, summary, .dropdown, [aria-hidden=true], [role=tooltip]")) continue;
    const box = e.getBoundingClientRect(), size = box.width * box.height;
    if (!e.checkVisibility({ contentVisibilityAuto: true }) || size === 0)
      lost.push(`hidden: ${e.outerHTML.slice(0, 120)}`);
    else if (e.matches("pre, svg, img") && (box.right > width + 1 || box.left < -1))
      lost.push(`cut: ${e.outerHTML.slice(0, 120)}`);
  }
  return lost.slice(0, 10);
}"""


@pytest.mark.parametrize("name", [name for name in PAGES if name.startswith("chapters/")])
def test_figures_stay_legible_and_nothing_is_lost_on_paper(tab, site, name):
    tab.set_viewport_size(DESKTOP)
    tab.emulate_media(media="screen")
    tab.goto(site + name)
    tab.set_viewport_size(PAPER)
    tab.emulate_media(media="print")
    assert tab.evaluate(LOST_ON_PAPER) == []
    for part in (".bd-sidebar-primary", ".bd-sidebar-secondary", ".bd-header-article"):
        assert not any(found.is_visible() for found in tab.locator(part).all()), part
    tab.set_viewport_size(DESKTOP)
    tab.emulate_media(media="screen")
    unfold(tab)
    found = {}
    for theme in ("light", "dark"):
        dress(tab, theme)
        found[theme] = tab.evaluate(FAINT)
    assert found == {"light": [], "dark": []}


def test_a_page_prints(tab, site):
    tab.goto(site + CHAPTER)
    printed = tab.pdf(format="A4")
    assert printed.startswith(b"%PDF") and printed.count(b"/Type /Page\n") > 5


def test_the_switch_changes_the_theme_and_keeps_it(page, site):
    page.goto(site + CHAPTER)
    switch = page.locator(".theme-switch-button:visible").first
    seen = set()
    for _ in range(3):
        switch.focus()
        page.keyboard.press("Enter")
        dressed = page.evaluate("({ ...document.documentElement.dataset })")
        page.reload()
        assert page.evaluate("document.documentElement.dataset.mode") == dressed["mode"]
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        seen.add((dressed["mode"], dressed["theme"], back))
    assert {mode for mode, _, _ in seen} == {"auto", "light", "dark"}
    assert len({back for _, theme, back in seen if theme == "dark"}) == 1
    assert len({back for _, _, back in seen}) == 2


def test_a_folded_cell_opens_by_keyboard(page, site):
    page.goto(site + CHAPTER)
    folded = page.locator("details.hide").first
    code = folded.locator("pre").first
    assert code.is_hidden()
    folded.locator("summary").focus()
    page.keyboard.press("Enter")
    assert code.is_visible()
    assert folded.locator("summary").inner_text().startswith("Hide")
    page.keyboard.press("Space")
    assert code.is_hidden()


def test_what_scrolls_after_unfolding_can_be_scrolled_by_keyboard(page, site):
    page.set_viewport_size({"width": 375, "height": 812})
    page.goto(site + CHAPTER)
    folded = page.locator("details.hide:has(pre)").first
    folded.locator("summary").focus()
    page.keyboard.press("Enter")
    code = folded.locator("pre").first
    page.wait_for_function("code => code.tabIndex === 0", arg=code.element_handle())
    code.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("code => code.scrollLeft > 0", arg=code.element_handle())


def test_the_copy_button_copies_the_code(page, site):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(site + CHAPTER)
    cell = page.locator("div.cell:not(.tag_hide-input) .cell_input").first
    cell.hover()
    cell.locator("button.copybtn").click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.strip() == cell.locator("pre").inner_text().strip() != ""


def test_leafing_goes_forth_and_back(page, site):
    """The links under a page, by mouse; that they pass every page is read from the files."""
    page.goto(site + PAGES_IN_ORDER[0])
    for forth in PAGES_IN_ORDER[1:4]:
        page.locator("a.right-next").click()
        page.wait_for_url(site + forth)
    for back in PAGES_IN_ORDER[2::-1]:
        page.locator("a.left-prev").click()
        page.wait_for_url(site + back)


def test_leafing_passes_every_chapter(html):
    texts = [(html / name).read_text("utf8") for name in PAGES_IN_ORDER]
    names = [name.removeprefix("chapters/") for name in PAGES_IN_ORDER]
    for side, expected in (("right-next", [*names[1:], None]), ("left-prev", [None, *names[:-1]])):
        links = [re.search(rf'class="{side}"\s+href="([^"]*)"', text) for text in texts]
        assert [link and link[1] for link in links] == expected
