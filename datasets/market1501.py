"""Market-1501 (Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015).

In the gallery pid 0 is a distractor, pid -1 junk. Counts: the data set's own description; the gallery's cameras as
counted in the authors' archive. Beside the three folders may lie images/, 500,000 more distractors, and gt_bbox/,
hand-drawn boxes of the query persons for multi-query evaluation. The terms are a sentence of the archive's readme.txt.
"""

from __future__ import annotations

import re
from pathlib import Path

from datasets import parse
from reid.core.types import Splits

LAYOUT = parse.Layout(
    name="market1501",
    folders=(
        "Market-1501-v15.09.15",
        "market1501",
        "Market-1501",
        "Market1501",
        "market-1501",
        "market1501/Market-1501-v15.09.15",
    ),
    pattern=re.compile(r"(?P<pid>\d{4}|-1)_c(?P<camid>\d)s\d_\d{6}_\d{2}"),
    grammar="PPPP_cCsS_FFFFFF_BB.jpg (person 0001-1501, 0000 a distractor, -1 junk; camera 1-6; .jpg or .png)",
    pids=(-1, 1501),
    cameras=6,
    obtain="Market-1501 is given by its authors: unpack it and name its folder, or the folder above it",
    official={
        "train": parse.Count(12936, 751, parse.per_camera(2017, 1709, 2707, 920, 2338, 3245)),
        "query": parse.Count(3368, 750, parse.per_camera(668, 530, 717, 248, 622, 583)),
        "gallery": parse.Count(
            19732, 750, parse.per_camera(3156, 2944, 3803, 1671, 3814, 4344), distractors=2798, junk=3819
        ),
    },
    terms="This dataset should be used for research only. Please DO NOT distribute or use it for commercial purpose.",
    more={"distractors": "images", "multi_query": "gt_bbox"},
)


def read(root: Path) -> Splits:
    return parse.read(LAYOUT, root)
