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

HEADER = {"columns": ["a", "ü"], "params": {"dtype": "float32", "seed": None}, "levels": [[1, 2.5], []]}


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


def test_another_format_version_names_both(saved, monkeypatch):
    monkeypatch.setattr(persistence, "FORMAT_VERSION", 2)
    with pytest.raises(ValueError, match=r"format version 1 .* reads format version 2"):
        persistence.load(saved)


def test_damaged_file(saved):
    content = saved.read_bytes()
    saved.write_bytes(content + b"tail")
    with pytest.raises(ValueError, match="is damaged"):
        persistence.load(saved)
    (length,) = struct.unpack("<Q", content[:8])
    entries = json.loads(content[8 : 8 + length])
    del entries["__metadata__"]["header"]
    text = json.dumps(entries).encode()
    saved.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    with pytest.raises(ValueError, match="is damaged: 'header'"):
        persistence.load(saved)
