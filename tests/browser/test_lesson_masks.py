"""Masks: weights and dead rows of `mha.reference`, and each library's form of `mha.masks`."""

import numpy as np
import pytest
import torch
from built import findings
from lessons import close, opened, said, values

import mha
from mha import masks, reference
from mha.viz import lessons
from mha.viz.lessons.masks import FATES, LEAST, LIBRARIES, STARTS

RANDOM = torch.rand(4, 5, generator=torch.Generator().manual_seed(3)) < 0.5
TWO_DEAD = torch.tensor([[1, 0, 0, 1, 0], [0] * 5, [0, 1, 1, 1, 1], [0] * 5]).bool()
ALL = [
    *(mask for _, mask in STARTS.values()),
    *(RANDOM, TWO_DEAD, torch.zeros(4, 5).bool(), torch.arange(5).expand(4, 5) == 4),
]
LESSON = lessons.Masks()
SCORES, VALUES = (np.array(LESSON.state[name]) for name in ("scores", "values"))


def plain(added: torch.Tensor) -> torch.Tensor:
    """The softmax of PyTorch, as it is: scores plus what the mask adds."""
    return (torch.tensor(SCORES) + added).softmax(-1)


def test_weights_and_dead_rows_are_those_of_the_definition(page, tmp_path):
    figure = opened(page, LESSON, tmp_path)
    for mask in map(torch.Tensor.numpy, ALL):
        found = values(figure, mask=mask.tolist())
        expected, weights = reference.attention(
            SCORES, np.eye(5), VALUES, mask, scale=1.0, return_weights=True
        )
        close(found["weights"], weights)
        close(found["outputs"][0], expected)
        close(found["sums"], mask.any(-1).astype(float))
        assert found["dead"] == np.flatnonzero(~mask.any(-1)).tolist()


def test_other_fates_of_a_dead_row_are_those_of_torch(page, tmp_path):
    figure = opened(page, LESSON, tmp_path)
    for mask in ALL:
        found = values(figure, mask=mask.tolist())
        _, naive, even = map(np.array, found["ways"])
        close(naive, plain(masks.to_additive(mask, torch.float64)))
        close(even, plain(masks.to_additive(mask, torch.float64, fill=LEAST)))
        for weights, output in zip(found["ways"], found["outputs"], strict=True):
            close(output, np.array(weights) @ VALUES)
        dead = ~mask.any(-1).numpy()
        assert np.isnan(naive[dead]).all() and not np.isnan(naive[~dead]).any()
        close(even[dead], np.full((dead.sum(), 5), 0.2))


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_mask_is_as_each_library_wants_it(page, tmp_path, library):
    code, convert, _, _ = LIBRARIES[library]
    figure = opened(page, lessons.Masks(library=library), tmp_path)
    for mask in ALL:
        expected = convert(mask)
        given = values(figure, mask=mask.tolist())["given"]
        assert (np.asarray(given).dtype == bool) == (expected.dtype == torch.bool)
        close(given, expected.double().numpy())
        shown = figure.locator(".mha-call").all_inner_texts()
        assert shown[1] == f"given = {code}"
        typed = {"mha": mha, "torch": torch}
        exec("\n".join(shown), typed)  # what a reader copies: the mask, then the library's form
        assert torch.equal(typed["mask"], mask)
        assert typed["given"].dtype == expected.dtype and torch.equal(typed["given"], expected)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_dead_row_is_legible(page, tmp_path, scheme):
    page.emulate_media(color_scheme=scheme)
    figure = opened(page, lessons.Masks("dead row"), tmp_path)
    assert figure.locator(".mha-minus").inner_text() == "0.000"
    assert findings(page) == []


def fates_in_libraries() -> dict[str, np.ndarray]:
    """Weights of query 0, which sees nothing, by the real code of each library."""
    mask = STARTS["dead row"][1]
    torch.manual_seed(0)
    query, key = torch.randn(1, 4, 8), torch.randn(1, 5, 8)  # (B, T, E), (B, S, E)
    layer = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    blocked = masks.to_torch(attn_mask=mask)
    seen = torch.eye(5)[None]  # with the identity for values, the output is the weights
    attend = torch.nn.functional.scaled_dot_product_attention
    least = masks.to_transformers(attn_mask=mask)[:, 0]  # (B, T, S)
    return {
        "torch": layer(query, key, key, **blocked)[1][0, 0].detach().numpy(),
        "sdpa": attend(query, key, seen, attn_mask=mask)[0, 0].numpy(),
        "mha": mha.scaled_dot_product_attention(query, key, seen, mask)[0, 0].numpy(),
        "plain": (query @ key.mT + masks.to_additive(mask)).softmax(-1)[0, 0].numpy(),
        "least": attend(query, key, seen, attn_mask=least)[0, 0].numpy(),
        "eager": (query @ key.mT + least).softmax(-1)[0, 0].numpy(),
    }


def test_the_libraries_do_with_a_dead_row_what_the_figure_says():
    found = fates_in_libraries()
    for name in ("mha", "sdpa"):
        assert (found[name] == 0).all()
    for name in ("torch", "plain"):
        assert np.isnan(found[name]).all()
    for name in ("least", "eager"):
        np.testing.assert_allclose(found[name], 0.2, rtol=1e-6)
    fates = {name: [FATES[n] for n in fates] for name, (*_, fates) in LIBRARIES.items()}
    assert all(name in "; ".join(FATES) for name in fates)
    for name, told in fates.items():
        assert all(name in fate for fate in told)


def test_an_untranslated_mask_shows_torch_the_opposite():
    mask = STARTS["window"][1]
    layer = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    _, weights = layer(torch.randn(1, 4, 8), *[torch.randn(1, 5, 8)] * 2, attn_mask=mask)
    assert torch.equal(weights[0] > 0, ~mask)


def test_keras_gives_a_dead_row_zeros_with_scores_and_the_mean_without(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    mask = masks.to_keras(attn_mask=STARTS["dead row"][1])
    query, key = torch.randn(1, 4, 8), torch.randn(1, 5, 8)
    layer = keras.layers.MultiHeadAttention(2, 4, use_bias=False)
    output, weights = layer(query, key, attention_mask=mask, return_attention_scores=True)
    assert (output[0, 0] == 0).all() and (weights[0, :, 0] == 0).all()
    bare = layer(query, key, attention_mask=mask)
    mean = layer(0 * query, key)  # scores of 0: the mean of the values
    torch.testing.assert_close(bare[0, 0], mean[0, 0])
    torch.testing.assert_close(bare[0, 1:], output[0, 1:])


def cell(figure, query: int, key: int):
    return figure.get_by_role("button", name=f"query {query} may attend to key {key}")


def pressed(figure) -> list[bool]:
    """Which cells are open, as an assistive technology is told."""
    buttons = figure.locator(".mha-toggles button").all()
    return [button.get_attribute("aria-pressed") == "true" for button in buttons]


def test_a_reader_closes_a_row_by_keyboard_in_two_dimensions(page, tmp_path):
    figure = opened(page, lessons.Masks("causal"), tmp_path)
    assert figure.locator(".mha-toggles [tabindex='0']").count() == 1
    cell(figure, 0, 0).focus()
    for key, query, to in [
        *(("ArrowDown", 1, 0), ("ArrowRight", 1, 1), ("ArrowUp", 0, 1), ("End", 0, 4)),
        *(("ArrowRight", 0, 4), ("ArrowUp", 0, 4), ("Home", 0, 0), ("ArrowLeft", 0, 0)),
    ]:
        page.keyboard.press(key)
        place = page.evaluate("document.activeElement.getAttribute('aria-label')")
        assert place.startswith(f"query {query} may attend to key {to},")
    assert pressed(figure) == masks.causal(4, 5).flatten().tolist()  # to move opens nothing
    page.keyboard.press("Space")
    assert figure.locator(".mha-toggles [tabindex='0']").count() == 1
    assert "9 of 20 pairs may attend. In mha query 0 sees nothing" in said(figure)
    fate = figure.locator(".mha-fates")
    assert "query 0 sees nothing" in fate.locator("caption").inner_text()
    uniform = ", ".join(f"{x:.2f}".replace("-", "−") for x in VALUES.mean(0))
    assert [row.locator("td").all_inner_texts() for row in fate.locator("tr").all()[1:]] == [
        ["5 × 0.000", "0.00, 0.00"],
        ["5 × NaN", "NaN, NaN"],
        ["5 × 0.200", uniform],
    ]
    page.keyboard.press("Enter")
    assert "Each query sees at least one key" in said(figure)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "mha, SDPA"


def test_a_reader_clicks_a_cell_and_reads_the_weights(page, tmp_path):
    figure = opened(page, lessons.Masks("all", library="nn.MultiheadAttention"), tmp_path)
    cell(figure, 2, 3).click()
    mask = torch.ones(4, 5).bool()
    mask[2, 3] = False
    assert pressed(figure) == mask.flatten().tolist() and cell(figure, 2, 3).inner_text() == "−∞"
    assert figure.get_by_role("radiogroup").first.locator("[aria-checked=true]").count() == 0
    weights = reference.softmax(np.where(mask, SCORES, -np.inf))[2]
    tables = figure.get_by_role("table").all()
    row = tables[0].locator("tr").nth(3).locator("td").all_inner_texts()
    assert row == [f"{w:.3f}" for w in [*weights, 1.0]]
    written = tables[1].locator("tr").nth(3).locator("td").all_inner_texts()
    assert written == [str(not may) for may in mask[2].tolist()]
    assert figure.locator(".mha-shut").count() == 2
    figure.get_by_role("radio", name="dead row").click()
    assert pressed(figure) == STARTS["dead row"][1].flatten().tolist()


def test_a_wrong_name_is_an_error():
    with pytest.raises(ValueError, match="start must be one of 'all'.*got 'row'"):
        lessons.Masks("row")
    with pytest.raises(ValueError, match="library must be one of 'mha, SDPA'.*got 'jax'"):
        lessons.Masks(library="jax")
