"""What the attention explorer shows of one text or picture: checked, rounded and packed as JSON."""

import base64
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mha.viz.grid import as_array, as_mask
from mha.viz.svg import visible
from mha.viz.weights import round_up

LONGEST = 40  # characters of a token; what is too wide for its column is cut by the page
LARGEST = 128  # pixels of a picture's side
MASKED = -1


class View:
    """One set of weights with its tokens, as arrays for the still picture and packed for the page.

    Args:
        weights: (L, H, T, S), (H, T, S) or (T, S) numbers from 0 to 1.
        query_tokens, key_tokens: T and S tokens; None as in `AttentionExplorer`.
        allowed: bool, broadcasts to (L, H, T, S); True = may attend.
        image, patches: (h, w) or (h, w, 3) numbers, and (rows, columns) of patches in it.
    Attributes: weights (L, H, T, S); blocked (L, H, T, S) bool; query_tokens; key_tokens; own,
        whether the keys are the queries' tokens; picture, a dict or None.
    Errors: ValueError or TypeError for what does not fit, naming the argument.
    """

    def __init__(
        self, weights, query_tokens=None, key_tokens=None, *, allowed=None, image=None, patches=None
    ):
        self.weights = _weights(weights)
        T, S = self.weights.shape[2:]
        self.blocked = np.zeros(self.weights.shape, dtype=bool)
        if allowed is not None:
            self.blocked = ~as_mask(allowed, "allowed", self.weights.shape)
        _check_values(self.weights[~self.blocked])
        self.weights = np.where(self.blocked, 0.0, self.weights)
        self.picture = None if image is None else _picture(image, patches, S)
        if image is None and patches is not None:
            raise ValueError("patches must come with an image; got none")
        names = _patch_names(self.picture, S)  # None where there is no picture
        if key_tokens is None and T == S:
            key_tokens = query_tokens = names if query_tokens is None else list(query_tokens)
        elif key_tokens is None:
            key_tokens = names
            if names is None and query_tokens is not None:
                raise ValueError(f"key_tokens must be {S} tokens; got None, and {T} queries")
        self.query_tokens = _tokens(query_tokens, T, "query_tokens")
        self.key_tokens = _tokens(key_tokens, S, "key_tokens")
        self.own = self.query_tokens == self.key_tokens

    def packed(self, name: str = "") -> dict[str, Any]:
        """The view as JSON: weights in thousandths, -1 where masked; entropies in hundredths of
        a bit, -1 for a row that sees nothing; top is the end of the color scale.
        """
        thousandths = np.rint(self.weights * 1000).astype(int)
        hundredths = np.rint(entropy(self.weights) * 100)
        idle = self.weights.sum(-1) == 0
        return {
            "name": name,
            "q": self.query_tokens,
            "k": self.key_tokens,
            "own": self.own,
            "w": np.where(self.blocked, MASKED, thousandths).ravel().tolist(),
            "e": np.where(idle, MASKED, hundredths).astype(int).ravel().tolist(),
            "top": round_up(float(self.weights.max())),
            "image": self.picture,
        }


def entropy(weights: np.ndarray) -> np.ndarray:
    """The entropy of each row in bits, its weights divided by their sum: (..., S) -> (...).

    A row of zeros has 0.
    """
    total = weights.sum(-1, keepdims=True)
    p = weights / np.where(total == 0, 1.0, total)
    return -(p * np.log2(np.where(p == 0, 1.0, p))).sum(-1) + 0.0


def _weights(weights) -> np.ndarray:
    ndim = getattr(weights, "ndim", None) or np.ndim(weights)
    array = as_array(weights, "weights", ndim if ndim in (2, 3) else 4)
    return array.reshape((1,) * (4 - array.ndim) + array.shape)


def _check_values(seen: np.ndarray) -> None:
    if seen.size and not (seen.min() >= 0 and seen.max() <= 1.001):  # nan is neither
        raise ValueError(
            "weights must lie between 0 and 1 where attention is allowed; "
            f"got {seen.min():.4g} to {seen.max():.4g}"
        )


def _tokens(tokens: Sequence[object] | None, count: int, argument: str) -> list[str]:
    tokens = [visible(token, LONGEST) for token in (range(count) if tokens is None else tokens)]
    if len(tokens) != count:
        raise ValueError(f"{argument} must be {count} tokens; got {len(tokens)}")
    return tokens


def _patch_names(picture: dict[str, Any] | None, count: int) -> list[str] | None:
    if picture is None:
        return None
    lead = picture["lead"]
    special = ["class"] if lead == 1 else [f"special {n}" for n in range(lead)]
    return special + [f"patch {n}" for n in range(count - lead)]


def _picture(image, patches, keys: int) -> dict[str, Any]:
    ndim = getattr(image, "ndim", None) or np.ndim(image)
    pixels = as_array(image, "image", 3 if ndim == 3 else 2)
    if ndim == 3 and pixels.shape[2] != 3:
        raise ValueError(f"image must be (h, w) or (h, w, 3); got shape {pixels.shape}")
    height, width = pixels.shape[:2]
    if max(height, width) > LARGEST:
        raise ValueError(f"image must be at most {LARGEST} x {LARGEST}; got {height} x {width}")
    if not np.isfinite(pixels).all():
        raise ValueError("image must hold finite numbers")
    if patches is None or len(patches) != 2 or min(patches) < 1:
        raise ValueError(f"patches must be (rows, columns) of the image's patches; got {patches}")
    rows, columns = (int(n) for n in patches)
    if height % rows or width % columns:
        raise ValueError(f"patches must divide {height} x {width} pixels; got {rows} x {columns}")
    if rows * columns > keys:
        raise ValueError(f"patches must be at most the {keys} keys; got {rows} x {columns}")
    return {
        "src": png(pixels),
        "size": [height, width],
        "grid": [rows, columns],
        "lead": keys - rows * columns,
    }


def png(pixels: np.ndarray) -> str:
    """Numbers (h, w) or (h, w, 3) as a PNG in a data URI: the lowest is black, the highest white.

    It is not compressed, since compressors differ between machines and the page should not.
    Source: the PNG specification, third edition (W3C 2025), and RFC 1950 and 1951.
    """
    low, high = pixels.min(), pixels.max()
    scaled = (pixels - low) / (high - low if high > low else 1.0) * 255
    values = np.rint(scaled).astype(np.uint8)
    height, width = values.shape[:2]
    lines = values.reshape(height, -1)
    raw = np.insert(lines, 0, 0, axis=1).tobytes()  # each line begins with its filter: none
    block = struct.pack("<BHH", 1, len(raw), len(raw) ^ 0xFFFF) + raw  # below 64 KiB: the last one
    data = b"\x78\x01" + block + struct.pack(">I", zlib.adler32(raw))
    kind = 0 if values.ndim == 2 else 2  # grey, or red, green and blue
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(chunk)) + name + chunk + struct.pack(">I", zlib.crc32(name + chunk))
        for name, chunk in chunks
    )
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + body).decode()
