"""Tests that tensor files return the written contents, or raise an error that names the file."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from patch.errors import InputError
from patch.files.tensors import load_header, load_tensors, save_tensors

HEADER = {"method": "wanda", "shapes": {"a": [3, 4]}, "sparsity": 0.5}
TENSORS = {
    "float": torch.arange(6.0).reshape(2, 3),
    "half": torch.arange(5).bfloat16(),
    "bytes": torch.arange(7, dtype=torch.uint8),
    "bool": torch.tensor([[True, False]]),
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(2.5),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_tensors(tmp_path / "x.safetensors", "kind-1", HEADER, TENSORS)
    return tmp_path / "x.safetensors"


def test_round_trip(path: Path) -> None:
    header, tensors = load_tensors(path, "kind-1", "mask")
    assert header == HEADER == load_header(path, "kind-1", "mask")
    assert set(tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_every_damaged_byte_is_noticed(path: Path) -> None:
    good = path.read_bytes()
    source = random.Random(0)
    for place in source.sample(range(len(good)), 300):
        damaged = bytearray(good)
        damaged[place] ^= 1 << source.randrange(8)
        path.write_bytes(damaged)
        # A bit of the padding of the file's own header, or of its length field, may mean nothing: then nothing changed.
        try:
            header, tensors = load_tensors(path, "kind-1", "mask")
        except InputError as error:
            assert str(path) in str(error)
        else:
            assert header == HEADER
            assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_truncated_file(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError, match="truncated or not a safetensors file"):
        load_tensors(path, "kind-1", "mask")


def test_other_kind_and_missing_file(path: Path) -> None:
    with pytest.raises(InputError, match="format is 'kind-1', expected 'kind-2'"):
        load_tensors(path, "kind-2", "mask")
    with pytest.raises(InputError, match="no such file"):
        load_header(path.with_name("none"), "kind-1", "mask")


def test_tensors_are_not_mapped_to_the_file(path: Path) -> None:
    _, tensors = load_tensors(path, "kind-1", "mask")
    with open(path, "r+b") as file:
        file.truncate(0)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


def test_equal_contents_give_equal_bytes(path: Path) -> None:
    first = path.read_bytes()
    for _ in range(8):
        save_tensors(path, "kind-1", HEADER, TENSORS)
        assert path.read_bytes() == first


def test_a_part_of_the_tensors_is_read_and_verified(path: Path) -> None:
    header, tensors = load_tensors(path, "kind-1", "mask", lambda name: name in ("half", "bytes"))
    assert header == HEADER and set(tensors) == {"half", "bytes"}
    # The last bytes of the file are those of `bytes`, `bool` and others of one byte an element.
    whole = path.read_bytes()
    path.write_bytes(whole.replace(bytes(range(7)), bytes(range(1, 8))))
    load_tensors(path, "kind-1", "mask", lambda name: name == "half")
    with pytest.raises(InputError, match="do not match its checksum"):
        load_tensors(path, "kind-1", "mask", lambda name: name in ("half", "bytes"))


def test_the_header_is_verified_and_needs_no_torch(path: Path) -> None:
    code = (
        "import sys; from patch.files.tensors import load_header; "
        f"print(load_header({str(path)!r}, 'kind-1', 'mask')['method'], 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "wanda False\n"
    path.write_bytes(path.read_bytes().replace(b"wanda", b"wandb"))
    with pytest.raises(InputError, match="do not match its checksum"):
        load_header(path, "kind-1", "mask")


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": Infinity}',
        b'{"a": {"data_offsets": [0]}}',
        b'{"a": {"data_offsets": [0, Infinity]}}',
        b'{"a": {"data_offsets": null}}',
        b'{"a": 3}',
        b'{"__metadata__": []}',
        b"[]",
        b"null",
        b'{"__metadata__": {"patch": "[[["}}',
        b'{"__metadata__": {"patch": "3"}}',
        b'{"__metadata__": {"patch": 3}}',
        b'{"__metadata__": {"patch": "{\\"format\\": 1e999}"}}',
    ],
)
def test_hostile_headers(path: Path, text: bytes) -> None:
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    for read in (load_header, load_tensors):
        with pytest.raises(InputError, match="mask .*x.safetensors: ") as error:
            read(path, "kind-1", "mask")
        assert "\n" not in str(error.value) and len(str(error.value)) < 1000


def test_header_must_be_json(path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        save_tensors(path, "kind-1", {"a": float("nan")}, {})
    assert load_header(path, "kind-1", "mask") == HEADER
