"""Why the square root: the script's numbers are those of `mha.reference`."""

import numpy as np
import pytest
from lessons import close, opened, said, slide, values

from mha import reference
from mha.viz import lessons


@pytest.mark.parametrize("exponent", [0, 1, 4, 7])
@pytest.mark.parametrize("query", [0, 3])
def test_both_sides_are_those_of_the_definition(page, tmp_path, exponent, query):
    lesson = lessons.SquareRoot(num_keys=5)
    found = values(opened(page, lesson, tmp_path), exponent=exponent, query=query)
    width = 2**exponent
    q = np.array(lesson.state["queries"])[None, query : query + 1, :width]  # (1, 1, D)
    k = np.array(lesson.state["keys"])[None, :, :width]  # (1, S, D)
    for side, scale in (("plain", 1.0), ("scaled", None)):
        _, weights = reference.attention(q, k, k, scale=scale, return_weights=True)
        weights = weights[0, 0]
        close(found[side]["weights"], weights)
        close(found[side]["scores"], (k @ q[0, 0])[0] * (scale or width**-0.5))
        close(found[side]["largest"], weights.max())
        close(found[side]["entropy"], -(weights * np.log2(weights)).sum())
        rows = [reference.softmax_backward(weights, one) for one in np.eye(5)]
        close(found[side]["slope"], np.linalg.norm(rows))


def test_at_width_one_both_sides_are_the_same_and_then_the_plain_one_freezes(page, tmp_path):
    figure = opened(page, lessons.SquareRoot(), tmp_path)
    slide(figure, "width D", "Home")
    now = figure.evaluate("el => el.values")
    assert now["width"] == 1 and now["plain"] == now["scaled"]
    assert "At width 1 " in said(figure)
    slide(figure, "width D", "End")
    now = figure.evaluate("el => el.values")
    assert now["plain"]["slope"] < now["scaled"]["slope"] / 4
    assert "At width 128 " in said(figure)
    figure.get_by_role("radio", name="2").click()
    assert figure.evaluate("el => el.values") != now
