"""Tests of one-shot pruning, and of the reuse and refusal of its checkpoint."""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from patch.errors import InputError
from patch.files.tensors import load_tensors, save_tensors
from patch.masks.nm import NM, nm_mask, obeys
from patch.models.loading import load_model, prunable_linears, weight_matrix
from patch.pruning.prune import prune
from patch.reference_api.checkpoint import FORMAT, InitialMasks
from patch.utils import evaluate, prepare_pruned_model

from .conftest import PRUNE_ARGS

METHODS = ["magnitude", "wanda", "sparsegpt", "thanos", "prox_sparse", "maskllm"]
UPDATING = ["sparsegpt", "thanos"]


def weights(model) -> dict[str, torch.Tensor]:
    return {name: weight_matrix(linear).clone() for name, linear in prunable_linears(model).items()}


def same(one, other) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture
def published(model_folder, tmp_path) -> Path:
    """Write random 2:4 masks in MaskLLM's published format."""
    generator = torch.Generator().manual_seed(7)
    masks = {
        f"{name}.weight.mask": np.packbits(nm_mask(torch.rand(linear.weight.shape, generator=generator), NM(2, 4)))
        for name, linear in prunable_linears(load_model(model_folder)).items()
    }
    np.savez(tmp_path / "mask_compressed.npz", **masks)
    return tmp_path / "mask_compressed.npz"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_prunes_and_its_checkpoint_is_used_again(method, prepare, published, model_folder, monkeypatch):
    arguments = {"prune_method": method, "maskllm_checkpoint": published}
    first = prepare(**arguments)[0]
    original, pruned = weights(load_model(model_folder)), weights(first)
    initial_masks = first.patch_priors
    assert initial_masks.compressed.sparsity == 0.5 and initial_masks.ranking.sparsity == pytest.approx(0.45, abs=0.02)
    for name, weight in pruned.items():
        mask = initial_masks.compressed.masks[name]
        assert obeys(mask, NM(2, 4)).all() and (weight[~mask] == 0).all()
        assert torch.equal(weight[mask], original[name][mask]) != (method in UPDATING)
    # A new file would have another modification time.
    before = Path("prior.pt").stat().st_mtime_ns
    if method not in UPDATING:
        monkeypatch.setattr("patch.reference_api.pruning.prune", None)
        monkeypatch.setattr("patch.reference_api.pruning.proxsparse", None)
    second = prepare(**arguments)[0]
    assert second is not first and same(weights(second), pruned)
    assert Path("prior.pt").stat().st_mtime_ns == before
    for name, mask in second.patch_priors.ranking.masks.items():
        assert torch.equal(mask, initial_masks.ranking.masks[name])


def test_published_masks_come_from_the_hub(prepare, published, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "patch.reference_api.pruning.hf_hub_download", lambda *names: asked.append(names) or str(published)
    )
    arguments = {"prune_method": "maskllm", "maskllm_checkpoint": "Vinnnf/LLaMA-2-7B-MaskLLM-C4"}
    first = prepare(**arguments)[0].patch_priors
    assert asked == [("Vinnnf/LLaMA-2-7B-MaskLLM-C4", "mask_compressed.npz")]
    second = prepare(**arguments | {"maskllm_checkpoint": published})[0].patch_priors
    assert same(first.compressed.masks, second.compressed.masks)


def test_a_hub_that_cannot_be_reached_is_explained(prepare, monkeypatch):
    def fail(*_):
        raise ConnectionError("no route")

    monkeypatch.setattr("patch.reference_api.pruning.hf_hub_download", fail)
    with pytest.raises(InputError, match="'owner/name', .* no file, and mask_compressed.npz .*cannot be reached"):
        prepare(prune_method="maskllm", maskllm_checkpoint="owner/name")


def test_shifted_norms_reach_both_masks(prepare, monkeypatch):
    seen = []

    def recorded(*arguments, settings):
        seen.append(settings.wanda.shift_zero_metrics)
        return prune(*arguments, settings=settings)

    monkeypatch.setattr("patch.reference_api.pruning.prune", recorded)
    prepare(shift_zero_metrics=True)
    assert seen == [True, True]
    with pytest.raises(InputError, match="`shift_zero_metrics` was True and is None now"):
        prepare()


def test_published_masks_are_the_prior(prepare, published):
    model, _ = prepare(prune_method="maskllm", maskllm_checkpoint=str(published))
    file = np.load(published)
    for name, mask in model.patch_priors.compressed.masks.items():
        flat = np.unpackbits(file[f"{name}.weight.mask"]).astype(bool)
        assert np.array_equal(mask.numpy().reshape(-1), flat)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"seed": 1}, "`seed` was 0 and is 1 now"),
        ({"tile": 4}, "`mask_tile_size` was 8 and is 4 now"),
        ({"target": 0.25}, "`target_sparsity_ratio` was 0.45 and is 0.25 now"),
        ({"nsamples": 9}, "`nsamples` was 8 and is 9 now"),
        ({"prune_method": "magnitude"}, "`prune_method` was 'wanda' and is 'magnitude' now"),
        ({"calibration_dataset": "slimpajama"}, "`calibration_dataset` was 'c4' and is 'slimpajama' now"),
        ({"sparsity_type": "unstructured"}, "`sparsity_type` was '2:4' and is 'unstructured' now"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(changes, words, prepare, model_folder, load):
    prepare()
    model, tokenizer = load()
    with pytest.raises(InputError, match=words):
        prepare(model=model, **changes)
    assert same(weights(model), weights(load_model(model_folder)))
    pruned, _ = prepare()
    with pytest.raises(InputError, match=words):
        prepare(model=pruned, **changes)


def test_a_checkpoint_of_another_model_or_text_is_refused(prepare, load):
    prepare()
    model, _ = load()
    next(iter(prunable_linears(model).values())).weight[0, 0] += 1
    with pytest.raises(InputError, match="`model` was"):
        prepare(model=model)
    with pytest.raises(InputError, match="`dtype` was 'float32' and is 'bfloat16' now"):
        prepare(model=load(dtype="bfloat16")[0])
    Path("patch_c4.txt").write_text("other words " * 2000)
    with pytest.raises(InputError, match="`calibration text` was"):
        prepare()


def test_moving_the_text_changes_nothing(prepare, monkeypatch):
    prepare()
    before = Path("prior.pt").read_bytes()
    Path("patch_c4.txt").rename("elsewhere.txt")
    monkeypatch.setenv("PATCH_C4", "else*.txt")
    prepare()
    assert Path("prior.pt").read_bytes() == before


def test_a_pruned_model_stays_as_it_is(prepare):
    model, _ = prepare()
    before = weights(model)
    assert prepare(model=model)[0] is model and same(weights(model), before)
    prepare("copy.pt", model=model)
    assert Path("copy.pt").read_bytes() == Path("prior.pt").read_bytes()
    with pytest.raises(InputError, match="model is pruned already.*load it anew with get_llm"):
        prepare("other.pt", model=model, seed=1)


def test_a_failure_leaves_the_weights_and_no_file(prepare, load, model_folder, monkeypatch):
    monkeypatch.setattr("patch.reference_api.pruning.parse_pattern", lambda *_: NM(2, 7))
    model, _ = load()
    with pytest.raises(InputError, match="7 must divide"):
        prepare(model=model)
    assert same(weights(model), weights(load_model(model_folder)))
    assert not Path("prior.pt").exists() and not hasattr(model, "patch_priors")


@pytest.mark.parametrize("content", ["nothing", "torch", "safetensors", "cut"])
def test_a_foreign_or_damaged_checkpoint_is_refused(content, prepare):
    path = Path("prior.pt")
    prepare()
    whole = path.read_bytes()
    if content == "torch":
        torch.save({}, path)
    elif content == "safetensors":
        save_file({"x": torch.zeros(1)}, path)
    else:
        path.write_bytes(whole[:-9] if content == "cut" else b"")
    with pytest.raises(InputError, match="checkpoint prior.pt: .*remove it"):
        prepare()


@dataclass
class Arguments:
    prune_method: str = "wanda"
    sparsity_type: str = "2:4"
    sparsity_ratio: float = 0.5
    nsamples: int = 8


@pytest.mark.parametrize("kind", [SimpleNamespace, Namespace, Arguments])
def test_arguments_may_be_objects(kind, prepare, load):
    expected = weights(prepare()[0])
    model, tokenizer = load()
    assert prepare_pruned_model(model, tokenizer, "prior.pt", kind(**PRUNE_ARGS), 8, 0.45) is model
    assert same(weights(model), expected) and isinstance(model.patch_priors, InitialMasks)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"nsample": 4}, "unknown key `prune_args.nsample`; did you mean `nsamples`?"),
        ({"prune_method": "wandaa"}, "`prune_args.prune_method` is 'wandaa': .*'wanda'"),
        ({"sparsity_ratio": 0.4}, "sparsity_ratio is 0.4 with sparsity_type '2:4', which is 0.5"),
        ({"sparsity_type": "4:8"}, "`prune_args.sparsity_type` is '4:8': .*'2:4'"),
        ({"shift_zero_metrics": True, "prune_method": "magnitude"}, "'magnitude' has no norms .* use False"),
        ({"optimizer_FT_pruning": "adafactor"}, "`prune_args.optimizer_FT_pruning` is 'adafactor': .*'adamw_torch'"),
        ({"eval_dataset": "c4"}, "`prune_args.eval_dataset` is 'c4': .*'wikitext2' or 'ptb'"),
        ({"calibration_dataset": "ptb"}, "`prune_args.calibration_dataset` is 'ptb': .*'c4'"),
        ({"prune_method": "maskllm"}, "maskllm_checkpoint is missing"),
        (
            {"prune_method": "maskllm", "maskllm_checkpoint": "masks.npz"},
            "'masks.npz', which is no file; .*owner/name",
        ),
        ({"prune_method": "prox_sparse", "sparsity_type": "unstructured"}, "'prox_sparse' makes '2:4' alone"),
        ({"nsamples": 10**6}, "`prune_args.nsamples` is 1000000 with calibration_dataset 'c4'"),
        ({"tile": (8, 4)}, r"`mask_tile_size`: \(8, 4\) is not square"),
        ({"tile": 12}, r"`mask_tile_size` is 12, which does not divide .*; use 4, 8, 16"),
        ({"tile": 6}, "`mask_tile_size`: 6 is no side of a tile"),
        ({"target": 0.6}, "`target_sparsity_ratio` is 0.6; use 0 to 0.5"),
        ({"seed": -1}, "`seed` is -1"),
        ({"checkpoint": "."}, "`checkpoint_name` is '.'"),
    ],
)
def test_unsupported_arguments_are_refused(changes, words, prepare):
    with pytest.raises(InputError, match=words):
        prepare(**changes)


def test_a_missing_key_is_named(load):
    model, tokenizer = load()
    with pytest.raises(InputError, match="`prune_args.prune_method` is missing"):
        prepare_pruned_model(model, tokenizer, "prior.pt", {"sparsity_type": "2:4", "sparsity_ratio": 0.5}, 8, 0.45)
    with pytest.raises(InputError, match="prune_args is None; give a dict"):
        prepare_pruned_model(model, tokenizer, "prior.pt", None, 8, 0.45)


def test_square_pairs_and_the_largest_targets(prepare):
    assert prepare(tile=(8, 8), target=0.5)[0].patch_priors.settings["mask_tile_size"] == 8
    assert prepare("zero.pt", target=0)[0].patch_priors.ranking.sparsity == 0


def test_unstructured_pruning(prepare):
    model, _ = prepare(sparsity_type="unstructured", sparsity_ratio=0.25)
    assert model.patch_priors.compressed.sparsity == pytest.approx(0.25)


def test_evaluation_of_the_pruned_model(prepare, load):
    model, tokenizer = prepare()
    ppl, results = evaluate(model, None, tokenizer, True, "wikitext2", 4, False)
    assert ppl > 1 and results == {}
    ppl, results = evaluate(model, None, tokenizer, False, "wikitext2", 4, True)
    assert ppl is None and set(results) == {"cloze", "word_order", "average"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda header, tensors: header["patterns"].update(ranking="2:0"), "'2:0' is not N:M"),
        (lambda header, tensors: header.pop("shapes"), "`shapes`: Field required"),
        (lambda header, tensors: next(iter(header["shapes"].values())).__setitem__(0, -1), "`shapes."),
        (lambda header, tensors: tensors.popitem(), "is missing or has the wrong size"),
        (lambda header, tensors: tensors.update(more=torch.zeros(1)), "'more' belongs to no layer"),
    ],
)
def test_a_checkpoint_that_contradicts_itself_is_refused(change, words, prepare):
    prepare()
    header, tensors = load_tensors("prior.pt", FORMAT, "checkpoint")
    change(header, tensors)
    save_tensors("prior.pt", FORMAT, header, tensors)
    with pytest.raises(InputError, match=f"checkpoint prior.pt: .*{words}.*; remove it"):
        prepare()


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_fine_tuning_trains_the_kept_weights_once(method, prepare, configure, model_folder, monkeypatch):
    configure({"calibration": {"seqlen": 32}, "finetuning": {"steps": 3, "batch_size": 4, "seqlen": 32, "lr": 0.001}})
    plain = weights(prepare("plain.pt", prune_method=method)[0])
    model, tokenizer = prepare(prune_method=method, fine_tune=True)
    masks, tuned = model.patch_priors.compressed.masks, weights(model)
    assert all(mask.equal(plain[name] != 0) for name, mask in masks.items())
    for name, weight in tuned.items():
        assert not weight[~masks[name]].any() and (weight != plain[name])[masks[name]].double().mean() > 0.9
    (folder,) = Path("patch-runs").glob("fine_tune-*")
    assert {path.name for path in folder.iterdir()} == {"curve.jsonl", "weights.safetensors"}
    monkeypatch.setattr("patch.reference_api.pruning.finetune", None)
    again = prepare(prune_method=method, fine_tune=True)[0]
    assert same(weights(again), tuned)
    assert (
        prepare_pruned_model(
            again, tokenizer, "prior.pt", PRUNE_ARGS | {"prune_method": method, "fine_tune": True}, 8, 0.45
        )
        is again
    )
    with pytest.raises(InputError, match="`fine_tune` was {.*} and is None now"):
        prepare(prune_method=method)


def test_fine_tuning_longer_than_the_context(prepare, configure):
    configure({"calibration": {"seqlen": 32}, "finetuning": {"seqlen": 256}})
    with pytest.raises(InputError, match="`finetuning.seqlen` is 256, longer than the model's context of 128"):
        prepare(fine_tune=True)
    configure({"finetuning": {"lora_rank": 4}})
    with pytest.raises(InputError, match="unknown key `lora_rank`"):
        prepare(fine_tune=True)
