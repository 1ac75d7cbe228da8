"""The one reader of image files, against Pillow and numpy directly."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, features

from datasets import folder
from reid.core import images
from reid.core.images import find_bad, find_images, inspect, list_folder, open_image, read_image, read_images
from reid.core.own_images import read_table
from reid.core.types import ReidError
from reid.report import sheets

SIZE = (32, 16)
ROOT = Path(__file__).resolve().parents[1]
MARKET = ROOT.parent / "shared" / "data" / "market1501"


def drawn(height: int = 48, width: int = 24, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8: coarse blocks of colour, which JPEG keeps nearly as they are."""
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return blocks.repeat(8, axis=0).repeat(8, axis=1)


def pixels_of(path: Path) -> np.ndarray:
    image = open_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def refusal(path: Path) -> str:
    """Why the reader refuses the file; the check and the picture must say the same."""
    with pytest.raises(ReidError) as caught:
        open_image(path)
    with pytest.raises(ReidError, match=str(path)):
        read_images([str(path)], SIZE)
    reason = find_bad([path], progress=False)[str(path)]
    assert str(caught.value) == f"{path} {reason}: leave it out, or mend it"
    assert "\n" not in reason
    return reason


# ---- pixels


def test_an_image_is_rgb_and_height_comes_first(tmp_path):
    pixels = np.zeros((20, 10, 3), np.uint8)
    pixels[:10, :, 0], pixels[10:, :, 2] = 255, 255  # red above blue
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = read_image(str(tmp_path / "a.png"), SIZE)
    assert image.shape == (32, 16, 3)
    assert image.dtype == np.uint8
    assert (image[:10] == [255, 0, 0]).all()
    assert (image[-10:] == [0, 0, 255]).all()


def test_resizing_is_bilinear(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    # to half the size Pillow's bilinear filter is a triangle over four pixels, 1 3 3 1 of eight
    x = np.pad(pixels.astype(float), ((1, 1), (1, 1), (0, 0)), "edge")
    weights = np.array([1, 3, 3, 1]) / 8
    rows = sum(w * x[i : i + 63 : 2] for i, w in enumerate(weights))
    expected = sum(w * rows[:, i : i + 31 : 2] for i, w in enumerate(weights))
    inside = (slice(1, -1), slice(1, -1))  # at the border the weights are shared out otherwise
    assert np.abs(read_image(str(tmp_path / "a.png"), SIZE)[inside] - expected[inside]).max() <= 1.01


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "jpg"), ("CMYK", "jpg"), ("P", "png"), ("RGBA", "png"), ("LA", "png"), ("1", "png")]
)
def test_other_kinds_of_image_become_rgb(tmp_path, mode, suffix):
    pixels = np.full((32, 16, 3), 255, np.uint8)
    pixels[:16] = 0
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).convert(mode).save(path)
    image = read_image(str(path), SIZE)
    assert image.shape == (32, 16, 3)
    assert np.abs(image.astype(int) - pixels).max() <= 8
    assert find_bad([path], progress=False) == {}


@pytest.mark.parametrize("threads", [1, 5])
def test_images_come_in_the_order_of_their_paths(paths, threads):
    read = read_images(paths, SIZE, threads=threads)
    for image, path in zip(read, paths, strict=True):
        assert np.array_equal(image, np.asarray(Image.open(path).resize((16, 32), Image.Resampling.BILINEAR)))


def test_real_images_are_those_of_pillow():
    if not MARKET.is_dir():
        pytest.skip("the real data is not beside the repository")
    paths = sorted(str(path) for path in MARKET.rglob("query/*.jpg"))[:50]
    expected = [np.asarray(Image.open(path).resize((128, 256), Image.Resampling.BILINEAR)) for path in paths]
    assert len(paths) == 50
    assert np.array_equal(read_images(paths, (256, 128)), expected)


# ---- formats


@pytest.mark.parametrize(
    ("form", "suffix"), [(form, suffix) for form, all_ in images.FORMATS.items() for suffix in all_]
)
def test_every_format_of_the_table_is_read_checked_and_found(form, suffix, tmp_path):
    path = tmp_path / f"a{suffix.upper()}"
    Image.fromarray(drawn()).quantize(64).convert("RGB").save(path, form)
    with Image.open(path) as opened:
        decoded = np.asarray(opened.convert("RGB"))
    assert np.array_equal(pixels_of(path), decoded)
    assert np.abs(decoded.astype(int) - drawn()).mean() < 16
    assert find_bad([path], progress=False) == {}
    assert find_images([str(tmp_path)]).images == [path]
    person = tmp_path / "anna"
    person.mkdir()
    path.rename(person / f"c1_1{suffix}")
    Image.new("RGB", (8, 8)).save(person / "c2_1.png")
    others = tmp_path / "bert"
    others.mkdir()
    Image.new("RGB", (8, 8)).save(others / "c1_1.png")
    splits = folder.read(tmp_path)
    assert str(person / f"c1_1{suffix}") in [s.path for s in (*splits.train, *splits.query, *splits.gallery)]


def test_avif_is_in_the_table_where_pillow_has_it():
    assert ("AVIF" in images.FORMATS) == bool(features.check("avif"))
    assert (".avif" in images.SUFFIXES) == bool(features.check("avif"))


def test_content_decides_over_the_suffix(tmp_path):
    Image.fromarray(drawn()).save(tmp_path / "a.jpg", "PNG")
    assert np.array_equal(pixels_of(tmp_path / "a.jpg"), drawn())


def test_a_program_named_as_an_image_is_never_run(tmp_path, monkeypatch):
    """PostScript: Pillow would start Ghostscript, in the reader, the check and the pictures alike."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    evil = tmp_path / "evil.jpg"
    evil.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
    assert "is not an image (JPEG, PNG" in refusal(evil)
    sheets.draw_search(evil, [sheets.Tile(evil, 0.5)], tmp_path / "p.png")
    assert not (tmp_path / "ran").exists()


# ---- values of more than 8 bits

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


def tiff(values: np.ndarray, **tags: int) -> bytes:
    """A TIFF of one uncompressed strip, written by hand: the tags that Pillow would not write as asked."""
    height, width = values.shape
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    bits = tags.get("bits", 8 * values.itemsize)
    numbers = {
        256: width,
        257: height,
        258: bits,
        259: 1,
        262: tags.get("photometric", 1),
        273: 8,
        277: 1,
        278: height,
        279: values.nbytes,
        339: kind,
    }
    if "orientation" in tags:
        numbers[274] = tags["orientation"]
    data = values.tobytes()
    data += b"\0" * (len(data) % 2)
    entries = b"".join(
        struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, n) for tag, n in sorted(numbers.items())
    )
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(numbers)) + entries + bytes(4)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_grey_of_16_bits_is_its_8_bit_form(suffix, tmp_path):
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / f"a.{suffix}")
    assert np.array_equal(pixels_of(tmp_path / f"a.{suffix}"), np.repeat(GREY[..., None], 3, 2))


def test_grey_of_16_bits_is_rounded(tmp_path):
    values = np.random.default_rng(0).integers(0, 1 << 16, (40, 40)).astype(np.uint16)
    values[0, 0] = 65535
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.array_equal(pixels_of(tmp_path / "a.png")[..., 0], np.round(values.astype(float) * 255 / 65535))


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_white_may_be_zero(order, tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff((65535 - GREY.astype("<u2") * 257).astype("<u2"), photometric=0))
    assert np.array_equal(pixels_of(tmp_path / "a.tif")[..., 0], GREY)


def test_twelve_bits_that_say_so_are_scaled(tmp_path):
    """Packed, three bytes for two values, as BitsPerSample 12 has it."""
    twelve = np.round(GREY.astype(float) * 4095 / 255).astype(int)
    first, second = twelve[:, ::2], twelve[:, 1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 2).astype(np.uint8).reshape(16, 24)
    content = bytearray(tiff(packed, bits=12))
    width = content.index(struct.pack("<HHII", 256, 3, 1, 24))
    content[width : width + 12] = struct.pack("<HHII", 256, 3, 1, 16)
    (tmp_path / "a.tif").write_bytes(bytes(content))
    assert np.array_equal(pixels_of(tmp_path / "a.tif")[..., 0], GREY)


def test_floats_from_0_to_1_are_scaled(tmp_path):
    Image.fromarray(GREY.astype(np.float32) / 255).save(tmp_path / "a.tiff")
    assert np.array_equal(pixels_of(tmp_path / "a.tiff")[..., 2], GREY)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (
            (GREY.astype(np.uint16) * 16),
            "holds values to 4080 in 16 bits and does not say whether 4095 or 65535 is white",
        ),
        (GREY.astype(np.int32) * 257, "holds whole numbers of 32 bits and does not say which is white"),
        (GREY.astype(np.float32), "holds floats from 0 to 255, expected 0 to 1"),
        (GREY.astype(np.float32) - 1, "holds floats from -1 to 254, expected 0 to 1"),
        (np.full((9, 9), np.nan, np.float32), "holds floats from nan to nan"),
    ],
)
def test_values_of_an_unknown_range_are_refused_by_name(values, reason, tmp_path):
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert reason in refusal(tmp_path / "a.tif")
    assert "save it with 8" in refusal(tmp_path / "a.tif")


def test_black_is_black_in_any_range(tmp_path):
    Image.new("I;16", (40, 80)).save(tmp_path / "a.png")
    assert not pixels_of(tmp_path / "a.png").any()


# ---- which way is up

TURNS = {  # Orientation -> how a camera that is held so writes an upright image (TIFF 6.0: the 0th row is at the ...)
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x.swapaxes(0, 1)[::-1],
    7: lambda x: x.swapaxes(0, 1)[::-1, ::-1],
    8: lambda x: x.swapaxes(0, 1)[:, ::-1],
}


def exif(orientation: int, *more: bytes) -> bytes:
    entries = [struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0), *more]
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4)


BROKEN = struct.pack("<HHI4s", 0x0128, 2, 2, b"2\0\0\0")  # ResolutionUnit as ASCII


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("more", [(), (BROKEN,)])
def test_images_are_upright_whatever_else_the_exif_holds(orientation, form, more, tmp_path):
    path = tmp_path / "a.jpg"
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(form, {})
    turned = Image.fromarray(np.ascontiguousarray(TURNS[orientation](drawn())))
    turned.save(path, form, exif=exif(orientation, *more), **options)
    pixels = pixels_of(path)
    assert pixels.shape == drawn().shape
    assert np.abs(pixels.astype(int) - drawn()).max() <= (16 if form == "JPEG" else 0)
    assert inspect([str(path)], progress=False)[str(path)][:3] == ("", 24, 48)


def test_an_upright_tiff_is_turned_once(tmp_path):
    values = GREY[:8]
    (tmp_path / "a.tif").write_bytes(tiff(np.ascontiguousarray(TURNS[6](values)), orientation=6))
    assert np.array_equal(pixels_of(tmp_path / "a.tif")[..., 0], values)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "content",
    [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", exif(6)[:-14], exif(6).replace(b"\x12\x01\x03", b"\x12\x01\x63")],
)
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_broken_metadata_is_dropped(content, form, tmp_path):
    path = tmp_path / "a.img"
    Image.fromarray(drawn()).save(path, form, exif=content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.asarray(Image.open(path).convert("RGB"))
    assert np.array_equal(pixels_of(path), expected)
    assert find_bad([path], progress=False) == {}


def test_a_turned_image_is_drawn_upright(tmp_path):
    """Red above blue, held sideways: in the ranked list red is above blue."""
    upright = np.zeros((64, 32, 3), np.uint8)
    upright[:32, :, 0], upright[32:, :, 2] = 255, 255
    path = tmp_path / "a.jpg"
    Image.fromarray(np.ascontiguousarray(TURNS[6](upright))).save(path, exif=exif(6, BROKEN), quality=95)
    rows = [sheets.Row("", sheets.Tile(path), ())]
    sheets.draw_ranked(rows, tmp_path / "r.png", title="")
    left, top, right, bottom = sheets.tile_box(rows, 0, None)
    with Image.open(tmp_path / "r.png") as sheet:
        for part, channel in ((1 / 4, 0), (3 / 4, 2)):
            colour = sheet.getpixel(((left + right) // 2, round(top + part * (bottom - top))))
            assert int(np.argmax(colour)) == channel
            assert min(colour) < 40


# ---- what is refused


def encoded(form: str) -> bytes:
    buffer = BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (128, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, form)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_a_truncated_image_is_found(form, kept, tmp_path):
    whole, cut = tmp_path / "whole.jpg", tmp_path / "cut.jpg"
    whole.write_bytes(encoded(form))
    cut.write_bytes(encoded(form)[: int(kept * len(encoded(form)))])
    assert list(find_bad([whole, cut], progress=False)) == [str(cut)]
    assert "is not a whole image (" in refusal(cut)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def flipped() -> bytes:
    content = bytearray(encoded("PNG"))
    content[len(content) // 2] ^= 0xFF
    return bytes(content)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_bytes(b""), "is empty (0 bytes)"),
        (lambda path: path.write_bytes(b"404 not found" * 99), "is not an image"),
        (lambda path: path.write_bytes(bytes(4096)), "is not an image"),
        (lambda path: path.write_bytes(flipped()), "is not a whole image ("),
        (lambda path: path.mkdir(), "is a folder, expected a file"),
        (lambda path: os.mkfifo(path), "is a FIFO or a device, expected a file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a FIFO or a device, expected a file"),
        (lambda path: path.symlink_to("nowhere"), "does not exist"),
        (lambda path: path.symlink_to(path), "cannot be opened (Too many levels of symbolic links)"),
    ],
)
def test_a_file_that_is_no_whole_image_is_named(tmp_path, paths, make: Callable[[Path], object], reason):
    bad = tmp_path / "bad.jpg"
    make(bad)
    assert refusal(bad).startswith(reason)
    with pytest.raises(ReidError, match=f"{bad} "):
        read_images([*paths[:3], str(bad), *paths[3:]], SIZE)
    found = find_bad([*paths[:3], bad, "", "nul\0.jpg"], progress=False)
    assert list(found) == ["", str(bad), "nul\0.jpg"]


def test_an_error_crosses_processes(tmp_path):
    with pytest.raises(ReidError) as caught:
        open_image(tmp_path / "a.jpg")
    again = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(again, ReidError)
    assert str(again) == str(caught.value)


def blank_png(width: int, height: int) -> bytes:
    """A black PNG that takes kilobytes, whatever its size: one bit a pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(1)
    row = bytes(1 + (width + 7) // 8)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # pytest undoes the reader's own filter
@pytest.mark.parametrize("size", [(13000, 13000), (8193, 8192), (60000, 60000)])
def test_too_many_pixels_are_refused_before_they_are_decoded(size, tmp_path):
    head = blank_png(1, 1).replace(struct.pack(">II", 1, 1), struct.pack(">II", *size), 1)
    start = head.index(b"IHDR")
    head = head[: start + 17] + struct.pack(">I", zlib.crc32(head[start : start + 17])) + head[start + 21 :]
    (tmp_path / "a.png").write_bytes(head)
    assert "pixels, the most that are read are 67,108,864: scale it down" in refusal(tmp_path / "a.png")


def test_a_file_of_too_many_bytes_is_refused(tmp_path):
    with (tmp_path / "a.png").open("wb") as file:
        file.write(encoded("PNG"))
        file.truncate(images.MAX_BYTES + 1)  # sparse: it takes no room
    assert refusal(tmp_path / "a.png") == "has 536,870,913 bytes, the most that are read are 536,870,912"


def test_threads_share_the_memory_that_decoding_takes(tmp_path):
    """Four images of 180 MB each in four threads, with room for one of them; and Pillow says nothing beside."""
    content = blank_png(6000, 6000)
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(content)
    code = (
        "import resource, sys\n"
        "from reid.core.images import find_images, read_images\n"
        "files = [str(path) for path in find_images([sys.argv[1]]).images]\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert read_images(files, (64, 32), threads=4).shape == (4, 64, 32, 3)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True, timeout=60, capture_output=True, text=True
    )
    assert int(run.stdout) < 300_000  # kB; without the limit 700,000


def test_what_pillow_warns_of_is_not_said_twice(tmp_path):
    (tmp_path / "large.png").write_bytes(blank_png(10_000, 10_000))
    Image.fromarray(drawn()).save(tmp_path / "exif.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    code = "import sys\nfrom reid.core.images import find_bad\nprint(*find_bad(sys.argv[1:], progress=False).values())"
    command = [sys.executable, "-c", code, tmp_path / "large.png", tmp_path / "exif.png"]
    run = subprocess.run(command, cwd=ROOT, check=True, timeout=60, capture_output=True, text=True)
    assert run.stdout == "has 10000x10000 pixels, the most that are read are 67,108,864: scale it down\n"
    assert run.stderr == ""


def test_a_fork_does_not_wait_for_its_parent_s_threads(tmp_path):
    """The child of a process that decodes something large has the whole of its memory."""
    code = (
        "import os, sys, threading\n"
        "from reid.core import images\n"
        "held, done = threading.Event(), threading.Event()\n"
        "def decode():\n"
        "    with images._decoded(sys.argv[1]): held.set(); done.wait(30)\n"
        "thread = threading.Thread(target=decode)\n"
        "thread.start(); held.wait(30)\n"
        "child = os.fork()\n"
        "if not child: images.open_image(sys.argv[1]); os._exit(7)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7\n"
        "done.set(); thread.join()"
    )
    (tmp_path / "a.png").write_bytes(blank_png(8000, 6000))
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.png")], cwd=ROOT, check=True, timeout=60)


@pytest.mark.parametrize("read", [read_table, folder.read])
def test_a_table_is_a_regular_file_of_a_sane_size(read, tmp_path):
    endless, long = tmp_path / "endless.csv", tmp_path / "long.csv"
    endless.symlink_to("/dev/zero")
    with pytest.raises(ReidError, match=r"endless\.csv"):
        read(endless)
    with long.open("w") as file:
        file.write("path,pid,camid\n")
        file.truncate((1 << 28) + 1)
    with pytest.raises(ReidError, match=r"long\.csv has 268,435,457 bytes, the most that are read are 268,435,456"):
        read(long)


# ---- the files of a folder


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_a_folder_gives_its_images_and_says_what_else_it_holds(tmp_path):
    named = [put(tmp_path / name) for name in ("a/1.jpg", "a/2.TIFF", "b/deep/3.webp", "b/4.tif", "c.jpeg")]
    other = [put(tmp_path / name) for name in ("a/notes.txt", "b/5.heic")]
    found = find_images([str(tmp_path)])
    assert found.images == sorted(named)
    assert found.others == sorted(other)


def test_what_systems_leave_behind_is_passed_over(tmp_path):
    wanted = put(tmp_path / "a.png")
    litter = (
        "._a.png",
        ".thumbs/a.png",
        "@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg",
        "__MACOSX/a.png",
        "Thumbs.db",
        ".DS_Store",
    )
    for name in litter:
        put(tmp_path / name)
    assert find_images([str(tmp_path)]) == ([wanted], [])
    assert find_images([str(tmp_path / "*")]) == ([wanted], [])
    assert find_images([str(tmp_path / "._a.png")]).images == [tmp_path / "._a.png"]  # by its name, whatever it is


def test_links_to_folders_are_followed_once(tmp_path):
    inside, outside = put(tmp_path / "here/z/a.png"), put(tmp_path / "elsewhere/b.png")
    (tmp_path / "here/all").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "here/a-link-to-z").symlink_to("z")
    (tmp_path / "here/z/round").symlink_to("..")
    (outside.parent / "back").symlink_to(tmp_path / "here")
    assert find_images([str(tmp_path / "here")]).images == [tmp_path / "here/all/b.png", inside]


def test_a_link_to_nothing_and_a_fifo_are_left_to_the_check(tmp_path):
    put(tmp_path / "a.png").write_bytes(encoded("PNG"))
    (tmp_path / "b.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "c.png")
    paths = find_images([str(tmp_path)]).images
    assert [path.name for path in paths] == ["a.png", "b.png", "c.png"]
    assert list(find_bad(paths, progress=False)) == [str(tmp_path / "b.png"), str(tmp_path / "c.png")]


def test_places_are_files_folders_and_patterns(tmp_path):
    files = [put(tmp_path / name) for name in ("a/1.png", "b/1.png", "b/2.png", "odd.name", "x[1].png")]
    assert find_images([str(tmp_path / "*/1.png")]).images == files[:2]
    assert find_images([str(tmp_path / "b"), str(files[1]), str(files[3])]) == (files[1:4], [])
    assert find_images([str(files[4])]).images == [files[4]]  # a name that is there is no pattern
    with pytest.raises(ReidError, match="no image or folder at .*/nothing"):
        find_images([str(tmp_path / "nothing")])
    (tmp_path / "c").mkdir()
    with pytest.raises(ReidError, match="no images in .*/c: looked for .*.jpeg.* in it and below"):
        find_images([str(tmp_path / "c")])


def test_a_folder_that_cannot_be_listed_is_an_error_that_names_it(tmp_path, monkeypatch):
    put(tmp_path / "anna/c1_1.png")
    closed = put(tmp_path / "bert/c1_1.png").parent
    tmp_path.chmod(0o777)
    monkeypatch.chdir(tmp_path)  # what lies above may be closed to the other user
    root = os.geteuid() == 0
    closed.chmod(0)
    try:
        if root:
            os.seteuid(65534)  # the superuser lists everything
        with pytest.raises(ReidError, match=r"cannot list the folder bert \(Permission denied\): make it readable"):
            find_images(["."])
        with pytest.raises(ReidError, match=r"cannot list the folder bert \(Permission denied\)"):
            list_folder("bert")  # as the readers of data sets do
    finally:
        if root:
            os.seteuid(0)
        closed.chmod(0o755)
