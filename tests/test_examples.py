"""Every public function and class shows how it is used."""

import pytest
from book.bookfiles import script

NAMES = script("sphinx/mha_book/_public").names()
CALLED = [name for name, thing in NAMES.items() if callable(thing)]


@pytest.mark.parametrize("name", CALLED)
def test_its_docstring_has_an_example(name):
    assert ">>> " in (NAMES[name].__doc__ or ""), f"{name} needs a section Examples: with >>>"


def test_the_names_are_those_that_the_package_offers():
    assert {"mha.MultiHeadAttention", "mha.KVCache", "mha.cache.Stored"} <= set(NAMES)
    assert {"mha.masks.causal", "mha.cost.naive", "mha.viz.COLORS"} <= set(NAMES)
    assert "mha.cache.KVCache" not in NAMES  # it stands under its shorter name
    assert not [name for name in NAMES if name.rpartition(".")[2].startswith("_")]
