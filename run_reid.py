#!/usr/bin/env python3
"""Person re-identification: train, evaluate, compare, calibrate, index, search, cluster.

    python run_reid.py                                    the main job on people that the program draws itself
    python run_reid.py --dataset market1501 --data-root DIR
    python run_reid.py COMMAND --help                     every command: reid/cli/

The command line is `reid.cli`; this program hands it the benchmarks of `datasets`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import datasets
from reid import cli


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; its exit code: 0 done, 1 problems found in the data, 2 a user's mistake, 130 interrupted."""
    return cli.main(arguments, readers=datasets)


if __name__ == "__main__":
    sys.exit(main())
