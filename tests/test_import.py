"""Models of other programs: recognised by their tensors, wrapped where they are graphs, refused in one line."""

from __future__ import annotations

import json
import os
import pickle

import numpy as np
import pytest
import torch

import run_reid
from reid.core.types import ReidError
from reid.models import foreign
from reid.models import torchreid as bridge
from reid.models.embedder import Embedder
from reid.models.encoder import open_encoder
from reid.models.foreign.tensors import read_tensors
from reid.models.foreign.torchreid import VALUES
from reid.models.model import load_model

SMALL = ("osnet_x0_25", "squeezenet1_1", "mobilenetv2_x1_0", "pcb_p4")


def checkpoint_of(name, path, people=5, prefix="module."):
    """What torchreid's save_checkpoint writes, of a network with random weights and statistics; the network."""
    torch.manual_seed(0)
    network = bridge.network(name, people)
    network(torch.rand(4, 3, 256, 128))  # the batch norms' statistics are no longer those of a new network
    optimizer = torch.optim.Adam(network.parameters())
    torch.save(
        {
            "state_dict": {prefix + key: value for key, value in network.state_dict().items()},
            "epoch": 60,
            "rank1": np.float64(0.601),
            "optimizer": optimizer.state_dict(),
        },
        path,
    )
    return network.eval()


@pytest.mark.parametrize("name", SMALL)
def test_a_checkpoint_of_torchreid_embeds_as_in_torchreid(name, tmp_path):
    file, made = tmp_path / "model.pth.tar-60", tmp_path / "model.safetensors"
    network = checkpoint_of(name, file)
    assert run_reid.main(["import", str(file), "--output", str(made), "--licence", "MIT"]) == 0
    pixels = np.random.default_rng(0).integers(0, 256, (2, 256, 128, 3), np.uint8)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    images = torch.tensor(((pixels / 255 - mean) / std).transpose(0, 3, 1, 2), dtype=torch.float32)
    with torch.no_grad():
        wanted = torch.nn.functional.normalize(network(images.contiguous()), dim=1)
    embedder = Embedder(made)
    np.testing.assert_allclose(embedder.embed_pixels(pixels), wanted, atol=2e-6)
    assert embedder.card["architecture"]["backbone"] == f"torchreid:{name}"
    assert embedder.card["source"]["licence"] == "MIT" and embedder.card["flip"] is False


def test_every_network_of_torchreid_is_in_the_table():
    assert list(VALUES) == bridge.networks()
    for name in ("resnet18", "hacnn", "mlfn"):
        with torch.device("meta"):
            tensors = bridge.network(name, 9).state_dict()
        assert foreign.family("torchreid").recognise({k: torch.zeros(v.shape) for k, v in tensors.items()}).name == name


def test_without_its_classifiers_a_pcb_is_asked_for():
    with torch.device("meta"):
        tensors = {k: v for k, v in bridge.network("pcb_p6", 2).state_dict().items() if "classifier" not in k}
    with pytest.raises(ReidError, match="pcb_p6 and pcb_p4: say which with --network"):
        foreign.recognise(tensors)


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["REID_TEST_TRACE"],)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_that_runs_code_does_not_run(save, tmp_path, monkeypatch, capsys):
    trace = tmp_path / "it-ran"
    monkeypatch.setenv("REID_TEST_TRACE", str(trace))
    file = tmp_path / "model.pth"
    save({"state_dict": {"conv.weight": torch.zeros(1)}, "epoch": Evil()}, file)
    assert run_reid.main(["import", str(file), "--output", str(tmp_path / "m.safetensors")]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "nothing else is unpickled" in told
    assert not trace.exists() and not (tmp_path / "m.safetensors").exists()
    with pytest.raises(ReidError):
        read_tensors(file)


def damaged(kind, tmp_path):
    file = tmp_path / "model.pth"
    if kind == "no weights":
        torch.save({"epoch": 3, "optimizer": {"lr": 0.1}}, file)
    elif kind == "of no network":
        torch.save({"model": {"head.cls_preds.weight": torch.zeros(80, 64, 1, 1)}}, file)
    elif kind == "not finite":
        with torch.device("meta"):
            shapes = {k: v.shape for k, v in bridge.network("osnet_x0_25", 2).state_dict().items()}
        torch.save({k: torch.full(shape, float("nan")) for k, shape in shapes.items()}, file)
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "text":
        file.write_text("# a page, not a model")
    return file


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("no weights", "holds no weights (epoch, optimizer)"),
        ("of no network", "of no network that is known here"),
        ("not finite", "values that are not finite"),
        ("empty", "neither safetensors nor a plain PyTorch state dict"),
        ("text", "state dict (it is damaged, or something else; nothing else is unpickled)"),
        ("missing", "no file at"),
    ],
)
def test_what_is_no_model_is_refused_in_one_line(kind, told, tmp_path, capsys):
    file = damaged(kind, tmp_path)
    assert run_reid.main(["import", str(file), "--output", str(tmp_path / "m.safetensors")]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


# ---- graphs


def graph_of(path, layout="NCHW", batch=None, outputs=1, vector=True, value=1.0):
    """A network in ONNX whose vector is of the pixels' values: per channel the mean, and the mean of the left half."""
    onnx = pytest.importorskip("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    axes, columns = ([2, 3], 3) if layout == "NCHW" else ([1, 2], 2)
    count = "n" if batch is None else batch
    shape = [count, 3, 16, 8] if layout == "NCHW" else [count, 16, 8, 3]
    constants = [
        onnx.numpy_helper.from_array(np.arange(4), "left"),
        onnx.numpy_helper.from_array(np.full(6, value, np.float32), "weights"),
    ]
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["all"], axes=axes, keepdims=0),
        helper.make_node("Gather", ["images", "left"], ["half"], axis=columns),
        helper.make_node("ReduceMean", ["half"], ["part"], axes=axes, keepdims=0),
        helper.make_node("Concat", ["all", "part"], ["joined"], axis=1),
        helper.make_node("Mul", ["joined", "weights"], ["vector"]),
    ]
    names = [("vector", [count, 6]), ("all", [count, 3])][:outputs] if vector else [("half", None)]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("images", kinds.FLOAT, shape)],
        [helper.make_tensor_value_info(name, kinds.FLOAT, shape) for name, shape in names],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=8), path)
    return path


def expected(pixels, channels, low, high, mean, std):
    """Vectors of `graph_of` of RGB uint8 pixels, of unit length, by numpy."""
    x = (pixels[..., ::-1] if channels == "BGR" else pixels) / 255 * (high - low) + low
    x = (x - np.array(mean)) / np.array(std)
    return np.concatenate([x.mean((1, 2)), x[:, :, :4].mean((1, 2))], axis=1)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("channels", ["RGB", "BGR"])
@pytest.mark.parametrize(("range", "low", "high"), [("0-1", 0, 1), ("0-255", 0, 255), ("+-1", -1, 1)])
@pytest.mark.parametrize("batch", [None, 2])
def test_a_graph_takes_pixels_as_its_program_gave_them(layout, channels, range, low, high, batch, tmp_path):
    file = graph_of(tmp_path / "theirs.onnx", layout, batch)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 8, 3), np.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 2.0, 3.0)
    for flip in (False, True):
        made = tmp_path / f"ours-{flip}.onnx"
        words = ["--channels", channels, "--range", range, "--mean", "0.1,0.2,0.3", "--std", "0.5,2,3"]
        assert run_reid.main(["import", str(file), "--output", str(made), *words, *["--flip"] * flip]) == 0
        wanted = expected(pixels, channels, low, high, mean, std)
        if flip:
            wanted = wanted + expected(pixels[:, :, ::-1], channels, low, high, mean, std)
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
        encoder = open_encoder(made)
        np.testing.assert_allclose(encoder.encode(pixels), wanted, atol=1e-5)
        assert encoder.input_size == (16, 8) and encoder.dimension == 6
        assert encoder.card["export"]["batch"] is None  # a fixed batch that nothing needs is freed


@pytest.mark.parametrize(
    ("graph", "words", "told"),
    [
        ({}, [], "give --channels RGB or BGR; --range"),
        ({}, ["--channels", "RGB", "--range", "0-1"], "--normalise imagenet or none"),
        ({"outputs": 2}, None, "say with --vector"),
        ({"vector": False}, None, "expected one vector an image"),
        ({"value": np.nan}, None, "not finite"),
        ({}, ["--input-size", "32x8"], "images of 16x8, --input-size says 32x8"),
    ],
)
def test_what_a_graph_does_not_say_is_asked_for_in_one_line(graph, words, told, tmp_path, capsys):
    file = graph_of(tmp_path / "theirs.onnx", **graph)
    whole = ["--channels", "RGB", "--range", "0-1", "--normalise", "imagenet"]
    if words is None or "--input-size" in words:
        words = [*whole, *(words or [])]
    assert run_reid.main(["import", str(file), "--output", str(tmp_path / "ours.onnx"), *words]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_an_imported_model_is_saved_and_opened_as_its_card_says(tmp_path):
    file = tmp_path / "a.pth"
    checkpoint_of("osnet_x0_25", file, prefix="")
    assert run_reid.main(["import", str(file), "--output", str(tmp_path / "m.safetensors")]) == 0
    model = load_model(tmp_path / "m.safetensors")
    assert model.dimension == 512 and model.input_size == (256, 128) and not model.training
    assert json.loads(json.dumps(model.card)) == model.card
    assert Embedder(model).fingerprint.endswith("-noflip")


def test_a_changed_byte_of_a_graph_is_noticed(tmp_path):
    file, made = graph_of(tmp_path / "theirs.onnx"), tmp_path / "ours.onnx"
    words = ["--channels", "RGB", "--range", "0-1", "--normalise", "none"]
    assert run_reid.main(["import", str(file), "--output", str(made), *words]) == 0
    whole, broken = made.read_bytes(), tmp_path / "broken.onnx"
    open_encoder(made)
    weights = whole.index(np.full(6, 1.0, np.float32).tobytes())
    size = whole.index(b"input_size") + len('input_size\\": [')
    places = [weights, weights + 3, size, *np.random.default_rng(0).integers(0, len(whole), 12).tolist()]
    for place in places:
        for bit in (1, 64):
            changed = bytearray(whole)
            changed[place] ^= bit
            broken.write_bytes(changed)
            with pytest.raises(ReidError):
                open_encoder(broken)
