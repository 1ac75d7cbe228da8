"""Every backbone of the table under the head, each against the network that it was cut from."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
import torchvision.models as tv
from safetensors.torch import save_file
from torch import Tensor, nn

import scgnet
from reid.core.types import ReidError
from reid.models import backbones, heads
from reid.models.backbones import BACKBONES, BackboneFactory
from reid.models.card import make_card
from reid.models.efficientnet_lite import EfficientNetLite0
from reid.models.heads import HEADS
from reid.models.model import ReidModel, multiply_adds
from reid.models.pretrained import read_pretrained
from reid.models.torchreid import osnet
from reid.training.config import as_dict
from tests.conftest import settle


def originals(name: str) -> tuple[nn.Module, nn.Module]:
    """The network as its own package builds it, and the part of it that gives its last map."""
    if name.startswith("scgnet"):
        left_out = {
            "scgnet_s_unshifted": {"shift": "none"},
            "scgnet_s_uncascaded": {"cascade": False},
            "scgnet_s_plain": {"shift": "none", "cascade": False},
        }.get(name, {})
        net = getattr(scgnet, name[: len("scgnet_s")])(num_classes=0, **left_out)
        return net, nn.Sequential(net.stem, net.stage5, net.stage6, net.stage7, net.conv8)
    if name.startswith("osnet"):
        net = osnet(name)
        return net, nn.Sequential(net.conv1, net.maxpool, net.conv2, net.conv3, net.conv4, net.conv5)
    if name == "efficientnet_lite0":
        net = EfficientNetLite0()
        return net, nn.Sequential(net.stem, net.blocks, net.last)
    net = getattr(tv, name)(weights=None)
    if name == "mobilenet_v2":
        return net, net.features
    ends = {"shufflenet_v2_x1_5": "conv5", "resnet50": "layer4"}
    children = dict(net.named_children())
    names = list(children)
    return net, nn.Sequential(*(children[n] for n in names[: names.index(ends[name]) + 1]))


@pytest.mark.parametrize("name", BACKBONES)
def test_trunk_and_tail_are_the_original_network(name):
    torch.manual_seed(0)
    whole, trunk, tail = BACKBONES[name].split(2)
    settle(whole.eval())
    original, features = originals(name)
    original.load_state_dict(whole.state_dict(), strict=False)  # it has its classifier, too
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = features.eval()(x)
        assert expected.std() > 0
        torch.testing.assert_close(tail(trunk(x)), expected)


@pytest.mark.parametrize("name", BACKBONES)
def test_last_stride_1_doubles_the_map(name):
    """But OSNet's, which is that high by itself."""
    backbone = BACKBONES[name]
    x = torch.randn(1, 3, 192, 64)
    with torch.inference_mode():
        maps = [tail(trunk(x)) for _, trunk, tail in (backbone.split(2), backbone.split(1))]
    low = (12, 4) if name.startswith("osnet") else (6, 2)
    assert [tuple(x.shape[1:]) for x in maps] == [(backbone.channels, *low), (backbone.channels, 12, 4)]
    assert 192 // backbone.stride == low[0]


def test_a_cut_scgnet_is_the_one_built_with_that_stride():
    whole, trunk, tail = BACKBONES["scgnet_s"].split(1)
    settle(whole.eval())
    original = scgnet.scgnet_s(num_classes=0, last_stride=1).eval()
    original.load_state_dict(whole.state_dict())
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(tail(trunk(x)), original.stages(x).conv8)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_whole_network_classifies_in_both_modes_and_its_tensors_start_the_cut_one(tmp_path, name):
    torch.manual_seed(0)
    net = BACKBONES[name].build(7)
    settle(net)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert net.train()(x).shape == net.eval()(x).shape == (2, 7)
        assert net(x).std() > 0
    save_file(net.state_dict(), tmp_path / "whole.safetensors")
    weights, told = read_pretrained(name, tmp_path / "whole.safetensors")
    assert "matched by name" in told
    whole, _, _ = BACKBONES[name].split(2)
    whole.load_state_dict(weights)
    given = net.state_dict()
    wrong = [key for key, value in whole.state_dict().items() if not torch.equal(value, given[key])]
    assert all(key.endswith("num_batches_tracked") for key in wrong)  # which nothing uses
    left_out = given.keys() - whole.state_dict().keys()
    assert left_out and all(key.partition(".")[0] in ("classifier", "fc") for key in left_out)


@pytest.mark.parametrize("head_name", HEADS)
@pytest.mark.parametrize("name", BACKBONES)
def test_every_head_fits_every_backbone(name, head_name):
    """The contract of `heads.Head`: shapes, what the names say, and maps that the readout turns into the embedding."""
    source = BackboneFactory(name)
    head = heads.make(head_name, source, 10, {"dim": 16})
    settle(head.eval())
    x = torch.randn(2, 3, 64, 32)
    count = len(head.names)
    with torch.inference_mode():
        out, (before, after) = head(x), head.features(x)
        maps = [branch(head.trunk(x)) for branch in head.branches]
        read = head.readout([y.shape[2] for y in maps])(maps)
    assert out.before.shape == out.after.shape == (2, count, head.dim)
    assert out.logits.shape == (2, count, 10)
    assert all(tensor.isfinite().all() and tensor.std() > 0 for tensor in out)
    assert torch.equal(before, out.before) and torch.equal(after, out.after)
    assert {y.shape[1] for y in maps} == {source.backbone.channels}
    assert max(y.shape[2] for y in maps) >= head.rows
    scale = after.abs().max().item()
    torch.testing.assert_close(read, after.flatten(1), atol=1e-4 * scale, rtol=1e-4)
    assert head.global_features and set(head.global_features) <= set(range(count))
    bare = heads.make(head_name, BackboneFactory(name), 0, {"dim": 16}).eval()
    bare.start_from(head)
    state = head.state_dict()
    assert {key for key in state if key not in bare.state_dict()} == {key for key in state if heads.is_classifier(key)}
    with torch.inference_mode():
        assert bare(x).logits is None
        assert torch.equal(bare.features(x)[1], after)


@pytest.mark.parametrize("head_name", HEADS)
@pytest.mark.parametrize("name", BACKBONES)
def test_gradients_reach_every_parameter(name, head_name):
    """In one of a few initialisations: the gates of OSNet x0.25 have a single hidden ReLU, which may be born dead."""
    dead = {"all"}
    for seed in range(8):
        torch.manual_seed(seed)
        head = heads.make(head_name, BackboneFactory(name), 2, {"branches": [[2, 1]], "dim": 4})
        out = head(torch.randn(4, 3, 64, 64))
        (out.logits.square().sum() + out.before.square().sum()).backward()
        still = {n for n, p in head.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
        dead = still if seed == 0 else dead & still
        if not dead:
            return
    assert not dead


def test_bagoftricks_feature_is_the_mean_of_a_map_twice_as_high():
    source = BackboneFactory("scgnet_s")
    head = heads.make("bagoftricks", source, 3, {"pool": "avg", "last_stride": 1})
    settle(head.eval())
    x = torch.randn(2, 3, 256, 128)
    with torch.inference_mode():
        (feature_map,) = (branch(head.trunk(x)) for branch in head.branches)
        out = head(x)
        mean = feature_map.double().mean((2, 3))
        norm = head.neck
        after = (mean - norm.running_mean) / (norm.running_var + norm.eps).double().sqrt() * norm.weight
        logits = out.after[:, 0] @ head.classifier.weight.T
    assert feature_map.shape == (2, 1024, 16, 8)
    assert not norm.bias.any() and not norm.bias.requires_grad
    torch.testing.assert_close(out.before[:, 0].double(), mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out.after[:, 0].double(), after, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out.logits[:, 0], logits)


def test_an_unknown_head_lists_the_valid_ones():
    with pytest.raises(ReidError, match="unknown head 'legs'; choose one of mgn, bagoftricks"):
        heads.get("legs")


def test_a_head_of_ones_own_is_a_file_and_a_line(monkeypatch, tiny):
    """Here a module that is there already, under another name, and with none of MGN's options but one."""
    monkeypatch.setitem(heads.HEADS, "mine", heads.Entry("mgn", "MGN", ("branches",)))
    model = ReidModel(make_card(as_dict(tiny(head="mine", dim=256)), 3))
    assert model.card["architecture"] == {"backbone": "scgnet_s", "head": "mine", "branches": [[1, 2], [2, 1]]}
    assert model.dimension == 4 * 256


@pytest.mark.parametrize(
    ("name", "million_adds", "million_parameters"),
    [
        ("scgnet_s", 287.8, 3.80),
        ("scgnet_m", 774.9, 6.53),
        ("scgnet_l", 2037.3, 13.79),
        ("mobilenet_v2", 1110, None),
        ("resnet50", 11880, None),
    ],
)
def test_size_at_384x128(tiny, name, million_adds, million_parameters):
    config = tiny(backbone=name, branches=[[1, 2], [2, 1], [3, 1]], dim=256, height=384, width=128)
    model = ReidModel(make_card(as_dict(config), 0))
    count = multiply_adds(model)
    assert count / 1e6 == pytest.approx(million_adds, rel=5e-3 if million_adds > 1e3 else 5e-4)
    if million_parameters:
        assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == million_parameters


def test_an_unknown_backbone_lists_the_valid_ones():
    with pytest.raises(ReidError, match="unknown backbone 'vgg'; choose one of scgnet_s, .*osnet_x0_25"):
        backbones.get("vgg")


# ---- pre-trained weights, of the smallest network


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(1)
    net = scgnet.scgnet_s(num_classes=3)
    settle(net)
    return net.state_dict()


def backbone_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if not k.startswith("classifier")}


def assert_read(path: Path, state: dict[str, Tensor], how: str) -> None:
    weights, line = read_pretrained("scgnet_s", path)
    wanted = backbone_of(state)
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[key], value) for key, value in wanted.items())
    count = len([key for key in wanted if not key.endswith("num_batches_tracked")])
    assert line == f"{path}: {count} of {count} tensors of scgnet_s matched {how}, 4 others left out"


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_match_by_name(tmp_path, state, wrap, prefix):
    path = tmp_path / "weights.pth"
    torch.save(wrap({prefix + key: value for key, value in state.items()}), path)
    assert_read(path, state, "by name")


def test_weights_match_by_name_in_safetensors(tmp_path, state):
    save_file(state, tmp_path / "weights.safetensors")
    assert_read(tmp_path / "weights.safetensors", state, "by name")


def test_weights_match_by_order_under_other_names(tmp_path, state):
    path = tmp_path / "weights.pth"
    torch.save({f"layer_{i}.{key.rpartition('.')[2]}": value for i, (key, value) in enumerate(state.items())}, path)
    assert_read(path, state, "by order")


def test_an_order_that_shapes_cannot_tell_apart_is_refused(tmp_path, state):
    """Batch norm's four vectors have one shape: sorted by name they would go, silently, into each other's place."""
    names = [key for key in state if not key.endswith("num_batches_tracked")]
    order = []
    while names:
        layer = names[0].rpartition(".")[0]
        same = sorted(name for name in names if name.rpartition(".")[0] == layer)
        order += same
        names = [name for name in names if name not in same]
    renamed = {f"x{i:04}.{key.rpartition('.')[2]}": state[key] for i, key in enumerate(order)}
    torch.save(renamed, tmp_path / "sorted.pth")
    with pytest.raises(ReidError, match=r"x0001\.bias stands where stem\.0\.1\.weight belongs"):
        read_pretrained("scgnet_s", tmp_path / "sorted.pth")


def test_every_branch_starts_from_the_same_weights(tmp_path, state):
    torch.save(state, tmp_path / "weights.pth")
    source = BackboneFactory("scgnet_s", read_pretrained("scgnet_s", tmp_path / "weights.pth")[0])
    trunk, (first, second) = source.trunk().state_dict(), [source.make_branch(s).state_dict() for s in (1, 2)]
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert torch.equal(trunk["0.0.0.weight"], state["stem.0.0.weight"])
    conv8 = next(key for key in reversed(first) if first[key].dim() == 4)
    assert torch.equal(first[conv8], state["conv8.0.weight"])
    assert first[conv8].data_ptr() != second[conv8].data_ptr()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s | {"conv8.0.weight": torch.zeros(1024, 2, 1, 1)},
            r"1 of 160 tensors .*shape, first conv8.0.weight: expected \(1024, 256, 1, 1\), came \(1024, 2, 1, 1\)",
        ),
        (lambda s: {k: v for k, v in s.items() if k != "conv8.0.weight"}, "159 of 160 .* conv8.0.weight is not"),
        (lambda s: {"a": torch.zeros(3)}, "0 of 160 tensors are there by name.* has 1 tensors"),
        (lambda s: {"epoch": 3}, "holds no weights"),
        (lambda s: [1, 2], "holds no weights"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, state, change, message):
    torch.save(change(dict(state)), tmp_path / "weights.pth")
    with pytest.raises(ReidError, match=message):
        read_pretrained("scgnet_s", tmp_path / "weights.pth")


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [lambda value, path: path.write_bytes(pickle.dumps(value)), torch.save])
def test_a_pickle_is_not_run(tmp_path, write):
    write({"a": Evil(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(ReidError, match="nothing else is unpickled") as caught:
        read_pretrained("scgnet_s", tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_missing_or_broken_file_is_named(tmp_path, name):
    with pytest.raises(ReidError, match=f"no weights at .*{name}"):
        read_pretrained("scgnet_s", tmp_path / name)
    (tmp_path / name).write_bytes(b"not weights")
    with pytest.raises(ReidError, match=f"{name} is neither safetensors nor"):
        read_pretrained("scgnet_s", tmp_path / name)
