"""Tests of the checks before a run on a cluster: disk, folders and pending downloads."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from patch.errors import InputError
from patch.hub.access import Wanted
from patch.pipeline.cli.preflight import filesystem, main, preflight, to_fetch
from patch.pipeline.resources.schedule import simulate

from ..conftest import Project, find

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 1000,
}


class Hub:
    """Hub without problems."""

    def model_info(self, repo: str, **options: object) -> SimpleNamespace:
        return SimpleNamespace(gated=False)

    dataset_info = model_info


@pytest.fixture
def with_hub(project: Project) -> Project:
    """Return a project with a model, a corpus and tasks of the hub beside the trained models."""
    raw_config = project.raw
    model = {"kind": "hub", "repo": "a/model", "revision": "1234567", "shape": SHAPE}
    corpus = {"kind": "hub", "repo": "a/text", "revision": "89abcde", "splits": {"test": "test"}, "size_gb": 10}
    raw_config["models"]["hub"] = {"title": "Hub", "source": model}
    raw_config["corpora"]["read"] = {"source": corpus}
    raw_config["evaluation"] |= {"include_path": None, "task_use": None, "tasks": ["piqa"]}
    raw_config["evaluation"]["perplexity"]["use"] = {"corpus": "read", "split": "test"}
    return project


def disk_with(monkeypatch: pytest.MonkeyPatch, free_mb: float) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free_mb * 1e6))


def test_three_lines_without_problems(with_hub: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    disk_with(monkeypatch, 10_000_000)
    plan, disk, hub = preflight(with_hub.graph(), api=Hub(), environment={}).splitlines()
    assert plan.startswith("plan: ") and plan.endswith("CPU-hours")
    assert disk.startswith("disk: ") and disk.endswith("10,000 GB free")
    assert hub == "hub: 1 model, 1 data set, the tasks' data can be fetched"


def test_the_hub_is_not_queried_without_downloads(project: Project) -> None:
    assert "hub: nothing to fetch" in preflight(project.graph(), api=None, environment={"HF_HUB_OFFLINE": "1"})


def test_only_remaining_downloads_are_named(with_hub: Project) -> None:
    model = Wanted("models.hub.source", "model", "a/model", "1234567")
    corpus = Wanted("corpora.read.source", "dataset", "a/text", "89abcde")
    graph = with_hub.graph()
    assert to_fetch(graph) == ([model, corpus], True)
    with_hub.make(find(graph, "fetch_model"), find(graph, "fetch_tasks"))
    assert to_fetch(with_hub.graph()) == ([corpus], False)


def test_published_masks_are_fetched_too(with_hub: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    disk_with(monkeypatch, 10_000_000)
    source = {"kind": "hub", "repo": "a/mask", "revision": "main"}
    with_hub.raw["imports"] = {"theirs": {"model": "qwen", "method": "maskllm", "source": source}}
    with_hub.raw["grid"] = [{"methods": ["import"]}]
    graph, mask = with_hub.graph(), Wanted("imports.theirs.source", "mask", "a/mask", "main")
    assert mask in to_fetch(graph)[0]
    assert "1 data set, 1 mask, the tasks' data can be fetched" in preflight(graph, api=Hub(), environment={})
    with_hub.make(find(graph, "fetch_mask"))
    assert mask not in to_fetch(with_hub.graph())[0]


def test_a_disk_that_is_too_small(with_hub: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, home = with_hub.graph(), {"HF_HOME": "hub"}
    cache = sum(job.cache_mb for job in graph.jobs)
    assert cache == pytest.approx(10_000 + 1000)
    kept = sum(job.kept_mb for job in graph.jobs)
    one, all_at_once = (simulate(graph.tasks(), jobs=jobs).peak_mb for jobs in (1, math.inf))
    assert kept < one < all_at_once
    for free, hint in ((cache + kept, "even --jobs 1 needs"), (cache + one, "run fewer jobs at once: --jobs 1 needs")):
        disk_with(monkeypatch, free)
        with pytest.raises(InputError) as error:
            preflight(graph, api=Hub(), environment=home)
        (line,) = [line for line in str(error.value).splitlines() if "disk: " in line]
        assert "work/, results/, HF_HOME" in line and hint in line
    preflight(graph, jobs=1, api=Hub(), environment=home)
    disk_with(monkeypatch, cache + all_at_once)
    preflight(graph, api=Hub(), environment=home)


def test_file_systems_are_counted_apart(with_hub: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    free = {"work": 1e6, "results": 1e6, "hub": 100.0}
    for name in free:
        (tmp_path / name).mkdir()
    stat = Path.stat

    def another_device(path: Path, **options: bool) -> os.stat_result | SimpleNamespace:
        here = tmp_path / path.name
        if path == here and path.name in free:
            return SimpleNamespace(st_dev=list(free).index(path.name) + 10**9, st_mode=stat(path).st_mode)
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", another_device)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1e6 * free[path.name]))
    with pytest.raises(InputError) as error:
        preflight(with_hub.graph(), api=Hub(), environment={"HF_HOME": "hub"})
    (line,) = [line for line in str(error.value).splitlines() if "disk: " in line]
    assert "11.0 GB needed at most in HF_HOME, 100 MB free; free some space or move the folder to another disk" in line
    free["hub"] = 1e6
    disk = preflight(with_hub.graph(), api=Hub(), environment={"HF_HOME": "hub"}).splitlines()[1]
    assert [part.split(" in ")[1].split(",")[0] for part in disk.split("; ")] == ["work/", "results/", "HF_HOME"]


def test_every_problem_in_one_message(with_hub: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    disk_with(monkeypatch, 1)
    graph = with_hub.graph()
    Path("results").write_text("in the way")
    with pytest.raises(InputError) as error:
        preflight(graph, environment={"HF_HUB_OFFLINE": "1"})
    folders, disk, offline, hint = str(error.value).splitlines()
    with pytest.raises(InputError, match="results: Not a directory"):
        with_hub.graph()
    assert folders.startswith("preflight: results/tiny/ cannot be created: ") and "is not a folder" in folders
    assert disk.startswith("  disk: ") and offline.startswith("  HF_HUB_OFFLINE is '1'")
    assert hint == "  (`snakemake --no-hooks` starts without these checks)"


def test_a_folder_that_cannot_be_written(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="work/ cannot be written: .* is not writable"):
        preflight(project.graph(), environment={})


def test_file_system_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: Project) -> None:
    mounts: list[SimpleNamespace] = []
    monkeypatch.setattr("psutil.disk_partitions", lambda all: mounts)
    assert filesystem("work") is None
    spaced = tmp_path / "a b"
    spaced.mkdir()
    kinds = {"/": "ext4", str(tmp_path): "nfs4", str(spaced): "tmpfs"}
    mounts += [SimpleNamespace(mountpoint=point, fstype=kind) for point, kind in kinds.items()]
    assert (filesystem("/"), filesystem("work/not/yet"), filesystem(spaced / "x")) == ("ext4", "nfs4", "tmpfs")
    assert "warning" not in preflight(project.graph(), environment={})
    Path("work").symlink_to(spaced)
    *_, warning = preflight(project.graph(), environment={}).splitlines()
    assert warning == "warning: work/ is on tmpfs, which is not visible on the nodes that run the jobs"


def test_jobs_that_do_not_fit_are_a_warning(project: Project) -> None:
    project.raw["resources"] = {"device": "cuda", "gpu_memory_gb": 0.0001}
    *_, warning = preflight(project.graph(), environment={}).splitlines()
    assert warning.startswith("warning: some jobs need more memory than a GPU has")


def test_reuse_of_an_experiment_without_results_is_a_warning(project: Project) -> None:
    project.raw["reuse"] = ["other"]
    warning = "warning: `reuse` names 'other', which has no results here, so nothing of it is reused"
    assert preflight(project.graph(), environment={}).splitlines()[-1] == warning
    Path("results/other").mkdir(parents=True)
    assert "warning" not in preflight(project.graph(), environment={})


def test_command_line(project: Project, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    project.write()
    assert main(["--configfile", "tiny.yaml", "--config", "seeds=[0,1]", "--jobs", "3"]) == 0
    assert capsys.readouterr().out.startswith("plan: ")
    disk_with(monkeypatch, 0)
    assert main(["--configfile", "tiny.yaml"]) == 2
    assert capsys.readouterr().err.startswith("error: preflight: disk: ")
