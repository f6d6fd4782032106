"""Draw JPEG files of the size and weight of photographs, for timing: shapes and noise without meaning.

    python scripts/draw_photos.py FOLDER [COUNT]

The files are 500 by 375 pixels, ImageNet's usual size, and around its 110 kB. The
same versions of numpy and Pillow (scripts/samples-requirements.txt) draw the same
files.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

WIDTH, HEIGHT = 500, 375


def noise(random, octaves):
    """Coloured noise whose strength is about 1/f, like that of natural images."""
    total = np.zeros((HEIGHT, WIDTH, 3), dtype=np.float32)
    for octave in range(octaves):
        across, down = 4 * 2**octave, 3 * 2**octave
        for channel in range(3):
            grid = Image.fromarray(random.standard_normal((down, across)).astype(np.float32))
            grown = grid.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
            total[:, :, channel] += np.asarray(grown) / 1.5**octave
    return total


def photo(seed):
    random = np.random.default_rng(seed)
    image = Image.new("RGB", (WIDTH, HEIGHT), tuple(random.integers(40, 200, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = random.integers(0, WIDTH), random.integers(0, HEIGHT)
        across, down = random.integers(20, 160, 2)
        colour = tuple(random.integers(0, 256, 3).tolist())
        draw.ellipse([x - across, y - down, x + across, y + down], fill=colour)
    soft = np.asarray(image.filter(ImageFilter.GaussianBlur(1.5)), dtype=np.float32)
    grain = 9 * random.standard_normal((HEIGHT, WIDTH, 1))
    pixels = soft + 22 * noise(random, octaves=7) + grain
    return Image.fromarray(np.clip(pixels, 0, 255).round().astype(np.uint8))


def main():
    folder = Path(sys.argv[1])
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 16
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        photo(seed).save(folder / f"{seed:03}.jpg", quality=92)


if __name__ == "__main__":
    main()
