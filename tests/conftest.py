"""Set what must be set before triton can be imported; one thread; a fresh compiler each test."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fresh():
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


@pytest.fixture
def shown(monkeypatch):
    """A function of a figure and whether someone watches: all that a notebook would display."""

    def show(figure, seen: bool) -> list:
        displayed = []
        monkeypatch.setattr("mha.viz.controls.watched", lambda: seen)
        monkeypatch.setattr("IPython.display.display", lambda given, **_: displayed.append(given))
        figure._ipython_display_()
        return displayed

    return show


def pytest_collection_modifyitems(items):
    """Tests marked ``gpu`` need CUDA; elsewhere they are skipped, and say why."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
