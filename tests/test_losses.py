"""Losses against plain loops and PyTorch's own, one head at a time; the learning rate against its closed form."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reid.models.heads import Heads
from reid.training import schedule
from reid.training.losses import (
    CenterLoss,
    ReidLoss,
    batch_hard_triplet,
    circle_losses,
    contrastive_losses,
    distillation_losses,
    softmax_losses,
)
from reid.training.schedule import lr_at, lr_in_steps

LABELS = torch.tensor([3, 3, 1, 1, 0, 0, 3, 1])


def batch(features: int = 3, dim: int = 5, classes: int = 4) -> Heads:
    generator = torch.Generator().manual_seed(0)
    return Heads(
        torch.randn(8, features, dim, generator=generator).requires_grad_(),
        torch.randn(8, features, dim, generator=generator),
        (3 * torch.randn(8, features, classes, generator=generator)).requires_grad_(),
    )


def hardest(x: np.ndarray, labels: np.ndarray) -> list[tuple[int, int, int]]:
    """(anchor, farthest of the same identity, nearest of another) of (B, D) features, by a double loop."""
    triplets = []
    for a in range(len(x)):
        distances = [float(np.sqrt(((x[a] - x[b]) ** 2).sum())) for b in range(len(x))]
        positive = max((b for b in range(len(x)) if labels[b] == labels[a] and b != a), key=lambda b: distances[b])
        negative = min((b for b in range(len(x)) if labels[b] != labels[a]), key=lambda b: distances[b])
        triplets.append((a, positive, negative))
    return triplets


@pytest.mark.parametrize("margin", [0.3, 2.0])
def test_triplet_is_pytorchs_on_the_hardest(margin):
    x = batch().before.detach()
    losses = batch_hard_triplet(x, LABELS, margin)
    for i in range(3):
        a, p, n = (list(column) for column in zip(*hardest(x[:, i].numpy(), LABELS.numpy()), strict=True))
        expected = torch.nn.TripletMarginLoss(margin=margin, eps=0)(x[a, i], x[p, i], x[n, i])
        torch.testing.assert_close(losses[i], expected)


def test_margin_0_is_the_soft_margin():
    x = batch().before.detach()
    losses = batch_hard_triplet(x, LABELS, 0)
    for i in range(3):
        head = x[:, i].double().numpy()
        terms = [
            math.log1p(math.exp(np.linalg.norm(head[a] - head[p]) - np.linalg.norm(head[a] - head[n])))
            for a, p, n in hardest(head, LABELS.numpy())
        ]
        assert losses[i].item() == pytest.approx(np.mean(terms), rel=1e-5)


def test_triplets_gradient_is_pytorchs():
    x = batch().before
    batch_hard_triplet(x, LABELS, 0.3)[1].backward()
    y = x.detach()[:, 1].clone().requires_grad_()
    a, p, n = (list(column) for column in zip(*hardest(y.detach().numpy(), LABELS.numpy()), strict=True))
    torch.nn.TripletMarginLoss(margin=0.3, eps=0)(y[a], y[p], y[n]).backward()
    torch.testing.assert_close(x.grad[:, 1], y.grad, atol=1e-5, rtol=1e-4)
    assert not x.grad[:, [0, 2]].any()


@pytest.mark.parametrize("margin", [0.3, 0])
def test_identical_features_give_a_finite_gradient(margin):
    x = torch.ones(8, 2, 5, requires_grad=True)
    losses = batch_hard_triplet(x, LABELS, margin)
    losses.sum().backward()
    assert x.grad.isfinite().all()
    torch.testing.assert_close(losses.detach(), torch.full((2,), margin or math.log(2)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_is_pytorchs_for_each_head(smoothing):
    logits = batch().logits.detach()
    losses = softmax_losses(logits, LABELS, smoothing)
    for i in range(3):
        expected = F.cross_entropy(logits[:, i], LABELS, label_smoothing=smoothing)
        torch.testing.assert_close(losses[i], expected)
        # and by its definition: (1 - s) on the right class, s / C on each
        x = logits[:, i].double().numpy()
        target = np.eye(4)[LABELS] * (1 - smoothing) + smoothing / 4
        log = x - np.log(np.exp(x).sum(1, keepdims=True))
        assert losses[i].item() == pytest.approx(-(target * log).sum(1).mean(), rel=1e-5)


def loss_of(features: list[int] = [0, 2], **weights: float) -> ReidLoss:  # noqa: B006
    return ReidLoss(features, 4, 5, smoothing=0.1, margin=0.3, **weights)


def test_the_total_is_mean_softmax_and_weighted_mean_triplet():
    heads = batch()
    total, terms = loss_of(triplet=0.7)(heads, LABELS)
    torch.testing.assert_close(terms["softmax"], softmax_losses(heads.logits, LABELS, 0.1))
    torch.testing.assert_close(terms["triplet"], batch_hard_triplet(heads.before[:, [0, 2]], LABELS, 0.3))
    torch.testing.assert_close(total, terms["softmax"].mean() + 0.7 * terms["triplet"].mean())
    total.backward()
    assert not heads.before.grad[:, 1].any(), "parts have no triplet"
    assert heads.before.grad[:, [0, 2]].any()

    without, terms = loss_of()(heads, LABELS)
    torch.testing.assert_close(without, terms["softmax"].mean())
    assert set(terms) == {"softmax"}


def test_every_term_enters_the_total_with_its_weight():
    heads, taught = batch(), batch().before.detach() + 1
    weights = dict(triplet=0.7, circle=0.2, contrast=0.4, center=0.01, distill=3.0)
    total, terms = loss_of(**weights)(heads, LABELS, taught=taught)
    expected = terms["softmax"].mean() + sum(weight * terms[name].mean() for name, weight in weights.items())
    torch.testing.assert_close(total, expected)


def test_half_precision_features_are_compared_in_float32():
    """In bfloat16 itself, features of norm 100 that differ by 1 would be at a distance of 0 or of 10."""
    generator = torch.Generator().manual_seed(0)
    far = (100 + torch.randn(8, 3, 64, generator=generator)).bfloat16()
    logits = torch.randn(8, 3, 4, generator=generator).bfloat16()
    total, losses = loss_of([0], triplet=1.0)(Heads(far, far, logits), LABELS)
    head = far[:, 0].double().numpy()
    terms = [
        max(0, np.linalg.norm(head[a] - head[p]) - np.linalg.norm(head[a] - head[n]) + 0.3)
        for a, p, n in hardest(head, LABELS.numpy())
    ]
    assert total.dtype == torch.float32
    assert losses["triplet"][0].item() == pytest.approx(np.mean(terms), rel=1e-2)


def test_a_model_without_classes_cannot_be_trained():
    with pytest.raises(ValueError, match="without classes cannot be trained"):
        loss_of()(batch()._replace(logits=None), LABELS)


def test_circle_is_the_papers_sum_over_pairs():
    """Equation 6 with the weights of equation 5, by a double loop."""
    x = batch().before.detach()
    losses = circle_losses(x, LABELS, 0.25, 8.0)
    for i in range(3):
        unit = F.normalize(x[:, i].double(), dim=1).numpy()
        terms = []
        for a in range(8):
            positive = negative = 0.0
            for b in range(8):
                s = float(unit[a] @ unit[b])
                if b != a and LABELS[b] == LABELS[a]:
                    positive += math.exp(-8 * max(0, 1.25 - s) * (s - 0.75))
                elif LABELS[b] != LABELS[a]:
                    negative += math.exp(8 * max(0, s + 0.25) * (s - 0.25))
            terms.append(math.log1p(positive * negative))
        assert losses[i].item() == pytest.approx(np.mean(terms), rel=1e-5)


def test_contrast_is_each_positive_against_every_negative():
    x = batch().before.detach()
    losses = contrastive_losses(x, LABELS, 0.2)
    for i in range(3):
        unit = F.normalize(x[:, i].double(), dim=1).numpy()
        terms = []
        for a in range(8):
            negatives = sum(math.exp(unit[a] @ unit[b] / 0.2) for b in range(8) if LABELS[b] != LABELS[a])
            for b in range(8):
                if b != a and LABELS[b] == LABELS[a]:
                    positive = math.exp(unit[a] @ unit[b] / 0.2)
                    terms.append(-math.log(positive / (positive + negatives)))
        assert losses[i].item() == pytest.approx(np.mean(terms), rel=1e-5)


def test_the_triplet_can_compare_unit_features_after_the_neck():
    heads = batch()
    _, terms = loss_of(triplet=1.0, triplet_on="after")(heads, LABELS)
    unit = F.normalize(heads.after[:, [0, 2]], dim=2)
    torch.testing.assert_close(terms["triplet"], batch_hard_triplet(unit, LABELS, 0.3))


def test_center_is_bagoftricks_sum_over_all_pairs():
    """As its authors' code has it: the table of all distances from the batch to the centres, by a double loop, masked
    by the labels, clamped, divided by the batch."""
    loss, x = CenterLoss(4, 3, 5), batch().before.detach()
    assert loss.centers.std() == pytest.approx(1, abs=0.3), "from a normal distribution"
    losses = loss(x, LABELS)
    for i in range(3):
        total = 0.0
        for b in range(8):
            for pid in range(4):
                squared = float(((x[b, i].double() - loss.centers[pid, i].double()) ** 2).sum())
                total += min(max(squared * (int(LABELS[b]) == pid), 1e-12), 1e12)
        assert losses[i].item() == pytest.approx(total / 8, rel=1e-5)
    loss.centers += 1e8
    assert loss(x, LABELS).tolist() == pytest.approx([1e12] * 3)


def test_centres_follow_as_in_bagoftricks():
    """Their update: the gradient of the weighted loss, times 1 / weight, by an SGD of rate 0.5."""
    loss, x = CenterLoss(4, 3, 5), batch().before.detach()
    centers = torch.nn.Parameter(loss.centers.clone())
    optimizer = torch.optim.SGD([centers], lr=0.5)
    (0.0005 * (x - centers[LABELS]).square().sum() / len(LABELS)).backward()
    centers.grad *= 1 / 0.0005
    optimizer.step()
    loss.follow(x, LABELS)
    torch.testing.assert_close(loss.centers, centers.detach())


def test_a_centre_moves_a_sixteenth_of_the_gap_for_4_of_64_images():
    labels, x = torch.arange(16).repeat_interleave(4), torch.ones(64, 1, 2)
    for update, moved in (("bagoftricks", 0.0625), ("wen", 0.4)):
        loss = CenterLoss(16, 1, 2, update)
        loss.centers.zero_()
        loss.follow(x, labels)
        torch.testing.assert_close(loss.centers, torch.full((16, 1, 2), moved))


def test_wens_center_is_half_the_squared_distance_and_centres_follow_his_equation_4():
    loss, x = CenterLoss(4, 3, 5, "wen"), batch().before.detach()
    torch.testing.assert_close(loss(x, LABELS), x.square().sum(2).mean(0) / 2)
    loss.follow(x, LABELS)
    for pid in range(4):
        own = x[pid == LABELS]
        torch.testing.assert_close(loss.centers[pid], 0.5 * own.sum(0) / (1 + len(own)))


def test_a_recipes_center_update_reaches_the_loss():
    heads = batch()
    _, terms = loss_of(center=0.1, center_update="wen")(heads, LABELS)
    torch.testing.assert_close(terms["center"], heads.before[:, [0, 2]].square().sum(2).mean(0) / 2)
    with pytest.raises(ValueError, match="update must be 'bagoftricks' or 'wen', not 'mine'"):
        CenterLoss(4, 3, 5, "mine")


def test_distillation_is_one_minus_the_cosine():
    x, y = batch().before.detach(), batch().after
    losses = distillation_losses(x, y)
    for i in range(3):
        cosines = [
            float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            for a, b in zip(x[:, i].numpy(), y[:, i].numpy(), strict=True)
        ]
        assert losses[i].item() == pytest.approx(1 - np.mean(cosines), rel=1e-5)
    assert not distillation_losses(3 * x, x).abs().gt(1e-6).any()


# ---- the learning rate


def test_the_rate_warms_up_and_falls_as_a_cosine():
    rates = [lr_at(step, steps=1000, warmup=100, start=0.001, peak=0.1) for step in range(1001)]
    assert rates[0] == pytest.approx(0.001)
    assert rates[50] == pytest.approx((0.001 + 0.1) / 2)
    assert rates[100] == pytest.approx(0.1) == max(rates)
    assert rates[550] == pytest.approx(0.05)
    assert rates[1000] == pytest.approx(0, abs=1e-12)
    assert rates[325] == pytest.approx(0.1 * (1 + math.cos(math.pi / 4)) / 2)
    steps = np.diff(rates)
    assert (steps[:100] > 0).all()
    assert (steps[100:] < 0).all()
    assert np.abs(steps).max() < 0.1 / 100, "no jump"


def test_bagoftricks_rates():
    """Of 120 epochs, 10 steps each: up to 3.5e-4 in 10 epochs, a tenth from 40 on, a hundredth from 70 on."""
    rates = [
        lr_in_steps(step, warmup=100, start=3.5e-5, peak=3.5e-4, milestones=[400, 700], gamma=0.1)
        for step in range(1200)
    ]
    assert rates[:100] == pytest.approx(np.linspace(3.5e-5, 3.5e-4, 101)[:100].tolist())
    for first, end, rate in ((100, 400, 3.5e-4), (400, 700, 3.5e-5), (700, 1200, 3.5e-6)):
        assert rates[first:end] == pytest.approx([rate] * (end - first))


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (5, 5), (5, 20)])
def test_a_schedule_shorter_than_its_warm_up_is_finite(steps, warmup):
    rates = [lr_at(step, steps=steps, warmup=warmup, start=0.0, peak=1.0) for step in range(steps + 1)]
    assert all(0 <= rate <= 1 for rate in rates)


def test_the_schedules_example_runs():
    results = doctest.testmod(schedule)
    assert results.attempted > 0
    assert results.failed == 0


def test_of_images_that_no_label_is_of_only_the_teacher_tells():
    heads, taught = batch(), torch.randn(8, 3, 5, generator=torch.Generator().manual_seed(2))
    heads = heads._replace(after=heads.after.requires_grad_())
    weights = {"triplet": 1.0, "center": 0.1, "distill": 7.0}
    loss = loss_of(**weights)
    centers = {name: value.clone() for name, value in loss.state_dict().items()}
    total, terms = loss(heads, LABELS, taught=taught, known=False)
    torch.testing.assert_close(total, 7 * distillation_losses(heads.after, taught).mean())
    assert set(terms) == {"softmax", "triplet", "center", "distill"}
    total.backward()
    assert heads.logits.grad is not None and not heads.logits.grad.any(), "there, for processes that share a batch"
    assert heads.after.grad is not None and heads.after.grad.any()
    assert all(torch.equal(value, centers[name]) for name, value in loss.state_dict().items())
