"""Saved packed models: equal after loading, small, and refused if damaged."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from patch.errors import InputError
from patch.inference.convert import convert
from patch.inference.files import load, save
from patch.inference.linear import HybridLinear
from patch.inference.packed import unpack

from ...fuzz._damage import read_tensors, write_tensors

LARGER = {"hidden_size": 64, "intermediate_size": 128}
CASES = [
    ("llama", 4, {}),
    ("llama", 32, LARGER | {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    ("gpt2", 8, {}),
    ("gemma3_text", 8, {}),
    ("opt", 8, {}),
    ("qwen2", 64, LARGER),
    ("qwen2", None, {"tie_word_embeddings": False}),
    ("qwen3", 8, {}),
]
TOKENS = torch.randint(0, 50, (2, 5), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def made(tiny_model: Callable, model_masks: Callable) -> Callable[..., nn.Module]:
    """Return a function that makes a converted tiny model."""

    def make(
        family: str = "qwen2", tile: int | None = 8, dtype: torch.dtype = torch.float32, **changes: Any
    ) -> nn.Module:
        heads = {"num_key_value_heads": 4} if family == "qwen2" else {}  # whose rows a tile of 8 divides
        model = tiny_model(family, **heads | changes).to(dtype)
        return convert(model, model_masks(model, tile))

    return make


def contents(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors, header = read_tensors(folder / "packed.safetensors")
    return tensors, {"header": json.dumps(header)}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("family", "tile", "changes"), CASES)
def test_a_model_comes_back_as_it_was(
    family: str, tile: int | None, changes: dict, dtype: torch.dtype, made: Callable, tmp_path: Path
) -> None:
    model = made(family, tile, dtype, **changes)
    save(model, tmp_path / "packed")
    other = load(tmp_path / "packed")
    assert not other.training and not any(tensor.requires_grad for tensor in other.parameters())
    assert {name: type(module) for name, module in other.named_modules()} == {
        name: type(module) for name, module in model.named_modules()
    }
    found, expected = dict(other.state_dict()), dict(model.state_dict())
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    assert torch.equal(other(TOKENS).logits, model(TOKENS).logits)
    options = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12}
    assert torch.equal(other.generate(TOKENS, **options), model.generate(TOKENS, **options))


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_are_there_once(tied: bool, made: Callable, tmp_path: Path) -> None:
    save(made(tie_word_embeddings=tied), tmp_path / "packed")
    other = load(tmp_path / "packed")
    assert (other.lm_head.weight is other.model.embed_tokens.weight) == tied
    tensors, _ = contents(tmp_path / "packed")
    assert ("lm_head.weight" in tensors) != tied and "model.embed_tokens.weight" in tensors


def test_how_it_generates_is_kept(made: Callable, tmp_path: Path) -> None:
    model = made()
    model.generation_config.max_new_tokens = 3
    model.generation_config.repetition_penalty = 1.7
    model.generation_config.eos_token_id = [7, 9]
    save(model, tmp_path / "packed")
    found = load(tmp_path / "packed").generation_config
    assert (found.max_new_tokens, found.repetition_penalty, found.eos_token_id) == (3, 1.7, [7, 9])


def test_without_a_way_to_generate(made: Callable, tmp_path: Path) -> None:
    model = made()
    model.generation_config = None
    save(model, tmp_path / "packed")
    assert not (tmp_path / "packed/generation_config.json").exists()
    assert load(tmp_path / "packed").generate(TOKENS, max_new_tokens=2, do_sample=False).shape == (2, 7)


def test_a_backend_and_a_device_for_all_layers(made: Callable, tmp_path: Path) -> None:
    save(made(), tmp_path / "packed")
    model = load(str(tmp_path / "packed"), backend="unpacked")
    assert {module.backend for module in model.modules() if isinstance(module, HybridLinear)} == {"unpacked"}
    assert {tensor.device.type for tensor in load(tmp_path / "packed", "meta").state_dict().values()} == {"meta"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_file_is_smaller_by_what_is_packed(
    dtype: torch.dtype, tiny_model: Callable, model_masks: Callable, tmp_path: Path
) -> None:
    model = tiny_model("llama", **LARGER | {"num_attention_heads": 4, "num_key_value_heads": 4}).to(dtype)
    masks = model_masks(model, 32)
    model.save_pretrained(tmp_path / "dense")
    save(convert(model, masks), tmp_path / "packed")
    sizes = [
        sum(path.stat().st_size for path in (tmp_path / name).glob("*.safetensors")) for name in ("dense", "packed")
    ]
    saved = 0.4375 if dtype == torch.bfloat16 else 0.46875
    sparse = sum(int((~tiles).sum()) for tiles in masks.tiles.values())
    expected = sparse * 32 * 32 * dtype.itemsize * saved
    _, header = read_tensors(tmp_path / "packed/packed.safetensors")
    tensors = sum(1 for _ in model.parameters()) + 2 * len(header["layers"])
    overhead = 8000 + 150 * tensors
    assert sparse > 20 and abs(sizes[0] - sizes[1] - expected) < overhead, "headers, checksums and the maps of tiles"


def test_an_earlier_save_is_replaced(made: Callable, tmp_path: Path) -> None:
    save(made(), tmp_path / "packed")
    (tmp_path / "link").symlink_to("packed")
    (tmp_path / "empty").mkdir()
    model = made("llama")
    for name in ("packed", "link", "empty"):
        save(model, tmp_path / name)
        names = {path.name for path in (tmp_path / name).iterdir()}
        assert names == {"config.json", "generation_config.json", "packed.safetensors"}
        assert torch.equal(load(tmp_path / name)(TOKENS).logits, model(TOKENS).logits)
    assert (tmp_path / "link").is_symlink()


def foreign_file(folder: Path) -> None:
    (folder / "mine.txt").write_text("mine")


def foreign_folder(folder: Path) -> None:
    (folder / "mine.txt").mkdir()


def hidden_file(folder: Path) -> None:
    (folder / ".mine.txt").write_text("mine")


def dangling_link(folder: Path) -> None:
    (folder / "mine.txt").symlink_to("nowhere")


@pytest.mark.parametrize("beside_an_earlier_save", [False, True])
@pytest.mark.parametrize("foreign", [foreign_file, foreign_folder, hidden_file, dangling_link])
@pytest.mark.parametrize("way", ["path", "link", "."])
def test_a_folder_with_anything_else_is_refused(
    way: str,
    foreign: Callable[[Path], None],
    beside_an_earlier_save: bool,
    made: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, model = tmp_path / "mine", made()
    folder.mkdir()
    if beside_an_earlier_save:
        save(model, folder)
    foreign(folder)
    (tmp_path / "link").symlink_to("mine")
    before, names = snapshot(tmp_path), sorted(path.name for path in folder.iterdir())
    monkeypatch.chdir(folder if way == "." else tmp_path)
    target = {"path": folder, "link": tmp_path / "link", ".": "."}[way]
    with pytest.raises(
        InputError, match=rf"save to {target}: it is not an empty folder, \.?mine.txt is in it; .* name"
    ):
        save(model, target)
    assert snapshot(tmp_path) == before and sorted(path.name for path in folder.iterdir()) == names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "mine"]


def test_files_with_the_names_of_a_save_are_not_one(made: Callable, tmp_path: Path, tiny_model: Callable) -> None:
    """A model's configuration alone and a foreign file are not replaced."""
    model = tiny_model("llama")
    model.config.save_pretrained(tmp_path / "a")
    save_file({"a": torch.ones(2)}, tmp_path / "packed.safetensors")
    for folder, name in ((tmp_path / "a", "config.json"), (tmp_path, "a")):
        before = snapshot(tmp_path)
        with pytest.raises(InputError, match=f"save to {folder}: it is not an empty folder, {name} is in it"):
            save(made(), folder)
        assert snapshot(tmp_path) == before
    save(made(), tmp_path / "b")
    (tmp_path / "b/config.json").rename(tmp_path / "moved.json")
    (tmp_path / "b/config.json").symlink_to(tmp_path / "moved.json")
    with pytest.raises(InputError, match="config.json is in it"):
        save(made(), tmp_path / "b")


def test_a_file_and_the_current_folder_are_not_replaced(
    made: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=f"save to {tmp_path / 'file'}: it is not a folder; .* name another"):
        save(made(), tmp_path / "file")
    save(made(), tmp_path / "packed")
    monkeypatch.chdir(tmp_path / "packed")
    before = snapshot(tmp_path)
    for target in (".", tmp_path / "packed"):
        with pytest.raises(InputError, match="it is the current folder, which cannot be replaced; name another"):
            save(made("llama"), target)
    assert snapshot(tmp_path) == before and set(os.listdir()) == {path.name for path in (tmp_path / "packed").iterdir()}


def test_what_comes_in_while_it_is_saved_stays(made: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(made(), tmp_path / "packed")
    write = save_file

    def meanwhile(*arguments: Any) -> None:
        write(*arguments)
        (tmp_path / "packed/mine.txt").write_text("mine")

    monkeypatch.setattr("safetensors.torch.save_file", meanwhile)
    with pytest.raises(InputError, match="mine.txt is in it"):
        save(made("llama"), tmp_path / "packed")
    assert (tmp_path / "packed/mine.txt").exists() and [path.name for path in tmp_path.iterdir()] == ["packed"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_have_the_modes_of_the_umask(umask: int, made: Callable, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        save(made(), tmp_path / "packed")
    finally:
        os.umask(before)
    assert (tmp_path / "packed").stat().st_mode & 0o777 == 0o777 & ~umask
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "packed").iterdir()} == {0o666 & ~umask}


def test_a_save_that_fails_leaves_what_was_there(
    made: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(made(), tmp_path / "packed")
    before = snapshot(tmp_path)

    def full(tensors: dict, path: Path, metadata: dict) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save(made("llama"), tmp_path / "packed")
    assert snapshot(tmp_path) == before and [path.name for path in tmp_path.iterdir()] == ["packed"]


def test_a_model_that_is_not_converted(tiny_model: Callable, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="LlamaForCausalLM has no packed layer; convert it first, or use save_pretrained"
    ):
        save(tiny_model("llama"), tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


@pytest.fixture
def folder(made: Callable, tmp_path: Path) -> Path:
    """Return the folder of a saved model."""
    save(made(), tmp_path / "packed")
    return tmp_path / "packed"


def refused(folder: Path, match: str) -> None:
    with pytest.raises(InputError, match=match):
        load(folder)


def test_what_is_missing(folder: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "packed model .*nowhere/packed.safetensors: no such file")
    (folder / "config.json").rename(tmp_path / "config.json")
    refused(folder, "packed/config.json: not the file that was saved with packed.safetensors; save the model again")
    (tmp_path / "config.json").rename(folder / "config.json")
    (folder / "packed.safetensors").unlink()
    refused(folder, "packed.safetensors: no such file")


@pytest.mark.parametrize("fraction", [0.0, 0.0001, 0.01, 0.5, 0.999])
def test_a_truncated_file(fraction: float, folder: Path) -> None:
    path = folder / "packed.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    refused(folder, "packed.safetensors: truncated or not a safetensors file")


def test_a_file_of_something_else(folder: Path, tiny_model: Callable) -> None:
    path = folder / "packed.safetensors"
    path.write_bytes(b"\x80\x02" * 1000)
    refused(folder, "truncated or not a safetensors file")
    path.unlink()
    path.mkdir()
    refused(folder, "packed.safetensors: ")
    path.rmdir()
    save_file({"a": torch.ones(2)}, path)
    refused(folder, "format is None, expected 'patch-packed-2'")
    save_file({"a": torch.ones(2)}, path, {"format": "pt"})
    refused(folder, "format is None, expected 'patch-packed-2'")
    save_file({"a": torch.ones(2)}, path, {"format": "patch-packed-1"})
    refused(folder, "format is None, expected 'patch-packed-2'")


FIRST = "model.layers.1.mlp.gate_proj"  # 40 rows, 24 columns, tiles of 8


def write(folder: Path, tensors: dict[str, Tensor], text: str) -> None:
    """Write tensors and any text as the header, with a correct checksum."""
    write_tensors(folder / "packed.safetensors", "patch-packed-2", text, tensors)


def damaged(folder: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], object]) -> None:
    """Change tensors or the layers in the header, with a correct checksum."""
    tensors, metadata = contents(folder)
    header = json.loads(metadata["header"])
    change(tensors, header["layers"])
    write(folder, tensors, json.dumps(header))


def test_a_file_that_is_not_damaged(folder: Path) -> None:
    """A rewritten file without a change is valid."""
    tensors, metadata = contents(folder)
    assert json.loads(metadata["header"])["layers"][FIRST] == {"shape": [40, 24], "tile": 8}
    assert tensors[f"{FIRST}.dense"].shape == (5, 3)
    damaged(folder, lambda *_: None)
    load(folder)


@pytest.mark.parametrize("name", ["model.norm.weight", f"{FIRST}.values", f"{FIRST}.bits", f"{FIRST}.dense"])
def test_contents_that_changed_since(name: str, folder: Path) -> None:
    """One flipped bit could give another valid model."""
    path = folder / "packed.safetensors"
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[:8], "little")
    data[8 + size + json.loads(data[8 : 8 + size])[name]["data_offsets"][1] - 1] ^= 1
    path.write_bytes(data)
    refused(folder, "packed.safetensors: its contents do not match its checksum: damaged or edited; make it again")


@pytest.mark.parametrize("key", ["layers", "files"])
@pytest.mark.parametrize("text", ["[]", "3", '"a"', "null", "true"])
def test_a_damaged_header(text: str, key: str, folder: Path) -> None:
    tensors, metadata = contents(folder)
    header = json.loads(metadata["header"])
    write(folder, tensors, json.dumps(header | {key: json.loads(text)}))
    refused(folder, rf"packed.safetensors: its header is damaged \({key}: ")
    header.pop(key)
    write(folder, tensors, json.dumps(header))
    refused(folder, rf"packed.safetensors: its header is damaged \({key}: None")


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        *[(text, "not valid JSON|must be JSON objects") for text in ("", "{", "[]", "3", "null", '"a"')],
        ('{"layers": {"a": {"shape": [Infinity, 4], "tile": 4}}}', "Infinity is not a number"),
        ('{"layers": NaN}', "NaN is not a number"),
        ('{"layers": ' + DEEP + "}", "nested too deeply"),
        ('{"layers": {"a": {"shape": [' + "9" * 5000 + ', 4], "tile": 4}}}', "not valid JSON"),
        ('{"layers": {}, "layers": {}}', "'layers' is there twice"),
    ],
    ids=lambda text: text[:20],
)
def test_a_header_that_is_no_plain_json(text: str, reason: str, folder: Path) -> None:
    write(folder, contents(folder)[0], text)
    refused(folder, f"packed model .*packed.safetensors: its header.*({reason})")


@pytest.mark.parametrize(
    "description",
    [
        *({}, {"shape": [40, 24]}, {"tile": 8}, [], 5, {"shape": 40, "tile": 8}, {"shape": [40], "tile": 8}),
        *({"shape": [40, 24, 1], "tile": 8}, {"shape": [40, 24], "tile": None}, {"shape": ["a", 24], "tile": 8}),
        *({"shape": [40, 24], "tile": 0}, {"shape": [0, 24], "tile": 8}, {"shape": [41, 24], "tile": 8}),
        *({"shape": [40, 24], "tile": 7}, {"shape": None, "tile": 8}, {"shape": [40.0, 24], "tile": 8}),
        *({"shape": [40, 24], "tile": True}, {"shape": "ab", "tile": 8}, {"shape": {"0": 40, "1": 24}, "tile": 8}),
        *({"shape": [-40, 24], "tile": 8}, {"shape": [40, -24], "tile": -8}, {"shape": [40, 24], "tile": 8.0}),
    ],
    ids=str,
)
def test_a_damaged_shape(description: Any, folder: Path) -> None:
    damaged(folder, lambda tensors, layers: layers.update({FIRST: description}))
    refused(folder, f"packed.safetensors: (the shape of )?{FIRST}")


@pytest.mark.parametrize(
    "description",
    [
        *({"shape": [48, 24], "tile": 8}, {"shape": [40, 24], "tile": 4}, {"shape": [24, 40], "tile": 8}),
        *(
            {"shape": [80, 48], "tile": 16},
            {"shape": [8 * 10**12, 24], "tile": 8},
            {"shape": [2**62, 2**62], "tile": 8},
        ),
        *({"shape": [2**62, 2**62], "tile": 2**62}, {"shape": [40, 24], "tile": 10**300}),
    ],
    ids=str,
)
def test_a_shape_of_something_else(description: Any, folder: Path) -> None:
    damaged(folder, lambda tensors, layers: layers.update({FIRST: description}))
    refused(folder, f"packed.safetensors: .*{FIRST}")


@pytest.mark.parametrize("part", ["values", "bits", "dense"])
def test_parts_of_the_wrong_size(part: str, folder: Path) -> None:
    good, name = (folder / "packed.safetensors").read_bytes(), f"{FIRST}.{part}"
    changes: list[Callable[[Tensor], Tensor | None]] = [
        *(lambda t: t[:-1], lambda t: torch.cat([t, t[:1]]), lambda t: t[:0], lambda t: t[None]),
        *(lambda t: None, lambda t: t.to(torch.int16)),
    ]
    for change in changes:
        tensors, header = contents(folder)
        changed = change(tensors.pop(name))
        write(folder, tensors | ({} if changed is None else {name: changed}), header["header"])
        refused(folder, f"packed.safetensors: {FIRST}: .*{part}")
        (folder / "packed.safetensors").write_bytes(good)


def test_another_map_of_tiles(folder: Path) -> None:
    damaged(folder, lambda tensors, layers: tensors[f"{FIRST}.dense"].fill_(True))
    refused(folder, rf"{FIRST}: values have the shape .*, not \[960\] as the tiles require; save the model again")


@pytest.mark.parametrize("byte", [0b0111_0011, 0b0001_0011, 0b0011_0000, 0b1111_1111])
def test_damaged_bits(byte: int, folder: Path) -> None:
    """A kernel would read beyond the end of the values."""

    def change(tensors: dict[str, Tensor], _: Any) -> None:
        tensors[f"{FIRST}.bits"][-1] = byte

    damaged(folder, change)
    refused(folder, f"{FIRST}: bits are damaged: a group does not keep two of four; save the model again")


def other_file(folder: Path, name: str, text: str | None) -> None:
    """Replace a file, and its digest in the header."""
    if text is not None:
        (folder / name).write_text(text)
    tensors, metadata = contents(folder)
    header = json.loads(metadata["header"])
    header["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    write(folder, tensors, json.dumps(header))


def other_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    other_file(folder, "config.json", json.dumps(config | changes))


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_configuration_that_changed_since(name: str, folder: Path, tmp_path: Path) -> None:
    """Another `rope_theta`, for example, fits the weights but changes the logits."""
    text = (folder / name).read_text()
    for other in (json.dumps(json.loads(text) | {"rms_norm_eps": 0.5}), text + " ", "null", ""):
        (folder / name).write_text(other)
        refused(folder, f"packed/{name}: not the file that was saved with packed.safetensors; save the model again")
    (folder / name).unlink()
    refused(folder, f"packed/{name}: not the file that was saved")
    (folder / name).mkdir()
    refused(folder, f"packed/{name}: cannot be read")


def test_files_of_two_models(made: Callable, tmp_path: Path) -> None:
    """The files of two models of the same shapes are not mixed."""
    for name, theta in (("a", 100.0), ("b", 200.0)):
        save(made(rope_parameters={"rope_type": "default", "rope_theta": theta}), tmp_path / name)
    (tmp_path / "b/config.json").replace(tmp_path / "a/config.json")
    refused(tmp_path / "a", "a/config.json: not the file that was saved with packed.safetensors")


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "null", "[]", "3", '"a"', "true", '{"a": Infinity}', DEEP, '{"max_length": ' + "9" * 5000 + "}"),
        *('{"eos_token_id": {}}', '{"cache_implementation": 3}', '{"watermarking_config": 3}', '{"num_beams": "x"}'),
    ],
    ids=lambda text: text[:20],
)
def test_a_damaged_way_to_generate(text: str, folder: Path) -> None:
    """It is refused, or the model generates with it or raises an InputError."""
    other_file(folder, "generation_config.json", text)
    try:
        model = load(folder)
    except InputError as error:
        assert "packed/generation_config.json" in str(error) and "\n" not in str(error)
    else:
        assert isinstance(json.loads(text), dict) and model(TOKENS).logits.isfinite().all()


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "3", '{"model_type": 3}', '{"model_type": "none"}', DEEP])
def test_a_configuration_of_no_model(text: str, folder: Path) -> None:
    other_file(folder, "config.json", text)
    refused(folder, "packed.*(cannot be|not valid|expected a JSON object)")


@pytest.mark.parametrize(
    "changes",
    [
        *({"num_hidden_layers": 1}, {"num_hidden_layers": 3}, {"hidden_size": 48}, {"intermediate_size": 48}),
        *({"vocab_size": 60}, {"num_key_value_heads": 2}, {"tie_word_embeddings": False}),
    ],
    ids=str,
)
def test_a_configuration_of_other_sizes(changes: dict, folder: Path) -> None:
    layer_types = {"layer_types": ["full_attention"] * changes.get("num_hidden_layers", 2)}
    other_config(folder, **changes, **layer_types)
    refused(folder, "packed.safetensors: .*(config.json|lacks)")


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma3_text"])
def test_a_configuration_of_another_family(family: str, folder: Path, tiny_model: Callable) -> None:
    sizes = {"intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": True}
    sizes = sizes if family == "llama" else {}  # but for its biases it is the same
    tiny_model(family, **sizes).config.save_pretrained(folder)
    other_file(folder, "config.json", None)
    refused(folder, "packed.safetensors: .*(config.json|lacks)")


def test_tensors_that_the_model_does_not_have(folder: Path) -> None:
    good = (folder / "packed.safetensors").read_bytes()
    for name in ("model.norm.odd", "odd", "model.odd.weight", "lm_head.weight.odd"):
        damaged(folder, lambda tensors, layers, name=name: tensors.update({name: torch.ones(3)}))
        refused(folder, f"packed.safetensors: {name} does not belong to the model of the folder's config.json")
        (folder / "packed.safetensors").write_bytes(good)
    damaged(folder, lambda tensors, *_: tensors.pop("model.norm.weight"))
    refused(folder, "packed.safetensors: it lacks model.norm.weight; save the model again")


def test_a_packed_layer_without_its_bias(folder: Path) -> None:
    damaged(folder, lambda tensors, *_: tensors.pop("model.layers.1.self_attn.k_proj.bias"))
    refused(folder, "model.layers.1.self_attn.k_proj does not belong to the model of the folder's config.json")


def test_layers_that_the_model_does_not_have(folder: Path) -> None:
    def change(tensors: dict[str, Tensor], layers: dict[str, Any]) -> None:
        name = "model.layers.1.mlp.odd_proj"
        layers[name] = layers[FIRST]
        for part in ("values", "bits", "dense"):
            tensors[f"{name}.{part}"] = tensors[f"{FIRST}.{part}"].clone()

    damaged(folder, change)
    refused(folder, "model.layers.1.mlp.odd_proj does not belong to the model of the folder's config.json")


def test_a_layer_is_what_it_was_before_saving(made: Callable, tmp_path: Path) -> None:
    """A layer stays equal after saving, loading and moving."""
    model = made("gpt2")
    save(model, tmp_path / "a")
    other = load(tmp_path / "a").bfloat16()
    save(other, tmp_path / "b")
    again = load(tmp_path / "b")
    for name, layer in model.named_modules():
        if isinstance(layer, HybridLinear):
            assert torch.equal(unpack(again.get_submodule(name).packed), unpack(layer.packed).bfloat16())
    assert torch.equal(again(TOKENS).logits, other(TOKENS).logits)
    copied = copy.deepcopy(again)
    assert torch.equal(copied(TOKENS).logits, other(TOKENS).logits)


AFTER = """
import os, sys, torch
from patch.inference import load
torch.set_num_threads(1)
model, tokens = load(sys.argv[1]), torch.arange(10)[None]
before, path = model(tokens).logits, sys.argv[1] + "/packed.safetensors"
if sys.argv[2] == "zeros":
    with open(path, "r+b") as file:
        file.write(bytes(os.path.getsize(path)))
else:
    os.truncate(path, 0)
assert torch.equal(model(tokens).logits, before)
state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
model.load_state_dict(state)
assert torch.equal(model(tokens).logits, before)
"""


@pytest.mark.parametrize("way", ["zeros", "truncated"])
def test_a_file_that_changes_after_it_was_loaded(way: str, folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", AFTER, str(folder), way], capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr[-500:])
