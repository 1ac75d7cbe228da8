"""Teachers of other architectures, sizes and dimensions, exported and several: against plain numpy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reid.core.types import ReidError, Sample
from reid.export.proof import card_of
from reid.export.request import Request
from reid.models.encoder import TorchEncoder
from reid.models.exported import module_of
from reid.models.model import ReidModel, load_model, save_model
from reid.training import train as training
from reid.training.distill import Teaching, open_teachers
from reid.training.distributed import World
from reid.training.losses import similarity_loss
from reid.training.train import Interrupted, train

CPU = torch.device("cpu")


def pixels(count: int = 6, size: tuple[int, int] = (64, 32)) -> torch.Tensor:
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.integers(0, 256, (count, 3, 8, 4), dtype=np.uint8)).float()
    return F.interpolate(coarse, size, mode="bilinear").to(torch.uint8)


def settled(model: ReidModel) -> ReidModel:
    """With the statistics of images in its batch norms, as a trained teacher has."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(pixels(16, model.input_size))
    return model.eval()


def cosines(rows: np.ndarray) -> np.ndarray:
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def test_similarities_are_compared_over_all_pairs_of_two_images():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(7, 5)), rng.normal(size=(7, 9))
    mine, theirs = cosines(student), cosines(teacher)
    expected = np.mean([(mine[i, j] - theirs[i, j]) ** 2 for i in range(7) for j in range(7) if i != j])
    found = similarity_loss(torch.from_numpy(student), torch.from_numpy(teacher))
    assert found.shape == (1,)
    assert found.item() == pytest.approx(expected)
    turn = np.linalg.qr(rng.normal(size=(9, 9)))[0]
    assert similarity_loss(torch.from_numpy(teacher @ turn), 3 * torch.from_numpy(teacher)).item() < 1e-12


def test_by_similarities_a_student_is_drawn_to_any_dimension():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(12, 6, generator=generator).requires_grad_()
    teacher = torch.randn(12, 4, generator=generator)
    optimiser, first = torch.optim.Adam([student], lr=0.05), similarity_loss(student, teacher).item()
    for _ in range(200):
        optimiser.zero_grad()
        similarity_loss(student, teacher).sum().backward()
        optimiser.step()
    assert similarity_loss(student, teacher).item() < 0.01 * first


def test_several_teachers_teach_the_mean_of_their_similarities(make_model):
    """Of other dimensions and sizes; the images are resized to each teacher's."""
    models = [settled(make_model(dim=4)), settled(make_model(dim=6, branches=[[1, 2]], seed=1, height=96, width=48))]
    teaching = Teaching([TorchEncoder(m, flip=False, device=CPU) for m in models], make_model(), epoch_steps=10)
    assert teaching.input_size == (96, 48)
    assert not teaching.by_feature
    images = pixels(size=(96, 48))
    taught = teaching.of(images, 0)
    assert taught.shape == (6, 4 * 4 + 6)
    small = F.interpolate(images.float(), (64, 32), mode="bilinear", antialias=True).round().to(torch.uint8)
    with torch.no_grad():
        expected = np.mean([cosines(m.embed(x).numpy()) for m, x in zip(models, (small, images), strict=True)], axis=0)
    np.testing.assert_allclose(cosines(taught.numpy()), expected, atol=2e-3)  # kept in half floats
    assert np.abs(expected - cosines(models[0].embed(small).detach().numpy())).max() > 0.02, "which is no one's own"


def test_a_teacher_with_the_students_features_teaches_each(make_model):
    student, teacher = make_model(), make_model(seed=1)
    teaching = Teaching([TorchEncoder(teacher, flip=False, device=CPU)], student, epoch_steps=10)
    assert teaching.by_feature
    with torch.no_grad():
        torch.testing.assert_close(teaching.of(pixels(), 0), teacher.features(pixels()), atol=5e-3, rtol=2e-3)
    assert not Teaching([TorchEncoder(make_model(dim=4), device=CPU)], student, epoch_steps=10).by_feature
    assert Teaching([], student, epoch_steps=10).of(pixels(), 0) is None


def test_what_is_said_of_the_first_epochs_is_kept(make_model):
    teacher = TorchEncoder(make_model(dim=4), flip=False, device=CPU)
    teaching = Teaching([teacher], make_model(), epoch_steps=3, cached_epochs=2, cutmix=0.5)
    first = teaching.of(pixels(), 1)
    assert [teaching.view(step) for step in (0, 5, 6, 13)] == [0, 5, 0, 1]
    other = pixels().flip(0)
    assert torch.equal(teaching.of(other, 7), first), "not looked at again"
    assert not torch.equal(teaching.of(other, 2), first)
    assert [teaching.joins(step) for step in range(12)] == [False, True] * 6


def test_a_network_learns_similarities_from_another_of_fewer_values(make_model):
    student, teacher, images = make_model(), settled(make_model(dim=4, seed=1)), pixels(12)
    taught = Teaching([TorchEncoder(teacher, flip=False, device=CPU)], student, epoch_steps=1).of(images, 0)
    optimiser, losses = torch.optim.Adam(student.train().parameters(), lr=1e-3), []
    for _ in range(25):
        losses.append(similarity_loss(student.features(images).flatten(1), taught))
        optimiser.zero_grad()
        losses[-1].sum().backward()
        optimiser.step()
    assert losses[-1].item() < 0.3 * losses[0].item()


@pytest.fixture
def samples(people: Path) -> list[Sample]:
    files = sorted((people / "bounding_box_train").iterdir())
    return [Sample(str(path), int(path.name[:4]), int(path.name[6])) for path in files]


def test_two_teachers_of_other_kinds_are_followed_and_resumed(samples, tiny, make_model, tmp_path):
    for name, changes in (("a", dict(dim=16)), ("b", dict(backbone="shufflenet_v2_x1_5", height=96, width=48))):
        save_model(settled(make_model(**changes)), tmp_path / f"{name}.safetensors")
    files = [str(tmp_path / f"{name}.safetensors") for name in "ab"]
    options = dict(distill=10.0, epochs=4, cached_epochs=2, p=6, lr=0.02)
    config = tiny(teacher=files, **options)
    whole = train(samples, config, tmp_path / "whole", progress=False)
    assert all(0 < row["losses"]["distill"] < 1 for row in whole.history)
    with pytest.raises(Interrupted):
        train(samples, config, tmp_path / "parts", progress=False, stop_after=5)
    with pytest.raises(ReidError, match="another recipe"):
        train(samples, tiny(teacher=files[:1], **options), tmp_path / "parts", progress=False)
    save_model(make_model(dim=16, seed=3), files[0])
    with pytest.raises(ReidError, match="with another teacher, or they have changed since"):
        train(samples, config, tmp_path / "parts", progress=False)
    again = settled(make_model(dim=16))
    again.card["scores"] = {"mAP": 0.5}
    save_model(again, files[0])  # the same teacher with another card
    resumed = load_model(train(samples, config, tmp_path / "parts", progress=False).path).state_dict()
    for name, value in load_model(whole.path).state_dict().items():
        assert torch.equal(value, resumed[name]), name


def test_an_exported_teacher_teaches_as_the_model_it_is_made_of(samples, tiny, make_model, tmp_path):
    pytest.importorskip("onnxruntime")
    model, made, request = make_model(dim=16, branches=[[1, 2]]), tmp_path / "teacher.onnx", Request("onnx")
    onnx = module_of("onnx")
    onnx.save(onnx.build(model, request, np.empty((0, 64, 32, 3), np.uint8)), made, json.dumps(card_of(model, request)))
    (exported,) = open_teachers([str(made)], CPU)
    itself = TorchEncoder(model, flip=False, device=CPU)
    said, expected = (
        Teaching([teacher], make_model(), epoch_steps=1).of(pixels(), 0).numpy() for teacher in (exported, itself)
    )
    np.testing.assert_allclose(cosines(said), cosines(expected), atol=5e-3)
    config = tiny(teacher=[str(made)], distill=5.0, p=6)
    run = training._Run(samples, config, tmp_path / "pupil", "", World(), CPU, False)
    assert np.isfinite(run.go(None).history[-1]["losses"]["distill"])
    assert not run.teaching.by_feature


def test_no_teacher_at_the_place_is_one_line(samples, tiny, tmp_path):
    for name in ("none.safetensors", "none.onnx"):
        with pytest.raises(ReidError, match=name):
            train(samples, tiny(teacher=[str(tmp_path / name)], distill=1.0), tmp_path / "run", progress=False)
