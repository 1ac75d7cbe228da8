"""Exports: PyTorch's embeddings, in operators that small devices take, in files that every command takes."""

from __future__ import annotations

import json
import pickle
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import datasets
import run_reid
from reid.core.images import read_images
from reid.core.types import ReidError, Sample
from reid.export.graph import Deployed
from reid.export.proof import Reference
from reid.export.request import Request, Steps
from reid.gallery import Gallery
from reid.models.card import make_card
from reid.models.embedder import Embedder
from reid.models.encoder import TorchEncoder, open_encoder
from reid.models.exported import INSTALL, Exported, Runtime
from reid.models.model import ReidModel, load_model, multiply_adds, save_model
from reid.models.projection import principal_axes
from reid.training.config import as_dict
from tests.conftest import settle

# what Rockchip's tool chain and its like are known to take; nothing that looks values up by index
TAKEN = {
    "Transpose",
    "Cast",
    "Slice",
    "Concat",
    "Mul",
    "Add",
    "Conv",
    "Relu",
    "ReduceMax",
    "ReduceSum",
    "Gemm",
    "Reshape",
    "Pow",
    "Sqrt",
    "Clip",
    "Div",
}


def embedded(model: ReidModel, pixels: np.ndarray, flip: bool = False) -> np.ndarray:
    return Embedder(model, flip=flip, device="cpu").embed_pixels(pixels)


@pytest.fixture
def draw(paths):
    return lambda size: read_images(paths[:5], size)


# ---- the graph


@pytest.mark.parametrize(
    ("flip", "changes"),
    [
        (False, dict(branches=[[1, 2], [3, 1]], height=128)),  # stripes of 8 rows in three overlap
        (True, dict(backbone="mobilenet_v2", pool="avg", branches=[[2, 1]])),
        (False, dict(backbone="shufflenet_v2_x1_5", pool="gem", branches=[[2, 1]])),
        (True, dict(backbone="osnet_x0_25", neck="relu", branches=[[1, 2]])),
    ],
)
def test_the_deployed_graph_is_the_model(make_model, draw, flip, changes):
    model = make_model(**changes)
    pixels = draw(model.input_size)
    graph = Deployed(model, flip=flip)
    assert not [m for m in graph.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)]
    with torch.inference_mode():
        np.testing.assert_allclose(graph(torch.from_numpy(pixels)), embedded(model, pixels, flip), atol=1e-5)
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules()), "the model itself stays as it was"


def test_half_floats_keep_the_direction(make_model, draw):
    model = make_model()
    pixels = draw(model.input_size)
    with torch.inference_mode():
        rows = Deployed(model, half=True)(torch.from_numpy(pixels)).numpy()
    assert rows.dtype == np.float32
    assert (rows * embedded(model, pixels)).sum(1).min() > 0.9999


def test_fewer_branches_are_the_first_of_the_embedding(make_model, draw):
    model = make_model()
    smaller = model.with_branches([2])
    pixels = draw(model.input_size)
    both = [TorchEncoder(m, flip=False, device="cpu").features(pixels) for m in (model, smaller)]
    assert both[1].shape == (5, 3, 8)
    np.testing.assert_allclose(both[1], both[0][:, 1:], atol=1e-6)
    assert smaller.fingerprint != model.fingerprint
    with pytest.raises(ReidError, match="branches are of 1, 2 parts, not 3"):
        model.with_branches([1, 3])


@pytest.mark.parametrize("changes", [{}, {"neck": "relu", "branches": [[2, 1]]}])
def test_a_projection_is_a_product_in_the_model_its_file_and_its_graph(make_model, draw, tmp_path, changes):
    model = make_model(**changes)
    pixels, matrix = draw(model.input_size), torch.randn(model.dimension, 5)
    smaller = model.with_projection(matrix)
    expected = embedded(model, pixels) @ matrix.numpy()
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    save_model(smaller, tmp_path / "smaller.safetensors")
    read = load_model(tmp_path / "smaller.safetensors")
    assert read.dimension == 5 and read.fingerprint == smaller.fingerprint != model.fingerprint
    np.testing.assert_allclose(embedded(read, pixels), expected, atol=1e-5)
    with torch.inference_mode():
        np.testing.assert_allclose(Deployed(read)(torch.from_numpy(pixels)), expected, atol=1e-5)
    assert multiply_adds(read) == multiply_adds(model) + matrix.numel()
    for change in (lambda: read.with_projection(matrix), lambda: read.with_branches([2])):
        with pytest.raises(ReidError, match="ends in a projection"):
            change()
    again = make_model(seed=9, **changes)
    again.start_from(read, "the file")  # training goes on from all but the projection
    np.testing.assert_allclose(embedded(again, pixels), embedded(model, pixels), atol=1e-6)


def test_principal_axes_keep_the_products_best():
    rng = np.random.default_rng(0)
    vectors = (rng.standard_normal((60, 12)) * np.linspace(3, 0.1, 12) + 1).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    axes = principal_axes(vectors, 4)
    np.testing.assert_allclose(axes.T @ axes, np.eye(4), atol=1e-5)
    left, values, _ = np.linalg.svd(vectors)  # Eckart and Young: no matrix of rank 4 is nearer to the products
    np.testing.assert_allclose(
        vectors @ axes @ axes.T @ vectors.T, (left[:, :4] * values[:4] ** 2) @ left[:, :4].T, atol=1e-5
    )


def test_pack_shortens_embeddings_by_what_training_images_show(make_model, people, paths, tmp_path, capsys):
    model = make_model(branches=[[2, 1]])
    save_model(model, tmp_path / "model.safetensors")
    data = ["--dataset", "market1501", "--data-root", str(people)]
    words = ["pack", str(tmp_path / "model.safetensors"), str(tmp_path / "smaller.safetensors"), "--dim", "6", *data]
    assert run_reid.main(words) == 0
    smaller = Embedder(tmp_path / "smaller.safetensors", device="cpu")
    train = [s.path for s in datasets.read("market1501", people).train]
    axes = principal_axes(Embedder(model, device="cpu").embed(train), 6)
    expected = Embedder(model, device="cpu").embed(paths) @ axes
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.abs((smaller.embed(paths) * expected).sum(1)).min() > 0.999  # half floats
    for dim, told in ((25, "cannot be shortened"), (0, "cannot be shortened"), (-1, "cannot be shortened")):
        words = [*words[:1], words[1], str(tmp_path / "other.safetensors"), "--dim", str(dim), *data]
        assert run_reid.main(words) == 2 and told in capsys.readouterr().err
    for lonely in (["--dim", "6"], data):  # not the drawn people, unasked
        assert run_reid.main([*words[:2], str(tmp_path / "other.safetensors"), *lonely]) == 2
        assert "go together" in capsys.readouterr().err
    assert not (tmp_path / "other.safetensors").exists()


# ---- a file, made once by the command


@pytest.fixture(scope="module")
def made(people, tiny, tmp_path_factory) -> Path:
    """model.safetensors, and model.onnx with its proof, with the mirror image inside, for any batch."""
    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    model = ReidModel(make_card(as_dict(tiny(branches=[[2, 1]])), 5))
    settle(model)
    save_model(model, folder / "model.safetensors")
    words = [
        "export",
        "--weights",
        folder / "model.safetensors",
        "--format",
        "onnx",
        "--flip",
        "--output",
        folder / "model.onnx",
        "--dataset",
        "market1501",
        "--data-root",
        people,
    ]
    assert run_reid.main([str(word) for word in words]) == 0
    return folder


def test_an_onnx_file_embeds_as_pytorch(made, paths):
    expected = Embedder(load_model(made / "model.safetensors"), device="cpu").embed(paths)
    exported = Embedder(made / "model.onnx")
    for count in (1, 3, 24):
        np.testing.assert_allclose(exported.embed(paths[:count]), expected[:count], atol=1e-5)
    assert exported.embed([]).shape == (0, 24)


def test_the_operators_are_those_that_devices_take(made):
    import onnx

    file = onnx.load(made / "model.onnx", load_external_data=False)
    assert {node.op_type for node in file.graph.node} <= TAKEN
    assert [(s.domain, s.version) for s in file.opset_import] == [("", 18)]
    assert not any(tensor.external_data for tensor in file.graph.initializer)
    counts = Counter(node.op_type for node in file.graph.node)
    shifts = sum(module._get_name() == "Shift" for module in load_model(made / "model.safetensors").modules())
    assert counts["Slice"] >= 2 * shifts > 0, "a shift is two slices"
    (pixels,) = file.graph.input
    assert pixels.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_value for d in pixels.type.tensor_type.shape.dim[1:]] == [64, 32, 3]
    assert b".py" not in file.SerializeToString(), "no traces of where it was made"


def test_the_proof_is_beside_it_and_in_it(made, people):
    proof = json.loads((made / "model.onnx.json").read_text())
    model, encoder = load_model(made / "model.safetensors"), open_encoder(made / "model.onnx")
    assert proof["fingerprint"] == encoder.fingerprint == model.fingerprint
    assert proof["bytes"] == (made / "model.onnx").stat().st_size
    assert encoder.card["export"]["proof"] == proof["proof"]
    assert encoder.card["architecture"] == model.card["architecture"]
    assert proof["proof"]["cosine_min"] == pytest.approx(1, abs=1e-5)
    output = made / "evaluated"
    words = ["evaluate", "--weights", made / "model.onnx", "--dataset", "market1501", "--data-root", people]
    assert run_reid.main([*map(str, words), "--output", str(output)]) == 0
    metrics = json.loads((output / "metrics.json").read_text())
    for key in ("rank1", "mAP"):
        assert metrics[key] == pytest.approx(proof["proof"]["exported"][key])
        assert metrics[key] == pytest.approx(proof["proof"]["model"][key], abs=1e-6)
    assert not list(made.glob(".*"))


def test_a_proof_on_some_of_the_people(made, people, tmp_path, capsys):
    splits = datasets.read("market1501", people)
    words = [
        "export",
        "--weights",
        made / "model.safetensors",
        "--format",
        "torchscript",
        "--people",
        "2",
        "--dataset",
        "market1501",
        "--data-root",
        people,
        "--output",
        tmp_path / "model.torchscript",
    ]
    assert run_reid.main([str(word) for word in words]) == 0
    proof = json.loads((tmp_path / "model.torchscript.json").read_text())["proof"]
    a_person = len(splits.query) // len({s.pid for s in splits.query})
    assert proof["queries"] == 2 * a_person
    assert proof["gallery"] == sum(s.pid > 0 for s in splits.gallery) // 2  # and nobody else


def test_a_gallery_takes_the_export_and_the_model_alike(made, paths, tmp_path, capsys):
    for weights, asks in (("model.onnx", "model.safetensors"), ("model.safetensors", "model.onnx")):
        folder = tmp_path / weights
        words = ["index", *paths[:9], "--weights", made / weights, "--gallery", folder]
        assert run_reid.main([str(word) for word in words]) == 0
        assert Gallery.open(folder).model_path == folder / weights
        for more in ([], ["--weights", str(made / asks)]):
            capsys.readouterr()
            picture = ["--json", "--picture", str(tmp_path / "p.png")]
            assert run_reid.main(["search", str(folder), paths[3], *picture, *more]) == 0
            first = json.loads(capsys.readouterr().out)[0]
            assert (first["path"], first["score"]) == (paths[3], pytest.approx(1, abs=1e-5))


def test_a_gallery_says_who_may_query_it(made, make_model, paths, tmp_path, capsys):
    save_model(make_model(seed=3), tmp_path / "other.safetensors")
    words = ["index", paths[0], "--weights", made / "model.safetensors", "--gallery", tmp_path / "g"]
    assert run_reid.main([str(word) for word in words]) == 0
    capsys.readouterr()
    words = ["gallery", "info", tmp_path / "g", "--weights", made / "model.onnx", tmp_path / "other.safetensors"]
    assert run_reid.main([str(word) for word in words]) == 0
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert "model.onnx" in lines[0] and "may query: onnx fp32, cosine 1.0000" in lines[0]
    assert "other.safetensors" in lines[1] and "may not query" in lines[1]


def test_int8_by_training_crops(made, paths):
    import onnx

    from reid.export import onnx as module

    crops = read_images(paths, (64, 32))
    plain = onnx.load(made / "model.onnx")
    small = module.quantise(plain, crops, Request("onnx", "int8"))
    kinds = Counter(node.op_type for node in small.graph.node)
    assert kinds["QuantizeLinear"] > kinds["Conv"] == Counter(n.op_type for n in plain.graph.node)["Conv"]
    weights = [tensor for tensor in small.graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    assert len(weights) >= kinds["Conv"] + kinds["Gemm"]
    file = made / "int8.onnx"
    module.save(small, file, json.dumps(dict(open_encoder(made / "model.onnx").card)))
    rows = Embedder(file).embed(paths)
    cosine = (rows * Embedder(made / "model.onnx").embed(paths)).sum(1)
    assert cosine.min() > 0.97
    assert file.stat().st_size < 0.5 * (made / "model.onnx").stat().st_size


def test_mended_biases_keep_each_layers_mean(made, paths):
    import onnx
    import onnxruntime

    from reid.export import onnx as module

    crops = read_images(paths, (64, 32))
    plain = onnx.load(made / "model.onnx")
    names = [node.name for node in plain.graph.node if node.op_type in ("Conv", "Gemm")]

    def means(model):
        """Of each channel of each layer, all in one run of the graph as it is written."""
        whole = onnx.ModelProto()
        whole.CopyFrom(model)
        layers = {node.name: node.output[0] for node in whole.graph.node if node.name in names}
        whole.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in layers.values())
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(whole.SerializeToString(), options)
        found = session.run([layers[name] for name in names], {"pixels": crops[:batched]})
        return np.concatenate([x.mean((0, 2, 3) if x.ndim == 4 else 0) for x in found])

    for node in plain.graph.node:
        if node.name == names[0]:
            del node.input[2:]  # as torch writes a bias of zeros
    batched = len(crops) // 8 * 8
    wanted = means(plain)
    off = {
        mended: np.abs(
            means(module.quantise(plain, crops, Request("onnx", "int8", steps=Steps(mended=mended)))) - wanted
        )
        for mended in (False, True)
    }
    assert off[True].mean() < 0.2 * off[False].mean()


def test_openvino_holds_the_same_and_goes_into_a_gallery(made, paths, tmp_path):
    import onnx

    from reid.export import openvino as module

    built = module.from_onnx(onnx.load(made / "model.onnx"))
    built.set_rt_info("fp16", module.PRECISION)
    module.save(built, tmp_path / "model.xml", json.dumps(dict(open_encoder(made / "model.onnx").card)))
    size = (tmp_path / "model.bin").stat().st_size
    expected = Embedder(load_model(made / "model.safetensors"), device="cpu").embed(paths)
    assert (Embedder(tmp_path / "model.xml").embed(paths) * expected).sum(1).min() > 0.9999
    assert size < 0.6 * (made / "model.onnx").stat().st_size
    words = ["index", *paths[:3], "--weights", tmp_path / "model.xml", "--gallery", tmp_path / "g"]
    assert run_reid.main([str(word) for word in words]) == 0
    gallery = Gallery.open(tmp_path / "g")
    assert Embedder(gallery.model_path).fingerprint == load_model(made / "model.safetensors").fingerprint
    with (tmp_path / "g" / "model.bin").open("r+b") as file:
        file.seek(size // 2)
        file.write(b"\xff\xff\xff")
    with pytest.raises(ReidError, match=r"model\.xml is not what was written"):
        _ = gallery.model_path
    (tmp_path / "model.bin").unlink()
    with pytest.raises(ReidError, match=r"model\.xml is damaged, lacks its \.bin"):
        open_encoder(tmp_path / "model.xml")


# ---- TorchScript, and what holds for any format


@pytest.fixture
def reference(people):
    def of(model: ReidModel) -> Reference:
        samples = [
            [Sample(str(p), int(p.name[:4]), int(p.name[6])) for p in sorted((people / folder).glob("0*.jpg"))]
            for folder in ("query", "bounding_box_test")
        ]
        return Reference(model, *samples, "market1501")

    return of


def test_torchscript_carries_its_card(make_model, reference, draw, tmp_path):
    from reid.export.proof import export as write

    model, file = make_model(branches=[[1, 2]]), tmp_path / "model.torchscript"
    proof = write(model, file, Request("torchscript"), crops=np.empty(0), reference=lambda: reference(model))
    assert proof.cosine_min == pytest.approx(1, abs=1e-5) and proof.agrees and abs(proof.delta) < 1e-3
    extra = {"card.json": ""}
    network = torch.jit.load(str(file), _extra_files=extra)
    card = json.loads(extra["card.json"])
    assert card["fingerprint"] == model.fingerprint + "-noflip"
    pixels = draw(model.input_size)
    np.testing.assert_allclose(network(torch.from_numpy(pixels)).numpy(), embedded(model, pixels), atol=1e-5)
    with pytest.raises(ReidError, match="is not loaded: such a file holds a program"):
        open_encoder(file)


def test_what_does_not_agree_gets_a_fingerprint_of_its_own(make_model, reference, tmp_path, monkeypatch):
    from reid.export import torchscript
    from reid.export.proof import export as write

    model, other, file = (
        make_model(branches=[[2, 1]]),
        make_model(seed=5, branches=[[2, 1]]),
        tmp_path / "model.torchscript",
    )
    build = torchscript.build
    monkeypatch.setattr(torchscript, "build", lambda model, *more: build(other, *more))
    proof = write(model, file, Request("torchscript"), crops=np.empty(0), reference=lambda: reference(model))
    assert not proof.agrees and proof.cosine_mean < 0.5
    written = json.loads((tmp_path / "model.torchscript.json").read_text())["fingerprint"]
    assert written.startswith(f"{model.fingerprint}-noflip-torchscript-fp32-")


def test_a_fixed_batch_is_filled_up():
    sizes = []

    def run(pixels: np.ndarray) -> np.ndarray:
        sizes.append(len(pixels))
        return pixels.astype(np.float32).mean((1, 2))

    card = json.dumps({"fingerprint": "abc", "input_size": [4, 2], "export": {"dimension": 3}})
    encoder = Exported("x.onnx", Runtime(run, card, 4))
    pixels = np.random.default_rng(0).integers(0, 256, (9, 4, 2, 3), np.uint8)
    np.testing.assert_allclose(encoder.encode(pixels), pixels.mean((1, 2)), rtol=1e-6)
    assert sizes == [4, 4, 4]
    assert encoder.encode(pixels[:0]).shape == (0, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "torchscript", "--precision", "int8"], "torchscript takes the precision fp32, not int8"),
        (["--format", "onnx", "--output", "x.xml"], "a file of the format onnx ends in .onnx"),
        (["--format", "onnx", "--people", "5"], "--people 5: expected 1 to 4, the people of query and gallery"),
        (["--format", "onnx", "--branches", "4"], "the model's branches are of 1, 2 parts, not 4"),
        (["--format", "onnx", "--output", "model.safetensors"], "exists already"),
    ],
)
def test_mistakes(make_model, people, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    save_model(make_model(), "model.safetensors")
    data = ["--dataset", "market1501", "--data-root", str(people)]
    assert run_reid.main(["export", "--weights", "model.safetensors", *words, *data]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_files_that_are_no_exports(tmp_path):
    (tmp_path / "a.onnx").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ReidError, match=r"a\.onnx is damaged or no ONNX model"):
        open_encoder(tmp_path / "a.onnx")
    with pytest.raises(ReidError, match=r"no model at .*b\.onnx"):
        open_encoder(tmp_path / "b.onnx")
    with pytest.raises(ReidError, match="carries no card.*run_reid.py export"):
        Exported("c.onnx", Runtime(lambda pixels: pixels, '{"fingerprint": "abc"}', None))
    with pytest.raises(ReidError, match="runs on the CPU: leave --device cuda out"):
        open_encoder(tmp_path / "a.onnx", device="cuda")


@pytest.mark.parametrize(("suffix", "library"), [(".onnx", "onnxruntime"), (".xml", "openvino")])
def test_a_missing_library_is_named_with_its_command(tmp_path, monkeypatch, suffix, library):
    monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / f"a{suffix}").write_bytes(b"x")
    with pytest.raises(ReidError, match=rf"this needs {library}.*{INSTALL[:11]}"):
        open_encoder(tmp_path / f"a{suffix}")
