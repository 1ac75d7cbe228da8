"""CUHK03 (Li et al., CVPR 2014) by the new protocol, 767 / 700 identities (Zhong et al., CVPR 2017).

Two data sets in one: `labeled` boxes drawn by hand, `detected` ones by a detector. One test identity of each is a
training identity of the other: never train on one and test on the other.

Read from the ready folders, or made once from the authors' cuhk-03.mat and the protocol's split file. Identities are
numbered as the split file's `labels`, from 1 to 1467: no distractors, no junk. Counts: the split files.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from tqdm import tqdm

from datasets import parse
from reid.core.files import atomic_folder
from reid.core.types import ReidError, Splits

_PARENTS = ("cuhk03-np", "CUHK03-NP", "cuhk03_np", "cuhk03np", "cuhk03")  # names of the folder of both variants
_RELEASE = ("", "cuhk03_release", "cuhk03", "cuhk03/cuhk03_release")  # where cuhk-03.mat lies under a root
_SOURCE = re.compile(r"(?P<pair>[1-5])_(?P<person>\d{3})_(?P<view>[12])_(?P<image>\d{2})\.png")
_IMAGES_A_PERSON = 10  # columns of the source's cells: 1-5 view 1, 6-10 view 2


def _layout(variant: str, train: parse.Count, query: parse.Count, gallery: parse.Count) -> parse.Layout:
    return parse.Layout(
        name=f"cuhk03np_{variant}",
        folders=(variant, *(f"{parent}/{variant}" for parent in _PARENTS)),
        pattern=re.compile(r"(?P<pid>\d{4})_c(?P<camid>\d)_\d+"),
        grammar="PPPP_cC_NN.png (person 0001-1467, camera 1-2; .jpg or .png)",
        pids=(1, 1467),
        cameras=2,
        obtain="CUHK03 is given by its authors (CUHK): name the ready cuhk03-np folder, or a folder with cuhk-03.mat "
        f"and the new protocol's {_config_name(variant)}",
        official={"train": train, "query": query, "gallery": gallery},
    )


def _config_name(variant: str) -> str:
    return f"cuhk03_new_protocol_config_{variant}.mat"


LAYOUTS = {
    "labeled": _layout(
        "labeled",
        train=parse.Count(7368, 767, parse.per_camera(3607, 3761)),
        query=parse.Count(1400, 700, parse.per_camera(700, 700)),
        gallery=parse.Count(5328, 700, parse.per_camera(2615, 2713)),
    ),
    "detected": _layout(
        "detected",
        train=parse.Count(7365, 767, parse.per_camera(3601, 3764)),
        query=parse.Count(1400, 700, parse.per_camera(700, 700)),
        gallery=parse.Count(5332, 700, parse.per_camera(2617, 2715)),
    ),
}
OTHER = {"labeled": "detected", "detected": "labeled"}


def read(variant: str, root: Path) -> Splits:
    """Reads `variant`, "labeled" or "detected": from its folder, the one of both, or a parent of that.

    Where there is none but cuhk-03.mat and the split file, makes `cuhk03-np/VARIANT` beside cuhk-03.mat first.
    """
    layout, root = LAYOUTS[variant], parse.absolute(root)
    found = parse.first_with_splits(path for path in parse.candidates(root, layout.folders) if path != root)
    if found is None and parse.first_with_splits([root]):
        if root.name == OTHER[variant]:
            raise ReidError(
                f"{layout.name}: expected the {variant} images, but {root} is the folder of the {OTHER[variant]} ones; "
                f"name {root.parent}, or choose cuhk03np_{OTHER[variant]}"
            )
        found = root
    found = found or _from_source(variant, root)
    if found is None:
        raise parse.not_found(layout, root)
    splits = parse.read_found(layout, found)
    return splits._replace(warnings=splits.warnings + looks_like_other(splits))


def looks_like_other(splits: Splits) -> list[str]:
    """A line where the images of one variant are as many as the other's official ones, else nothing."""
    other = OTHER[splits.name.removeprefix("cuhk03np_")]
    if splits.official_split or parse.compare(splits, LAYOUTS[other].official):
        return []
    return [f"{splits.name}: these are the counts of cuhk03np_{other}: the two seem to be mixed up"]


class _Crop(NamedTuple):
    """One image of the source, and where it goes."""

    pair: int  # 1-5, of cameras
    person: int  # from 1, within the pair
    image: int  # 1-10
    target: str  # path under the variant's folder


def _from_source(variant: str, root: Path) -> Path | None:
    """Makes the ready folder from cuhk-03.mat and the split file; None where there is no cuhk-03.mat."""
    source = next((path for folder in _RELEASE if (path := root / folder / "cuhk-03.mat").is_file()), None)
    if source is None:
        return None
    target = source.parent / "cuhk03-np" / variant
    if target.is_dir():
        return target
    beside = dict.fromkeys([source.parent, source.parent.parent, root, root.parent])
    config = next((path for folder in beside if (path := folder / _config_name(variant)).is_file()), None)
    if config is None:
        raise ReidError(
            f"cuhk03np_{variant}: found {source}, but not the new protocol's split file; "
            f"put {_config_name(variant)} beside it"
        )
    crops = _read_config(config)
    try:
        with atomic_folder(target) as temporary:
            for folder in parse.FOLDERS.values():
                (temporary / folder).mkdir()
            _extract(source, variant, crops, temporary)
    except OSError as error:
        raise ReidError(f"cuhk03np_{variant}: could not make {target} from {source}: {error}") from error
    return target


def _read_config(path: Path) -> list[_Crop]:
    """What the split file says of every image, in the source's order. Its positions count from 1."""
    scipy_io = _need("scipy.io")
    try:
        config = scipy_io.loadmat(path)
        labels, cameras = config["labels"].ravel(), config["camId"].ravel()
        names = [str(name.item()) for name in config["filelist"].ravel()]
        crops = []
        for split, folder in parse.FOLDERS.items():
            for position in config[f"{split}_idx"].ravel().astype(int) - 1:
                match = _SOURCE.fullmatch(names[position])
                if match is None or position < 0:
                    raise ValueError(f"entry {position + 1} is not an image's name")
                image = int(match["image"])
                target = f"{folder}/{labels[position]:04d}_c{cameras[position]}_{image:02d}.png"
                crops.append(_Crop(int(match["pair"]), int(match["person"]), image, target))
    except Exception as error:  # scipy raises many kinds on a damaged file; none of them is ours to explain further
        raise ReidError(
            f"{path}: expected the new protocol's split file (labels, camId, filelist, train_idx, query_idx, "
            f"gallery_idx), but could not read it ({type(error).__name__}: {error}); get it anew"
        ) from error
    return sorted(crops)


def _extract(source: Path, variant: str, crops: list[_Crop], folder: Path) -> None:
    """Writes every crop as PNG. cuhk-03.mat is MATLAB v7.3, that is HDF5 with every array's axes reversed:

    `variant` is (1, 5) references, a camera pair each, to (10, persons) references to (3, W, H) uint8 images; the
    place of an image that was never taken holds an array of another shape.
    """
    h5py = _need("h5py")
    with h5py.File(source, "r") as mat:
        if variant not in mat:
            raise ReidError(f"{source}: expected the cell array {variant!r}, found {parse.some(sorted(mat), 10)}")
        pairs = [mat[reference][()] for reference in mat[variant][()].ravel()]
        for crop in tqdm(crops, desc=f"cuhk03-np/{variant}", unit="image"):
            image = None
            if crop.pair <= len(pairs):
                persons = pairs[crop.pair - 1]
                if crop.image <= _IMAGES_A_PERSON == persons.shape[0] and 1 <= crop.person <= persons.shape[1]:
                    image = mat[persons[crop.image - 1, crop.person - 1]][()]
            if image is None or image.ndim != 3 or image.shape[0] != 3 or image.dtype != "uint8":
                raise ReidError(
                    f"{source}: the split file names image {crop.image} of person {crop.person} of pair {crop.pair} "
                    f"({variant}), which is not there; are both files the original ones?"
                )
            Image.fromarray(image.transpose(2, 1, 0).copy()).save(folder / crop.target)  # (H, W, 3)


def _need(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ReidError(f"making cuhk03-np from cuhk-03.mat needs {package}: pip install {package}") from error
