"""External masks are downloaded from a substitute of the hub, checked, and converted."""

import json
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import GatedRepoError

from patch.errors import InputError
from patch.masks.packed import MaskSet, load_masks, save_masks
from patch.models.loading import load_skeleton, prunable_linears, weight_matrix
from patch.pipeline.config.imports import FileMask, HubMask
from patch.pipeline.runs.stage_settings import ImportSettings, MaskSettings
from patch.pipeline.stages.fetch import run_fetch_mask as fetch_mask
from patch.pipeline.stages.prune import run_import_mask as import_mask


def first_two(shape):
    return torch.tensor([True, True, False, False]).repeat(shape[0], shape[1] // 4)


@pytest.fixture
def folder(tiny_model, tmp_path):
    tiny_model("gpt2").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def settings(source, pattern="2:4", tile=None):
    return ImportSettings(upstream="x", source=source, method="maskllm", pattern=pattern, tile=tile)


def test_a_skeleton_has_the_shapes_and_no_weights(folder, tiny_model):
    found, wanted = prunable_linears(load_skeleton(folder)), prunable_linears(tiny_model("gpt2"))
    assert {n: weight_matrix(m).shape for n, m in found.items()} == {
        n: weight_matrix(m).shape for n, m in wanted.items()
    }
    assert all(linear.weight.is_meta for linear in found.values())
    with pytest.raises(InputError, match="no config.json in it"):
        load_skeleton(folder / "none")


def test_the_file_and_the_commit_that_it_is_from(tmp_path, monkeypatch):
    asked = []

    def model_info(self, repo, revision):
        return SimpleNamespace(sha={None: "c0ffee", "v1": "0ddba11"}[revision])

    def download(repo, name, revision, local_dir):
        asked.append((repo, name, revision))
        (local_dir / name).write_bytes(b"mask")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    fetch_mask(MaskSettings(source=HubMask(repo="a/b")), out=tmp_path / "newest")
    fetch_mask(MaskSettings(source=HubMask(repo="a/b", revision="v1", file="m.npz")), out=tmp_path / "v1")
    assert asked == [("a/b", "mask.npz", "c0ffee"), ("a/b", "m.npz", "0ddba11")]
    assert (tmp_path / "v1/m.npz").read_bytes() == b"mask"
    receipt = json.loads((tmp_path / "v1/receipt.json").read_text())
    assert receipt == {"repo": "a/b", "file": "m.npz", "commit": "0ddba11"}


def test_a_fetch_that_fails_leaves_nothing_and_says_why(tmp_path, monkeypatch):
    for error, message in (
        (
            GatedRepoError("no", response=SimpleNamespace(headers={}, request=None)),
            "mask.npz of a/b cannot be fetched: it is gated: accept its licence",
        ),
        (OSError("the line is dead"), "mask.npz of a/b cannot be fetched: the line is dead"),
    ):

        def fail(self, repo, revision, error=error):
            raise error

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
        with pytest.raises(InputError, match=message):
            fetch_mask(MaskSettings(source=HubMask(repo="a/b")), out=tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_fetched_mask_becomes_one_of_ours(folder, tmp_path):
    linears = prunable_linears(load_skeleton(folder))
    masks = {name: first_two(weight_matrix(linear).shape) for name, linear in linears.items()}
    # The layers of GPT-2 keep their weights as [in, out].
    stored = {f"{name}.weight.mask": np.packbits(mask.T.numpy()) for name, mask in masks.items()}
    (tmp_path / "fetched").mkdir()
    np.savez(tmp_path / "fetched/mask_compressed.npz", **stored)
    (tmp_path / "fetched/receipt.json").write_text('{"commit": "c0ffee"}')
    source = HubMask(repo="a/b", file="mask_compressed.npz")
    import_mask(settings(source), model=folder, source=tmp_path / "fetched", mask=tmp_path / "out.safetensors")
    found = load_masks(tmp_path / "out.safetensors")
    assert all(found.masks[name].equal(mask) for name, mask in masks.items())
    assert (found.pattern, found.sparsity) == ("2:4", 0.5)
    assert found.header["imported"]["commit"] == "c0ffee" and found.header["imported"]["format"] == "maskllm"
    assert set(found.header["cost"]) == {"seconds", "peak_memory_mb"}


def test_a_mask_of_our_own_is_taken_as_it_is(folder, tmp_path):
    linears = prunable_linears(load_skeleton(folder))
    masks = {name: first_two(weight_matrix(linear).shape) for name, linear in linears.items()}
    file, out = tmp_path / "own.safetensors", tmp_path / "out.safetensors"
    save_masks(file, MaskSet(masks, "2:4"))
    import_mask(settings(FileMask(path=str(file))), model=folder, source=file, mask=out)
    assert all(load_masks(out).masks[name].equal(mask) for name, mask in masks.items())
    with pytest.raises(InputError, match="pattern 2:4, tile None; the configuration has hybrid, 4"):
        import_mask(settings(FileMask(path=str(file)), "hybrid", 4), model=folder, source=file, mask=out)
    save_masks(file, MaskSet({"h.0": first_two((4, 8))}, "2:4"))
    with pytest.raises(InputError, match="the masks are of another model"):
        import_mask(settings(FileMask(path=str(file))), model=folder, source=file, mask=out)
