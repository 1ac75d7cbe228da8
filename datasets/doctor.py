"""The data doctor: what is wrong with a data set, before a night of training finds it.

    python run_reid.py check-data --dataset NAME --data-root DIR

Problems spoil a training or its figures: unreadable images, identities shared between training and test, the same
picture on both sides of a split or as two persons, labeled and detected mixed up, nothing to score (no query, one
camera alone, no query with an answer). Notes are worth knowing: counts that differ from the official ones, some queries
that no gallery image can answer, copies of a picture as one person, very small images.
"""

from __future__ import annotations

import dataclasses
import os
from collections import defaultdict
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from datasets import OFFICIAL, cuhk03np, parse
from reid.core.images import ImageFacts, inspect
from reid.core.types import JUNK, ReidError, Sample, Splits

SMALL = (16, 32)  # width, height in pixels under which a crop shows a person no more (chosen)
_CAMERAS_SHOWN = 20  # rows of the printed table
_OFFICIAL_SWAPPED = 2  # test identities that the two official CUHK03-NP splits do not share, one each
_COPIED = 0.9  # of a folder's pictures: above, labeled and detected are copies of each other (chosen)


@dataclasses.dataclass
class Report:
    """What `examine` found. Every path is relative to the data set's root, where it lies under it."""

    name: str
    root: str
    official_split: bool | None
    counts: dict[str, parse.Count]
    official: dict[str, parse.Count]  # empty where none are published
    bad: dict[str, str]  # path -> why it cannot be read
    shared_identities: list[int]  # pids in training and in test
    queries_without_match: list[str]  # paths; no gallery image of the pid by another camera
    duplicates: dict[str, list[list[str]]]  # "train-query", "train-train", ... -> groups of paths of equal pixels
    width: tuple[int, float, int]  # min, median, max in pixels; zeros where no image can be read
    height: tuple[int, float, int]
    small: list[str]  # paths of images under SMALL
    problems: list[str]  # a line each
    notes: list[str]

    @property
    def ok(self) -> bool:
        """No problems. Notes do not count."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"ok": self.ok, **dataclasses.asdict(self)}

    def lines(self) -> list[str]:
        """For reading."""
        verdict = {True: "the official split", False: "not the official split", None: "no official split published"}
        lines = [f"{self.name} in {self.root}: {verdict[self.official_split]}", "", *self._table(), ""]
        lines.append(f"width {_spread(self.width)}, height {_spread(self.height)}")
        lines += [f"problem: {line}" for line in self.problems] + [f"note: {line}" for line in self.notes]
        lines.append("no problems found" if self.ok else f"problems found: {len(self.problems)}")
        return lines

    def _table(self) -> list[str]:
        held = [*self.counts.values(), *self.official.values()]
        cameras = sorted({camid for count in held for camid in count.cameras})
        kinds = [
            kind
            for kind in ("images", "identities", "distractors", "junk")
            if kind == "images" or any(getattr(count, kind) for count in held)
        ]
        columns = [["", *kinds, *(f"camera {camid}" for camid in cameras[:_CAMERAS_SHOWN])]]
        for split, ours in self.counts.items():
            for title, count in ((split, ours), ("official", self.official.get(split))):
                if count is not None:
                    column = [title, *(str(getattr(count, kind)) for kind in kinds)]
                    known = count is ours or bool(count.cameras)  # nobody published every split's cameras
                    column += [str(count.cameras.get(c, 0)) if known else "" for c in cameras[:_CAMERAS_SHOWN]]
                    columns.append(column)
        aligned = []
        for number, column in enumerate(columns):
            width = max(len(cell) for cell in column)
            aligned.append([cell.rjust(width) if number else cell.ljust(width) for cell in column])
        lines = ["  ".join(cells).rstrip() for cells in zip(*aligned, strict=True)]
        more = len(cameras) - _CAMERAS_SHOWN
        return [*lines, f"and {more} more cameras"] if more > 0 else lines


def examine(splits: Splits, *, progress: bool = True) -> Report:
    """Examines what `datasets.read` gave: decodes every image and compares them all. Changes nothing."""
    shown = _Relative(splits.root)
    lists = {split: getattr(splits, split) for split in parse.FOLDERS}
    facts = inspect((sample.path for samples in lists.values() for sample in samples), progress=progress)
    good = [fact for fact in facts.values() if not fact.trouble]
    copies = _copies(lists, facts)
    report = Report(
        name=splits.name,
        root=splits.root,
        official_split=splits.official_split,
        counts={split: parse.count(samples) for split, samples in lists.items()},
        official=dict(OFFICIAL.get(splits.name, {})),
        bad={shown(path): fact.trouble for path, fact in facts.items() if fact.trouble},
        shared_identities=sorted(_persons(splits.train) & _persons(splits.query + splits.gallery)),
        queries_without_match=[shown(sample.path) for sample in queries_without_match(splits)],
        duplicates={pair: [[shown(s.path) for s in (*c.first, *c.second)] for c in cs] for pair, cs in copies.items()},
        width=_summary([fact.width for fact in good]),
        height=_summary([fact.height for fact in good]),
        small=[shown(p) for p, f in facts.items() if not f.trouble and (f.width < SMALL[0] or f.height < SMALL[1])],
        problems=[],
        notes=[],
    )
    _judge(report, copies, shown)
    if splits.name.startswith("cuhk03np_"):
        report.problems += cuhk03np.looks_like_other(splits)
        _compare_variants(splits, facts, report, progress)
    report.notes += [line for line in splits.warnings if line not in report.problems]
    return report


def queries_without_match(splits: Splits) -> list[Sample]:
    """Queries that no ranking can answer: the gallery has no image of the pid by another camera."""
    cameras = defaultdict(set)
    for sample in splits.gallery:
        cameras[sample.pid].add(sample.camid)
    return [sample for sample in splits.query if not cameras[sample.pid] - {sample.camid}]


def _judge(report: Report, copies: Mapping[str, list[_Copy]], shown: _Relative) -> None:
    problems, notes = report.problems, report.notes
    if report.bad:
        causes = [f"{path} {trouble}" for path, trouble in report.bad.items()]
        problems.append(f"{len(causes)} images cannot be read: {parse.some(causes, 10)}")
    if report.shared_identities:
        pids = [str(pid) for pid in report.shared_identities]
        problems.append(f"{len(pids)} identities are in training and in test: {parse.some(pids, 10)}")
    for pair, found in copies.items():
        first, second = pair.split("-")
        if first == second:
            contradict = [copy for copy in found if _is_of_several(copy)]
            agree = [copy for copy in found if not _is_of_several(copy)]
            if contradict:
                problems.append(
                    f"{len(contradict)} pictures are in {first} as two persons or more (join the persons, or leave the "
                    f"wrong one's out): {_pictures(contradict, shown)}"
                )
            if agree:
                notes.append(f"{len(agree)} pictures are in {first} more than once: {_pictures(agree, shown)}")
            continue
        harmless = [copy for copy in found if pair == "query-gallery" and _is_dropped(copy)]
        harmful = [copy for copy in found if copy not in harmless]
        if harmless:
            notes.append(
                f"{len(harmless)} pictures are in query and in gallery, where the protocol drops them (same person and "
                f"camera, or junk): {_pictures(harmless, shown)}"
            )
        if harmful:
            problems.append(f"{len(harmful)} pictures are in {first} and in {second}: {_pictures(harmful, shown)}")
    nothing = _nothing_to_score(report)
    if nothing:
        problems.append(nothing)
    elif report.queries_without_match:
        notes.append(
            f"{len(report.queries_without_match)} queries have no gallery image of the person by another camera and "
            f"are left out of the means: {parse.some(report.queries_without_match, 10)}"
        )
    if report.small:
        notes.append(
            f"{len(report.small)} images are under {SMALL[0]}x{SMALL[1]} pixels: {parse.some(report.small, 10)}"
        )


def _nothing_to_score(report: Report) -> str:
    """Why the test has no figure at all, and what to do; "" where it has one."""
    queries = report.counts["query"].images
    cameras = {*report.counts["query"].cameras, *report.counts["gallery"].cameras}
    if not queries:
        return "there are no queries, so nothing can be scored; give two images or more of the persons to test on"
    if len(report.queries_without_match) < queries:
        return ""
    if len(cameras) == 1:
        return (
            f"query and gallery are of one camera alone, camera {cameras.pop()}: only another camera answers a query, "
            "so nothing can be scored; number the cameras if there are several, or add images of a second one"
        )
    return (
        f"none of the {queries} queries has a gallery image of its person by another camera, so nothing can be scored; "
        f"check how persons and cameras are named in query and gallery: {parse.some(report.queries_without_match)}"
    )


class _Copy(NamedTuple):
    """One picture that is in two splits, or in one split twice (`second` is empty then)."""

    first: list[Sample]
    second: list[Sample]


def _copies(lists: Mapping[str, list[Sample]], facts: Mapping[str, ImageFacts]) -> dict[str, list[_Copy]]:
    """ "train-query", "train-train", ... -> the pictures that both hold."""
    pictures: dict[bytes, dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for split, samples in lists.items():
        for sample in samples:
            fact = facts[sample.path]
            if not fact.trouble:
                pictures[fact.digest][split].append(sample)
    found: dict[str, list[_Copy]] = defaultdict(list)
    for holders in pictures.values():
        for split, samples in holders.items():
            if len(samples) > 1:
                found[f"{split}-{split}"].append(_Copy(samples, []))
        for first, second in combinations(holders, 2):
            found[f"{first}-{second}"].append(_Copy(holders[first], holders[second]))
    return dict(found)


def _is_of_several(copy: _Copy) -> bool:
    """The picture is called two persons, or a person and a distractor."""
    return len({sample.pid for sample in copy.first if sample.pid != JUNK}) > 1


def _is_dropped(copy: _Copy) -> bool:
    """The evaluation leaves every gallery copy out of every query copy's ranking."""
    return all(
        gallery.pid == JUNK or (gallery.pid, gallery.camid) == (query.pid, query.camid)
        for query in copy.first
        for gallery in copy.second
    )


def _compare_variants(splits: Splits, facts: Mapping[str, ImageFacts], report: Report, progress: bool) -> None:
    """CUHK03-NP only: what `labeled` and `detected`, side by side, have of each other."""
    mine = splits.name.removeprefix("cuhk03np_")
    other = cuhk03np.OTHER[mine]
    folder = Path(splits.root).parent / other
    if not folder.is_dir() or folder == Path(splits.root):
        return
    try:
        theirs = cuhk03np.read(other, folder)
    except ReidError as error:
        report.notes.append(f"not compared with {other}: {error}")
        return
    tests = (splits.query + splits.gallery, theirs.query + theirs.gallery)
    crossing = (_persons(splits.train) & _persons(tests[1])) | (_persons(theirs.train) & _persons(tests[0]))
    if crossing:
        pids = parse.some([str(pid) for pid in sorted(crossing)], 10)
        line = f"{len(crossing)} identities are in training of {mine} or {other} and in test of the other: {pids}"
        if len(crossing) <= _OFFICIAL_SWAPPED:
            report.notes.append(f"{line}; never train on one and test on the other")
        else:
            report.problems.append(f"{line}; the official splits differ by {_OFFICIAL_SWAPPED}")

    shown = _Relative(str(folder.parent))
    paths = [sample.path for sample in theirs.train + tests[1]]
    their_facts = inspect(paths, progress=progress, title=f"decoding {other}")
    their_train = {sample.path for sample in theirs.train}
    sides: dict[bytes, dict[bool, str]] = defaultdict(dict)  # picture -> is it training there -> a path
    for path, fact in their_facts.items():
        if not fact.trouble:
            sides[fact.digest][path in their_train] = path
    wrong, same, total = [], 0, 0
    for is_train, samples in ((True, splits.train), (False, tests[0])):
        for sample in samples:
            fact = facts[sample.path]
            if fact.trouble:
                continue
            total += 1
            there = sides.get(fact.digest, {})
            same += bool(there)
            if there and is_train not in there and sample.pid not in crossing:
                wrong.append(f"{shown(sample.path)} = {shown(there[not is_train])}")
    if wrong:
        report.problems.append(
            f"{len(wrong)} pictures of {mine} are on the other side of the split of {other}: {parse.some(wrong)}"
        )
    if total and same >= _COPIED * total:
        report.problems.append(
            f"{same} of {total} pictures of {mine} are in {other} too: one folder seems to be a copy of the other"
        )


class _Relative:
    """Paths as a reader wants them: under the root without it, others whole."""

    def __init__(self, root: str) -> None:
        self.root = os.path.join(root, "")

    def __call__(self, path: str) -> str:
        return path.removeprefix(self.root)


def _pictures(copies: list[_Copy], shown: _Relative) -> str:
    return parse.some([" = ".join(shown(sample.path) for sample in (*copy.first, *copy.second)) for copy in copies])


def _persons(samples: list[Sample]) -> set[int]:
    return {sample.pid for sample in samples if sample.pid > 0}


def _summary(values: list[int]) -> tuple[int, float, int]:
    return (min(values), float(median(values)), max(values)) if values else (0, 0.0, 0)


def _spread(summary: tuple[int, float, int]) -> str:
    return f"{summary[0]} to {summary[2]} (median {summary[1]:g})"
