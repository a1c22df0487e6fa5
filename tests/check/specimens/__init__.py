"""Attention as learners write it, faulty and right: what the checker is tried on.

``SPECIMENS`` have the mistakes named by their slugs, ``CORRECT`` have none.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Specimen:
    """A subject with exactly the mistakes ``slugs``; ``options`` are further arguments of the check."""

    slugs: tuple[str, ...]
    subject: Any
    check: str = "multi_head_attention"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Correct:
    """A subject without mistakes; ``notes`` are the slugs that may be reported as notes."""

    subject: Any
    check: str = "multi_head_attention"
    options: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


SPECIMENS: list[Specimen] = []
CORRECT: list[Correct] = []


def specimen(*slugs: str, check: str = "multi_head_attention", **options):
    """Enter a class, function or instance with these mistakes."""

    def enter(subject):
        SPECIMENS.append(Specimen(slugs, subject, check, options))
        return subject

    return enter


def correct(check: str = "multi_head_attention", notes: tuple[str, ...] = (), **options):
    """Enter a class, function or instance without mistakes."""

    def enter(subject):
        CORRECT.append(Correct(subject, check, options, tuple(notes)))
        return subject

    return enter


right = correct
"""The same decorator: ``specimens.correct`` becomes the file of that name once it is imported."""


def load() -> None:
    """Import every file of specimens there is, so that the lists are full."""
    import importlib
    import pkgutil

    for info in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{info.name}")
