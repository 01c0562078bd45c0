"""I3D and TransNet V2 against reference answers, and both files of I3D."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.networks.seeded import seeded
from zigma_jax.errors import DataError, WeightsError
from zigma_jax.interop.torch_file import read_torch, write_torch
from zigma_jax.metrics import metric_label
from zigma_jax.networks import FVD_NETWORK, load_network
from zigma_jax.networks.i3d import epsilon_of, rename

GOLDENS = Path(__file__).parents[1] / "goldens"


@pytest.fixture(scope="module")
def i3d(tmp_path_factory: pytest.TempPathFactory):
    golden = np.load(GOLDENS / "i3d_9x224.npz")
    shapes = {
        str(name): tuple(int(length) for length in str(shape).strip("(), ").split(", ") if length.strip(","))
        for name, shape in zip(golden["names"], golden["shapes"], strict=True)
    }
    shapes = {name: tuple(int(str(n).strip(",")) for n in shape) for name, shape in shapes.items()}
    path = tmp_path_factory.mktemp("i3d") / "i3d_pretrained_400.pt"
    write_torch(path, seeded(shapes, float(golden["gain"])))
    return golden, load_network("i3d", path), path


def test_i3d_answers_as_the_reference_does(i3d):
    golden, network, _ = i3d
    rng = np.random.Generator(np.random.PCG64(int(golden["x_seed"])))
    x = np.tanh(rng.standard_normal(golden["x_shape"])).astype(np.float32).transpose(0, 2, 3, 4, 1)
    answers = network.forward(x)
    for name, wanted in (("logits", golden["logits"]), ("features", golden["features"].reshape(1, 1024))):
        error = np.abs(np.asarray(answers[name]) - wanted).max()
        assert error < 1e-3 * np.sqrt(np.square(wanted).mean())


def test_i3d_takes_bytes_of_nine_frames_or_more(i3d):
    _, network, _ = i3d
    video = np.random.default_rng(0).integers(0, 256, (1, 9, 224, 224, 3), dtype=np.uint8)
    answers = network(video)
    assert answers["logits"].shape == (1, 400)
    own = network.forward(2 * video.astype(np.float32) / 255 - 1)
    np.testing.assert_allclose(answers["logits"], own["logits"], atol=1e-4)
    with pytest.raises(DataError, match="8 frames: I3D takes 9 or more"):
        network(video[:, :8])
    with pytest.raises(ValueError, match=r"takes \(batch, frames, height, width, 3\)"):
        network(video[0])


def test_only_the_published_weights_are_called_fvd(i3d):
    _, network, _ = i3d
    assert network.name == "i3d"
    assert metric_label("fd", network.name) == "FD-i3d"
    assert metric_label("fd", FVD_NETWORK) == "FVD"
    assert metric_label("kd", FVD_NETWORK) == "KVD"


def test_the_names_of_other_files_of_i3d_are_known():
    told = {
        "conv3d_1a_7x7.conv3d.weight": "Conv3d_1a_7x7.conv3d.weight",
        "conv3d_2c_3x3.batch3d.running_mean": "Conv3d_2c_3x3.bn.running_mean",
        "mixed_3b.branch_0.conv3d.weight": "Mixed_3b.b0.conv3d.weight",
        "mixed_4f.branch_1.0.batch3d.bias": "Mixed_4f.b1a.bn.bias",
        "i3d.mixed_5c.branch_2.1.conv3d.weight": "Mixed_5c.b2b.conv3d.weight",
        "mixed_5c.branch_3.1.conv3d.weight": "Mixed_5c.b3b.conv3d.weight",
        "conv3d_0c_1x1.conv3d.bias": "logits.conv3d.bias",
        "module.logits.conv3d.weight": "logits.conv3d.weight",
    }
    assert {name: rename(name, Path()) for name in told} == told
    own = [str(name) for name in np.load(GOLDENS / "i3d_9x224.npz")["names"]]
    assert [rename(name, Path()) for name in own] == own


def test_a_torchscript_file_gives_its_tensors_and_its_program_is_only_looked_at():
    tensors = read_torch(GOLDENS / "torchscript.pt")
    assert {name: array.shape for name, array in tensors.items()} == {
        "bn.bias": (4,),
        "bn.num_batches_tracked": (),
        "bn.running_mean": (4,),
        "bn.running_var": (4,),
        "bn.weight": (4,),
        "conv3d.weight": (4, 3, 1, 1, 1),
    }
    assert epsilon_of(GOLDENS / "torchscript.pt") == 1e-3


def test_what_the_program_of_a_torchscript_file_says_is_never_run(tmp_path):
    forged = tmp_path / "forged.pt"
    with zipfile.ZipFile(GOLDENS / "torchscript.pt") as old, zipfile.ZipFile(forged, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            if info.filename.endswith(".py"):
                data = b"raise SystemExit('run')"
            new.writestr(info.filename, data)
    assert len(read_torch(forged)) == 6
    assert epsilon_of(forged) == 1e-5
    with pytest.raises(WeightsError, match="missing: Conv3d_1a_7x7"):
        load_network("i3d", forged)


def test_transnet_answers_as_the_reference_does():
    golden, network = np.load(GOLDENS / "transnet.npz"), load_network("transnetv2")
    answers = network.forward(golden["frames"])
    np.testing.assert_allclose(answers["pool"], golden["pool"], atol=1e-5)
    assert network(np.zeros((1, 4, 32, 40, 3), np.uint8))["pool"].shape == (1, 1024)
