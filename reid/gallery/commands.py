"""What the commands `index`, `search` and `gallery` do, once the program has read its arguments and loaded a model."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from reid.core.files import hash_file, write_text
from reid.core.types import ReidError
from reid.gallery import check, repair
from reid.gallery.base import RECALL, Gallery
from reid.gallery.entry import Entry, Field, Info, Pid
from reid.gallery.export import export
from reid.gallery.filter import Filter, parse_age, parse_pid, parse_time, show_time
from reid.gallery.index.sq8 import LEAST
from reid.gallery.places import scratch_of
from reid.gallery.rerank import search_reranked
from reid.retrieval.vectors import fuse

if TYPE_CHECKING:
    from reid.models.embedder import Embedder
    from reid.models.encoder import Encoder
    from reid.retrieval.calibration import Calibration
    from reid.training.distributed import World

_KNOWN = ("path", "pid", "camid", "time")  # columns of a table of images; the others become free fields


class Image(NamedTuple):
    """An image file to index, and what is known of it."""

    path: str
    pid: Pid | None = None
    camid: int | None = None
    time: float | None = None
    fields: Mapping[str, Field] = {}


class Answer(NamedTuple):
    """One image that was found."""

    entry: Entry
    score: float
    probability: float | None  # that it shows the query's person; None where the model is not calibrated


# ---- index


def read_table(table: str | os.PathLike[str]) -> list[Image]:
    """A CSV with a column path and any of pid, camid and time; further columns become free fields.

    Relative paths start at the CSV's folder; an empty value is an unknown one. Raises ReidError that names the line.
    """
    table = Path(table)
    images = []
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            header = [name.strip() for name in reader.fieldnames or []]
            if "path" not in header:
                raise ReidError(f"{table}: expected a first line with path (and pid, camid, time, ...), it has "
                                f"{','.join(header) or 'nothing'}")  # fmt: skip
            reader.fieldnames = header
            for row in reader:
                try:
                    images.append(_parse_row(row, table.parent))
                except ReidError as error:
                    raise ReidError(f"{table}, line {reader.line_num}: {error}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise ReidError(f"{table}: expected a CSV in UTF-8 ({error}); save it as one") from error
    return images


def _parse_row(row: Mapping[str, str | None], parent: Path) -> Image:
    if None in row:
        raise ReidError("has more values than the first line has names")
    values = {name: (value or "").strip() for name, value in row.items()}
    if not values["path"]:
        raise ReidError("expected a path, got none")
    camid = values.get("camid", "")
    if camid and not camid.isdecimal():
        raise ReidError(f"expected a camid that is a whole number from 0, or nothing, got {camid!r}")
    return Image(
        os.path.abspath(parent / values["path"]),
        parse_pid(values.get("pid", "")),
        int(camid) if camid else None,
        parse_time(values["time"]) if values.get("time") else None,
        {name: value for name, value in values.items() if name not in _KNOWN and value},
    )


def index(
    place: str,
    images: Sequence[Image],
    embedder: Embedder,
    weights: Path,
    find_bad: Callable[[list[str]], set[str]],
    world: World,
    preset: str | None = None,
    recall: float = RECALL,
) -> str:
    """Embeds the images that are new, by their content, into the gallery, made if absent; returns a line about it.

    find_bad: of paths, those to leave out, since they cannot be read; it raises ReidError where they may not be.
    preset, recall: see `Gallery.set_preset`; None leaves it. Interrupted, it goes on where it was. Several processes
    embed a part each; the first one, whose `images` count, writes. They share the folder of the gallery, or the first
    one embeds what it does not find there.
    """
    scratch = scratch_of(place)
    if not world.first:
        paths: list[str] = world.broadcast(None)
        embedder.embed(_part(paths, world), save=_scratch_file(scratch, world))
        world.barrier()
        return ""
    gallery = Gallery.open(place) if Gallery.exists(place) else None
    if gallery is not None:
        gallery.check_model(embedder.fingerprint)
    by_path = {os.path.abspath(image.path): image for image in reversed(images)}
    paths = sorted(by_path)
    with ThreadPoolExecutor(8) as pool:
        hashes = dict(zip(paths, pool.map(_hash, paths)))
    known = gallery.known(paths, [hashes[path] for path in paths]) if gallery is not None else [False] * len(paths)
    first: dict[str, str] = {}  # of the images of equal content, the one that is taken
    new = []
    for path, is_known in zip(paths, known):
        if not is_known and first.setdefault(hashes[path] or path, path) == path:
            new.append(path)
    bad = find_bad(new)
    new = [path for path in new if path not in bad]
    if gallery is None:
        gallery = create(place, embedder, weights)
    before = len(gallery)
    world.broadcast(new)
    embedder.embed(_part(new, world), save=_scratch_file(scratch, world), progress=True)
    world.barrier()
    everyone = [replace(world, rank=rank) for rank in range(world.size)]
    parts = [embedder.embed(_part(new, one), save=_scratch_file(scratch, one)) for one in everyone]
    chosen = [by_path[path] for path in new]
    gallery.add(
        parts[0] if len(parts) == 1 else np.concatenate(parts),
        new,
        [image.pid for image in chosen],
        [image.camid for image in chosen],
        [image.time for image in chosen],
        [image.fields for image in chosen],
        [hashes[path] for path in new],
    )
    shutil.rmtree(scratch, ignore_errors=True)
    if preset is not None:
        gallery.set_preset(preset, recall=recall)
    replaced = before + len(new) - len(gallery)
    left = len(paths) - len(new) - len(bad)
    told = [f"{len(new)} images added", f"{len(gallery)} in all"]
    told += [f"{replaced} of them in the place of older content"] if replaced > 0 else []
    told += [f"{left} were there already by their content"] if left else []
    return f"gallery {place}: {', '.join(told)}"


def _part(paths: list[str], world: World) -> list[str]:
    """What that process embeds."""
    start, end = (len(paths) * rank // world.size for rank in (world.rank, world.rank + 1))
    return paths[start:end]


def _scratch_file(scratch: Path, world: World) -> Path:
    """An interrupted index goes on there."""
    return scratch / f"new-{world.rank + 1}-of-{world.size}.npy"


def _hash(path: str) -> str:
    """ "" where the file cannot be read."""
    try:
        return hash_file(path)
    except OSError:
        return ""


def create(place: str | Path, embedder: Embedder, weights: Path) -> Gallery:
    """An empty gallery for this model's vectors, with a copy of the model."""
    return Gallery.create(place, dimension=embedder.dimension, fingerprint=embedder.fingerprint,
                          input_size=embedder.input_size, model=weights)  # fmt: skip


# ---- search


def filter_of(args: Namespace, **more: object) -> Filter:
    """What --camera, --exclude-camera, --after, --before, --pid and --field say, and `remove`'s --key and --path."""
    fields = {}
    for pair in args.field:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ReidError(f"--field takes NAME=VALUE, got {pair!r}")
        fields[name] = value
    return Filter(
        camids=args.camera,
        exclude_camids=args.exclude_camera,
        pids=[person for pid in args.pid if (person := parse_pid(pid)) is not None],
        after=None if args.after is None else parse_time(args.after),
        before=None if args.before is None else parse_time(args.before),
        fields=fields,
        **more,  # type: ignore[arg-type]
    )


def search(
    gallery: Gallery,
    args: Namespace,
    load_model: Callable[[str | Path | None], Embedder],
    calibration_of: Callable[[Mapping[str, Any], str], Calibration | None],
    find_images: Callable[[Sequence[str]], list[Path]],
    rerank: Mapping[str, Any] | None,
) -> None:
    """Finds the images of a gallery that are nearest to one person, or with --output to the person of each image."""
    if bool(args.query) == bool(args.key):
        raise ReidError("search takes either images of one person (QUERY), or --key N of images in the gallery")
    if args.output and (args.key or args.json or args.picture):
        raise ReidError("--output is for a table of many searches: leave --key, --json and --picture out")
    folders = [query for query in args.query if os.path.isdir(query)]
    if folders and not args.output:
        raise ReidError(f"{folders[0]} is a folder: name images of one person, or search for each of its images with "
                        "--output FILE.csv")  # fmt: skip
    place = _moved(args.root)
    chosen = filter_of(args, exclude_keys=args.key)
    weights = args.weights or gallery.model_path
    embedder = load_model(weights) if weights or args.query else None
    if embedder is not None:
        gallery.check_model(embedder.fingerprint)
    calibration = calibration_of(embedder.card, embedder.fingerprint) if embedder is not None else None
    images = [str(path) for path in find_images(args.query)] if args.output else args.query
    if args.key:
        vectors = fuse(gallery.vectors(args.key))
        images = [place(gallery.entry(args.key[0]).path)]
    else:
        assert embedder is not None
        vectors = embedder.embed(images, progress=bool(args.output))
        vectors = vectors if args.output else fuse(vectors)
    with gallery.reading():  # the answers are of one state of the gallery
        searched = gallery.count(chosen)
        threshold = _threshold(calibration, args.max_false_accept, searched)
        options: dict[str, Any] = {"filter": chosen, "group_by": args.group_by}
        if rerank is None:
            ranking = gallery.search(vectors, args.top_k, **options)
        else:
            ranking = search_reranked(gallery, vectors, args.top_k, **rerank, **options)
        found = [
            [
                Answer(
                    (entry := gallery.entry(key))._replace(path=place(entry.path)),
                    score,
                    float(calibration.probability(np.array(score))) if calibration else None,
                )
                for key, score in zip(keys, scores)
                if key >= 0 and score >= threshold
            ]
            for keys, scores in zip(ranking.keys.tolist(), ranking.scores.tolist())
        ]
    if args.output:
        write_text(args.output, _as_csv(images, found))
        answered = sum(map(bool, found))
        return print(f"{len(images)} searches, {answered} with an answer: {args.output}")
    if args.json:
        print(json.dumps([_as_dict(answer) for answer in found[0]], indent=2))
    elif not found[0] and searched and args.max_false_accept is not None:
        share = f"{args.max_false_accept:.2%} of the searches for people who are not in a gallery like this one"
        best = float(ranking.scores.max())
        print(f"nobody matches: the nearest image scores {best:.3f}, below {threshold:.3f}, which {share} reach")
    else:
        print(_as_table(found[0]))
    from reid.report.sheets import Tile, draw_search

    picture = Path(args.picture or f"search-{Path(images[0]).stem}.png")
    draw_search(images[0], [Tile(e.path, s, e.pid, e.camid) for e, s, _ in found[0]], picture)
    print(f"picture: {picture}", file=sys.stderr if args.json else sys.stdout)


def _threshold(calibration: Calibration | None, rate: float | None, searched: int) -> float:
    """The score below which nobody matches."""
    if rate is None:
        return -np.inf
    if calibration is None:
        raise ReidError(
            "--max-false-accept needs a calibrated model, this one is not: calibrate it (python run_reid.py "
            "calibrate --weights FILE --dataset NAME) and search with --weights FILE"
        )
    return calibration.threshold(rate, max(searched, 1))


def _moved(root: str | None) -> Callable[[str], str]:
    """Where an image lies now: OLD=NEW says that the folder OLD, of which the gallery knows, is at NEW."""
    if root is None:
        return lambda path: path
    old, equals, new = root.partition("=")
    if not old or not equals or not new:
        raise ReidError(
            f"--root takes OLD=NEW, the folder that images were indexed from and where it is now, got {root!r}"
        )
    before, after = Path(os.path.abspath(old)), os.path.abspath(new)

    def place(path: str) -> str:
        plain = Path(os.path.normpath(path))  # so that no .. leads out of NEW
        return os.path.join(after, plain.relative_to(before)) if plain.is_relative_to(before) else path

    return place


def _as_dict(answer: Answer) -> dict[str, object]:
    entry, score, probability = answer
    return {"key": entry.key, "path": entry.path, "score": score, "probability": probability, "pid": entry.pid,
            "camid": entry.camid, "time": show_time(entry.time) or None, "fields": entry.fields}  # fmt: skip


def _as_table(answers: Sequence[Answer]) -> str:
    lines = [f"{'rank':>4}  {'score':>6}  {'prob.':>6}  {'pid':>6}  {'camera':>6}  path"]
    for rank, (entry, score, probability) in enumerate(answers, 1):
        pid, camid = ("-" if x is None else x for x in (entry.pid, entry.camid))
        sure = "-" if probability is None else f"{probability:.3f}"
        lines.append(f"{rank:4}  {score:6.3f}  {sure:>6}  {pid:>6}  {camid:>6}  {entry.path}")
    return "\n".join(lines)


def _as_csv(queries: Sequence[str], found: Sequence[Sequence[Answer]]) -> str:
    """A line an answer; one with nothing but the query where nobody matches."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["query", "rank", "score", "probability", "key", "path", "pid", "camid", "time"])
    for query, answers in zip(queries, found):
        if not answers:
            table.writerow([query, *[""] * 8])
        for rank, (e, score, probability) in enumerate(answers, 1):
            table.writerow([query, rank, score, probability, *e[:4], show_time(e.time)])
    return text.getvalue().encode("utf-8", "backslashreplace").decode()


# ---- gallery


def info(args: Namespace) -> int:
    """What a gallery holds, and which of the models in --weights may query it."""
    from reid.models.encoder import open_encoder

    known = Gallery.open(args.gallery).info()
    asked = {weights: open_encoder(weights) for weights in args.weights}
    values = known._asdict()
    for name in ("times", "added"):
        span = values[name]
        values[name] = span and [show_time(span[0]), show_time(span[1])]
    if args.json:
        may = {weights: encoder.fingerprint == known.fingerprint for weights, encoder in asked.items()}
        print(json.dumps(values | ({"may_query": may} if may else {}), indent=2))
        return 0
    if values["cameras"]:
        values["cameras"] = ", ".join(f"{camid}: {count:,}" for camid, count in known.cameras.items())
    values["input_size"] = "{}x{}".format(*known.input_size)
    values["learnt"] = _learnt(known)
    for name, value in values.items():
        shown = " to ".join(value) if isinstance(value, list) else f"{value:,}" if isinstance(value, int) else value
        print(f"{name.replace('_', ' '):<15} {'-' if value in (None, {}, '') else shown}")
    for weights, encoder in asked.items():
        print(f"{weights}: {_standing(encoder, known.fingerprint)}")
    return 0


def _learnt(known: Info) -> str:
    """What a codec or an index was learnt from, and what was measured."""
    return ", ".join(f"{name.replace('_', ' ')} {_told(x)}" for name, x in (known.learnt or {}).items())


def _told(value: object) -> str:
    if isinstance(value, dict):
        return " / ".join(f"{_told(x)} of top {name}" for name, x in value.items())
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def preset(args: Namespace) -> int:
    """How a gallery is kept and searched from now on."""
    gallery = Gallery.open(args.gallery)
    began, before = time.monotonic(), gallery.info()
    gallery.set_preset(args.preset, recall=args.recall)
    after = gallery.info()
    print(f"gallery {args.gallery}: {args.preset}, {before.bytes:,} bytes to {after.bytes:,}, in "
          f"{time.monotonic() - began:.0f} s")  # fmt: skip
    if after.learnt is not None:
        print(_learnt(after))
    elif args.preset in ("compact", "large"):
        print(f"it has {after.images} images: {args.preset} begins with {LEAST:,}")
    return 0


def _standing(encoder: Encoder, fingerprint: str) -> str:
    """Whether a model's queries compare with vectors of that fingerprint, and what was measured of it."""
    if encoder.fingerprint != fingerprint:
        return f"may not query: its vectors are of {encoder.fingerprint}"
    made = encoder.card.get("export")
    if made is None:
        return "may query: the model itself"
    proof = made["proof"]
    return (
        f"may query: {made['format']} {made['precision']}, cosine {proof['cosine_mean']:.4f} to the model, its queries "
        f"on the model's gallery {100 * (proof['mixed']['mAP'] - proof['model']['mAP']):+.2f} points of mAP "
        f"({proof['dataset']})"
    )


def check_files(args: Namespace) -> int:
    """Verifies every byte of a gallery; 1 where something is wrong and stays so."""
    if args.repair:
        dropped, troubles = repair(args.gallery)
        for entry in dropped:
            print(f"dropped, its vector is lost: {entry.path}")
        print(f"gallery {args.gallery}: {len(dropped)} images dropped, {len(Gallery.open(args.gallery))} remain")
    else:
        troubles = check(args.gallery)
    for trouble in troubles:
        print(trouble)
    if not troubles:
        print(f"gallery {args.gallery}: no problems found")
    elif not args.repair:
        print("gallery check --repair keeps every vector that is whole")
    return 1 if troubles else 0


def export_files(args: Namespace) -> int:
    """Writes a gallery's vectors and what is known of its images for other programs."""
    names = export(Gallery.open(args.gallery), args.output, parquet=args.parquet, faiss=args.faiss)
    print(f"{args.output}: {', '.join(names)}")
    return 0


def merge(args: Namespace) -> int:
    """Adds the images of other galleries of the same model."""
    gallery = Gallery.open(args.gallery)
    for other in args.others:
        added, left = gallery.merge(Gallery.open(other))
        print(f"{other}: {added} images added, {left} were there already")
    print(f"gallery {args.gallery}: {len(gallery)} images in all")
    return 0


def compact(args: Namespace) -> int:
    """Writes all vectors into one file, without those of removed images, and packs the database."""
    gallery = Gallery.open(args.gallery)
    before = gallery.info()
    gallery.compact()
    after = gallery.info()
    if before.files is None or before.bytes is None or after.bytes is None:
        print(f"gallery {args.gallery}: Milvus was asked to merge its files")
    else:
        print(f"gallery {args.gallery}: {before.files} files of vectors to {after.files}, {before.bytes:,} bytes to "
              f"{after.bytes:,}")  # fmt: skip
    return 0


def remove(args: Namespace) -> int:
    """Removes the images that meet every condition given."""
    gallery = Gallery.open(args.gallery)
    paths = [os.path.abspath(path) for path in args.path]
    chosen = filter_of(args, keys=args.key or None, paths=[*paths, *args.path] if paths else None)
    print(f"gallery {args.gallery}: {gallery.remove(chosen)} images removed, {len(gallery)} remain")
    return 0


def forget(args: Namespace) -> int:
    """Deletes every trace of one person, and says what proves it."""
    gallery = Gallery.open(args.gallery)
    person = parse_pid(args.person)
    if person is None:
        raise ReidError("--pid takes a person's number or name")
    done = gallery.forget(person)
    print(f"gallery {args.gallery}: {done.images} images of {person} deleted, {len(gallery)} remain; {done.proof}")
    return 0


def expire(args: Namespace) -> int:
    """Deletes images older than that, by time of capture or where that is unknown of adding, from the files."""
    gallery = Gallery.open(args.gallery)
    count = gallery.expire(time.time() - parse_age(args.older_than))
    print(f"gallery {args.gallery}: {count} images deleted, {len(gallery)} remain")
    return 0


GALLERY: dict[str, Callable[[Namespace], int]] = {
    "info": info,
    "check": check_files,
    "export": export_files,
    "merge": merge,
    "compact": compact,
    "remove": remove,
    "forget": forget,
    "expire": expire,
    "preset": preset,
}
