"""Weights found in directories, in files, and on a hub: the real huggingface_hub against a server on this machine."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from tests.networks.hub_server import Hub
from tests.networks.random_weights import random_weights
from zigma_jax.errors import ConfigError, MissingPackageError, WeightsError
from zigma_jax.interop.torch_file import write_torch
from zigma_jax.networks import find_weights, fingerprints, load_network
from zigma_jax.networks.weight_file import WeightFile

A, B = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(4, np.float16)
ONE, TWO = "1" * 40, "2" * 40


def tensors(**arrays: np.ndarray) -> bytes:
    return safetensors.numpy.save(arrays)


def config(**values) -> bytes:
    return json.dumps(values).encode()


FILES = {
    "config.json": config(kind="top"),
    "README.md": b"words",
    "model.safetensors": tensors(a=A, b=B),
    "model.fp16.safetensors": tensors(a=A.astype(np.float16)),
    "pytorch_model.bin": b"\0" * 64,
    "vae/config.json": config(kind="vae"),
    "vae/diffusion_pytorch_model.safetensors": tensors(b=B),
    "tokenizer/vocab.json": b"{}",
}
SHARDED = {
    "config.json": config(),
    "model.safetensors.index.json": config(weight_map={"a": "model-1.safetensors", "b": "model-2.safetensors"}),
    "model-1.safetensors": tensors(a=A),
    "model-2.safetensors": tensors(b=B),
}


def write(folder, files: dict[str, bytes]):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


# -------------------- directories and files


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (FILES, ["model.safetensors"]),
        (SHARDED, ["model-1.safetensors", "model-2.safetensors"]),
        ({"a.bin": b"", "pytorch_model.bin": b"", "model.fp16.safetensors": b""}, ["pytorch_model.bin"]),
        ({"some.pth": b"", "some.fp16.safetensors": b"", "note.txt": b""}, ["some.pth"]),
    ],
)
def test_what_is_read_of_a_directory(files, chosen, tmp_path):
    weights = find_weights(write(tmp_path, files))
    assert [path.name for path in weights.files()] == chosen
    assert weights.revision is None


def test_a_directory_and_a_file_in_it(tmp_path):
    write(tmp_path, FILES)
    weights = find_weights(tmp_path)
    assert weights.config() == {"kind": "top"}
    np.testing.assert_array_equal(weights.open().take("a", 2, 3), A)

    weights = find_weights(str(tmp_path / "vae"))
    assert weights.config() == {"kind": "vae"}
    vocabulary = weights.path("../tokenizer/vocab.json")
    assert vocabulary is not None
    assert vocabulary.read_bytes() == b"{}"
    assert weights.path("merges.txt") is None

    weights = find_weights(tmp_path / "model.fp16.safetensors")
    assert "b" not in weights.open()
    assert weights.config() == {"kind": "top"}  # the one beside it


def test_shards_are_one_file(tmp_path):
    file = find_weights(write(tmp_path, SHARDED)).open()
    np.testing.assert_array_equal(file.take("a", 2, 3), A)
    taken = file.take("b", 4)
    assert taken.dtype == np.float32
    file.check()
    one = find_weights(write(tmp_path / "one", FILES)).open()
    one.take("a", 2, 3)
    one.take("b", 4)
    assert one.fingerprint() == file.fingerprint()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": b"{}"}, "no weights here"),
        (FILES | {"model.safetensors": None, "pytorch_model.bin": None}, "which of model.fp16.safetensors is meant"),
        ({"vae/model.safetensors": b"", "unet/a": b""}, "no weights here, but there are the folders unet, vae"),
        ({"a.pth": b"", "b.pth": b""}, r"which of a\.pth, b\.pth is meant"),
        ({**SHARDED, "model-2.safetensors": None}, r"model-2\.safetensors is missing"),
        ({"model.safetensors.index.json": config(weight_map={"a": "../x"})}, "outside its folder"),
        ({"model.safetensors.index.json": b"[]"}, "not a JSON object"),
        ({"model.safetensors.index.json": b"{}"}, "no weight_map"),
    ],
)
def test_directories_without_usable_weights(files, message, tmp_path):
    write(tmp_path, {name: data for name, data in files.items() if data is not None})
    with pytest.raises(WeightsError, match=message):
        find_weights(tmp_path).files()


def test_no_such_place(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere is not a file or directory\. Get it there\.") as error:
        find_weights(tmp_path / "nowhere", where="Get it there.")
    assert isinstance(error.value, WeightsError)
    for place in ("stabilityai/sd-vae-ft-ema", "https://huggingface.co/stabilityai/sd-vae-ft-ema/tree/main"):
        with pytest.raises(FileNotFoundError, match="give hf://stabilityai/sd-vae-ft-ema"):
            find_weights(place)
    with pytest.raises(WeightsError, match=r"no config\.json"):
        find_weights(tmp_path).config()


@pytest.mark.parametrize("place", ["hf://", "hf://owner", "hf://datasets/a/b", "hf://a/b/../../c", "hf://a/b c"])
def test_places_that_are_not_written_so(place):
    with pytest.raises(ConfigError, match=r"hf://owner/repository\[/path\]\[@revision\]"):
        find_weights(place)


# -------------------- what a file really is


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth", "config.json"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "a Git LFS pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html><html></html>", "a web page"),
        (b"", "an empty file"),
    ],
)
def test_what_downloads_leave(name, data, message, tmp_path):
    write(tmp_path, {name: data})
    with pytest.raises(WeightsError, match=rf"{name}: {message}"):
        find_weights(tmp_path).config() if name == "config.json" else find_weights(tmp_path).open()


def test_truncated_files(tmp_path):
    whole = tensors(a=A, b=B)
    write(tmp_path, {"a.safetensors": whole[:-5], "b.safetensors": whole[:20]})
    with pytest.raises(WeightsError, match=rf"truncated: {len(whole) - 5} bytes of {len(whole)}"):
        WeightFile(tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        WeightFile(tmp_path / "b.safetensors")
    write_torch(tmp_path / "c.pth", {"a": A})
    (tmp_path / "c.pth").write_bytes((tmp_path / "c.pth").read_bytes()[:-30])
    with pytest.raises(WeightsError, match="truncated"):
        WeightFile(tmp_path / "c.pth")


def test_a_file_is_known_by_its_contents(tmp_path):
    write(tmp_path, {"pytorch_model.bin": tensors(a=A)})
    np.testing.assert_array_equal(find_weights(tmp_path).open().take("a", 2, 3), A)


def test_tensors_set_aside(tmp_path):
    data = tensors(a=A, **{"vision.b": B, "embeddings.position_ids": np.arange(3)})
    file = find_weights(write(tmp_path, {"model.safetensors": data})).open()
    file.take("a", 2, 3)
    with pytest.raises(WeightsError, match=r"\(1 tensors\):\n  unexpected: vision\.b \(4,\)"):
        file.check()
    file.leave("vision.")
    file.check()
    assert file.shape("vision.b") == (4,)
    assert set(file) == {"a", "vision.b", "embeddings.position_ids"}


# -------------------- fingerprints


def print_of(path) -> str:
    file = WeightFile(path)
    for name in file:
        file.take(name, *(file.shape(name) or ()))
    return file.fingerprint()


@pytest.fixture
def old_enough(monkeypatch):
    """A file is remembered at once, not only when it is two seconds old."""
    monkeypatch.setattr(fingerprints, "_SETTLED", 0)


@pytest.mark.usefixtures("old_enough")
def test_a_fingerprint_is_computed_once(tmp_path, monkeypatch):
    path = write(tmp_path, {"model.safetensors": tensors(a=A, b=B)}) / "model.safetensors"
    first = print_of(path)
    assert (tmp_path / ".model.safetensors.fingerprint").is_file()
    reads = []
    monkeypatch.setattr("zigma_jax.networks.weight_file._float32", lambda x: (reads.append(1), x.astype(np.float32))[1])
    assert print_of(path) == first
    assert len(reads) == 2  # each tensor once, when it was taken

    # only a part of the file, as another network takes it
    file = WeightFile(path)
    file.take("a", 2, 3)
    assert file.fingerprint() != first
    assert print_of(path) == first


@pytest.mark.usefixtures("old_enough")
def test_a_changed_weight_changes_the_fingerprint(tmp_path):
    path = write(tmp_path, {"model.safetensors": tensors(a=A, b=B)}) / "model.safetensors"
    first, times = print_of(path), os.stat(path)
    changed = A.copy()
    changed[1, 2] += 1e-5
    path.write_bytes(tensors(a=changed, b=B))
    second = print_of(path)
    assert second != first
    path.write_bytes(tensors(a=A, b=B))  # of the first size, and now at its time as well
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert print_of(path) == first


@pytest.mark.usefixtures("old_enough")
def test_a_read_only_directory_is_left_alone(tmp_path):
    folder = write(tmp_path / "weights", {"model.safetensors": tensors(a=A)})
    folder.chmod(0o555)
    first = print_of(folder / "model.safetensors")
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]
    (remembered,) = (tmp_path / "xdg" / "zigma_jax" / "fingerprints").iterdir()
    assert first in remembered.read_text()
    remembered.write_text(remembered.read_text().replace(first, "told"))
    assert print_of(folder / "model.safetensors") == "told"
    remembered.write_text('{"fil')  # what is damaged is not believed
    assert print_of(folder / "model.safetensors") == first


# -------------------- the hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    hub = Hub({"owner/repo": {"main": ONE, ONE: dict(FILES), "v/2": TWO, TWO: SHARDED}})
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    yield hub
    hub.close()


def test_only_what_is_needed_is_downloaded(hub):
    weights = find_weights("hf://owner/repo")
    assert hub.fetched() == []
    assert weights.config() == {"kind": "top"}
    assert hub.fetched() == ["main/config.json"]
    np.testing.assert_array_equal(weights.open().take("a", 2, 3), A)
    assert hub.fetched() == ["main/config.json", "main/model.safetensors"]
    assert (weights.place, weights.revision) == (f"hf://owner/repo@{ONE}", ONE)
    find_weights("hf://owner/repo").open()
    assert len(hub.fetched()) == 2  # the second time from the cache


@pytest.mark.parametrize("revision", ["v/2", TWO])
def test_a_revision(hub, revision):
    weights = find_weights(f"hf://owner/repo@{revision}")
    assert weights.place == f"hf://owner/repo@{TWO}"
    assert weights.open().shape("b") == (4,)
    assert [name.split("/")[-1] for name in hub.fetched()[-2:]] == ["model-1.safetensors", "model-2.safetensors"]


def test_folders_and_files_of_a_repository(hub):
    weights = find_weights("hf://owner/repo/vae")
    assert weights.config() == {"kind": "vae"}
    assert set(weights.open()) == {"b"}
    assert weights.place == f"hf://owner/repo/vae@{ONE}"
    assert weights.path("../tokenizer/vocab.json")
    weights = find_weights("hf://owner/repo/model.fp16.safetensors@main")
    assert set(weights.open()) == {"a"}
    assert weights.config() == {"kind": "top"}
    with pytest.raises(WeightsError, match=r"there is no unet, but README\.md, config\.json, .*, vae/"):
        find_weights("hf://owner/repo/unet")


def test_a_branch_that_moves_meanwhile(hub):
    weights = find_weights("hf://owner/repo")
    hub.repositories["owner/repo"]["main"] = TWO
    assert weights.config() == {"kind": "top"}
    assert ONE in str(weights.path("config.json"))


def test_the_token_is_passed(hub, monkeypatch):
    hub.private.add("owner/repo")
    with pytest.raises(WeightsError, match=r"no such repository, or .*hf auth login.*HF_TOKEN"):
        find_weights("hf://owner/repo")
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert find_weights("hf://owner/repo").config() == {"kind": "top"}
    assert {token for _, _, token in hub.requests[1:]} == {"Bearer hf_secret"}


def test_refusals(hub, monkeypatch):
    hub.gated.add("owner/repo")
    with pytest.raises(WeightsError, match=r"accept the conditions at http://127\S+/owner/repo, then log in"):
        find_weights("hf://owner/repo").config()
    with pytest.raises(WeightsError, match=r"no revision 'v3': see http://127\S+/owner/repo/commits"):
        find_weights("hf://owner/repo@v3")
    del hub.repositories["owner/repo"][ONE]["model.safetensors"]  # pyright: ignore[reportIndexIssue]
    monkeypatch.setenv("HF_TOKEN", hub.token)
    with pytest.raises(WeightsError, match="there is no such repository, or it is private") as error:
        find_weights("hf://owner/other")
    assert "\n" not in str(error.value)


def test_a_file_that_is_gone(hub):
    weights = find_weights("hf://owner/repo")
    del hub.repositories["owner/repo"][ONE]["model.safetensors"]  # pyright: ignore[reportIndexIssue]
    with pytest.raises(
        WeightsError, match=r"hf://owner/repo/model\.safetensors: there is no such file in revision 111"
    ):
        weights.open()


@pytest.mark.parametrize("why", ["offline", "refused", "broken"])
def test_without_a_network(hub, why, monkeypatch, tmp_path, caplog):
    find_weights("hf://owner/repo").config()  # which is in the cache then
    find_weights("hf://owner/repo/vae").open()
    if why == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    elif why == "refused":
        hub.close()
    else:
        hub.broken = 503
    start = time.monotonic()
    weights = find_weights("hf://owner/repo/vae")
    assert weights.place == f"hf://owner/repo/vae@{ONE}"
    assert set(weights.open()) == {"b"}
    assert ("reading revision 111" in caplog.text) == (why != "offline")

    reason = "HF_HUB_OFFLINE is set" if why == "offline" else f"{hub.endpoint} was not reached"
    advice = rf"The cache {tmp_path}/hub does not hold it.*hf download owner/\w+.*local directory as --autoencoder"
    for place in ("hf://owner/repo", "hf://owner/repo/unet", "hf://owner/new", "hf://owner/repo@v/2"):
        with pytest.raises(WeightsError, match=rf"^{place}.*{reason}.*{advice}") as error:
            find_weights(place, flag="--autoencoder").open()
        assert "\n" not in str(error.value)
    assert time.monotonic() - start < 5


def test_offline_with_a_part_that_was_downloaded_by_hand(hub, monkeypatch):
    """As by `hf download owner/repo config.json`, which keeps a list of all names, most of which are not there."""
    from huggingface_hub import snapshot_download

    snapshot_download("owner/repo", allow_patterns=["config.json"])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    weights = find_weights("hf://owner/repo")
    assert weights.config() == {"kind": "top"}
    with pytest.raises(WeightsError, match=r"no weights here\. HF_HUB_OFFLINE is set"):
        weights.open()


def test_a_network_with_weights_from_the_hub(hub):
    names = dict(np.load(Path(__file__).parents[1] / "goldens" / "networks.npz"))["effnet/names"]
    shapes = {name: tuple(map(int, shape)) for name, *shape in (line.split() for line in names)}
    data = safetensors.numpy.save(random_weights(shapes))
    hub.repositories["owner/repo"][ONE] = {"weights/effnet.safetensors": data}
    extractor = load_network("effnet", "hf://owner/repo/weights")
    assert extractor.place == f"hf://owner/repo/weights@{ONE}"
    with pytest.raises(
        WeightsError, match=r"(?s)weights@1{40} does not fit the network.*missing: .*unexpected: _blocks"
    ):
        load_network("dinov2-vits14", "hf://owner/repo/weights")


def test_by_environment_in_a_program_of_its_own(hub, tmp_path):
    """What the other tests set in the library, a user sets in the environment."""
    program = "from zigma_jax.networks.sources import find_weights; print(find_weights('hf://owner/repo/vae').files())"
    environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert f"home/hub/models--owner--repo/snapshots/{ONE}/vae/diffusion_pytorch_model.safetensors" in run.stdout


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingPackageError, match=r"zigma_jax\[hub\]"):
        find_weights("hf://owner/repo")
