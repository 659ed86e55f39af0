"""Exported folders: the masked model for transformers alone; a wrong folder never appears."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from patch.data.tokenizer import train_tokenizer
from patch.errors import InputError
from patch.inference import HybridLinear
from patch.inference.export import Sizes, export_model
from patch.masks.nm import NM, nm_mask
from patch.masks.packed import MaskSet, apply_masks
from patch.masks.published_masks import read_published
from patch.models.loading import load_model, prunable_linears, weight_matrix
from patch.quantization.model import quantize_model

FAMILIES = ["qwen2", "gpt2", "opt", "gemma3_text"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(["in the beginning god created the heaven and the earth"] * 3, 280)


def two_four(model: torch.nn.Module) -> MaskSet:
    return MaskSet(
        {name: nm_mask(weight_matrix(m).float().abs(), NM(2, 4)) for name, m in prunable_linears(model).items()}, "2:4"
    )


def hybrid(model: torch.nn.Module) -> MaskSet:
    """Return masks of which the first tile of each layer is dense, and all others 2:4."""
    masks = two_four(model)
    for name, mask in masks.masks.items():
        mask[:4, :4] = True
        masks.tiles[name] = torch.zeros(mask.shape[0] // 4, mask.shape[1] // 4, dtype=torch.bool)
        masks.tiles[name][0, 0] = True
    return MaskSet(masks.masks, "hybrid", masks.tiles, 4)


def plain(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_folder_is_the_masked_model(
    family: str, dtype: str, tiny_model: Callable, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    # Loaded, since `.to` would cast the frequencies of rotary positions too, which no file holds.
    tiny_model(family).save_pretrained(tmp_path / "dense")
    model, wanted = (load_model(tmp_path / "dense", dtype) for _ in range(2))
    masks = hybrid(model)
    apply_masks(wanted, masks)
    out = tmp_path / "deep" / "out"
    export_model(model, tokenizer, masks, out, "dense", meta={"method": "patch"})
    assert [path.name for path in out.parent.iterdir()] == ["out"]

    loaded, tokens = plain(out), torch.arange(12)[None]
    assert loaded.dtype == getattr(torch, dtype)
    assert torch.equal(loaded(tokens).logits, wanted(tokens).logits)
    assert torch.equal(model(tokens).logits, wanted(tokens).logits)
    assert loaded.state_dict().keys() == wanted.state_dict().keys()
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in wanted.state_dict().items())
    for name, linear in prunable_linears(loaded).items():
        assert torch.equal(weight_matrix(linear) == 0, ~masks.masks[name])
    assert AutoTokenizer.from_pretrained(out)("in the earth").input_ids == tokenizer("in the earth").input_ids
    found = read_published(out / "mask.npz", loaded, "hybrid")
    assert all(torch.equal(found.masks[name], mask) for name, mask in masks.masks.items())
    assert found.header["meta"]["method"] == "patch"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["qwen2", "gpt2", "opt"])
def test_tied_embeddings_stay_tied(family: str, tied: bool, tiny_model: Callable, tmp_path: Path) -> None:
    model = tiny_model(family, tie_word_embeddings=tied)
    export_model(model, None, two_four(model), tmp_path / "out", "dense")
    loaded = plain(tmp_path / "out")
    shared = loaded.get_input_embeddings().weight.data_ptr() == loaded.get_output_embeddings().weight.data_ptr()
    assert shared == tied
    assert torch.equal(loaded.get_output_embeddings().weight, model.get_output_embeddings().weight)
    # Once on disk: tied weights are not written twice.
    stored = load_file(tmp_path / "out" / "model.safetensors")
    vocabulary = sum(value.numel() for value in stored.values() if value.shape[0] == 50)
    assert vocabulary == (1 if tied else 2) * model.get_input_embeddings().weight.numel()


def test_zeros_nans_and_weights_of_any_value_pass(tiny_model: Callable, tmp_path: Path) -> None:
    """Weights that were zero before, -0 and NaN are no damage."""
    model = tiny_model()
    masks = two_four(model)
    weight = model.model.layers[0].mlp.up_proj.weight
    weight[:2] = 0.0
    weight[3, 5] = -0.0
    model.model.norm.weight[3] = float("nan")
    export_model(model, None, masks, tmp_path / "out", "dense")
    loaded = plain(tmp_path / "out")
    assert loaded.model.norm.weight[3].isnan()
    assert (loaded.model.layers[0].mlp.up_proj.weight == 0).sum() > (~masks.masks["model.layers.0.mlp.up_proj"]).sum()


def test_an_empty_folder_or_a_link_to_one_is_taken(tiny_model: Callable, tmp_path: Path) -> None:
    model = tiny_model()
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    export_model(model, None, two_four(model), tmp_path / "link", "dense")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "empty" / "config.json").exists()


def test_a_folder_in_use_and_a_file_are_refused(
    tiny_model: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, before = tiny_model(), tiny_model().state_dict()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    (tmp_path / "file").write_text("keep")
    (tmp_path / "link").symlink_to("out")
    (tmp_path / "empty").mkdir()
    names = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path / "out")
    reasons = {"out": "it is not an empty folder, mine.txt is in it; .*name another", "file": "it is not a folder"}
    for target, name in ((tmp_path / "out", "out"), (".", "out"), (tmp_path / "link", "out"), ("../file", "file")):
        with pytest.raises(InputError, match=f"export to {target}: {reasons[name]}"):
            export_model(model, None, two_four(model), target, "dense")
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(InputError, match="export to .: it is the current folder, which cannot be replaced"):
        export_model(model, None, two_four(model), ".", "dense")
    assert (tmp_path / "out" / "mine.txt").read_text() == (tmp_path / "file").read_text() == "keep"
    assert sorted(tmp_path.rglob("*")) == names
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_files_have_the_modes_of_the_umask(
    umask: int, tiny_model: Callable, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = tiny_model()
    before = os.umask(umask)
    try:
        export_model(model, tokenizer, two_four(model), tmp_path / "out", "dense")
    finally:
        os.umask(before)
    files = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "mask.npz", "config.json"} < set(files)
    assert set(files.values()) == {0o666 & ~umask}
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~umask


def test_masks_that_are_none_foreign_or_broken_change_nothing(tiny_model: Callable, tmp_path: Path) -> None:
    model, before, out = tiny_model(), tiny_model().state_dict(), tmp_path / "out"
    with pytest.raises(InputError, match=f"export to {out}: no masks"):
        export_model(model, None, None, out, "dense")
    with pytest.raises(InputError, match="another model"):
        export_model(model, None, two_four(tiny_model("opt")), out, "dense")
    broken = two_four(model)
    broken.masks["model.layers.1.mlp.up_proj"][0, :4] = True
    with pytest.raises(InputError, match="layers.1.mlp.up_proj: row 0, weights 0 to 3 break 2:4"):
        export_model(model, None, broken, out, "dense")
    assert list(tmp_path.iterdir()) == []
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


UP = "model.layers.0.mlp.up_proj.weight"


def fill_masked(weights: dict[str, torch.Tensor]) -> None:
    zero = (weights[UP] == 0).nonzero()[0].tolist()
    weights[UP][zero[0], zero[1]] = 1e-30


def change_kept(weights: dict[str, torch.Tensor]) -> None:
    kept = weights[UP].nonzero()[0].tolist()
    weights[UP][kept[0], kept[1]] *= 1 + 1e-6


FAULTS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "masked-weight": (fill_masked, "model.layers.0.mlp.up_proj.weight: 1 masked weights are not zero"),
    "kept-weight": (change_kept, "model.layers.0.mlp.up_proj.weight has other values"),
    "lost-weight": (lambda w: w[UP][0].zero_(), "model.layers.0.mlp.up_proj.weight has other values"),
    "negative-zero": (lambda w: w[UP].copy_(torch.where(w[UP] == 0, -0.0, w[UP])), "has other values"),
    "norm": (lambda w: w["model.norm.weight"].add_(1), "model.norm.weight has other values"),
    "bias": (lambda w: w["model.layers.1.self_attn.q_proj.bias"].add_(1), "q_proj.bias has other values"),
    "embedding": (lambda w: w["model.embed_tokens.weight"][3].add_(1), "has other values"),
    "gone": (lambda w: w.pop(UP), "lack the weights"),
    "shape": (lambda w: w.update({UP: w[UP][:-1].clone()}), "cannot be loaded"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_what_is_saved_is_found_and_nothing_is_left(
    fault: str, tiny_model: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, message = FAULTS[fault]
    save = PreTrainedModel.save_pretrained

    def corrupt(self: PreTrainedModel, folder: Path, **options: Any) -> None:
        save(self, folder, **options)
        file = Path(folder) / "model.safetensors"
        weights = load_file(file)
        change(weights)
        save_file(weights, file, metadata={"format": "pt"})

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", corrupt)
    model, out = tiny_model(), tmp_path / "out"
    with pytest.raises(InputError, match=f"export to {out}: the saved model is wrong and is removed") as error:
        export_model(model, None, two_four(model), out, "dense")
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_fault_in_the_mask_file_is_found(
    tiny_model: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flip(path: Path, *arguments: Any) -> None:
        write(path, *arguments)
        with np.load(path) as file:
            entries = dict(file)
        entries[UP] = entries[UP].copy()
        entries[UP][0] = 0  # drops more: 2:4 still
        np.savez(path, **entries)

    import patch.inference.export

    write = patch.inference.export.write_published
    monkeypatch.setattr(patch.inference.export, "write_published", flip)
    model = tiny_model()
    with pytest.raises(InputError, match="mask.npz has another mask of model.layers.0.mlp.up_proj"):
        export_model(model, None, two_four(model), tmp_path / "out", "dense")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_export_leaves_nothing(
    tiny_model: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("patch.inference.export.load_model", stop)
    model = tiny_model()
    with pytest.raises(KeyboardInterrupt):
        export_model(model, None, two_four(model), tmp_path / "out", "dense")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_transformers_does_not_save_is_a_users_mistake(tiny_model: Callable, tmp_path: Path) -> None:
    model = tiny_model()
    model.generation_config.do_sample, model.generation_config.temperature = False, 0.5
    with pytest.raises(InputError, match=f"export to {tmp_path / 'out'}: the model cannot be saved: .*temperature"):
        export_model(model, None, two_four(model), tmp_path / "out", "dense")
    assert list(tmp_path.iterdir()) == []


def test_forms_that_the_model_does_not_have_are_refused(tiny_model: Callable, tmp_path: Path) -> None:
    model, out = tiny_model(), tmp_path / "out"
    unstructured = MaskSet(two_four(model).masks, "unstructured")
    layers = quantize_model(copy.deepcopy(model), 4, 8)
    for masks, form, quantized, message in (
        (unstructured, "packed", None, "masks of unstructured have no packed form; use the form dense"),
        (unstructured, "packed", layers, "masks of unstructured have no packed form; use the form compressed-tensors"),
        (two_four(model), "dense", layers, "quantized weights have no dense form; use packed or compressed-tensors"),
        (two_four(model), "compressed-tensors", None, "weights that are not quantized have the forms packed and dense"),
    ):
        with pytest.raises(InputError, match=f"export to {out}: {message}"):
            export_model(model, None, masks, out, form, quantized)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["packed", "compressed-tensors"])
@pytest.mark.parametrize("pruned", [True, False])
def test_quantized_layers_are_those_of_the_folder(
    form: str, pruned: bool, tiny_model: Callable, tmp_path: Path
) -> None:
    model, quantized = tiny_model(), tiny_model()
    masks = hybrid(model) if pruned else None
    if masks:
        apply_masks(quantized, masks)
    layers = quantize_model(quantized, 4, 8)
    found: list[Sizes] = []

    def card(sizes: Sizes) -> str:
        found.append(sizes)
        return "# Card"

    export_model(model, None, masks, tmp_path / "out", form, layers, card)
    assert (tmp_path / "out/README.md").read_text() == "# Card"
    assert 4 * found[0].stored_linear < 2 * found[0].dense_linear and found[0].stored < found[0].dense
    if form == "packed":
        tokens = torch.arange(12)[None]
        torch.testing.assert_close(plain(tmp_path / "out")(tokens).logits, quantized(tokens).logits)
    else:
        config = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
        assert config["format"] == "pack-quantized"


def test_sizes_are_those_of_the_files(tiny_model: Callable, tmp_path: Path) -> None:
    model, found = tiny_model("llama", tie_word_embeddings=True), []
    dense = sum(tensor.nbytes for tensor in model.state_dict().values()) - model.lm_head.weight.nbytes
    linear = sum(layer.weight.nbytes for layer in prunable_linears(model).values())
    export_model(model, None, two_four(model), tmp_path / "out", "packed", card=lambda sizes: found.append(sizes) or "")
    layers = [layer for layer in plain(tmp_path / "out").modules() if isinstance(layer, HybridLinear)]
    packed = sum(layer.packed.nbytes for layer in layers)
    assert found == [Sizes(dense, dense - linear + packed, linear, packed)]


def test_a_fault_in_a_packed_folder_is_found(
    tiny_model: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = PreTrainedModel.save_pretrained

    def corrupt(self: PreTrainedModel, folder: Path, **options: Any) -> None:
        save(self, folder, **options)
        for file in Path(folder).glob("*.safetensors"):
            weights = load_file(file)
            if (name := UP.replace("weight", "values")) in weights:
                weights[name][0] *= 2
                save_file(weights, file, metadata={"format": "pt"})

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", corrupt)
    model = tiny_model()
    with pytest.raises(InputError, match="is wrong and is removed: model.layers.0.mlp.up_proj.values has other values"):
        export_model(model, None, two_four(model), tmp_path / "out", "packed")
    assert list(tmp_path.iterdir()) == []
