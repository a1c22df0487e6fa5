"""What each test of a lesson does: open it in the browser, set its state, read its numbers."""

import numpy as np


def opened(page, lesson, folder):
    """The lesson on a page of its own: the element that its script brought to life."""
    path = folder / "lesson.html"
    lesson.save(path)
    page.goto(path.as_uri())
    return page.locator(".mha-lesson")


def values(figure, **state) -> dict:
    """The numbers that the script computes, after some of its state has been set."""
    return figure.evaluate("(el, state) => { el.set(state); return el.values; }", state)


def close(actual, expected):
    """float64 on both sides: all that differs is the order of sums."""
    assert np.shape(actual) == np.shape(expected)
    np.testing.assert_allclose(np.asarray(actual, dtype=float), expected, rtol=1e-9, atol=1e-12)


def slide(figure, label: str, key: str, times: int = 1):
    """Press a key on the slider of this label."""
    for _ in range(times):
        figure.get_by_role("slider", name=label).press(key)


def said(figure) -> str:
    """The sentence below the figure."""
    return figure.get_by_role("status").inner_text()


def shown(figure, selector: str) -> list[float]:
    """The numbers in these elements, as a reader sees them."""
    return [float(text.replace("−", "-")) for text in figure.locator(selector).all_inner_texts()]
