"""Packed models as folders of transformers: equal after loading, small, and refused if damaged."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from patch.data.tokenizer import train_tokenizer
from patch.errors import InputError
from patch.inference import HybridLinear, convert, save, unpack, use_backend
from patch.models.loading import load_model

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
INDEX = "model.safetensors.index.json"


@pytest.fixture(autouse=True)
def quiet() -> None:
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture
def made(tiny_model: Callable, model_masks: Callable) -> Callable[..., nn.Module]:
    """Return a function that makes a converted tiny model."""

    def make(
        family: str = "qwen2", tile: int | None = 8, dtype: torch.dtype = torch.float32, **changes: Any
    ) -> nn.Module:
        heads = {"num_key_value_heads": 4} if family == "qwen2" else {}  # whose rows a tile of 8 divides
        model = tiny_model(family, **heads | changes)
        for parameter in model.parameters():  # not the rotary frequencies, which transformers keeps in fp32
            parameter.data = parameter.data.to(dtype)
        return convert(model, model_masks(model, tile))

    return make


def load(folder: Path | str, **options: Any) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **options)


def stored(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_equal(found: nn.Module, expected: nn.Module) -> None:
    """Compare types of modules, and tensors bit for bit."""
    assert [(name, type(module)) for name, module in found.named_modules()] == [
        (name, type(module)) for name, module in expected.named_modules()
    ]
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("family", "tile", "changes"), CASES)
def test_a_model_comes_back_as_it_was(
    family: str, tile: int | None, changes: dict, dtype: torch.dtype, made: Callable, tmp_path: Path
) -> None:
    model = made(family, tile, dtype, **changes)
    save(model, tmp_path / "packed")
    other = load(tmp_path / "packed")
    assert not other.training and not any(tensor.requires_grad for tensor in other.parameters())
    assert_equal(other, model)
    assert torch.equal(other(TOKENS).logits, model(TOKENS).logits)
    options = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12}
    assert torch.equal(other.generate(TOKENS, **options), model.generate(TOKENS, **options))
    save(other, tmp_path / "again")
    found, expected = stored(tmp_path / "again"), stored(tmp_path / "packed")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    for name in ("config.json", "generation_config.json"):
        assert (tmp_path / "again" / name).read_text() == (tmp_path / "packed" / name).read_text()


@pytest.mark.parametrize(("family", "tile", "changes"), CASES)
def test_transformers_own_way_of_saving(
    family: str, tile: int | None, changes: dict, made: Callable, tmp_path: Path
) -> None:
    """`save_pretrained` of converted and of loaded models writes packed weights, in any number of files."""
    model = made(family, tile, **changes)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size=2000)
    assert (tmp_path / "one/model.safetensors").exists() and len(list((tmp_path / "many").glob("model-*"))) > 5
    for name in ("one", "many"):
        other = load(tmp_path / name)
        assert_equal(other, model)
        other.save_pretrained(tmp_path / f"{name} again", max_shard_size=2000)
        assert_equal(load(tmp_path / f"{name} again"), model)
    layers = json.loads((tmp_path / "one/config.json").read_text())["quantization_config"]["layers"]
    packed = [name for name, module in model.named_modules() if isinstance(module, HybridLinear)]
    assert set(layers) == set(packed) and len(packed) > 5


def test_the_description_is_that_of_the_layers_when_they_are_saved(made: Callable, tmp_path: Path) -> None:
    model, other = made("llama", 8), made("llama", 4)
    name = "model.layers.1.mlp.gate_proj"
    model.model.layers[1].mlp.gate_proj = other.get_submodule(name)
    model.save_pretrained(tmp_path)
    layers = json.loads((tmp_path / "config.json").read_text())["quantization_config"]["layers"]
    assert layers[name]["tile"] == 4 and {layers[other]["tile"] for other in layers if other != name} == {8}
    assert_equal(load(tmp_path), model)
    model.get_submodule(name).bits.zero_()
    with pytest.raises(InputError, match=f"{name}: bits are damaged"):
        model.save_pretrained(tmp_path)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_are_there_once(tied: bool, made: Callable, tmp_path: Path) -> None:
    save(made(tie_word_embeddings=tied), tmp_path / "packed")
    other = load(tmp_path / "packed")
    assert (other.lm_head.weight is other.model.embed_tokens.weight) == tied
    tensors = stored(tmp_path / "packed")
    assert ("lm_head.weight" in tensors) != tied and "model.embed_tokens.weight" in tensors


def test_how_it_generates_is_kept(made: Callable, tmp_path: Path) -> None:
    model = made()
    model.generation_config.max_new_tokens = 3
    model.generation_config.repetition_penalty = 1.7
    model.generation_config.eos_token_id = [7, 9]
    save(model, tmp_path / "packed")
    found = load(tmp_path / "packed").generation_config
    assert (found.max_new_tokens, found.repetition_penalty, found.eos_token_id) == (3, 1.7, [7, 9])
    model.generation_config.temperature, model.generation_config.do_sample = 0.5, False
    with pytest.raises(InputError, match=r"save to .*: the model cannot be saved: .*temperature"):
        save(model, tmp_path / "packed")


def test_a_tokenizer_beside_it(made: Callable, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["In the beginning God created the heaven and the earth."], 300)
    save(made(), tmp_path / "packed", tokenizer)
    found = AutoTokenizer.from_pretrained(tmp_path / "packed")
    assert found("the heaven").input_ids == tokenizer("the heaven").input_ids
    save(made(), tmp_path / "packed")
    assert not (tmp_path / "packed/tokenizer.json").exists(), "all of an earlier save is replaced"


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}, torch.device("cpu")], ids=str)
def test_devices(device_map: Any, made: Callable, tmp_path: Path) -> None:
    model = made()
    save(model, tmp_path)
    other = load(tmp_path, device_map=device_map)
    assert_equal(other, model)
    assert torch.equal(other(TOKENS).logits, model(TOKENS).logits)


def test_another_dtype(made: Callable, tmp_path: Path) -> None:
    model = made("opt")
    save(model, tmp_path)
    other = load(tmp_path, dtype=torch.bfloat16)
    assert_equal(other, model.to(torch.bfloat16))
    assert {str(t.dtype) for t in other.state_dict().values()} == {"torch.bfloat16", "torch.uint8", "torch.bool"}


def test_a_backend_for_all_layers(made: Callable, tmp_path: Path) -> None:
    save(made(), tmp_path)
    model = load(tmp_path)
    before = model(TOKENS).logits
    use_backend(model, "unpacked")
    assert {module.backend for module in model.modules() if isinstance(module, HybridLinear)} == {"unpacked"}
    torch.testing.assert_close(model(TOKENS).logits, before)
    with pytest.raises(InputError, match="backend 'cutlass' is not one of"):
        use_backend(model, "cutlass")
    use_backend(model, None)
    assert torch.equal(model(TOKENS).logits, before)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_it_generates_the_same_when_compiled(
    backend: str, made: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "inductor":
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            get_cpp_compiler()
        except Exception as error:
            pytest.skip(f"torch.compile finds no C++ compiler: {error}")
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
        # Scalar code compiles faster, and no more processes import torch.
        monkeypatch.setattr("torch._inductor.config.cpp.simdlen", 1)
        monkeypatch.setattr("torch._inductor.config.compile_threads", 1)
    # Inductor needs 15 s for each graph, so it compiles only that of the prompt, of a model with one block.
    blocks, count = (1, 1) if backend == "inductor" else (2, 5)
    save(made("llama", 8, num_hidden_layers=blocks), tmp_path / "packed")
    model = load(tmp_path / "packed")
    options = {"do_sample": False, "max_new_tokens": count, "min_new_tokens": count}
    expected = model.generate(TOKENS, **options)
    static = options | {"cache_implementation": "static"}
    assert torch.equal(model.generate(TOKENS, **static), expected)
    torch._dynamo.reset()
    model.forward = torch.compile(model.forward, backend=backend, fullgraph=True)
    compiled = model.generate(TOKENS, **static)
    assert torch.equal(compiled, expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch._dynamo.reset()


def test_it_is_pushed_to_the_hub(made: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's client gets the repository, and the files of `save_pretrained` with a card."""
    pushed: dict[str, bytes] = {}

    def create_commit(_: Any, repo_id: str, operations: list[Any], **options: Any) -> None:
        assert repo_id == "me/packed" and options["revision"] is None
        pushed.update({one.path_in_repo: Path(one.path_or_fileobj).read_bytes() for one in operations})

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda *_, **__: SimpleNamespace(repo_id="me/packed"))
    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", create_commit)
    card = SimpleNamespace(save=lambda path: Path(path).write_text("card"))
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", lambda *_, **__: card)
    model = made()
    model.push_to_hub("me/packed", max_shard_size=5000)
    model.save_pretrained(tmp_path, max_shard_size=5000)
    assert pushed.pop("README.md") == b"card" and pushed == snapshot(tmp_path) and len(pushed) > 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_files_are_smaller_by_what_is_packed(
    dtype: torch.dtype, tiny_model: Callable, model_masks: Callable, tmp_path: Path
) -> None:
    model = tiny_model("llama", **LARGER | {"num_attention_heads": 4, "num_key_value_heads": 4}).to(dtype)
    masks = model_masks(model, 32)
    model.save_pretrained(tmp_path / "dense")
    save(convert(model, masks), tmp_path / "packed")
    sizes = [sum(tensor.nbytes for tensor in stored(tmp_path / name).values()) for name in ("dense", "packed")]
    saved = 0.4375 if dtype == torch.bfloat16 else 0.46875
    tiles = [dense for dense in masks.tiles.values() if not dense.all()]
    sparse, maps = sum(int((~dense).sum()) for dense in tiles), sum(dense.numel() for dense in tiles)
    assert sparse > 20 and sizes[0] - sizes[1] == sparse * 32 * 32 * dtype.itemsize * saved - maps


def test_memory_of_saving_and_loading(tmp_path: Path) -> None:
    """Both hold at most the packed model, one layer of it and 8 MB."""
    script, found = Path(__file__).with_name("file_memory.py"), {}
    for action in ("save", "load"):
        command = [sys.executable, str(script), action, str(tmp_path / "packed")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        found[action] = json.loads(done.stdout)
        assert found[action]["model"] > 200e6
    saving, loading = found["save"], found["load"]
    assert saving["peak"] < saving["layer"] + 8e6, saving
    assert loading["model"] < loading["peak"] + 8e6, loading
    assert loading["peak"] < loading["model"] + loading["layer"] + 8e6, loading


def test_an_earlier_save_is_replaced(made: Callable, tmp_path: Path) -> None:
    save(made(), tmp_path / "packed")
    (tmp_path / "link").symlink_to("packed")
    (tmp_path / "empty").mkdir()
    model = made("llama")
    for name in ("packed", "link", "empty"):
        save(model, tmp_path / name)
        shards = set(json.loads((tmp_path / name / INDEX).read_text())["weight_map"].values())
        names = {path.name for path in (tmp_path / name).iterdir()}
        assert names == shards | {"config.json", "generation_config.json", INDEX} and len(shards) > 2
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
    """A dense model, weights without a configuration, and a damaged configuration are not replaced."""
    tiny_model("llama").save_pretrained(tmp_path / "a")
    (tmp_path / "c").mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "c/model.safetensors")
    (tmp_path / "d").mkdir()
    (tmp_path / "d/config.json").write_text('{"quantization_config": {"quant_method": "patch-hybrid"}}')
    for folder, name in ((tmp_path / "a", "config.json"), (tmp_path / "c", "model.safetensors"), (tmp_path / "d", "c")):
        before = snapshot(tmp_path)
        with pytest.raises(InputError, match=f"save to {folder}: it is not an empty folder, {name}.* is in it"):
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

    def meanwhile(*arguments: Any, **options: Any) -> None:
        write(*arguments, **options)
        (tmp_path / "packed/mine.txt").write_text("mine")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", meanwhile)
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

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save(made("llama"), tmp_path / "packed")
    assert snapshot(tmp_path) == before and [path.name for path in tmp_path.iterdir()] == ["packed"]


def test_a_model_that_is_not_converted(tiny_model: Callable, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="LlamaForCausalLM has no packed layer; convert it first"):
        save(tiny_model("llama"), tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


FIRST = "model.layers.1.mlp.gate_proj"  # 40 rows, 24 columns, tiles of 8


def shard_of(folder: Path) -> Path:
    """Return the weight file of that layer."""
    return folder / json.loads((folder / INDEX).read_text())["weight_map"][f"{FIRST}.values"]


@pytest.fixture
def folder(made: Callable, tmp_path: Path) -> Path:
    """Return the folder of a saved model."""
    save(made(), tmp_path / "packed")
    return tmp_path / "packed"


def refused(folder: Path, match: str, error: type[Exception] = InputError) -> None:
    with pytest.raises(error, match=match) as raised:
        load(folder)
    assert "\n" not in str(raised.value) or error is not InputError


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change config.json."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change tensors in their files, and leave the index as it is, which transformers does not compare."""
    homes = {name: path for path in folder.glob("*.safetensors") for name in load_file(path)}
    tensors, new_home = stored(folder), shard_of(folder)
    change(tensors)
    for path in set(homes.values()):
        own = {name: t.contiguous() for name, t in tensors.items() if homes.get(name, new_home) == path}
        save_file(own, path, {"format": "pt"})


def test_a_folder_that_is_not_damaged(folder: Path) -> None:
    """A rewritten folder without a change is valid."""
    edit_config(folder, lambda config: None)
    edit_tensors(folder, lambda tensors: None)
    description = json.loads((folder / "config.json").read_text())["quantization_config"]["layers"][FIRST]
    assert (description["shape"], description["tile"]) == ([40, 24], 8)
    assert load_file(shard_of(folder))[f"{FIRST}.dense"].shape == (5, 3)
    load(folder)


def test_what_is_missing(folder: Path, tmp_path: Path) -> None:
    shard = shard_of(folder)
    shard.rename(tmp_path / "shard")
    refused(folder, f"{shard.name}: no such file; copy the whole folder of the model")
    (tmp_path / "shard").rename(shard)
    (folder / INDEX).unlink()
    refused(folder, "no file named model.safetensors", OSError)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(InputError, match="no .safetensors file in it"):
        load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match="no config.json in it"):
        load_model(folder)


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.01, 0.5, 0.999])
def test_a_truncated_shard(fraction: float, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = shard_of(folder)
    data = shard.read_bytes()
    shard.write_bytes(data[: int(len(data) * fraction)])
    monkeypatch.setattr("transformers.modeling_utils.convert_and_load_state_dict_in_model", None)
    refused(folder, f"{shard.name}: truncated or not a safetensors file")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda config: config.update(quant_method="patch-hybrid-2"), "patch-hybrid-2"),
        (lambda config: config.update(format=2), "format 2 is newer than 1, the newest that this version reads"),
        (lambda config: config.update(format="1"), "`format`"),
        (lambda config: config.update(layers={}), "`layers`"),
        (lambda config: config.pop("layers"), "`layers`: Field required"),
        (lambda config: config.update(more=1), "`more`"),
        (lambda config: config["layers"][FIRST].pop("tile"), f"`layers.{FIRST}.tile`"),
        (lambda config: config["layers"][FIRST].update(tile=7), f"`layers.{FIRST}`: tile 7 does not cut"),
        (lambda config: config["layers"][FIRST].update(tile=16), f"`layers.{FIRST}`: tile 16 does not cut"),
        (lambda config: config["layers"][FIRST].update(sparse_tiles=16), "16 sparse tiles; tile 8 cuts"),
        (lambda config: config["layers"][FIRST].update(shape=[2**62, 24]), f"`layers.{FIRST}.shape.0`"),
        (lambda config: config["layers"][FIRST].update(shape=[24, 40]), "the model's layer has"),
        (lambda config: config["layers"][FIRST].update(shape=[48, 24]), "the model's layer has"),
        (lambda config: config["layers"].update({"lm_head": config["layers"][FIRST]}), "lm_head is not a linear"),
        (lambda config: config["layers"].update({"model.norm": config["layers"][FIRST]}), "norm is not a linear"),
        (lambda config: config["layers"].update({f"{FIRST}.x": config["layers"][FIRST]}), "x is not a linear layer"),
        (lambda config: config["layers"][FIRST].update(tile=4), r"has the shape .*; config.json needs"),
        (lambda config: config["layers"][FIRST].update(sparse_tiles=0), r"has the shape .*; config.json needs"),
        (lambda config: config["layers"].pop(FIRST), f"its weight files lack {FIRST}.weight"),
    ],
)
def test_a_damaged_description(change: Callable, reason: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused before any weight is read."""
    edit_config(folder, lambda config: change(config["quantization_config"]))
    if reason == "patch-hybrid-2":  # transformers itself continues with a dense model
        with pytest.raises(InputError, match="packed: its files lack the weights"):
            load_model(folder)
        return
    monkeypatch.setattr("transformers.modeling_utils.convert_and_load_state_dict_in_model", None)
    refused(folder, reason)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tensors: tensors.pop(f"{FIRST}.bits"), f"its weight files lack {FIRST}.bits"),
        (lambda tensors: tensors.pop("model.layers.1.self_attn.k_proj.bias"), "lack .*k_proj.bias"),
        (lambda tensors: tensors.pop("model.layers.1.input_layernorm.weight"), "lack .*input_layernorm.weight"),
        (lambda tensors: tensors.update({f"{FIRST}.weight": torch.ones(40, 24)}), f"'{FIRST}.weight' does not belong"),
        (lambda tensors: tensors.update({f"{FIRST}.bias": torch.ones(40)}), f"'{FIRST}.bias' does not belong"),
        (lambda tensors: tensors.update({"odd": torch.ones(1)}), "'odd' does not belong to the model of config.json"),
        (
            lambda tensors: tensors.update({"model.layers.1.input_layernorm.weight": torch.ones(25)}),
            r"input_layernorm.weight has the shape \[25\]; config.json needs \[24\]",
        ),
        (
            lambda tensors: tensors.update({"model.layers.1.input_layernorm.weight": torch.ones(24, dtype=torch.int8)}),
            "input_layernorm.weight has the dtype int8; expected floating-point numbers",
        ),
    ],
)
def test_a_tensor_that_is_missing_or_unknown(
    change: Callable, reason: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused before any weight is read."""
    edit_tensors(folder, change)
    monkeypatch.setattr("transformers.modeling_utils.convert_and_load_state_dict_in_model", None)
    refused(folder, reason)


def test_a_tensor_in_two_files(folder: Path) -> None:
    shard, index = shard_of(folder), json.loads((folder / INDEX).read_text())["weight_map"]
    name, other = next((name, file) for name, file in index.items() if file != shard.name)
    save_file(load_file(shard) | {name: torch.ones(1)}, shard, {"format": "pt"})
    refused(folder, f"'{name}' is also in ({other}|{shard.name})")


@pytest.mark.parametrize("part", ["values", "bits", "dense"])
def test_parts_of_the_wrong_size(part: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are refused before any weight is read."""
    monkeypatch.setattr("transformers.modeling_utils.convert_and_load_state_dict_in_model", None)
    shard, name = shard_of(folder), f"{FIRST}.{part}"
    good = shard.read_bytes()
    changes: list[Callable[[Tensor], Tensor]] = [
        *(lambda t: t[:-1], lambda t: torch.cat([t, t[:1]]), lambda t: t[:0], lambda t: t[None]),
        lambda t: t.to(torch.int16),
    ]
    for change in changes:
        edit_tensors(folder, lambda tensors, change=change: tensors.update({name: change(tensors[name])}))
        refused(folder, f"{shard.name}: {name} has the ")
        shard.write_bytes(good)


@pytest.mark.parametrize("byte", [0b0111_0011, 0b0001_0011, 0b0011_0000, 0b1111_1111])
def test_damaged_bits(byte: int, folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors[f"{FIRST}.bits"][-1:].fill_(byte))
    refused(folder, f"packed: {FIRST}: bits are damaged: a group does not keep two of four")


def test_another_map_of_tiles(folder: Path) -> None:
    """A kernel would read beyond the end of the values."""
    edit_tensors(folder, lambda tensors: tensors[f"{FIRST}.dense"].fill_(True))
    refused(folder, rf"packed: {FIRST}: values have the shape .*, not \[960\] as the tiles require")


DEEP = "[" * 100_000 + "]" * 100_000


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
    (folder / "generation_config.json").write_text(text)
    try:
        model = load_model(folder)
    except InputError as error:
        assert "packed/generation_config.json" in str(error) and "\n" not in str(error)
    else:
        assert isinstance(json.loads(text), dict) and model(TOKENS).logits.isfinite().all()


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "null", "[]", "3", '{"model_type": 3}', '{"model_type": "none"}', DEEP),
        *('{"quantization_config": 3}', '{"layers": {}, "layers": {}}'),
    ],
    ids=lambda text: text[:30],
)
def test_a_configuration_of_no_model(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match="packed.*(cannot be|not valid|expected a JSON object|holds)"):
        load_model(folder)


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
    edit_config(folder, lambda config: config.update(changes | layer_types))
    refused(folder, "packed.*config.json|packed: its weight files lack")


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma3_text"])
def test_a_configuration_of_another_family(family: str, folder: Path, tiny_model: Callable) -> None:
    sizes = {"intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": True}
    sizes = sizes if family == "llama" else {}  # but for its biases it is the same
    other = tiny_model(family, **sizes).config.to_dict()
    edit_config(folder, lambda config: config.update({k: v for k, v in other.items() if v is not None}))
    refused(folder, "packed.*config.json|packed: its weight files lack")


def test_a_pickle_is_not_read(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04}.")
    refused(folder, "pytorch_model.bin: truncated or not a safetensors file")


def test_without_a_packed_folder(tiny_model: Callable, folder: Path, tmp_path: Path) -> None:
    """A dense model is not packed while it is loaded, since that needs masks."""
    tiny_model("llama").save_pretrained(tmp_path / "dense")
    config = load(folder).config.quantization_config
    with pytest.raises(ValueError, match="patch-hybrid does require the model to be pre-quantized"):
        load(tmp_path / "dense", quantization_config=config)


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
    save(copied, tmp_path / "b")
    assert_equal(load(tmp_path / "b"), again)


AFTER = """
import os, sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM
import patch.inference
torch.set_num_threads(1)
tokens = torch.arange(10)[None]
for way in ("truncated", "zeros"):
    folder = Path(sys.argv[1]) / way
    model = AutoModelForCausalLM.from_pretrained(folder)
    before = model(tokens).logits
    for path in folder.glob("*.safetensors"):
        if way == "zeros":
            with open(path, "r+b") as file:
                file.write(bytes(os.path.getsize(path)))
        else:
            os.truncate(path, 0)
    assert torch.equal(model(tokens).logits, before)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state)
    assert torch.equal(model(tokens).logits, before)
    print(way)
"""


def test_files_that_change_after_they_were_loaded(folder: Path, tmp_path: Path) -> None:
    for way in ("truncated", "zeros"):
        shutil.copytree(folder, tmp_path / "copies" / way)
    done = subprocess.run([sys.executable, "-c", AFTER, str(tmp_path / "copies")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "truncated\nzeros\n"), done.stderr[-500:]
