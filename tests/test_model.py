"""Saved models: whole, checked, never unpickled; pixels in, the same embedding out."""

from __future__ import annotations

import json
import pickle
import resource
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import reid
from reid.core.types import ReidError
from reid.models import checkpoint
from reid.models.card import MEAN, STD, make_card, start_note
from reid.models.model import ReidModel, check_input_size, load_model, save_model
from reid.training.config import Config, as_dict, from_dict

# what is not its own has to be at its default
BAGOFTRICKS = {"head": "bagoftricks", "branches": [[1, 2], [2, 1], [3, 1]], "dim": 256, "pool": "avg"}


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 64, 32), dtype=np.uint8))


@pytest.fixture
def embed():
    def run(model: ReidModel, pixels: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return model.embed(pixels)

    return run


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"neck": "relu", "pool": "gem"},
        {"branches": "[[3, 1]]", "dim": 5},
        {"backbone": "osnet_x0_25"},
        BAGOFTRICKS,
        {"neck": "relu", "global_softmax": "unreduced"},
    ],
)
def test_a_saved_model_is_the_same_model(tmp_path, make_model, pixels, embed, changes):
    model = make_model(**changes)
    model.card["scores"] = {"rank1": 0.5, "where": "Köln"}
    save_model(model, tmp_path / "model.safetensors")
    again = reid.load_model(tmp_path / "model.safetensors")
    assert not again.training
    assert torch.equal(embed(again, pixels), embed(model, pixels))
    assert torch.equal(again(pixels).logits, model(pixels).logits)
    assert again.fingerprint == model.fingerprint == again.card["fingerprint"]
    assert {k: v for k, v in again.card.items() if k != "fingerprint"} == model.card
    assert again.dimension == embed(model, pixels).shape[1]


def test_channels_last_and_saving_twice_change_nothing(tmp_path, make_model):
    model = make_model()
    fingerprint = model.fingerprint
    save_model(model.to(memory_format=torch.channels_last), tmp_path / "a.safetensors")
    assert load_model(tmp_path / "a.safetensors").fingerprint == fingerprint
    save_model(load_model(tmp_path / "a.safetensors"), tmp_path / "b.safetensors")
    assert load_file(tmp_path / "a.safetensors").keys() == load_file(tmp_path / "b.safetensors").keys()
    assert load_model(tmp_path / "b.safetensors").fingerprint == fingerprint


@pytest.mark.parametrize("changes", [{}, BAGOFTRICKS, {"neck": "relu", "global_softmax": "unreduced"}])
def test_without_its_classifier_it_embeds_the_same(tmp_path, make_model, pixels, embed, changes):
    model = make_model(**changes)
    save_model(model, tmp_path / "bare.safetensors", classifier=False)
    bare = load_model(tmp_path / "bare.safetensors")
    assert bare.card["num_classes"] == 0
    assert model.card["num_classes"] == 5
    assert bare(pixels).logits is None
    assert bare.fingerprint == model.fingerprint
    assert torch.equal(embed(bare, pixels), embed(model, pixels))


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("head.classifier", True),
        ("head.reduction", False),
        ("head.trunk.0.0.0.weight", False),
        ("head.neck.running_mean", False),
    ],
)
def test_the_fingerprint_follows_the_weights_that_embeddings_depend_on(make_model, name, same):
    model = make_model()
    before = model.fingerprint
    model.state_dict()[name].view(-1)[-1].add_(1e-3)
    assert (model.fingerprint == before) == same


@pytest.mark.parametrize("key", ["input_size", "mean", "std"])
def test_the_fingerprint_follows_the_preprocessing(make_model, key):
    model = make_model()
    before = model.fingerprint
    model.card[key] = [value * 2 for value in model.card[key]]
    assert model.fingerprint != before


def test_normalisation_is_by_the_card(make_model, pixels):
    model = make_model()
    x = pixels.double() / 255
    expected = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(model.normalise(pixels).double(), expected, atol=1e-6, rtol=1e-6)


def test_bytes_and_fractions_are_the_same_pixels(make_model, pixels, embed):
    model = make_model()
    torch.testing.assert_close(embed(model, pixels), embed(model, pixels.float() / 255), atol=1e-5, rtol=1e-4)


def test_an_input_too_small_is_refused_before_training(make_model):
    model = make_model(height=16, width=16).train()
    with pytest.raises(ReidError, match="input 16x16 is too small for the strides of scgnet_s.*at least 2 rows"):
        check_input_size(model)
    assert model.training
    check_input_size(make_model())


# ---- files


def corrupt(path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize("where", [0.0, 0.3, 0.6, 1.0])
def test_a_flipped_bit_in_the_weights_is_found(tmp_path, make_model, where):
    path = tmp_path / "model.safetensors"
    save_model(make_model(), path)
    start = 8 + struct.unpack("<Q", path.read_bytes()[:8])[0]
    corrupt(path, round(start + where * (path.stat().st_size - start - 1)))
    with pytest.raises(ReidError, match="model.safetensors is damaged"):
        load_model(path)


@pytest.mark.parametrize("word", [b"0.485", b"input_size", b"bnneck"])
def test_a_flipped_bit_in_the_card_is_found(tmp_path, make_model, word):
    path = tmp_path / "model.safetensors"
    save_model(make_model(), path)
    corrupt(path, path.read_bytes().index(word) + len(word) - 1)
    with pytest.raises(ReidError, match="model.safetensors is damaged"):
        load_model(path)


def no_card(path, model):
    save_file(model.state_dict(), path)


def a_checkpoint(path, model):
    checkpoint.write(path, "checkpoint", model.state_dict(), {"step": 3})


def truncated(path, model):
    save_model(model, path)
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path, model: None, "no model at .*model.safetensors"),
        (lambda path, model: path.mkdir(), "no model at"),
        (lambda path, model: path.write_bytes(b""), "is damaged or no safetensors file"),
        (truncated, "is damaged or no safetensors file"),
        (lambda path, model: path.write_bytes(b"\x89PNG" * 9), "is damaged or no safetensors file"),
        (lambda path, model: path.write_bytes(pickle.dumps({})), "PyTorch or pickle file.*never loaded"),
        (lambda path, model: torch.save(model.state_dict(), path), "PyTorch or pickle file.*never loaded"),
        (no_card, "carries no card"),
        (a_checkpoint, "carries no card, so it is no model"),
    ],
)
def test_what_is_no_model_is_refused_in_one_line(tmp_path, make_model, make, message):
    path = tmp_path / "model.safetensors"
    make(path, make_model())
    with pytest.raises(ReidError, match=message) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card["architecture"].update(dim=9), "of another architecture"),
        (lambda card: card["architecture"].update(backbone="osnet_x0_25"), "of another architecture"),
        (lambda card: card["architecture"].update(backbone="vgg"), "unknown backbone 'vgg'"),
        (lambda card: card["architecture"].update(head="legs"), "unknown head 'legs'; choose one of mgn, bagoftricks"),
        (lambda card: card.pop("architecture"), "of another architecture"),
        (lambda card: card.pop("input_size"), "of another architecture"),
        (lambda card: card.update(mean=[0.5]), "of another architecture"),
    ],
)
def test_a_card_that_the_weights_do_not_fit_is_refused(tmp_path, make_model, change, message):
    model = make_model()
    card = json.loads(json.dumps(model.card))
    change(card)
    checkpoint.write(tmp_path / "model.safetensors", "model", model.state_dict(), card)
    with pytest.raises(ReidError, match=message):
        load_model(tmp_path / "model.safetensors")


@pytest.mark.parametrize("begins", [b"\x80\x04", b"PK"])
def test_a_file_whose_length_looks_like_a_pickle_is_read(tmp_path, begins):
    """A safetensors file opens with the length of its header, whose bytes may be those that open a pickle or a zip."""
    path, value = tmp_path / "x.safetensors", {"a": torch.arange(3)}
    checkpoint.write(path, "model", value, {"pad": ""})
    padding = struct.unpack("<H", begins)[0] - struct.unpack("<Q", path.read_bytes()[:8])[0]
    checkpoint.write(path, "model", value, {"pad": "x" * padding})
    assert path.read_bytes()[:2] == begins
    read, text = checkpoint.read(path, "model")
    assert torch.equal(read["a"], value["a"])
    assert len(text["pad"]) == padding


def test_a_full_disk_leaves_the_old_file(tmp_path, make_model):
    """The disk is made full by a limit on the size of a file, which the library meets as it would the real thing."""
    path = tmp_path / "model.safetensors"
    save_model(make_model(seed=1), path)
    old = path.read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(ReidError, match="cannot be written.*what stood there is as it was"):
            save_model(make_model(seed=2), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_an_interruption_while_saving_leaves_the_old_file(tmp_path, make_model, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_model(make_model(seed=1), path)
    old = path.read_bytes()

    def stop(tensors, file, metadata):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", stop)
    with pytest.raises(KeyboardInterrupt):
        save_model(make_model(seed=2), path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_the_card_names_the_recipe(tiny):
    card = make_card(as_dict(tiny(dim=8)), 5)
    assert card["architecture"] == {
        "backbone": "scgnet_s",
        "head": "mgn",
        "branches": [[1, 2], [2, 1]],
        "dim": 8,
        "pool": "max",
        "neck": "bnneck",
        "global_softmax": "reduced",
    }
    assert make_card(as_dict(tiny(**BAGOFTRICKS)), 5)["architecture"] == {
        "backbone": "scgnet_s",
        "head": "bagoftricks",
        "pool": "avg",
        "last_stride": 1,
    }
    assert card["input_size"] == [64, 32]
    assert card["recipe"]["dim"] == 8
    assert json.loads(json.dumps(card)) == card


def test_half_the_size_embeds_nearly_as_before_and_has_its_own_fingerprint(make_model, tmp_path):
    model = make_model()
    save_model(model, tmp_path / "whole.safetensors", classifier=False)
    save_model(model, tmp_path / "half.safetensors", classifier=False, half=True)
    half = load_model(tmp_path / "half.safetensors")
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    assert half.fingerprint != model.fingerprint
    assert checkpoint.read(tmp_path / "half.safetensors", "model")[1]["fingerprint"] == half.fingerprint
    images = torch.rand(4, 3, *model.input_size, generator=torch.Generator().manual_seed(0))
    cosine = torch.nn.functional.cosine_similarity(model.embed(images), half.embed(images))
    assert (cosine > 0.9999).all()
    assert (cosine < 1).any()


def test_weights_that_are_not_finite_are_not_written(make_model, tmp_path):
    """Also not those that only half floats cannot hold: a network whose batch norms divide them out still trains."""
    model = make_model()
    with torch.no_grad():
        model.head.trunk[0][0][0].weight[0, 0, 0, 0] = 1e5
    save_model(model, tmp_path / "large.safetensors")
    with pytest.raises(ReidError, match="head.trunk.0.0.0.weight holds values that are not finite in float16: .*lr="):
        save_model(model, tmp_path / "half.safetensors", half=True)
    model.head.neck.running_var[0] = torch.nan
    with pytest.raises(ReidError, match="head.neck.running_var holds values that are not finite: the training ran"):
        save_model(model, tmp_path / "nan.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["large.safetensors"]


CARD_0_1 = """{"architecture": {"backbone": "osnet_x0_25", "branches": [[1, 2], [3, 1]], "dim": 8, "pool": "max",
"neck": "bnneck"}, "input_size": [48, 16], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
"num_classes": 0, "recipe": {"backbone": "osnet_x0_25", "pretrained": "", "frozen": 1, "branches": [[1, 2], [3, 1]],
"dim": 8, "pool": "max", "neck": "bnneck", "height": 48, "width": 16, "pad": 0, "flip": 0.5, "erase": 0.5,
"jitter": 0.1, "restyle": 0.25, "p": 16, "k": 4, "epochs": 60, "warmup_epochs": 1.0, "lr_start": 0.01, "lr": 0.2,
"lr_end": 0.0, "average_epochs": 2, "momentum": 0.9, "nesterov": true, "weight_decay": 0.0005, "smoothing": 0.1,
"margin": 0.3, "triplet": 1.0, "triplet_after": true, "circle": 0.0, "contrast": 0.0, "center": 0.0,
"teacher": "t.safetensors", "distill": 20.0, "joined": 0.5, "views": 8, "holdout": 0.0, "watch_epochs": 4,
"sync_batch_norm": false, "precision": "auto", "cache": "auto", "seed": 0}, "git_revision": "b076006b5713"}"""


def test_a_model_of_0_1_embeds_as_it_did_then(tmp_path):
    """Its card names no head, its recipe has that version's keys; values and fingerprint are what 0.1 gave."""
    tensors = ReidModel(json.loads(CARD_0_1)).state_dict()
    rng = np.random.default_rng(0)
    for name in sorted(tensors):
        if tensors[name].is_floating_point():
            drawn = rng.standard_normal(tensors[name].shape) * 0.1
            drawn = 1 + np.abs(drawn) if name.endswith("running_var") else drawn
            tensors[name] = torch.from_numpy(drawn.astype(np.float16))
    checkpoint.write(tmp_path / "old.safetensors", "model", tensors, json.loads(CARD_0_1))
    model = load_model(tmp_path / "old.safetensors")
    assert model.fingerprint == "a91d4d46b9820118", "galleries and exported files of that version name it"
    y, x = torch.meshgrid(torch.arange(48), torch.arange(16), indexing="ij")
    pixels = torch.stack([(x * k + y * (8 - k)) % 256 for k in (1, 3, 5)]).to(torch.uint8)[None]
    with torch.inference_mode():
        found = torch.nn.functional.normalize(model.embed(pixels), dim=1)[0]
    values = [-0.0495878, 0.145666, 0.0879405, -0.065036, -0.0632457, -0.0796348, -0.1070897, 0.0810303]
    np.testing.assert_allclose(found[::5].numpy(), values, atol=1e-6, rtol=0)
    recipe = from_dict(Config, model.card["recipe"], "old")
    assert (recipe.freeze, recipe.mixstyle, recipe.cutmix, recipe.cached_epochs) == (1, 0.25, 0.5, 8)
    assert recipe.triplet_on == "after"
    again = ReidModel(make_card(as_dict(recipe), 0))
    again.start_from(model, "old")
    with torch.inference_mode():
        torch.testing.assert_close(again.eval().embed(pixels), model.embed(pixels))


def test_a_model_starts_from_one_of_the_same_head_only(make_model):
    with pytest.raises(ReidError, match=r"other is a model of another architecture \(head mgn there, bagoftricks here"):
        make_model(**BAGOFTRICKS).start_from(make_model(), "other")
    fewer = make_model(branches="[[2, 1]]")
    with pytest.raises(ReidError, match=r"branches \[\[2, 1\]\] there, \[\[1, 2\], \[2, 1\]\] here"):
        make_model().start_from(fewer, "other")
    one, two = make_model(**BAGOFTRICKS, seed=1), make_model(**BAGOFTRICKS, seed=2)
    two.start_from(one, "other")
    assert two.fingerprint == one.fingerprint
    with pytest.raises(ReidError, match="the model's head has no branches to choose from"):
        one.with_branches([1])


def test_a_run_without_the_weights_that_its_recipe_wants_says_so(tiny):
    line = "from scratch: the paper's scores are from ImageNet weights"
    assert start_note(as_dict(tiny(wants_pretrained="true"))) == line
    assert start_note(as_dict(tiny(wants_pretrained="true", pretrained="w.pth"))) is None
    assert start_note(as_dict(tiny())) is None
    assert start_note({}) is None, "a card of version 0.1"


def test_a_card_says_nothing_of_one_machine(tmp_path, make_model):
    model = make_model()
    paths = {"pretrained": "/data/anna/runs/first/model.safetensors", "teacher": "/data/anna/resnet.safetensors"}
    model.card["recipe"] |= paths | {"name": "weights/mine.safetensors"}
    model.card["run"] = {"recipe": dict(model.card["recipe"])}
    save_model(model, tmp_path / "m.safetensors")
    card = load_model(tmp_path / "m.safetensors").card
    for recipe in (card["recipe"], card["run"]["recipe"]):
        assert (recipe["pretrained"], recipe["teacher"]) == ("first/model.safetensors", "resnet.safetensors")
        assert recipe["name"] == "weights/mine.safetensors"
    assert b"/data" not in (tmp_path / "m.safetensors").read_bytes()


def test_weights_are_told_apart_by_fingerprint_or_bytes(tmp_path, make_model):
    model, file = make_model(), tmp_path / "m.safetensors"
    save_model(model, file)
    assert checkpoint.identity(file) == model.fingerprint
    model.card["scores"] = {"mAP": 0.5}
    before = file.read_bytes()
    save_model(model, file)
    assert file.read_bytes() != before and checkpoint.identity(file) == model.fingerprint
    other = tmp_path / "other.onnx"
    other.write_bytes(b"graph")
    assert checkpoint.identity(other) == checkpoint.file_digest(other)
    with pytest.raises(ReidError, match="no file at"):
        checkpoint.identity(tmp_path / "nowhere.safetensors")


def test_a_model_of_other_branches_says_how_to_take_them(make_model):
    with pytest.raises(ReidError, match=r"--set branches=\[\[1,2\],\[3,1\]\]$"):
        make_model(branches="[[1, 2], [2, 1]]").start_from(make_model(branches="[[1, 2], [3, 1]]"), "w")
