"""DukeMTMC-reID (Zheng et al., ICCV 2017; Ristani et al., ECCV Workshops 2016). Withdrawn: see `WITHDRAWN`.

Its 408 distractor identities of the gallery have pids of their own; 0 and -1 mean nothing here and do not fit.
"""

from __future__ import annotations

import re
from pathlib import Path

from datasets import parse
from reid.core.types import Splits

TERMS = "DukeMTMC-reID was withdrawn by its authors in 2019 over consent"
WITHDRAWN = f"{TERMS}; this reader is only for those who hold it lawfully"

LAYOUT = parse.Layout(
    name="dukemtmc",
    folders=("DukeMTMC-reID", "dukemtmc-reid", "dukemtmc", "dukemtmc-reid/DukeMTMC-reID"),
    pattern=re.compile(r"(?P<pid>\d{4})_c(?P<camid>\d)_f\d{7}"),
    grammar="PPPP_cC_fFFFFFFF.jpg (person 0001-9999, camera 1-8; .jpg or .png)",
    pids=(1, 9999),
    cameras=8,
    obtain=WITHDRAWN,
    official={
        "train": parse.Count(16522, 702),
        "query": parse.Count(2228, 702),
        "gallery": parse.Count(17661, 1110),
    },
    notice=WITHDRAWN,
    terms=TERMS,
)


def read(root: Path) -> Splits:
    return parse.read(LAYOUT, root)
