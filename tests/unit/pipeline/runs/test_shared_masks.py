"""Tests of mask files that several runs or experiments share."""

import copy
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from patch.errors import InputError
from patch.masks.header import read_header
from patch.masks.packed import MaskSet, load_masks, save_masks
from patch.pipeline.config.load import validate_experiment
from patch.pipeline.runs.plan import Plan

PUBLISHED = str(Path(__file__).parents[4] / "config/published.json")
PATCH = {"methods": ["patch-joint"], "models": ["qwen"], "sparsity": [0.45]}
MASK = torch.tensor([[True, True, False, False]])
VARIED = PATCH | {"vary": {"tile_prior": ["none", "sparsegpt"]}}


def plan_of(raw: dict, *entries: dict, **changes: object) -> Plan:
    return Plan(validate_experiment(copy.deepcopy(raw) | {"grid": list(entries), "published": PUBLISHED} | changes))


def write(path: str, provenance: dict | None) -> None:
    """Write a mask file with this provenance, or a damaged one for None."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_masks(path, MaskSet({"a": MASK}, "2:4", header=provenance or {}))
    if provenance is None:
        Path(path).write_bytes(Path(path).read_bytes()[:-1])


def learned(plan: Plan) -> list[str]:
    return [run.id for run in plan.masks.made if run.definition.stage == "learn"]


@pytest.mark.parametrize("order", [1, -1])
def test_a_default_value_is_the_plain_run(raw_config, order):
    plan = plan_of(raw_config, *[PATCH, VARIED][::order])
    paths = {run.variant: plan.masks.mask(run) for run in plan.grid.runs}
    assert paths[None] == paths["tile_prior=sparsegpt"] == plan.layout.mask(plan.grid.runs[0 if order == 1 else 2])
    assert paths["tile_prior=none"] != paths[None]
    assert sorted(learned(plan)) == ["patch-joint_hybrid_0.45_t4_s0", "patch-joint_hybrid_0.45_t4_tile_prior=none_s0"]
    assert len({plan.layout.record(run) for run in plan.grid.runs}) == 3


def test_alone_a_default_value_owns_its_mask(raw_config):
    plan = plan_of(raw_config, VARIED)
    assert all(plan.masks.mask(run) == plan.layout.mask(run) for run in plan.grid.runs)
    assert len(learned(plan)) == 2


def test_masks_of_another_experiment_are_taken_where_they_are_the_same(raw_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = plan_of(raw_config, PATCH)
    second = plan_of(raw_config, VARIED, experiment="second", reuse=["tiny"])
    (plain,) = first.grid.runs
    digest, path = first.settings.mask_digest(plain), first.layout.mask(plain)
    assert len(learned(second)) == 2, "there is nothing yet"
    curve = Path(first.layout.curve(plain))
    curve.parent.mkdir(parents=True)
    for header, present, count in (
        ({"digest": "other"}, True, 2),
        ({"digest": digest}, False, 2),
        ({"digest": digest}, True, 1),
        (None, True, 2),
    ):
        write(path, header)
        curve.touch() if present else curve.unlink(missing_ok=True)
        again = plan_of(raw_config, VARIED, experiment="second", reuse=["tiny"])
        assert len(learned(again)) == count, header
        taken = {run.variant: again.masks.mask(run) for run in again.grid.runs}
        assert (taken["tile_prior=sparsegpt"] == path) == (count == 1)
        assert taken["tile_prior=none"].startswith("results/second/")
    one_shot = first.grid.priors(plain)["pattern"]
    write(first.layout.mask(one_shot), {"digest": first.settings.mask_digest(one_shot)})
    again = plan_of(raw_config, VARIED, experiment="second", reuse=["tiny"])
    assert one_shot not in again.masks.made, "a one-shot mask has no curve"


def test_an_experiment_does_not_reuse_itself(raw_config):
    with pytest.raises(InputError, match="`reuse` names 'tiny', this very experiment"):
        plan_of(raw_config, PATCH, reuse=["tiny"])


@pytest.mark.parametrize(
    "content", [b"", b"\x10", b"\xff" * 8, struct.pack("<Q", 4) + b"nul", struct.pack("<Q", 2) + b"{}"]
)
def test_a_damaged_header_is_none(tmp_path, content):
    (tmp_path / "m").write_bytes(content)
    assert read_header(tmp_path / "m") is None
    assert read_header(tmp_path / "missing") is None


def test_the_header_is_that_of_a_mask_file(tmp_path):
    write(tmp_path / "m", {"digest": "x", "format": "patch", "pattern": "4:4"})
    assert read_header(tmp_path / "m")["digest"] == "x"
    found = load_masks(tmp_path / "m")
    assert found.masks["a"].equal(MASK) and found.pattern == "2:4", "provenance cannot make it another format"


def test_a_header_that_was_edited_is_none(tmp_path):
    write(tmp_path / "m", {"digest": "0123"})
    content = (tmp_path / "m").read_bytes()
    (tmp_path / "m").write_bytes(content.replace(b"0123", b"4567"))
    assert read_header(tmp_path / "m") is None


def test_a_header_is_read_without_torch(tmp_path):
    write(tmp_path / "m", {"digest": "x"})
    code = f"import sys; from patch.masks.header import read_header; print(read_header({str(tmp_path / 'm')!r}))"
    code += "; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines() == ["{'digest': 'x'}", "False"]


def test_imported_masks_are_jobs(raw_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mask.npz").write_bytes(b"1")
    local = {"model": "qwen", "method": "patch", "sparsity": 0.45, "source": {"kind": "file", "path": "mask.npz"}}
    hub = {"model": "llama", "method": "maskllm", "source": {"kind": "hub", "repo": "a/b"}}
    plan = plan_of(raw_config, {"methods": ["import"]}, imports={"here": local, "there": hub})
    here, there = plan.grid.runs
    assert plan.inputs.import_mask(here)["source"] == "mask.npz"
    assert plan.inputs.import_mask(there)["source"].startswith("work/imports/there-")
    before = plan.settings.mask_digest(here)
    Path("mask.npz").write_bytes(b"22")
    after = plan_of(raw_config, {"methods": ["import"]}, imports={"here": local, "there": hub})
    assert after.settings.mask_digest(here) != before, "another file"
    assert after.settings.mask_digest(there) == plan.settings.mask_digest(there)
    moved = {"here": local, "there": hub | {"source": hub["source"] | {"revision": "v2"}}}
    assert plan_of(raw_config, {"methods": ["import"]}, imports=moved).settings.mask_digest(
        there
    ) != plan.settings.mask_digest(there)


def test_an_import_whose_file_is_missing_is_named(raw_config):
    local = {"model": "qwen", "method": "maskllm", "source": {"kind": "file", "path": "none.npz"}}
    with pytest.raises(ValueError, match=r"`imports.gone.source.path` is 'none.npz': no such file"):
        plan_of(raw_config, {"methods": ["import"]}, imports={"gone": local}).masks.made  # noqa: B018
