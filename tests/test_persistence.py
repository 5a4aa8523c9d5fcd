"""A model file: what goes in comes out bit for bit, and every other file is refused with its own message."""

import json
import os
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save_file

from vaeimpute import persistence

HEADER = {"columns": ["a", "ü"], "params": {"dtype": "float32", "seed": None}, "categories": [[1, 2.5], []]}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.safetensors"
    persistence.save(path, {"weight": np.arange(6.0).reshape(2, 3), "bias": np.float32([1, 2])}, HEADER)
    return path


def assert_same_bits(got, want):
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    assert got.tobytes() == want.tobytes()


@given(
    hnp.arrays(
        st.sampled_from([np.float64, np.float32, np.float16, np.int64, np.int32, np.uint8, np.bool_]),
        hnp.array_shapes(min_dims=0, min_side=0, max_dims=4),
    )
)
def test_arrays_round_trip_bit_for_bit(tmp_path_factory, array):
    path = tmp_path_factory.mktemp("bits") / "m.safetensors"
    persistence.save(path, {"x": array, "transposed": array.T}, {})
    tensors, header = persistence.load(path)
    assert header == {}
    assert_same_bits(tensors["x"], array)
    assert_same_bits(tensors["transposed"], np.asarray(array.T, order="C"))


def test_special_values_and_foreign_byte_order(tmp_path):
    special = np.array([np.nan, -0.0, np.inf, -np.inf, 5e-324])
    persistence.save(tmp_path / "m", {"native": special, "swapped": special.astype(">f8")}, {})
    tensors, _ = persistence.load(tmp_path / "m")
    assert_same_bits(tensors["native"], special)
    assert_same_bits(tensors["swapped"], special)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64, torch.bool])
def test_torch_tensors_come_back_as_arrays(tmp_path, dtype):
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    persistence.save(tmp_path / "m", {"x": torch.nn.Parameter(tensor) if dtype.is_floating_point else tensor}, {})
    assert_same_bits(persistence.load(tmp_path / "m")[0]["x"], tensor.numpy())


def test_header_and_no_tensors(tmp_path):
    persistence.save(tmp_path / "m", {}, HEADER)
    assert persistence.load(tmp_path / "m") == ({}, HEADER)


def test_loaded_arrays_can_be_written_to(saved):
    tensors, _ = persistence.load(saved)
    tensors["weight"][0, 0] = 7.0
    assert persistence.load(saved)[0]["weight"][0, 0] == 0.0


@pytest.mark.parametrize(
    ("tensors", "header", "message"),
    [
        ({"names": np.array(["a"], dtype=object)}, {}, "'names' has dtype object"),
        ({"z": np.ones(2, dtype=complex)}, {}, "'z' has dtype complex128"),
        ({"half": torch.ones(2, dtype=torch.bfloat16)}, {}, "'half' is bfloat16"),
        ({}, {"seed": np.int64(3)}, "int64 is not JSON"),
    ],
)
def test_what_cannot_be_saved_leaves_the_old_file(saved, tensors, header, message):
    before = saved.read_bytes()
    with pytest.raises(TypeError, match=message):
        persistence.save(saved, tensors, header)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_a_failed_write_leaves_the_old_file_and_no_rest(saved, monkeypatch):
    before = saved.read_bytes()

    def full_disk(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        persistence.save(saved, {"x": np.ones(100)}, {})
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_permissions_follow_the_umask(saved):
    plain = saved.with_name("plain")
    plain.write_text("")
    assert saved.stat().st_mode == plain.stat().st_mode


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'.*nowhere' does not exist"):
        persistence.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is a folder"):
        persistence.load(tmp_path)


def test_truncated_at_every_length(saved, tmp_path):
    content = saved.read_bytes()
    cut = tmp_path / "cut"
    for length in range(len(content)):
        cut.write_bytes(content[:length])
        with pytest.raises(ValueError, match="is truncated"):
            persistence.load(cut)


@pytest.mark.parametrize("content", [b"\x80\x04\x95 a pickle, say", b"a,b\n1,2\n3,4\n", b"\x02" + b"\x00" * 7 + b"{]"])
def test_not_a_safetensors_file(tmp_path, content):
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(ValueError, match="is not a safetensors file"):
        persistence.load(tmp_path / "m")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_a_safetensors_file_of_someone_else(tmp_path, metadata):
    save_file({"x": np.ones(3)}, tmp_path / "m", metadata)
    with pytest.raises(ValueError, match="is a safetensors file, but not a model saved by vaeimpute"):
        persistence.load(tmp_path / "m")


def rewrite_metadata(path, change):
    """The same file with other metadata."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    entries = json.loads(content[8 : 8 + length])
    change(entries["__metadata__"])
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def test_another_format_version_names_both(saved):
    rewrite_metadata(saved, lambda metadata: metadata.update(format_version="99", library_version="9.9"))
    own = persistence.FORMAT_VERSION
    with pytest.raises(
        ValueError, match=rf"format version 99 \(written by vaeimpute 9.9\).*reads format version {own}"
    ):
        persistence.load(saved)


def test_damaged_file(saved):
    content = saved.read_bytes()
    saved.write_bytes(content + b"tail")
    with pytest.raises(ValueError, match="is damaged"):
        persistence.load(saved)
    saved.write_bytes(content)
    rewrite_metadata(saved, lambda metadata: metadata.pop("header"))
    with pytest.raises(ValueError, match="is damaged: 'header'"):
        persistence.load(saved)


# --- fitted modules ---------------------------------------------------------------------------------------------------


class Leaf(persistence.Fitted):
    """Buffers only, of any shape and dtype; one of them may be unknown."""

    buffer_names = ("numbers", "counts", "flags", "unknown")


class Tree(persistence.Fitted):
    """Parameters whose shape is configured, a buffer, parts, and what is derived from the configuration."""

    buffer_names = ("table",)

    def __init__(self, width, left, right, table=None):
        super().__init__(table=table)
        self.width, self.left, self.right = width, left, right
        self.layers = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.BatchNorm1d(width))
        self.register_buffer("derived", torch.arange(width), persistent=False)

    def config(self):
        return {"width": self.width}


CLASSES = {"Leaf": Leaf, "Tree": Tree}


def leaf(n=3):
    counts, flags = torch.arange(n), torch.tensor([[True], [False]])
    return Leaf(numbers=torch.linspace(0, 1, n, dtype=torch.float64), counts=counts, flags=flags)


def tree(left=None, right=None):
    return Tree(2, left or leaf(), right or leaf(4), table=torch.ones(2, 3, dtype=torch.float16))


def back(modules, change=None):
    tensors, description = persistence.to_state(modules)
    description = json.loads(json.dumps(description))
    if change:
        change(tensors, description)
    return persistence.from_state(tensors, description, CLASSES, torch.device("cpu"))


def assert_same_module(one, other):
    assert type(one) is type(other)
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name])


@pytest.mark.parametrize("make", [leaf, tree, lambda: tree(tree(), tree(leaf(0)))], ids=["leaf", "tree", "trees"])
def test_modules_come_back_with_shapes_and_dtypes(make):
    module = make()
    copy = back({"m": module})["m"]
    assert_same_module(copy, module)
    assert copy.config() == module.config()
    assert not copy.training  # ready for predictions, not for training


def test_modules_come_back_from_a_file(tmp_path):
    module = tree()
    persistence.save(tmp_path / "m", *persistence.to_state({"m": module}))
    copy = persistence.from_state(*persistence.load(tmp_path / "m"), CLASSES, torch.device("cpu"))["m"]
    assert_same_module(copy, module)


def test_parameters_can_be_trained_and_buffers_not():
    copy = back({"m": tree()})["m"]
    assert all(isinstance(p, torch.nn.Parameter) and p.requires_grad for p in copy.layers.parameters())
    assert not copy.table.requires_grad
    assert copy.derived.tolist() == [0, 1]


def test_what_is_shared_is_written_once_and_shared_again():
    shared = leaf()
    modules = {"one": tree(shared, shared), "two": tree(right=shared), "three": shared}
    tensors, description = persistence.to_state(modules)
    assert [key for key in tensors if key.endswith("numbers")] == ["one.left.numbers", "two.left.numbers"]
    assert description["three"] == {"same": "one.left"}
    copies = back(modules)
    assert copies["one"].left is copies["one"].right is copies["two"].right is copies["three"]
    assert copies["two"].left is not copies["three"]
    for name, module in modules.items():
        assert_same_module(copies[name], module)


def test_a_copy_shares_no_memory():
    module = leaf()
    copy = back({"m": module})["m"]
    copy.numbers[0] = 7.0
    assert module.numbers[0] == 0


def test_layers_take_the_precision_of_their_tensors():
    module = tree()
    module.layers.double()
    copy = back({"m": module})["m"]
    assert copy.layers(torch.ones(3, 2, dtype=torch.float64)).dtype == torch.float64


def test_what_was_never_learnt_stays_unknown():
    assert back({"m": Leaf()})["m"].numbers is None


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda tensors, about: about["m"].update({"class": "Bush"}), KeyError, "Bush"),
        (lambda tensors, about: about["m"]["parts"]["left"].update({"class": "Bush"}), KeyError, "Bush"),
        (lambda tensors, about: about["m"]["config"].update(height=3), TypeError, "height"),
        (lambda tensors, about: about["m"]["parts"].pop("left"), TypeError, "left"),
        (lambda tensors, about: tensors.pop("m.layers.0.weight"), KeyError, "m.layers.0.weight"),
        (lambda tensors, about: tensors.pop("m.layers.1.running_mean"), KeyError, "m.layers.1.running_mean"),
        (lambda tensors, about: tensors.update({"m.more": torch.ones(1)}), KeyError, "'m.more'.*have no place"),
        (
            lambda tensors, about: tensors.update({"m.left.numbers.more": torch.ones(1)}),
            KeyError,
            "'m.left.numbers.more'.*have no place",
        ),
        (
            lambda tensors, about: tensors.update({"m.layers.0.weight": torch.ones(3, 2)}),
            RuntimeError,
            r"'m.layers.0.weight' has shape \(3, 2\), not \(2, 2\)",
        ),
        (lambda tensors, about: about.update(n={"same": "nobody"}), KeyError, "nobody"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, match):
    with pytest.raises(error, match=match):
        back({"m": tree()}, change)


def test_a_buffer_that_no_class_has_is_refused():
    with pytest.raises(TypeError, match=r"Leaf has no buffers \['height'\]"):
        Leaf(height=torch.ones(1))
