"""Images in the ways that clients send them."""

import io
import json

import numpy as np
from PIL import Image

from server import MODEL, ROOT

SAMPLES = sorted(path for path in (ROOT / "samples").iterdir() if path.suffix != ".md")
MANIFEST = json.loads((ROOT / "models" / MODEL / "1" / "bundle.json").read_text())
LABELS = (ROOT / "models" / MODEL / "1" / "labels.txt").read_text().split()
CLASSES = MANIFEST["classes"]
BLOCKS = sum(len(segment["blocks"]) for segment in MANIFEST["segments"])


def small(path):
    """A sample at the model's size, so that nothing is left to resample: pixels [H, W, 3]."""
    entry = MANIFEST["input"]
    with Image.open(path) as image:
        size = (entry["width"], entry["height"])
        return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BOX))


def encoded(pixels, kind="PNG"):
    """The bytes of a file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def normalised(pixels):
    """[3, H, W] as the bundle says: in [0, 1], less the mean, over the deviation."""
    entry = MANIFEST["input"]
    mean, std = (np.array(entry[name], np.float32) for name in ("mean", "std"))
    scaled = pixels.astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(((scaled - mean) / std).transpose(2, 0, 1))


PIXELS = [small(path) for path in SAMPLES]
FILES = [encoded(pixels) for pixels in PIXELS]
TENSORS = [normalised(pixels) for pixels in PIXELS]
