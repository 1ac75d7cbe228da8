"""Synthetic people: a person re-identification data set drawn by this program, in Market-1501's layout and names.

    python -m datasets.synthetic --data-root data --sheet people.png         the default set, and a picture of it
    python -m datasets.synthetic --data-root more --ids 2000 --seed 1        a larger one, in more/synthetic

A person is a fixed set of measures (body, clothes, hair, bag). Each picture of them is a small 3-D skeleton in a
walking pose, drawn as shaded, textured limbs from the camera's side, in a badly cut box, before a scene of that
camera, and then seen through it: light, colour cast, contrast, blur, noise, JPEG. Most people wear black, grey, white
or blue, so many differ only by pattern, shape, hair or bag; cameras differ so much that raw colours do not match.

Everything follows from the seed. A person's looks depend on the seed and the pid alone and their pictures on the
cameras too, not on how many others are drawn. Odd pids are for training and even ones for testing, so the training
people of a large set are never the test people of a smaller one of the same seed.
"""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets import parse
from datasets.synthetic.cameras import draw_camera
from datasets.synthetic.painting import noise
from datasets.synthetic.people import draw_person
from datasets.synthetic.pictures import SCALE, World, draw_turn, picture
from reid.core.files import atomic_folder, write_json
from reid.core.images import open_image
from reid.core.types import DISTRACTOR, JUNK, ReidError, Sample, Splits

VERSION = 1  # of the drawing: whatever changes a pixel raises it
MANIFEST = "synthetic.json"
TRAIN_IDS = 240
_ANEW = "and the set is drawn anew"  # how errors end
MAX_PID = 9999  # a file name has four digits for it
QUALITY = 90  # of the JPEG files

LAYOUT = parse.Layout(
    name="synthetic",
    folders=("synthetic",),
    pattern=re.compile(r"(?P<pid>-1|\d{4})_c(?P<camid>\d)s\d_\d{6}_\d\d"),
    grammar="0002_c1s1_000451_01.jpg",
    pids=(JUNK, MAX_PID),
    cameras=9,
    obtain="delete the folder, and the set is drawn anew",
)
TRAIN, QUERY, GALLERY = (parse.FOLDERS[split] for split in ("train", "query", "gallery"))

# What a random stream is for: default_rng([seed, one of these, index]).
_PERSON, _PICTURES, _CAMERA, _PASSER_BY, _STRANGER, _BAD_BOX, _NOISE = range(7)
_APART = np.array([0.618034, 0.754878])  # steps of hue and brightness from camera to camera, that never come close


def find(root: Path) -> Path:
    """The set's own folder, there or not: `root` where it holds a manifest, else `root`/synthetic."""
    return root if (root / MANIFEST).is_file() else root / "synthetic"


def read(root: Path) -> Splits:
    """The set in `root` or in `root`/synthetic; where there is none, the default one is drawn to the latter first.

    ReidError where what is there was drawn by another version of this program, or is not whole.
    """
    folder = find(root)
    if not folder.exists():
        draw(folder)
    for name, expected in read_manifest(folder)["files"].items():
        found = _count(folder / name)
        if found != expected:
            raise ReidError(f"expected {expected} images in {folder / name}, found {found}: delete {folder}, {_ANEW}")
    return parse.read_found(LAYOUT, folder)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What the set was drawn with: "generator", "files" (folder -> number of images) and the arguments of `draw`."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version = manifest["generator"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ReidError(
            f"expected synthetic people in {folder}, found no {MANIFEST} of theirs: delete it, {_ANEW}"
        ) from None
    if version != VERSION:
        raise ReidError(
            f"expected synthetic people of generator version {VERSION} in {folder}, found version {version}: "
            f"delete it, {_ANEW}"
        )
    return manifest


def draw(
    folder: Path,
    *,
    seed: int = 0,
    train_ids: int = TRAIN_IDS,
    test_ids: int = 160,
    cameras: int = 6,
    cameras_per_person: tuple[int, int] = (3, 6),
    images_per_camera: tuple[int, int] = (2, 3),
    distractors: int = 300,
    junk: int = 100,
    size: tuple[int, int] = (128, 64),
) -> None:
    """Draws a whole set into a new folder, which appears when it is complete.

    Both ranges are inclusive; `size` is (height, width) in pixels. A set of more people with the other arguments
    equal holds the same people with the same pictures, and more.
    ReidError for numbers that make no data set, or where `folder` exists.
    """
    parameters = {key: value for key, value in locals().items() if key != "folder"}
    _check(parameters)
    if folder.exists():
        raise ReidError(f"expected a new folder, {folder} exists already: delete it or name another")
    random = np.random.default_rng([seed, _NOISE])
    looks = (np.random.default_rng([seed, _CAMERA]).random(2) + np.arange(1, cameras + 1)[:, None] * _APART) % 1
    side = 2 * SCALE * max(size)
    world = World(
        seed=seed,
        size=size,
        cameras=[
            draw_camera(np.random.default_rng([seed, _CAMERA, k]), hue, brightness)
            for k, (hue, brightness) in enumerate(looks.tolist(), start=1)
        ],
        passers_by=[draw_person(np.random.default_rng([seed, _PASSER_BY, k])) for k in range(48)],
        folds=0.06 * noise(random, side, side, side // 10) + 0.05 * noise(random, side, side, side // 28),
        grain=random.standard_normal((3 * size[0], 3 * size[1], 3), dtype=np.float32),
    )
    pids = [*range(1, 2 * train_ids, 2), *range(2, 2 * test_ids + 1, 2)]
    with atomic_folder(folder) as fresh:
        for name in (TRAIN, QUERY, GALLERY):
            (fresh / name).mkdir()
        jobs = (
            [partial(_draw_identity, fresh, world, pid, cameras_per_person, images_per_camera) for pid in pids]
            + [partial(_draw_stranger, fresh, world, k) for k in range(distractors)]
            + [partial(_draw_junk, fresh, world, k, 2 + 2 * (k % test_ids)) for k in range(junk)]
        )
        # one after the other: on threads it takes as long, since the interpreter's lock is held most of the time
        for job in tqdm(jobs, desc="drawing people", unit="person"):
            job()
        files = {name: _count(fresh / name) for name in (TRAIN, QUERY, GALLERY)}
        write_json(fresh / MANIFEST, {"generator": VERSION, **parameters, "files": files})


def _check(p: dict[str, Any]) -> None:
    """ReidError for arguments of `draw` that make no data set."""
    cameras, a_person, a_camera = p["cameras"], p["cameras_per_person"], p["images_per_camera"]
    if min(p["train_ids"], p["test_ids"]) < 2 or 2 * max(p["train_ids"], p["test_ids"]) > MAX_PID:
        raise ReidError(
            f"expected 2 to {MAX_PID // 2} training people and as many test people, "
            f"got {p['train_ids']} and {p['test_ids']}"
        )
    if not (2 <= a_person[0] <= a_person[1] <= cameras <= LAYOUT.cameras and 2 <= a_camera[0] <= a_camera[1]):
        raise ReidError(
            f"expected 2 to {LAYOUT.cameras} cameras, 2 to all of them a person and at least 2 images in each, "
            f"got {cameras} cameras, {a_person} a person, {a_camera} images"
        )
    if min(p["seed"], p["distractors"], p["junk"]) < 0 or min(p["size"]) < 32:
        raise ReidError(
            f"expected seed, distractors and junk of at least 0 and a size of at least 32 pixels, got "
            f"{p['seed']}, {p['distractors']}, {p['junk']} and {p['size']}"
        )


def _draw_identity(
    folder: Path, world: World, pid: int, cameras_per_person: tuple[int, int], images_per_camera: tuple[int, int]
) -> None:
    """All pictures of one person: odd pids go to the training folder; of even ones, 2 or 3 cameras give a query."""
    person = draw_person(np.random.default_rng([world.seed, _PERSON, pid]))
    rng = np.random.default_rng([world.seed, _PICTURES, pid])
    seen_by = rng.permutation(len(world.cameras))[: rng.integers(cameras_per_person[0], cameras_per_person[1] + 1)] + 1
    asking = seen_by[: rng.integers(2, 4)].tolist() if pid % 2 == 0 else []
    for camid in sorted(seen_by.tolist()):
        turn = draw_turn(rng, world.cameras[camid - 1])
        frame = int(rng.integers(0, 990_000))
        for k in range(int(rng.integers(images_per_camera[0], images_per_camera[1] + 1))):
            image = picture(rng, world, camid, person, turn + rng.normal(0, 0.25))
            name = TRAIN if pid % 2 else QUERY if k == 0 and camid in asking else GALLERY
            _save(image, folder / name, pid, camid, frame + 25 * k)


def _draw_stranger(folder: Path, world: World, index: int) -> None:
    """A distractor: somebody who is in no query, or a box around nobody."""
    rng = np.random.default_rng([world.seed, _STRANGER, index])
    camid = int(rng.integers(len(world.cameras))) + 1
    person = draw_person(rng) if rng.random() < 0.85 else None
    image = picture(rng, world, camid, person, draw_turn(rng, world.cameras[camid - 1]))
    _save(image, folder / GALLERY, DISTRACTOR, camid, index)


def _draw_junk(folder: Path, world: World, index: int, pid: int) -> None:
    """A bad box of a test person."""
    person = draw_person(np.random.default_rng([world.seed, _PERSON, pid]))
    rng = np.random.default_rng([world.seed, _BAD_BOX, index])
    camid = int(rng.integers(len(world.cameras))) + 1
    image = picture(rng, world, camid, person, draw_turn(rng, world.cameras[camid - 1]), bad=True)
    _save(image, folder / GALLERY, JUNK, camid, index)


def _save(image: Image.Image, folder: Path, pid: int, camid: int, frame: int) -> None:
    who = "-1" if pid == JUNK else f"{pid:04d}"
    image.save(folder / f"{who}_c{camid}s1_{frame:06d}_01.jpg", quality=QUALITY)


def _count(folder: Path) -> int:
    return sum(path.suffix == ".jpg" for path in folder.iterdir()) if folder.is_dir() else 0


def contact_sheet(root: Path, people: int = 8) -> Image.Image:
    """A picture of the first test people: a row a person, two columns a camera, blank where it did not see them."""
    splits = read(root)
    images: dict[int, dict[int, list[Sample]]] = {}
    for sample in [*splits.query, *splits.gallery]:
        if sample.pid > 0:
            images.setdefault(sample.pid, {}).setdefault(sample.camid, []).append(sample)
    rows = sorted(images)[:people]
    cameras = max(camid for seen in images.values() for camid in seen)
    height, width = read_manifest(Path(splits.root))["size"]
    gap = 4
    sheet = Image.new("RGB", (cameras * (2 * width + gap) - gap, len(rows) * (height + gap) - gap), "white")
    for y, pid in enumerate(rows):
        for camid, samples in images[pid].items():
            for k, sample in enumerate(samples[:2]):
                corner = ((camid - 1) * (2 * width + gap) + k * width, y * (height + gap))
                sheet.paste(open_image(sample.path), corner)
    return sheet
