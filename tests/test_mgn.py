"""The head, over a backbone of two convolutions: every feature against a pooling by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mgn
from tests.conftest import settle

NAMES = ["b1-global", "b2-global", "b2-part1", "b2-part2", "b3-global", "b3-part1", "b3-part2", "b3-part3"]
CHANNELS = 6


def make_branch(last_stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, CHANNELS, 3, last_stride, padding=1), nn.ReLU())


def make_head(num_classes: int = 5, **options) -> mgn.MGN:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(3, 4, 17, 16, padding=8), nn.ReLU())
    return mgn.MGN(trunk, make_branch, CHANNELS, num_classes, dim=7, **options)


def stripes(x: Tensor, parts: int) -> list[Tensor]:
    height = x.shape[2]
    return [x[:, :, math.floor(i * height / parts) : math.ceil((i + 1) * height / parts)] for i in range(parts)]


def pool(x: Tensor, kind: str, power: float) -> Tensor:
    if kind == "max":
        return x.amax((2, 3))
    if kind == "avg":
        return x.mean((2, 3))
    return x.clamp(min=1e-6).pow(power).mean((2, 3)).pow(1 / power)


@pytest.mark.parametrize("kind", ["max", "avg", "gem"])
@pytest.mark.parametrize("size", [(384, 128), (192, 64), (256, 128), (100, 60)])
def test_each_feature_is_its_stripe_times_its_own_reduction(kind, size):
    head = make_head(pool=kind).eval()
    settle(head)
    powers = [2.0, 3.5, 5.0]
    if kind == "gem":
        head.power.data = torch.tensor(powers)
    images = torch.randn(2, 3, *size)
    shared = head.trunk(images)
    expected = []
    for branch, parts, power in zip(head.branches, (1, 2, 3), powers, strict=True):
        feature_map = branch(shared)
        cuts = stripes(feature_map, 1) + (stripes(feature_map, parts) if parts > 1 else [])
        expected += [pool(cut, kind, power) for cut in cuts]
    before = head(images).before
    assert head.names == NAMES
    assert before.shape == (2, 8, 7)
    for i, name in enumerate(head.names):
        torch.testing.assert_close(before[:, i], expected[i] @ head.reduction[i].T, atol=1e-4, rtol=1e-4, msg=name)


def test_branches_keep_the_strides_of_the_table():
    head = make_head()
    shared = head.trunk(torch.randn(1, 3, 384, 128))
    assert [tuple(branch(shared).shape[2:]) for branch in head.branches] == [(12, 4), (24, 8), (24, 8)]


def test_neck_and_logits_follow_from_before():
    head = make_head().train()
    nn.init.uniform_(head.neck.weight, 0.5, 1.5)
    heads = head(torch.randn(6, 3, 64, 32))
    centred = heads.before - heads.before.mean(0)
    scaled = centred / (centred.square().mean(0) + head.neck.eps).sqrt() * head.neck.weight.view(8, 7)
    torch.testing.assert_close(heads.after, scaled, atol=1e-4, rtol=1e-4)
    for i in range(8):
        torch.testing.assert_close(heads.logits[:, i], heads.after[:, i] @ head.classifier[i].T)


def test_neck_has_no_learnt_bias():
    head = make_head()
    optimizer = torch.optim.SGD(head.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
    weight = head.neck.weight.detach().clone()
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(head(torch.randn(6, 3, 64, 32)).logits[:, 0], torch.arange(6) % 5).backward()
        optimizer.step()
    assert not head.neck.bias.any()
    assert not torch.equal(head.neck.weight, weight)


def test_relu_neck_is_one_feature_for_every_use():
    head = make_head(neck="relu").eval()
    settle(head)
    images = torch.randn(2, 3, 64, 32)
    reduced = torch.einsum("bfc,fdc->bfd", head.pooled(images), head.reduction)
    heads = head(images)
    torch.testing.assert_close(heads.before, F.relu(head.neck(reduced.flatten(1))).view(2, 8, 7))
    assert torch.equal(heads.before, heads.after)
    assert head.neck.bias.requires_grad


@pytest.mark.parametrize("size", [(16, 16), (32, 64)])
def test_an_input_too_small_for_the_parts_is_refused(size):
    with pytest.raises(ValueError, match=r"a map of \d rows cannot be cut into \d parts"):
        make_head().eval().embed(torch.randn(1, 3, *size))


def test_heads_share_no_parameters():
    """Each head's logits reach its own branch, reduction and classifier and no other's."""
    head = make_head().eval()
    branch_of = [0, 1, 1, 1, 2, 2, 2, 2]
    for i in range(8):
        head.zero_grad()
        head(torch.randn(3, 3, 96, 32)).logits[:, i].square().sum().backward()
        for stacked in (head.reduction, head.classifier):
            assert [bool(grad.any()) for grad in stacked.grad] == [j == i for j in range(8)]
        touched = [branch[0].weight.grad is not None and bool(branch[0].weight.grad.any()) for branch in head.branches]
        assert touched == [j == branch_of[i] for j in range(3)]
        assert head.trunk[0].weight.grad.any()


def test_gradients_reach_every_parameter():
    head = make_head(pool="gem").train()
    heads = head(torch.randn(6, 3, 96, 32))
    (heads.logits.square().mean() + heads.before.square().mean()).backward()
    assert {n for n, p in head.named_parameters() if p.grad is None or not p.grad.any()} == {"neck.bias"}


def test_without_classes_it_embeds_the_same():
    whole, bare = make_head(5).eval(), make_head(0).eval()
    missing = bare.load_state_dict({k: v for k, v in whole.state_dict().items() if k != "classifier"})
    assert not missing.missing_keys
    images = torch.randn(2, 3, 96, 32)
    assert bare(images).logits is None
    assert torch.equal(bare.embed(images), whole.embed(images))
    assert torch.equal(whole.embed(images), whole(images).after.flatten(1))


@pytest.mark.parametrize(
    ("table", "names", "whole"),
    [
        ([mgn.Branch(1, 2)], ["b1-global"], [0]),
        ([mgn.Branch(2, 1), mgn.Branch(1, 1)], ["b2-global", "b2-part1", "b2-part2", "b1-global"], [0, 3]),
        (mgn.BRANCHES, NAMES, [0, 1, 4]),
    ],
)
def test_the_table_decides_the_features(table, names, whole):
    head = make_head(branches=table).eval()
    assert head.names == names
    assert head.global_features == whole
    assert head(torch.randn(1, 3, 96, 32)).logits.shape == (1, len(names), 5)


def test_under_autocast_features_and_logits_stay_float32():
    head = make_head().eval()
    images = torch.randn(2, 3, 96, 32)
    with torch.autocast("cpu", torch.bfloat16):
        low = head(images)
    assert {tensor.dtype for tensor in low} == {torch.float32}
    full = head(images)
    torch.testing.assert_close(low.before, full.before, atol=0.05 * full.before.abs().max().item(), rtol=0)
    torch.testing.assert_close(
        low.logits, torch.einsum("bfd,fnd->bfn", low.after, head.classifier), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("options", [{"pool": "median"}, {"neck": "none"}, {"global_softmax": "half"}])
def test_unknown_options_are_refused(options):
    with pytest.raises(ValueError, match="must be"):
        make_head(**options)


@pytest.mark.parametrize("pool", ["max", "gem"])
def test_a_head_starts_from_another_with_more_branches(pool):
    whole = make_head(pool=pool)
    settle(whole)
    if whole.power is not None:
        nn.init.uniform_(whole.power, 2.0, 4.0)
    fewer = make_head(pool=pool, branches=[mgn.BRANCHES[2], mgn.BRANCHES[0]])
    settle(fewer)
    fewer.start_from(whole)
    whole, fewer = whole.eval(), fewer.eval()
    x = torch.randn(2, 3, 384, 128)
    rows = [NAMES.index(name) for name in fewer.names]
    assert fewer.names == [*NAMES[4:], NAMES[0]]
    for mine, theirs in zip(fewer.features(x), whole.features(x), strict=True):
        torch.testing.assert_close(mine, theirs[:, rows])


def test_unreduced_the_global_features_are_classified_before_the_reduction():
    """Each feature's logits by hand: of a whole map from the pooled channels, of a stripe from its reduced values."""
    head = make_head(neck="relu", global_softmax="unreduced").eval()
    settle(head)
    images = torch.randn(2, 3, 96, 32)
    heads, pooled = head(images), head.pooled(images)
    assert heads.logits.shape == (2, 8, 5)
    whole, stripe = list(head.classifier_unreduced), list(head.classifier)
    assert (len(whole), len(stripe)) == (3, 5)
    for i, name in enumerate(head.names):
        expected = pooled[:, i] @ whole.pop(0).T if name.endswith("global") else heads.after[:, i] @ stripe.pop(0).T
        torch.testing.assert_close(heads.logits[:, i], expected, msg=name)
    heads = head.train()(torch.randn(6, 3, 96, 32))
    (heads.logits.square().mean() + heads.before[:, head.global_features].square().mean()).backward()
    assert all(p.grad is not None and p.grad.any() for p in head.parameters())


def test_unreduced_a_head_of_whole_maps_alone_has_logits():
    head = make_head(neck="relu", global_softmax="unreduced", branches=[mgn.Branch(1, 2)]).eval()
    images = torch.randn(2, 3, 96, 32)
    torch.testing.assert_close(head(images).logits[:, 0], head.pooled(images)[:, 0] @ head.classifier_unreduced[0].T)


@pytest.mark.parametrize("options", [{}, {"pool": "avg"}, {"pool": "gem"}, {"neck": "relu"}])
def test_the_readout_of_its_maps_is_its_embedding(options):
    head = make_head(**options).eval()
    settle(head)
    images = torch.randn(2, 3, 112, 48)
    with torch.inference_mode():
        maps = [branch(head.trunk(images)) for branch in head.branches]
        found = head.readout([x.shape[2] for x in maps])(maps)
        torch.testing.assert_close(found, head.embed(images), atol=1e-4, rtol=1e-4)
