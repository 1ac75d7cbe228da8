"""A camera: the scenes behind its people, and what it does to their colours."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from datasets.synthetic.painting import COLUMNS, ROWS, Array, noise


@dataclass(frozen=True)
class Camera:
    """How a camera stands, what is behind its people, and what it does to colours."""

    scenes: list[tuple[Image.Image, float]]  # and the row where the floor begins, a fraction of its height
    pitch: float  # it looks down by so much, radians
    heading: float  # people walk along this direction, one way or the other
    light: float  # from the side: -1 left to 1 right
    gain: Array  # (3,) brightness and colour cast
    gradient: tuple[float, float]  # change of light over half the width and height
    saturation: float
    gamma: float
    contrast: float
    haze: float  # share of white veil
    sharpness: float  # share of the resolution that is left
    blur: float  # pixels
    noise: float  # of 255
    jpeg: int  # quality inside the camera
    occlusion: float  # share of its pictures with something before the person
    obstacle: Array  # texture of what stands in the way


def _scene(rng: np.random.Generator) -> tuple[Image.Image, float]:
    """A wall and a floor with their textures, 640 x 384, and the height of the line between them."""
    rows, columns = 384, 640
    floor = rng.uniform(0.42, 0.6)
    line = int(rows * floor)
    wall = rng.choice([(150, 140, 128), (120, 76, 62), (176, 172, 160), (96, 104, 112), (70, 92, 62)])
    ground = rng.choice([(112, 110, 108), (142, 134, 122), (84, 86, 90), (88, 108, 66), (160, 156, 150)])
    wall, ground = wall * rng.uniform(0.7, 1.25), ground * rng.uniform(0.75, 1.2)
    picture = Image.new("RGB", (columns, rows))
    pen = ImageDraw.Draw(picture)

    def colour(base: Array, factor: float = 1.0) -> tuple[int, int, int]:
        r, g, b = (np.clip(base * factor, 0, 255)).astype(int).tolist()
        return r, g, b

    pen.rectangle((0, 0, columns, line), colour(wall))
    pen.rectangle((0, line, columns, rows), colour(ground))
    kind = rng.choice(["bricks", "windows", "shutters", "plants", "panels"])
    if kind == "bricks":
        high = int(rng.integers(10, 22))
        for k in range(line // high + 1):
            y = k * high
            pen.line((0, y, columns, y), colour(wall, 0.75), 2)
            for x in range(k % 2 * high, columns, 2 * high):
                pen.line((x, y, x, y + high), colour(wall, 0.75), 2)
    elif kind == "windows":
        step = int(rng.integers(90, 170))
        for x in range(int(rng.integers(0, step)), columns, step):
            pane = wall * 0.35 + rng.uniform(0, 120)
            pen.rectangle((x, line // 5, x + step // 2, line - line // 8), colour(pane), colour(wall, 1.3), 4)
            pen.line((x + step // 4, line // 5, x + step // 4, line - line // 8), colour(wall, 1.25), 4)
    elif kind == "shutters":
        for high in range(0, line, int(rng.integers(8, 16))):
            pen.line((0, high, columns, high), colour(wall, 0.7), 3)
    elif kind == "panels":
        edges = np.cumsum(rng.integers(40, 200, columns // 40)).tolist()
        for left, right in zip([0, *edges], edges, strict=False):
            pen.rectangle((left, 0, right, line - 8), colour(wall, rng.uniform(0.5, 1.4)))
    if rng.random() < 0.6:  # paving, narrower with distance
        middle, n = rng.uniform(0, columns), int(rng.integers(5, 12))
        for k in range(-3 * n, 3 * n):
            pen.line((middle + k * 40, line, middle + k * 160, rows), colour(ground, 0.82), 2)
        depth = rng.uniform(4, 9)
        for k in range(20):
            joint = line + depth * (1.35**k - 1) / 0.35
            pen.line((0, joint, columns, joint), colour(ground, 0.82), 2)
    elif rng.random() < 0.4:  # a crossing
        for x in range(0, columns, 90):
            pen.polygon([(x, line + 50), (x + 45, line + 50), (x + 25, rows), (x - 40, rows)], colour(ground, 1.6))
    for _ in range(int(rng.integers(1, 5))):  # cars, bins, doors
        start, wide, tall = rng.uniform(0, columns), rng.uniform(40, 170), rng.uniform(40, 120)
        thing = rng.uniform(20, 210, 3) * 0.5 + rng.uniform(10, 110)
        pen.rounded_rectangle((start, line - tall * 0.7, start + wide, line + tall * 0.3), 12, colour(thing))
        pen.rectangle((start + 10, line - tall * 0.6, start + wide - 10, line - tall * 0.3), colour(thing, 0.5))
    scene = np.asarray(picture.filter(ImageFilter.GaussianBlur(1.2)), np.float32) / 255
    rough = sum(share * noise(rng, rows, columns, cells) for share, cells in ((0.05, 220), (0.05, 60), (0.07, 6)))
    leaves = 0.3 * np.abs(noise(rng, rows, columns, 90)) - 0.2 if kind == "plants" else 0.0
    above = (np.arange(rows)[:, None] < line).astype(np.float32)
    scene = np.clip(scene * (1 + rough + above * leaves)[..., None], 0, 1)
    return Image.fromarray((scene * 255).astype(np.uint8)), floor


def draw_camera(rng: np.random.Generator, hue: float, brightness: float) -> Camera:
    """A camera whose colour cast has this hue and whose pictures are this bright, both in [0, 1)."""
    cast = np.exp(rng.uniform(0.12, 0.22) * np.cos(2 * np.pi * (hue - np.array([0, 1, 2]) / 3)))
    scenes = [_scene(rng) for _ in range(3)]
    grey = rng.uniform(0.15, 0.7) * rng.uniform(0.8, 1.2, 3)
    obstacle = np.clip(grey * (1 + 0.15 * noise(rng, ROWS, COLUMNS, 30))[..., None], 0, 1)
    return Camera(
        scenes=scenes,
        pitch=rng.uniform(0.05, 0.42),
        heading=rng.uniform(0, np.pi),
        light=rng.uniform(-0.22, 0.22),
        gain=((0.65 + 0.65 * brightness) * cast).astype(np.float32),
        gradient=(rng.uniform(-0.2, 0.2), rng.uniform(-0.15, 0.15)),
        saturation=rng.uniform(0.7, 1.3),
        gamma=rng.uniform(0.8, 1.25),
        contrast=rng.uniform(0.8, 1.2),
        haze=rng.uniform(0, 0.12),
        sharpness=rng.uniform(0.55, 1.0),
        blur=rng.uniform(0, 0.8),
        noise=rng.uniform(1, 6),
        jpeg=int(rng.integers(45, 90)),
        occlusion=rng.uniform(0.02, 0.15),
        obstacle=obstacle.astype(np.float32),
    )


def background(rng: np.random.Generator, camera: Camera, rows: int, columns: int) -> Array:
    """A part of one of the camera's scenes, so that the floor begins somewhere in the picture's middle."""
    scene, floor = camera.scenes[int(rng.integers(len(camera.scenes)))]
    high = scene.height * rng.uniform(0.55, 0.85)
    wide = high * columns / rows
    top = float(np.clip(floor * scene.height - rng.uniform(0.3, 0.75) * high, 0, scene.height - high))
    left = rng.uniform(0, scene.width - wide)
    part = scene.resize((columns, rows), Image.Resampling.NEAREST, (left, top, left + wide, top + high))
    if rng.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(part, np.float32) / 255


def develop(rng: np.random.Generator, camera: Camera, canvas: Array, grain: Array) -> Image.Image:
    """What the camera makes of the light: (2h, 2w, 3) in [0, 1] -> an RGB picture (h, w).

    grain: unit noise (rows, columns, 3), larger than the picture.
    """
    image = canvas[0::2] + canvas[1::2]
    image = np.ascontiguousarray((image[:, 0::2] + image[:, 1::2]).transpose(2, 0, 1)) * 0.25  # (3, rows, columns)
    rows, columns = image.shape[1:]
    across = camera.gradient[0] * np.linspace(-1, 1, columns, dtype=np.float32)
    down = camera.gradient[1] * np.linspace(-1, 1, rows, dtype=np.float32)[:, None]
    drift = np.exp(rng.normal(0, 0.07) + rng.normal(0, 0.02, 3)).astype(np.float32)  # of exposure and white balance
    image *= 1 + across + down
    image *= (camera.gain * drift)[:, None, None]
    grey = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
    image = grey + camera.saturation * (image - grey)
    image = np.clip(image, 0, 1) ** np.float32(camera.gamma)
    image = 0.45 + camera.contrast * (image - 0.45)
    image = image * (1 - camera.haze) + camera.haze * 0.85
    picture = Image.fromarray((np.clip(image, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0))
    sharpness = camera.sharpness * rng.uniform(0.8, 1.1)
    if sharpness < 0.95:
        small = (max(8, int(columns * sharpness)), max(16, int(rows * sharpness)))
        picture = picture.resize(small, Image.Resampling.BOX).resize((columns, rows), Image.Resampling.BILINEAR)
    if rng.random() < 0.1:  # moved while the shutter was open
        picture = picture.filter(ImageFilter.BoxBlur((rng.uniform(0.8, 2), 0)))
    elif camera.blur > 0.3:
        picture = picture.filter(ImageFilter.BoxBlur(camera.blur))
    y, x = rng.integers(0, grain.shape[0] - rows), rng.integers(0, grain.shape[1] - columns)
    noisy = np.asarray(picture) + np.float32(camera.noise) * grain[y : y + rows, x : x + columns]
    encoded = io.BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(encoded, "JPEG", quality=camera.jpeg)
    return Image.open(encoded, formats=["JPEG"]).convert("RGB")
