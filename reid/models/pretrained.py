"""Weights of other programs for a backbone."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from reid.core.types import ReidError
from reid.models.backbones import get
from reid.models.foreign.tensors import read_tensors


def read_pretrained(name: str, path: str | Path) -> tuple[dict[str, Tensor], str]:
    """Weights of the whole backbone `name` from a file, and a line that says what matched.

    The file is safetensors, or a state dict that torch.load(weights_only=True) takes (also under "state_dict" or
    "model"); a leading "module." is dropped. Classifier weights in it are left out. Every tensor of the backbone must
    be there with its shape, under its own name or, where the names are another library's, in the same order with the
    same last part ("weight", "running_mean"); otherwise ReidError says what does not fit.
    """
    path = Path(path)
    given = read_tensors(path)
    net, _, _ = get(name).split(2)
    wanted = {key: value for key, value in net.state_dict().items() if not key.endswith("num_batches_tracked")}
    given = {key: value for key, value in given.items() if not key.endswith("num_batches_tracked")}
    absent = [key for key in wanted if key not in given]
    if not absent:
        found, how = {key: given[key] for key in wanted}, "by name"
    elif len(given) < len(wanted) or 2 * len(absent) < len(wanted):
        raise ReidError(
            f"{path} does not fit {name}: {len(wanted) - len(absent)} of {len(wanted)} tensors are there by name, "
            f"{absent[0]} is not; the file has {len(given)} tensors"
        )
    else:  # the same network under other names: its tensors come in the same order
        found, how = dict(zip(wanted, given.values(), strict=False)), "by order"
        other = [(key, name) for key, name in zip(wanted, given, strict=False) if _leaf(key) != _leaf(name)]
        if other:  # shapes alone do not tell a batch norm's weight from its bias; safetensors sorts by name, too
            raise ReidError(
                f"{path} does not fit {name}: under other names its tensors must come in the network's order, but "
                f"{other[0][1]} stands where {other[0][0]} belongs (safetensors files are sorted by name: give a .pth)"
            )
    wrong = [key for key in wanted if found[key].shape != wanted[key].shape]
    if wrong:
        key = wrong[0]
        raise ReidError(
            f"{path} does not fit {name}: {len(wrong)} of {len(wanted)} tensors (matched {how}) have another shape, "
            f"first {key}: expected {tuple(wanted[key].shape)}, came {tuple(found[key].shape)}"
        )
    weights = net.state_dict()
    weights.update({key: value.to(wanted[key].dtype) for key, value in found.items()})
    left = len(given) - len(found)
    return weights, f"{path}: {len(found)} of {len(wanted)} tensors of {name} matched {how}, {left} others left out"


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]
