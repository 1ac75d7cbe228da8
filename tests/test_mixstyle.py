"""MixStyle on feature maps, against plain numpy; in training alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from reid.core.types import ReidError, Sample
from reid.models.model import load_model
from reid.training import mixstyle
from reid.training.mixstyle import MixStyle, draw, mixed
from reid.training.train import Interrupted, train


def maps(count: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    scale = torch.arange(1.0, count * 3 + 1).view(count, 3, 1, 1)
    return scale * torch.randn(count, 3, 8, 4, generator=generator) + 2 * scale


def test_each_channel_takes_the_mixed_mean_and_deviation_and_keeps_its_form():
    x, others, shares = maps(), torch.tensor([3, 4, 5, 0, 1, 2]), torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0, 0.1])
    found = mixed(x, others, shares).numpy()
    for i, image in enumerate(x.numpy()):
        for c, channel in enumerate(image):
            other, share = x[others[i], c].numpy(), float(shares[i])
            mean = share * channel.mean() + (1 - share) * other.mean()
            deviation = share * channel.std() + (1 - share) * other.std()
            expected = (channel - channel.mean()) / channel.std() * deviation + mean
            np.testing.assert_allclose(found[i, c], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mixed(x, others, torch.ones(6)), x)


def test_the_statistics_have_no_gradient():
    """So the gradient of each value is that of a channel scaled by the quotient of deviations."""
    x, others, shares = maps().requires_grad_(), torch.tensor([3, 4, 5, 0, 1, 2]), torch.full((6,), 0.3)
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    (mixed(x, others, shares) * weights).sum().backward()
    deviation = x.detach().std((2, 3), correction=0, keepdim=True)
    expected = weights * (0.3 + 0.7 * deviation[others] / deviation)
    torch.testing.assert_close(x.grad, expected, rtol=1e-4, atol=1e-5)


def test_reduced_precision_keeps_its_type():
    x = maps().bfloat16()
    found = mixed(x, torch.arange(6).roll(1), torch.full((6,), 0.5))
    assert found.dtype == torch.bfloat16
    expected = mixed(x.float(), torch.arange(6).roll(1), torch.full((6,), 0.5))
    torch.testing.assert_close(found.float(), expected, rtol=0.01, atol=0.05)


def test_partners_are_of_another_style_and_shares_are_beta():
    styles = np.array(["a", "b", "b", "c"] * 500)
    others, shares = draw(styles, np.random.default_rng(0), 0.1)
    assert (styles[others] != styles).all()
    assert {name: len(set(styles[others[styles == name]])) for name in "abc"} == {"a": 2, "b": 2, "c": 2}
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1))
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / (4 * 1.2), abs=0.02)
    assert np.array_equal(draw(np.array([7, 7, 7]), np.random.default_rng(0), 0.1)[0], [0, 1, 2]), "nobody to take from"


def test_maps_are_mixed_behind_the_parts_by_chance_and_only_within():
    trunk = nn.Sequential(nn.Identity(), nn.Identity())
    mix, x = MixStyle(trunk, [2], probability=0.5, alpha=0.1), maps()
    assert torch.equal(trunk(x), x), "outside nothing is mixed"
    changed = []
    for step in range(200):
        with mix.mixing(np.arange(6), np.random.default_rng(step)):
            assert torch.equal(trunk[0](x), x)
            found = trunk(x)
        with mix.mixing(np.arange(6), np.random.default_rng(step)):
            assert torch.equal(trunk(x), found), "a function of the dice"
        changed.append(not torch.equal(found, x))
    assert np.mean(changed) == pytest.approx(0.5, abs=0.12)
    assert torch.equal(trunk(x), x)


@pytest.fixture
def samples(people: Path) -> list[Sample]:
    files = sorted((people / "bounding_box_train").iterdir())
    return [Sample(str(path), int(path.name[:4]), int(path.name[6])) for path in files]


def test_training_mixes_in_every_step_and_watches_without(samples, tiny, tmp_path, monkeypatch):
    asked = []

    def spy(styles, rng, alpha):
        asked.append(styles.tolist())
        return draw(styles, rng, alpha)

    monkeypatch.setattr(mixstyle, "draw", spy)
    config = tiny(epochs=2, watch_epochs=1, feature_mixstyle=1.0, mixstyle_after=[1, 2])
    whole = train(samples, config, tmp_path / "whole", progress=False)
    assert len(asked) == 2 * whole.history[-1]["step"], "two parts a step, and none while it is watched"
    assert {camera for styles in asked for camera in styles} == {1, 2}
    with pytest.raises(Interrupted):
        train(samples, config, tmp_path / "parts", progress=False, stop_after=3)
    resumed = load_model(train(samples, config, tmp_path / "parts", progress=False).path).state_dict()
    plain = load_model(train(samples, tiny(epochs=2, watch_epochs=1), tmp_path / "plain", progress=False).path)
    for name, value in load_model(whole.path).state_dict().items():
        assert torch.equal(value, resumed[name]), name
    assert plain.state_dict().keys() == resumed.keys(), "nothing of it is in the model"
    assert not torch.equal(plain.head.reduction, resumed["head.reduction"])


def test_what_cannot_be_mixed_is_refused(samples, tiny, tmp_path):
    with pytest.raises(ReidError, match="mixstyle_after=4: the trunk of scgnet_s has 3 parts"):
        train(samples, tiny(feature_mixstyle=0.5, mixstyle_after=[4]), tmp_path, progress=False)
    for changes in (dict(feature_mixstyle=0.5), dict(mixstyle_after=[1])):
        with pytest.raises(ReidError, match="mixstyle_after must be given with feature_mixstyle above 0, or neither"):
            tiny(**changes)
    with pytest.raises(ReidError, match="mixstyle_after must be different numbers"):
        tiny(feature_mixstyle=0.5, mixstyle_after=[1, 1])
    with pytest.raises(ReidError, match=r"mixstyle_after\[0\] must be at least 1, not 0"):
        tiny(feature_mixstyle=0.5, mixstyle_after=[0])
