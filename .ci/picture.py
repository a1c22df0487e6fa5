"""Draw the picture in README.md, in light and in dark; `make picture` runs this.

    python .ci/picture.py

The trained translator reads an English sentence, and the attention explorer shows which of its
words each Spanish word looked at. A browser opens that page and takes the picture.
"""

import sys
import tempfile
from io import BytesIO
from pathlib import Path

import browser
import torch
from PIL import Image
from playwright.sync_api import sync_playwright

from mha import data, models, viz

ROOT = Path(__file__).resolve().parent.parent
FILES = {"light": ROOT / ".github/explorer.png", "dark": ROOT / ".github/explorer-dark.png"}
SENTENCE = "I bought a red car."
ALT = "Spanish words joined by lines to the English words that the translator read for each."
WIDTH, MARGIN, SCALE = 760, 16, 2  # CSS pixels, and the pixels of the picture for each


def explorer() -> viz.AttentionExplorer:
    """The cross-attention of the trained translator, for one sentence and its translation."""
    translator = models.Translator.from_checkpoint("en-es")
    subwords = translator.subwords
    said = translator.translate(SENTENCE)
    pair = data.SentencePair(SENTENCE, said, "")
    batch = data.translation_batch([pair], subwords, subwords)
    says = [*subwords.pieces(said), "<eos>"]
    with torch.no_grad():
        _, found = translator(batch.source_ids, batch.target_in, return_weights=True)
    return viz.AttentionExplorer(
        torch.stack(found.cross)[:, 0],  # (L, H, T, S)
        says,
        subwords.pieces(SENTENCE),
        alt=ALT,
        rows="says",
        columns="reads",
        languages=("es", "en"),
        layer=1,
        head=4,
        query=says.index("▁coche"),
    )


def photograph(page: Path, scheme: str) -> bytes:
    """The explorer on a page, as PNG, in the color scheme "light" or "dark"."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser.find(), args=["--no-sandbox"])
        tab = chromium.new_page(
            viewport={"width": WIDTH, "height": 900},
            device_scale_factor=SCALE,
            color_scheme=scheme,
            reduced_motion="reduce",
        )
        tab.goto(page.as_uri())
        tab.add_style_tag(content=f"h1 {{ display: none }} main {{ padding: {MARGIN}px }}")
        taken = tab.locator("main").screenshot()
        chromium.close()
    return taken


def main() -> int:
    if browser.find() is None:
        print(f"make picture {browser.ADVICE}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "explorer.html"
        explorer().save(page)
        for scheme, path in FILES.items():
            picture = Image.open(BytesIO(photograph(page, scheme))).convert("RGB")
            picture.save(path, optimize=True)
            print(f"{path.relative_to(ROOT)}  {path.stat().st_size / 1000:.0f} KB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
