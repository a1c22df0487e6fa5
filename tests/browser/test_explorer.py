"""The attention explorer in a real browser: numbers, mouse, keyboard, heads, steps, pictures."""

import numpy as np
import pytest
from book.bookfiles import ROOT

from mha import masks, viz

L, H, T, S = 2, 3, 4, 5
QUERIES, KEYS = ["uno", "dos", "tres", "cuatro"], ["one", "two", "three", "four", "five"]
ALT = "weights of a small example"
AXE = ROOT / "node_modules/axe-core/axe.min.js"


def weights(*shape):
    return np.random.default_rng(0).dirichlet(np.full(shape[-1], 0.5), shape[:-1])


W = weights(L, H, T, S)


@pytest.fixture
def opened(page, tmp_path):
    """A function that saves an explorer and opens its page."""

    def show(figure, dark=False, width=1280):
        figure.save(tmp_path / "page.html")
        page.emulate_media(color_scheme="dark" if dark else "light")
        page.set_viewport_size({"width": width, "height": 900})
        page.goto((tmp_path / "page.html").as_uri())
        page.get_by_role("group", name=figure.alt).wait_for()
        return page

    return show


def explorer(**options):
    given = {"weights": W, "query_tokens": QUERIES, "key_tokens": KEYS}
    return viz.AttentionExplorer(**(given | {"alt": ALT} | options))


def decoder(**options):
    allowed = masks.causal(T, T).numpy()
    exact = np.where(allowed, weights(L, H, T, T), 0)
    exact = exact / exact.sum(-1, keepdims=True)
    options = {"allowed": allowed, "steps": True} | options
    return exact, viz.AttentionExplorer(exact, QUERIES, alt=ALT, **options)


def token(page, column, name):
    return page.get_by_role("listbox", name=column).get_by_role("option", name=name)


def chip(page, group, name):
    return page.get_by_role("radiogroup", name=group, exact=True).get_by_role("radio", name=name)


def numbers(page, column):
    return page.locator(f".mha-{column} .mha-number").all_text_contents()


def status(page):
    return page.get_by_role("status").text_content()


def thousandths(row):
    return [f"{w:.3f}" for w in np.round(row, 3)]


def test_before_a_choice_all_rows_are_there_and_no_number(opened):
    page = opened(explorer(layer=1))
    assert status(page) == "layer 1, head 0: choose a token to see its row."
    assert set(numbers(page, "key") + numbers(page, "query")) == {""}
    d = "".join(path.get_attribute("d") for path in page.locator("path.mha-line").all())
    assert d.count("M") == (W[1, 0].round(3) >= 0.005).sum()


def test_lines_end_at_their_tokens_whatever_the_page_says_of_pictures(opened):
    page = opened(explorer())
    page.add_style_tag(content="[role=group] svg { height: auto; max-width: 50% }")
    token(page, "queries", "uno").hover()
    ends = [token(page, "queries", "uno"), token(page, "keys", KEYS[W[0, 0, 0].argmax()])]
    boxes = [end.bounding_box() for end in ends]
    line = page.locator("path.mha-line").last.bounding_box()  # the strongest
    assert abs(line["x"] - boxes[0]["x"] - boxes[0]["width"]) < 12
    assert abs(line["x"] + line["width"] - boxes[1]["x"]) < 12
    middles = [box["y"] + box["height"] / 2 for box in boxes]
    assert abs(line["y"] - min(middles)) < 10
    assert abs(line["y"] + line["height"] - max(middles)) < 10


def test_a_hovered_query_shows_its_row_and_a_key_its_column(opened):
    page = opened(explorer(layer=1, head=2))
    token(page, "queries", "tres").hover()
    assert numbers(page, "key") == thousandths(W[1, 2, 2])
    best = W[1, 2, 2].argsort()[::-1][:3]
    found = ", ".join(f"“{KEYS[k]}” ({W[1, 2, 2, k]:.3f})" for k in best)
    assert status(page) == f"layer 1, head 2: “tres” looks at {found}."
    token(page, "keys", "four").hover()
    assert numbers(page, "query") == thousandths(W[1, 2, :, 3])
    assert "“four” is looked at by “" in status(page)
    page.mouse.move(0, 0)
    assert "choose a token" in status(page)


def test_a_click_keeps_the_row_and_a_second_lets_go(opened):
    page = opened(explorer())
    one = token(page, "queries", "dos")
    one.click()
    page.mouse.move(0, 0)
    assert one.get_attribute("aria-selected") == "true"
    assert numbers(page, "key") == thousandths(W[0, 0, 1])
    one.click()
    page.mouse.move(0, 0)
    assert one.get_attribute("aria-selected") == "false"
    assert "choose a token" in status(page)


def test_keyboard_reaches_everything(opened):
    page = opened(explorer())
    focused = "document.activeElement.closest('[role=radiogroup],[role=listbox]').ariaLabel"
    stops = []
    for _ in range(6):
        page.keyboard.press("Tab")
        stops.append(page.evaluate(focused))
    assert stops == ["layer", "head", "view", "queries", "keys", "all heads"]
    page.keyboard.press("ArrowDown")  # a layer further
    page.keyboard.press("ArrowRight")  # a head further
    assert status(page).startswith("layer 1, head 1: ")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("End")
    assert "“five” is looked at by" in status(page)
    assert numbers(page, "query") == thousandths(W[1, 1, :, 4])
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("ArrowDown")
    assert numbers(page, "key") == thousandths(W[1, 1, 1])
    page.keyboard.press("Escape")
    assert "choose a token" in status(page)
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"


def test_chips_and_thumbnails_choose_one_head_together(opened):
    page = opened(explorer())
    chip(page, "head", "2").click()
    chip(page, "layer", "layer 1").click()
    color = "e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]"
    white, ground = chip(page, "head", "2").evaluate(color)  # axe does not judge single digits
    assert white == "rgb(255, 255, 255)" and ground == "rgb(14, 130, 67)"
    small = page.get_by_role("radiogroup", name="all heads")
    assert small.get_by_role("radio", checked=True).get_attribute("aria-label").startswith(
        "layer 1, head 2: "
    )  # fmt: skip
    small.get_by_role("radio").nth(1).click()
    assert status(page).startswith("layer 0, head 1: ")
    assert chip(page, "head", "1").get_attribute("aria-checked") == "true"
    assert chip(page, "layer", "layer 0").get_attribute("aria-checked") == "true"


def test_entropies_are_those_of_the_weights(opened):
    page = opened(explorer())
    rows = -(W * np.log2(W)).sum(-1)
    shown = [float(text) for text in page.locator(".mha-bits").all_text_contents()]
    assert np.abs(np.array(shown) - rows.mean(-1).ravel()).max() < 0.011
    text = page.locator(".mha-side").text_content()
    assert f"mean entropy: {shown[0]:.2f} of at most {np.log2(S):.2f} bits" in text
    token(page, "queries", "uno").click()
    text = page.locator(".mha-side").text_content()
    assert f"entropy of the row: {rows[0, 0, 0]:.2f} of at most {np.log2(S):.2f} bits" in text


def test_heat_map_has_the_numbers_of_the_chosen_row_and_hatches_what_is_masked(opened):
    exact, figure = decoder(steps=False, view="heat")
    page = opened(figure)
    hatch = page.locator("path.mha-hatch").get_attribute("d")
    assert hatch.count("M") == T * (T - 1) / 2  # one start for each masked cell
    assert "masked" in page.locator(".mha-side").text_content()
    box = page.locator(".mha-cells").bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 2.5 * box["height"] / T)
    written = page.locator(".mha-cells text").all_text_contents()
    assert written == thousandths(exact[0, 0, 2, :3])
    assert numbers(page, "key") == [*thousandths(exact[0, 0, 2, :3]), "masked"]
    page.mouse.click(box["x"] + 5, box["y"] + 1.5 * box["height"] / T)
    page.mouse.move(0, 0)
    assert token(page, "queries", "dos").get_attribute("aria-selected") == "true"


def alphas(page, selector):
    """The opacities of a canvas, row by row."""
    return page.locator(selector).evaluate(
        "c => Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)"
        ".filter((_, i) => i % 4 == 3)"
    )


def test_heat_map_is_as_strong_as_the_weights(opened):
    page = opened(explorer(view="heat", layer=1, head=1))
    found = np.array(alphas(page, ".mha-cells canvas")).reshape(T, S)
    assert np.abs(found - 255 * W[1, 1].round(3) ** 0.7).max() < 1
    small = alphas(page, ".mha-side button:nth-child(5) canvas")
    assert small == found.ravel().tolist()


def test_steps_show_what_has_been_written(opened):
    exact, figure = decoder(step=1)
    page = opened(figure)
    slider = page.get_by_role("slider", name="step")
    visible = page.get_by_role("listbox", name="queries").get_by_role("option")
    assert visible.all_text_contents()[:1] and visible.count() == 2
    assert page.get_by_role("listbox", name="keys").get_by_role("option").count() == 2
    assert numbers(page, "key")[:2] == thousandths(exact[0, 0, 1, :2])
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert visible.count() == 3
    assert numbers(page, "key")[:3] == thousandths(exact[0, 0, 2, :3])
    assert "“tres” looks at" in status(page)
    page.keyboard.press("Home")
    assert visible.count() == 1 and "“uno” looks at “uno” (1.000)." in status(page)


def test_steps_of_cross_attention_leave_the_keys(opened):
    page = opened(explorer(steps=True, step=0))
    assert page.get_by_role("listbox", name="queries").get_by_role("option").count() == 1
    assert page.get_by_role("listbox", name="keys").get_by_role("option").count() == S
    assert numbers(page, "key") == thousandths(W[0, 0, 0])


def test_a_row_that_sees_nothing_says_so(opened):
    allowed = np.ones((T, S), dtype=bool)
    allowed[2] = False
    page = opened(explorer(allowed=allowed, query=2))
    assert status(page) == "layer 0, head 0: “tres” sees nothing: its row is zero."
    assert numbers(page, "key") == ["masked"] * S
    assert "entropy of the row: none" in page.locator(".mha-side").text_content()


def test_a_picture_is_asked_patch_by_patch(opened):
    exact = weights(2, 2, 5, 5)  # a class token and 2 x 2 patches
    image = np.arange(16.0).reshape(4, 4)
    page = opened(viz.AttentionExplorer(exact, alt=ALT, image=image, patches=(2, 2)))
    box = page.locator(".mha-cells").bounding_box()
    assert abs(box["width"] - box["height"]) < 1
    page.mouse.click(box["x"] + 0.75 * box["width"], box["y"] + 0.25 * box["height"])
    page.mouse.move(0, 0)
    assert token(page, "queries", "patch 1").get_attribute("aria-selected") == "true"
    assert numbers(page, "key") == thousandths(exact[0, 0, 2])
    opacity = [float(p.get_attribute("fill-opacity")) for p in page.locator(".mha-patch").all()]
    assert np.abs(np.array(opacity) - 0.85 * exact[0, 0, 2, 1:].round(3) ** 0.7).max() < 1e-6
    written = page.locator(".mha-cells text").all_text_contents()
    assert written == [w for w in thousandths(exact[0, 0, 2, 1:]) if float(w) > 0.004]
    assert page.locator(".mha-cells image").get_attribute("href").startswith("data:image/png")
    chip(page, "view", "heat map").click()
    assert page.locator(".mha-cells image").count() == 0


def test_menu_of_texts_changes_tokens_and_numbers(opened):
    def attend(text):
        words = text.split()
        return {
            "weights": np.full((1, 1, len(words), len(words)), 1 / len(words)),
            "query_tokens": words,
        }

    page = opened(viz.AttentionExplorer.over(attend, ["a b", "c d e"], alt=ALT, label="line"))
    menu = page.get_by_label("line")
    menu.select_option("c d e")
    assert page.locator(".mha-query .mha-word").all_text_contents() == ["c", "d", "e"]
    token(page, "queries", "d").click()
    assert numbers(page, "key") == ["0.333"] * 3
    assert page.get_by_role("radiogroup", name="head").count() == 0  # one head: nothing to choose


def test_a_token_is_text_and_nothing_else(opened):
    evil = "<img src=x onerror=window.pwned=1>"
    page = opened(explorer(query_tokens=[evil, "</script>", "<!--", "中文"], title=evil, query=0))
    assert token(page, "queries", "img").locator(".mha-word").text_content() == evil
    assert f"“{evil}” looks at" in status(page)
    assert page.locator("img").count() == 0 and page.evaluate("window.pwned") is None


def test_explorers_on_one_page_do_not_disturb_each_other(page, tmp_path):
    html = explorer().html + explorer(head=1).html + explorer().html
    (tmp_path / "page.html").write_text(f'<!doctype html><meta charset="utf-8">{html}', "utf8")
    page.goto((tmp_path / "page.html").as_uri())
    groups = page.get_by_role("group", name=ALT)
    assert groups.count() == 3
    chip(groups.nth(2), "head", "2").click()
    heads = [groups.nth(n).get_by_role("status").text_content()[:15] for n in range(3)]
    assert heads == ["layer 0, head 0", "layer 0, head 1", "layer 0, head 2"]
    page.evaluate(  # as when a notebook shows the same figure once more
        "() => { const old = document.querySelector('script');"
        "const again = document.createElement('script'); again.type = 'module';"
        "again.textContent = old.textContent + 'window.ran = 1'; document.body.append(again) }"
    )
    page.wait_for_function("window.ran")
    assert groups.nth(2).get_by_role("status").text_content().startswith("layer 0, head 2")


def test_without_a_script_the_still_picture_stays(browser, tmp_path):
    explorer().save(tmp_path / "page.html")
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto((tmp_path / "page.html").as_uri())
    assert tab.get_by_role("img", name=ALT).is_visible()
    context.close()


def test_a_phone_does_not_scroll_sideways(opened):
    long = ["Donaudampfschifffahrtsgesellschaft" * 2, *"b" * 19]
    page = opened(viz.AttentionExplorer(weights(1, 14, 20, 20), long, alt=ALT), width=375)
    for view in ("lines", "heat map"):
        chip(page, "view", view).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        for button in page.locator("button:visible").all():
            box = button.bounding_box()
            assert min(box["width"], box["height"]) >= 24


def test_the_theme_of_the_book_is_followed_without_redrawing(opened):
    page = opened(explorer(query=1, view="heat"))
    halo = "getComputedStyle(document.querySelector('.mha-cells text')).stroke"
    before = page.evaluate(halo)
    page.evaluate("document.documentElement.style.setProperty('--pst-color-background', '#123456')")
    assert page.evaluate(halo) == "rgb(18, 52, 86)" != before


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 375])
def test_axe_finds_nothing(opened, dark, width):
    if not AXE.exists():
        pytest.skip("needs axe-core: npm ci in the root of the repository")
    picture = viz.AttentionExplorer(
        weights(2, 2, 16, 16), alt=ALT, image=np.eye(8), patches=(4, 4), query=5
    )
    evil = explorer(query_tokens=["<b>", "x" * 60, "", "中文"], allowed=masks.causal(T, S), key=1)
    for figure in (explorer(query=1), decoder()[1], decoder(view="heat")[1], picture, evil):
        page = opened(figure, dark, width)
        page.wait_for_timeout(300)  # until the lines have come in
        page.evaluate(AXE.read_text(encoding="utf8"))
        found = page.evaluate("axe.run({rules: {'target-size': {enabled: true}}})")
        assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == []
