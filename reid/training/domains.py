"""Several data sets in one training: their people and cameras told apart.

samples, domains = join({"market1501": market.train, "cuhk03np_detected": cuhk.train})
train(samples, config, output, domains=domains)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from reid.core.types import ReidError, Sample


def join(sets: Mapping[str, Sequence[Sample]]) -> tuple[list[Sample], list[str]]:
    """All samples, one set after the other, and of each the name of its set.

    People and cameras are numbered anew, from 1 on, in the order of their own numbers, so that no two sets share one.
    One set alone stays as it is. Raises ReidError for an image that is in two sets, which would be two people.
    """
    if len(sets) == 1:
        ((name, samples),) = sets.items()
        return list(samples), [name] * len(samples)
    joined: list[Sample] = []
    domains: list[str] = []
    where: dict[str, str] = {}
    people = cameras = 0
    for name, samples in sets.items():
        pids, pid_rows = np.unique([sample.pid for sample in samples], return_inverse=True)
        camids, camid_rows = np.unique([sample.camid for sample in samples], return_inverse=True)
        for sample, pid, camid in zip(samples, pid_rows.tolist(), camid_rows.tolist(), strict=True):
            if where.setdefault(sample.path, name) != name:
                raise ReidError(
                    f"{sample.path} is in {where[sample.path]} and in {name}: give data sets that share no "
                    "image, or one of the two"
                )
            joined.append(Sample(sample.path, people + pid + 1, cameras + camid + 1))
        domains += [name] * len(samples)
        people, cameras = people + len(pids), cameras + len(camids)
    return joined, domains


def describe(name: str, pids: np.ndarray, camids: np.ndarray, domains: np.ndarray) -> dict[str, Any]:
    """What a model's card says of the N images it was trained on: counts of all, and of several data sets of each.

    name: of all together. pids, camids, domains: (N,) person, camera and data set of each image.
    """

    def counts(rows: np.ndarray) -> dict[str, int]:
        values = {"identities": pids, "cameras": camids}
        return {"images": len(rows), **{what: len(np.unique(x[rows])) for what, x in values.items()}}

    whole: dict[str, Any] = {"name": name, **counts(np.arange(len(pids)))}
    names = dict.fromkeys(domains.tolist())  # in the order that they were given in
    if len(names) > 1:
        whole["sets"] = [{"name": one, **counts(np.flatnonzero(domains == one))} for one in names]
    return whole


def join_terms(terms: Mapping[str, str], cards: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """On which terms a model may be used, by data set: those of its own data and of the models it is made from."""
    joined = dict(terms)
    for card in cards:
        joined |= card.get("data", {}).get("terms", {})
    return joined
