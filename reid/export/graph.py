"""The network as it is exported: pixels in, unit-length embedding out, in operators that small devices take.

    graph = Deployed(load_model("model.safetensors"), flip=False)
    graph(pixels)      # RGB uint8 (B, H, W, 3), as decoded and resized -> (B, D) float32 of unit length

The same values as the model's to rounding. What differs: batch norms are folded into the convolutions before them, and
what follows the branches is the head's `readout` for the model's input size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from reid.models.model import ReidModel


class Deployed(nn.Module):
    """flip: the features of the image and of its mirror image are summed, as `Embedder` does by default.

    half: the network computes in float16; the normalisation of pixels and of the embedding stay in float32.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: ReidModel, *, flip: bool = False, half: bool = False) -> None:
        super().__init__()
        model = copy.deepcopy(model).cpu().eval()
        head = model.head
        self.flip, self.input_size, self.dimension = flip, model.input_size, model.dimension
        self.trunk, self.branches = head.trunk, head.branches
        self.register_buffer("scale", 1 / (255 * model.std))
        self.register_buffer("shift", -model.mean / model.std)
        blank = torch.zeros(1, 3, *model.input_size)
        fold_batch_norms(self, self.maps, blank)
        with torch.no_grad():
            rows = [x.shape[2] if x.dim() == 4 else 1 for x in self.maps(blank)]
        self.readout = head.readout(rows)
        self.projection = _linear(model.projection.T) if model.projection is not None else nn.Identity()
        self.network = nn.ModuleList([self.trunk, self.branches, self.readout, self.projection])
        self.dtype = torch.float16 if half else torch.float32
        self.network.to(self.dtype)
        self.eval().requires_grad_(False)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Normalised (B, 3, H, W) -> each branch's map (B, C, h, w)."""
        shared = self.trunk(images)
        return [branch(shared) for branch in self.branches]

    def embed(self, images: Tensor) -> Tensor:
        """Normalised (B, 3, H, W) -> (B, D), not of unit length."""
        vectors: Tensor = self.projection(self.readout(self.maps(images)))
        return vectors

    def forward(self, pixels: Tensor) -> Tensor:
        images = pixels.permute(0, 3, 1, 2)
        if self.flip:
            images = torch.cat((images, images.flip(3)))
        images = images.float() * self.scale + self.shift
        vectors = self.embed(images.to(self.dtype)).float()
        if self.flip:
            vectors = vectors.view(2, -1, self.dimension).sum(0)
        return vectors / vectors.square().sum(1, keepdim=True).sqrt().clamp(min=1e-12)


def _linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight.contiguous())
    return layer


@torch.no_grad()
def fold_batch_norms(module: nn.Module, run: Callable[[Tensor], object], example: Tensor) -> None:
    """Folds every batch norm that follows a convolution, and nothing else does, into it; in place.

    Which follows which is seen by running `run(example)`, so that it holds for any network.
    """
    made: dict[int, tuple[str, nn.Module, Tensor]] = {}  # by the tensor's identity; held, so that none is reused
    pairs: list[tuple[str, str]] = []
    names = {m: name for name, m in module.named_modules()}

    def seen(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            made[id(output)] = (names[layer], layer, output)
        elif id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])][0], names[layer]))

    layers = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    hooks = [layer.register_forward_hook(seen) for layer in layers]
    run(example)
    for hook in hooks:
        hook.remove()
    for conv, norm in pairs:
        pair = module.get_submodule(conv), module.get_submodule(norm)
        fused = fuse_conv_bn_eval(*pair)  # type: ignore[type-var,arg-type]
        _replace(module, conv, fused)
        _replace(module, norm, nn.Identity())


def _replace(module: nn.Module, name: str, by: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, by)
