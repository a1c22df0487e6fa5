"""Which browser the build and the tests drive: the Chromium that the machine has."""

import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome")
ADVICE = "needs a browser: apt-get install chromium, or google-chrome on the PATH"


def find() -> str | None:
    """The path of the first of NAMES that is installed, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)
