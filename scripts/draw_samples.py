"""Draw the sample images: pictures of CIFAR-10's classes, made of shapes and noise.

    python scripts/draw_samples.py FOLDER

The same versions of numpy and Pillow (scripts/samples-requirements.txt) draw the
same files. The pictures are meant to be recognised after they were shrunk to 32x32,
so each fills its frame with one object before a plain background.
"""

import math
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SCALE = 4  # everything is drawn this much larger, then shrunk


class Picture:
    """A canvas whose shapes are given in pixels of the finished image."""

    def __init__(self, width, height, seed):
        self.width, self.height = width, height
        self.random = np.random.default_rng(seed)
        self.pixels = np.zeros((height * SCALE, width * SCALE, 3), dtype=np.float32)

    # Masks: how much of each pixel a shape covers, 0 to 1.

    def _mask(self, draw, blur=0.0):
        image = Image.new("L", (self.width * SCALE, self.height * SCALE))
        draw(ImageDraw.Draw(image))
        if blur:
            image = image.filter(ImageFilter.GaussianBlur(blur * SCALE))
        return np.asarray(image, dtype=np.float32)[:, :, None] / 255

    def polygon(self, points, blur=0.0):
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        return self._mask(lambda draw: draw.polygon(scaled, fill=255), blur)

    def curve(self, points, blur=0.0):
        """A closed shape with a smooth outline through the points."""
        return self.polygon(smooth(points), blur)

    def ellipse(self, x, y, across, down=None, blur=0.0):
        down = across if down is None else down
        box = [(x - across) * SCALE, (y - down) * SCALE, (x + across) * SCALE, (y + down) * SCALE]
        return self._mask(lambda draw: draw.ellipse(box, fill=255), blur)

    def limb(self, joints, blur=0.0):
        """A chain of (x, y, thickness), as of a leg or a mast."""

        def draw(onto):
            for (x0, y0, t0), (x1, y1, t1) in zip(joints, joints[1:], strict=False):
                length = math.hypot(x1 - x0, y1 - y0) or 1
                ox, oy = -(y1 - y0) / length / 2, (x1 - x0) / length / 2
                corners = [
                    (x0 + ox * t0, y0 + oy * t0),
                    (x1 + ox * t1, y1 + oy * t1),
                    (x1 - ox * t1, y1 - oy * t1),
                    (x0 - ox * t0, y0 - oy * t0),
                ]
                onto.polygon([(x * SCALE, y * SCALE) for x, y in corners], fill=255)
            for x, y, t in joints:
                r = t / 2
                box = [(x - r) * SCALE, (y - r) * SCALE, (x + r) * SCALE, (y + r) * SCALE]
                onto.ellipse(box, fill=255)

        return self._mask(draw, blur)

    # Paint.

    def noise(self, across, down=None):
        """Smooth noise of mean 0 with `across` by `down` bumps, and finer ones in it."""
        down = across if down is None else down
        total = np.zeros(self.pixels.shape[:2], dtype=np.float32)
        for octave in range(4):
            shape = (down * 2**octave + 1, across * 2**octave + 1)
            grid = Image.fromarray(self.random.standard_normal(shape).astype(np.float32))
            size = (self.pixels.shape[1], self.pixels.shape[0])
            total += np.asarray(grid.resize(size, Image.Resampling.BICUBIC)) / 2**octave
        return (total / 1.6)[:, :, None]

    def paint(self, mask, top, bottom=None, texture=0.0, bumps=(8, 8), opacity=1.0):
        """Cover the mask with a colour that goes from `top` to `bottom` along it."""
        top = np.asarray(top, dtype=np.float32)
        bottom = top if bottom is None else np.asarray(bottom, dtype=np.float32)
        rows = np.flatnonzero(mask.max(axis=(1, 2)) > 0.5)
        first, last = (rows[0], rows[-1]) if len(rows) else (0, 1)
        along = (np.arange(mask.shape[0], dtype=np.float32) - first) / max(last - first, 1)
        along = np.clip(along, 0, 1)[:, None, None]
        colour = top * (1 - along) + bottom * along
        if texture:
            colour = colour + texture * self.noise(*bumps)
        self.pixels += mask * opacity * (colour - self.pixels)

    def band(self, first, last, top, bottom, texture=0.0, bumps=(8, 8)):
        """The background between two heights."""
        corners = [(0, first), (self.width, first), (self.width, last), (0, last)]
        self.paint(self.polygon(corners), top, bottom, texture, bumps)

    def shadow(self, x, y, across, down, opacity=0.6):
        mask = self.ellipse(x, y, across, down, blur=4)
        self.paint(mask, (20, 20, 22), opacity=opacity)

    def wheel(self, x, y, radius, rim=(165, 168, 172)):
        self.paint(self.ellipse(x, y, radius), (26, 26, 28), (14, 14, 15))
        self.paint(self.ellipse(x, y, radius * 0.58), rim, tuple(0.55 * c for c in rim))
        self.paint(self.ellipse(x, y, radius * 0.2), (50, 50, 54))

    def finish(self, blur=0.7, grain=3.0):
        shrunk = Image.fromarray(np.clip(self.pixels, 0, 255).round().astype(np.uint8)).resize(
            (self.width, self.height), Image.Resampling.BOX
        )
        soft = np.asarray(shrunk.filter(ImageFilter.GaussianBlur(blur)), dtype=np.float32)
        soft = soft + grain * self.random.standard_normal((self.height, self.width, 1))
        return Image.fromarray(np.clip(soft, 0, 255).round().astype(np.uint8))


def smooth(points, steps=12):
    """A closed Catmull-Rom curve through the points."""
    p = np.asarray(points, dtype=np.float64)
    t = (np.arange(steps) / steps)[:, None]
    out = []
    for i in range(len(p)):
        a, b, c, d = p[i - 1], p[i], p[(i + 1) % len(p)], p[(i + 2) % len(p)]
        out.append(
            0.5
            * (
                2 * b
                + (c - a) * t
                + (2 * a - 5 * b + 4 * c - d) * t**2
                + (3 * b - a - 3 * c + d) * t**3
            )
        )
    return [tuple(point) for point in np.concatenate(out)]


def turned(points, degrees, centre):
    """The points turned about a centre; positive is anticlockwise as seen."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    cx, cy = centre
    return [
        (cx + (x - cx) * cos + (y - cy) * sin, cy - (x - cx) * sin + (y - cy) * cos)
        for x, y in points
    ]


def airplane():
    """An airliner climbing to the left, before a blue sky."""
    p = Picture(288, 240, seed=1)
    p.band(0, 240, (62, 124, 200), (150, 195, 236), texture=5, bumps=(3, 3))
    cloud = np.clip(p.noise(4, 6) - 0.35, 0, 1)
    fade = np.linspace(0.0, 0.8, cloud.shape[0], dtype=np.float32)[:, None, None]
    p.paint(cloud * fade, (236, 241, 247))

    def at(points):
        return turned([(x + 14, y - 8) for x, y in points], -14, (144, 120))

    # The wing and tailplane of the far side, then the fin.
    p.paint(
        p.polygon(at([(118, 122), (176, 66), (190, 66), (160, 122)])),
        (150, 158, 170),
        (120, 128, 142),
    )
    p.paint(p.polygon(at([(214, 118), (240, 98), (250, 98), (240, 118)])), (140, 148, 160))
    p.paint(
        p.polygon(at([(200, 114), (236, 58), (256, 56), (247, 118)])), (28, 58, 130), (40, 74, 150)
    )
    body = [
        (6, 131), (14, 121), (34, 113), (70, 109), (130, 108), (190, 109), (228, 112),
        (256, 117), (258, 121), (236, 128), (200, 139), (150, 146), (90, 147), (40, 144), (14, 139),
    ]  # fmt: skip
    p.paint(p.curve(at(body)), (250, 251, 253), (142, 150, 164), texture=3)
    p.paint(
        p.curve(
            at(
                [
                    (14, 139),
                    (40, 144),
                    (90, 147),
                    (150, 146),
                    (200, 139),
                    (236, 128),
                    (190, 134),
                    (120, 139),
                    (60, 139),
                ]
            )
        ),
        (112, 120, 136),
        opacity=0.7,
    )
    p.paint(p.polygon(at([(18, 119), (30, 114), (33, 119), (20, 123)])), (24, 30, 44))
    for x in range(46, 216, 9):
        p.paint(p.ellipse(*at([(x, 121)])[0], 2.1, 2.6), (40, 52, 78))
    # The near wing with its engine, and the near tailplane.
    p.paint(
        p.curve(
            at([(88, 161), (92, 154), (120, 152), (130, 156), (128, 168), (104, 172), (90, 169)])
        ),
        (214, 219, 228),
        (96, 104, 120),
    )
    p.paint(p.ellipse(*at([(91, 163)])[0], 4, 7), (50, 55, 66))
    p.paint(
        p.polygon(at([(92, 138), (150, 136), (214, 204), (198, 207)])),
        (212, 218, 227),
        (150, 158, 172),
    )
    p.paint(
        p.polygon(at([(204, 126), (234, 123), (266, 146), (254, 148)])),
        (206, 212, 222),
        (150, 158, 172),
    )
    return p.finish(grain=0)  # which would double the size of a PNG


def automobile():
    """A red car, seen from its left side on a road."""
    p = Picture(256, 256, seed=2)
    p.band(0, 92, (176, 196, 214), (206, 214, 218), texture=4, bumps=(3, 2))
    p.band(78, 150, (84, 104, 70), (104, 116, 82), texture=16, bumps=(10, 6))
    p.band(146, 256, (150, 150, 150), (112, 112, 114), texture=6, bumps=(12, 12))
    p.shadow(128, 205, 118, 12, opacity=0.75)
    body = [
        (10, 176), (12, 158), (22, 148), (52, 141), (74, 136), (98, 108), (116, 99), (156, 98),
        (178, 104), (206, 132), (234, 138), (246, 150), (248, 178), (244, 192), (200, 198),
        (120, 199), (50, 198), (14, 192),
    ]  # fmt: skip
    p.paint(p.curve(body), (222, 46, 40), (120, 10, 14), texture=3)
    p.paint(
        p.curve(
            [
                (24, 150),
                (70, 141),
                (130, 138),
                (200, 138),
                (240, 146),
                (200, 146),
                (120, 147),
                (60, 149),
            ]
        ),
        (246, 120, 108),
        opacity=0.8,
    )
    glass = [(82, 135), (102, 112), (118, 105), (154, 104), (172, 109), (192, 132)]
    p.paint(p.polygon(glass), (70, 86, 102), (24, 30, 38))
    p.paint(p.polygon([(132, 104), (138, 104), (141, 136), (134, 136)]), (196, 34, 32))
    p.paint(
        p.polygon([(96, 122), (106, 111), (124, 107), (112, 128)]), (150, 168, 184), opacity=0.5
    )
    p.paint(p.limb([(136, 140, 1.4), (138, 190, 1.4)]), (90, 8, 10))
    p.paint(p.polygon([(14, 190), (244, 190), (240, 200), (20, 200)]), (42, 20, 22))
    p.paint(p.ellipse(20, 160, 9, 6), (250, 246, 226), (210, 206, 190))
    p.paint(p.ellipse(243, 157, 5, 8), (255, 150, 60), (190, 20, 20))
    for x in (60, 198):
        p.paint(p.ellipse(x, 190, 29), (36, 12, 14))
        p.wheel(x, 193, 24)
    return p.finish()


def ship():
    """A cargo ship under way on a blue sea."""
    p = Picture(256, 256, seed=3)
    p.band(0, 160, (128, 172, 214), (214, 226, 234), texture=5, bumps=(3, 4))
    p.band(148, 256, (72, 116, 150), (24, 60, 98), texture=9, bumps=(6, 26))
    # The superstructure aft, its funnel and the masts stand behind the deck.
    p.paint(p.limb([(60, 118, 3), (60, 46, 2)]), (90, 84, 80))
    p.paint(p.limb([(124, 130, 4), (124, 70, 3)]), (170, 130, 60))
    p.paint(p.limb([(124, 122, 3), (152, 84, 2)]), (170, 130, 60))
    p.paint(
        p.polygon([(168, 124), (170, 58), (226, 58), (230, 124)]), (244, 244, 240), (196, 200, 204)
    )
    p.paint(
        p.polygon([(160, 76), (162, 62), (234, 62), (234, 76)]), (250, 250, 248), (214, 218, 220)
    )
    p.paint(p.polygon([(198, 60), (200, 30), (222, 30), (224, 60)]), (196, 44, 36), (150, 30, 28))
    p.paint(p.polygon([(199, 34), (200, 28), (222, 28), (223, 34)]), (30, 30, 32))
    p.paint(p.polygon([(164, 66), (230, 66), (230, 72), (164, 72)]), (44, 60, 76))
    for y in (86, 100, 114):
        for x in range(176, 224, 9):
            p.paint(p.ellipse(x, y, 2.6), (60, 76, 92))
    containers = [(190, 84, 44), (48, 98, 150), (214, 170, 60), (80, 130, 90), (150, 60, 50)]
    for i, x in enumerate(range(66, 160, 19)):
        for level in range(1 + (i % 3 != 0)):
            y = 124 - 14 * level
            colour = containers[(i + 2 * level) % len(containers)]
            p.paint(
                p.polygon([(x, y - 13), (x + 18, y - 13), (x + 18, y), (x, y)]),
                colour,
                tuple(0.7 * c for c in colour),
            )
    hull = [
        (8, 112),
        (36, 122),
        (60, 125),
        (244, 123),
        (246, 150),
        (236, 182),
        (40, 182),
        (28, 164),
    ]
    p.paint(p.polygon(hull), (44, 56, 84), (18, 24, 42), texture=5)
    p.paint(
        p.polygon([(34, 170), (240, 170), (236, 184), (40, 184)]),
        (156, 40, 34),
        (110, 26, 26),
        texture=5,
    )
    p.paint(
        p.polygon([(8, 112), (36, 122), (244, 123), (244, 127), (36, 126), (10, 116)]),
        (226, 230, 232),
    )
    # Bow wave, foam along the hull, reflection.
    p.paint(
        p.curve(
            [(20, 184), (40, 178), (140, 181), (246, 180), (252, 186), (140, 188), (40, 190)],
            blur=1,
        ),
        (232, 240, 244),
        texture=14,
        bumps=(30, 30),
        opacity=0.9,
    )
    p.paint(
        p.curve([(30, 190), (140, 188), (236, 190), (220, 214), (130, 222), (50, 212)], blur=5),
        (16, 34, 60),
        opacity=0.5,
    )
    return p.finish()


def truck():
    """A lorry with a box body, seen from its left side."""
    p = Picture(320, 256, seed=4)
    p.band(0, 170, (150, 186, 220), (222, 228, 230), texture=5, bumps=(4, 3))
    p.band(140, 190, (104, 116, 92), (120, 122, 100), texture=14, bumps=(14, 4))
    p.band(186, 256, (140, 138, 136), (104, 104, 106), texture=6, bumps=(14, 10))
    p.shadow(160, 222, 150, 11, opacity=0.75)
    p.paint(p.polygon([(20, 192), (306, 192), (306, 210), (20, 210)]), (40, 40, 44))
    # The box.
    p.paint(
        p.polygon([(112, 28), (308, 28), (308, 196), (112, 196)]),
        (238, 238, 234),
        (190, 192, 194),
        texture=3,
    )
    p.paint(p.polygon([(112, 92), (308, 92), (308, 136), (112, 136)]), (30, 92, 170), (24, 74, 146))
    for x in range(126, 308, 15):
        p.paint(p.limb([(x, 30, 1), (x, 194, 1)]), (160, 164, 168), opacity=0.6)
    p.paint(p.polygon([(112, 28), (308, 28), (308, 34), (112, 34)]), (150, 154, 158))
    # The cab.
    cab = [(14, 202), (12, 152), (20, 142), (34, 92), (44, 78), (104, 76), (106, 202)]
    p.paint(p.polygon(cab), (226, 60, 44), (150, 24, 22), texture=3)
    p.paint(
        p.polygon([(40, 94), (48, 86), (92, 86), (94, 134), (30, 138)]),
        (112, 136, 156),
        (36, 46, 58),
    )
    p.paint(p.polygon([(52, 88), (60, 88), (54, 136), (46, 136)]), (196, 44, 36))
    p.paint(p.limb([(60, 140, 1.5), (62, 196, 1.5), (98, 196, 1.5), (97, 140, 1.5)]), (110, 16, 16))
    p.paint(p.polygon([(8, 188), (60, 188), (60, 206), (8, 206)]), (200, 202, 204), (110, 112, 116))
    p.paint(p.ellipse(19, 172, 7, 8), (252, 246, 220), (220, 210, 180))
    p.paint(p.limb([(108, 60, 5), (108, 190, 5)]), (90, 92, 96))
    for x in (74, 224, 274):
        p.paint(p.ellipse(x, 204, 30), (22, 22, 24))
        p.wheel(x, 210, 26)
    return p.finish()


def horse():
    """A brown horse, standing on grass, its head to the left."""
    p = Picture(256, 256, seed=5)
    p.band(0, 110, (196, 212, 222), (214, 222, 220), texture=4, bumps=(3, 3))
    p.band(56, 140, (78, 100, 66), (96, 116, 72), texture=20, bumps=(9, 7))
    p.band(126, 256, (132, 154, 82), (96, 126, 56), texture=14, bumps=(24, 30))
    p.shadow(150, 238, 92, 9, opacity=0.5)
    dark, deep = (84, 46, 24), (48, 26, 16)
    # The legs of the far side, and the tail.
    p.paint(p.limb([(112, 150, 24), (106, 190, 11), (112, 214, 8), (106, 238, 9)]), dark, deep)
    p.paint(p.limb([(204, 150, 28), (196, 186, 14), (206, 210, 8), (200, 238, 9)]), dark, deep)
    p.paint(
        p.curve(
            [(222, 96), (236, 104), (244, 140), (242, 186), (232, 196), (230, 150), (222, 116)]
        ),
        (40, 24, 16),
        (24, 14, 10),
        texture=6,
    )
    body = [
        (92, 104), (112, 90), (140, 92), (172, 94), (200, 84), (222, 94), (230, 118), (222, 146),
        (200, 160), (168, 164), (134, 166), (108, 162), (92, 142),
    ]  # fmt: skip
    neck = [
        (116, 96), (96, 66), (76, 42), (62, 38), (54, 52), (58, 66), (70, 90), (80, 116), (92, 144), (116, 140),
    ]  # fmt: skip
    p.paint(
        p.limb([(114, 150, 32), (118, 190, 13), (118, 214, 9), (118, 240, 10)]),
        (138, 80, 42),
        (58, 32, 20),
    )
    p.paint(
        p.limb([(208, 138, 44), (214, 178, 18), (222, 206, 10), (216, 240, 10)]),
        (138, 80, 42),
        (58, 32, 20),
    )
    p.paint(p.curve(neck), (166, 100, 54), (126, 72, 38), texture=5)
    p.paint(p.curve(body), (176, 108, 60), (98, 54, 28), texture=7)
    p.paint(p.ellipse(204, 112, 24, 20, blur=8), (202, 138, 84), opacity=0.5)
    p.paint(p.ellipse(112, 118, 18, 20, blur=8), (196, 130, 78), opacity=0.4)
    head = [
        (76, 38),
        (58, 34),
        (46, 48),
        (30, 74),
        (22, 88),
        (26, 98),
        (38, 98),
        (52, 84),
        (70, 72),
        (80, 56),
    ]
    p.paint(p.curve(head), (164, 98, 54), (104, 60, 36), texture=4)
    p.paint(p.curve([(24, 86), (36, 84), (42, 94), (36, 100), (25, 98)], blur=1), (58, 36, 28))
    p.paint(p.polygon([(62, 40), (62, 20), (74, 34)]), (120, 68, 38))
    p.paint(p.ellipse(52, 56, 3.4), (16, 10, 8))
    mane = [(66, 30), (78, 32), (98, 54), (116, 78), (124, 94), (110, 96), (94, 76), (78, 52)]
    p.paint(p.curve(mane), (44, 26, 18), (28, 16, 12), texture=7)
    grass = np.clip(p.noise(60, 12), 0, 1) * p.ellipse(150, 242, 110, 7, blur=2)
    p.paint(grass, (108, 138, 62))
    return p.finish()


SAMPLES = {
    "airplane.png": airplane,
    "automobile.jpg": automobile,
    "horse.jpg": horse,
    "ship.webp": ship,
    "truck.jpg": truck,
}
OPTIONS = {
    ".png": {"optimize": True},
    ".jpg": {"quality": 90},
    ".webp": {"quality": 88, "method": 6},
}


def main():
    if len(sys.argv) != 2:
        print("usage: draw_samples.py FOLDER", file=sys.stderr)
        return 2
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in SAMPLES.items():
        path = folder / name
        draw().save(path, **OPTIONS[path.suffix])
        print(f"{path} {path.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
