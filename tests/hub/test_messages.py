"""Downloads of the fetching stages by the real client: what they write, how they resume, and how they fail."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import HfApi

from patch.files.io import json_checksum
from patch.hub.access import Wanted, hub_problems
from patch.pipeline.config.experiment import Experiment

from .conftest import ROOT, environment
from .server import MEMBER, STRANGER, Hub, Request, serve
from .stand_ins import COMMIT

QWEN, GATED, SHARDED = "Qwen/Qwen2.5-0.5B", "meta-llama/Llama-3.2-1B", "meta-llama/Llama-2-7b-hf"
MASKS, MASK = "Vinnnf/LLaMA-2-7B-MaskLLM-C4", "mask_compressed.npz"
OTHER = "fedcba9876543210fedcba9876543210fedcba98"
SHARD = "en/c4-train.00000-of-01024.json.gz"
DAMAGED, UNZIPPED = "en/c4-train.00001-of-01024.json.gz", "en/c4-train.00002-of-01024.json.gz"
SLIMPAJAMA = "data/train-00000-of-00002-ab2b35705f029d94.parquet"
# One process for all cases, since imports take most of its time. Only blocks of 1 kB are resumed in small files.
SCRIPT = """
import contextlib, io, json, os, resource, sys, time
import huggingface_hub
import lm_eval.tasks
from patch.pipeline.stages.__main__ import main

huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 1024
time.sleep = lambda seconds: None
manager = lm_eval.tasks.TaskManager()
lm_eval.tasks.TaskManager = lambda **options: manager
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
for line in sys.stdin:
    ends = []
    huggingface_hub.close_session()
    for case in json.loads(line):
        os.environ.pop("HF_TOKEN", None)
        if case["token"]:
            os.environ["HF_TOKEN"] = case["token"]
        resource.setrlimit(resource.RLIMIT_FSIZE, (case["disk"] or unlimited[0], unlimited[1]))
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
            code = main([case["stage"], "--settings", case["settings"], "--out", case["out"]])
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        ends.append((code, [line for line in errors.getvalue().splitlines() if line.startswith("error: ")]))
    print(json.dumps(ends), flush=True)
"""


@dataclass
class Case:
    """Run of a stage: its settings, the token, the largest file that the disk has room for, and words of the error."""

    stage: str
    settings: dict[str, Any]
    words: tuple[str, ...] = ()
    token: str | None = None
    disk: int | None = None


def corpus(repo: str, revision: str, /, **settings: Any) -> dict[str, Any]:
    source = {"kind": "hub", "repo": repo, "revision": revision, "splits": {"train": "train"}}
    return {"corpus": {"source": source | settings}}


def mask(repo: str = MASKS, /, **settings: Any) -> dict[str, Any]:
    return {"source": {"kind": "hub", "repo": repo, "file": MASK} | settings}


def tasks(*names: str) -> dict[str, Any]:
    return {"upstream": "", "tasks": list(names), "include_path": None, "split": None, "samples": 10}


def cases(paper: Experiment) -> dict[str, Case]:
    """Return all cases by name; the faults of the hub are consumed in their order."""
    sources = {model.source.repo: model.source.model_dump(mode="json") for model in paper.models.values()}
    commits = {one.source.repo: one.source.revision for one in paper.corpora.values()}

    def model(repo: str, /, **settings: str) -> dict[str, Any]:
        return {"upstream": "", "source": sources[repo] | settings}

    def c4(**settings: str) -> dict[str, Any]:
        return corpus("allenai/c4", commits["allenai/c4"], **({"data_files": SHARD} | settings))

    def wikitext(**settings: Any) -> dict[str, Any]:
        known = {"name": "wikitext-2-raw-v1"} | settings
        return corpus("Salesforce/wikitext", commits["Salesforce/wikitext"], **known)

    slimpajama = corpus("DKYoon/SlimPajama-6B", commits["DKYoon/SlimPajama-6B"])
    licence = "it is gated: accept its licence at https://huggingface.co/"
    arc = f"{licence}datasets/allenai/ai2_arc"
    missing = "no such repository, or a private one; correct the name, or log in"
    revision = "the hub has no such commit, branch or tag of it"
    full, broken = "the disk is full (", "the transfer broke off ("
    return {
        "model": Case("fetch_model", model(QWEN)),
        "model cut": Case("fetch_model", model(SHARDED), token=MEMBER),
        "model broken": Case("fetch_model", model(QWEN), (f"{QWEN} at 060db64", broken, "start it again")),
        "model, no disk": Case("fetch_model", model(QWEN), (QWEN, full), disk=30_000),
        "model, no token": Case("fetch_model", model(GATED), (licence + GATED, "`hf auth login`", "HF_TOKEN")),
        "model, no access": Case("fetch_model", model(GATED), (licence + GATED,), token=STRANGER),
        "model, bad token": Case("fetch_model", model(QWEN), ("status 401; log in again",), token="hf_unknown"),
        "model, no repository": Case("fetch_model", model(QWEN, repo="a/b"), ("a/b at ", missing)),
        "model, no repository for me": Case("fetch_model", model(QWEN, repo="a/b"), (missing,), token=MEMBER),
        "model, no revision": Case("fetch_model", model(QWEN, revision=OTHER), (f"{QWEN} at {OTHER}", revision)),
        "mask": Case("fetch_mask", mask()),
        "mask of a tag": Case("fetch_mask", mask(revision="v1")),
        "mask of a pull request": Case("fetch_mask", mask(revision="refs/pr/1")),
        "mask cut": Case("fetch_mask", mask()),
        "mask slow": Case("fetch_mask", mask()),
        "mask short": Case("fetch_mask", mask(), (f"{MASK} of {MASKS} cannot", broken)),
        "mask, hub overloaded": Case("fetch_mask", mask(), ("status 503; try again later",)),
        "mask, no disk": Case("fetch_mask", mask(), (full,), disk=10_000),
        "mask, no revision": Case("fetch_mask", mask(revision="v9"), (f"{MASK} of {MASKS} at v9", revision)),
        "mask, no file": Case("fetch_mask", mask(file="a.npz"), (f"a.npz of {MASKS}", "no such file in it")),
        "mask, no repository": Case("fetch_mask", mask("a/b"), (f"{MASK} of a/b", missing)),
        "corpus cut": Case("fetch_corpus", c4()),
        "corpus short": Case("fetch_corpus", slimpajama, ("SlimPajama", broken)),
        "corpus, no disk": Case("fetch_corpus", slimpajama, ("SlimPajama", full), disk=30_000),
        "corpus, parquet": Case("fetch_corpus", slimpajama),
        "corpus damaged": Case("fetch_corpus", c4(data_files=DAMAGED), ("a file is damaged",)),
        "corpus, no gzip": Case("fetch_corpus", c4(data_files=UNZIPPED), ("Not a gzipped file",)),
        "corpus, no file": Case("fetch_corpus", c4(data_files="en/a.json.gz"), ("files en/a.json.gz", "no such file")),
        "corpus, no revision": Case("fetch_corpus", c4(revision=OTHER), (f"allenai/c4 at {OTHER}", revision)),
        "corpus, no repository": Case("fetch_corpus", c4(repo="a/b"), ("data set a/b", missing)),
        "corpus, no repository for me": Case("fetch_corpus", c4(repo="a/b"), ("data set a/b", missing), MEMBER),
        "corpus, no configuration": Case("fetch_corpus", wikitext(name="a"), ("'a' not found", "wikitext-2-raw-v1")),
        "corpus, no split": Case("fetch_corpus", wikitext(splits={"test": "a"}), ('Unknown split "a"', "validation")),
        "corpus, no column": Case("fetch_corpus", wikitext(field="txt"), ("`field` is 'txt'", "text")),
        "corpus gated": Case("fetch_corpus", corpus("allenai/ai2_arc", COMMIT), (arc, "`hf auth login`")),
        "tasks cut": Case("fetch_tasks", tasks("openbookqa")),
        "tasks gated": Case("fetch_tasks", tasks("arc_easy"), (f"arc_easy cannot be fetched: allenai/ai2_arc: {arc}",)),
        "tasks, no repository": Case("fetch_tasks", tasks("piqa"), (f"fetched: baber/piqa: {missing}",), MEMBER),
    }


class Stages:
    """Process that runs the stages of cases, with a hub's address and an empty cache."""

    def __init__(self, endpoint: str, folder: Path) -> None:
        self._folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env=environment(folder / "hf", HF_ENDPOINT=endpoint),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, some: dict[str, Case], end: str = "") -> dict[str, tuple[int, list[str]]]:
        """Return the exit code and the errors of each case, whose output is a folder `<name><end>`."""
        written = []
        for name, case in some.items():
            settings = self._folder / f"{case.stage}-{json_checksum(case.settings)[:16]}.json"
            settings.write_text(json.dumps(case.settings))
            paths = {"settings": str(settings), "out": str(self._folder / f"{name}{end}")}
            written.append({"stage": case.stage, "token": case.token, "disk": case.disk} | paths)
        self.process.stdin.write(json.dumps(written) + "\n")
        self.process.stdin.flush()
        return dict(zip(some, json.loads(self.process.stdout.readline()), strict=True))


@dataclass
class Ended:
    """Runs of all cases against one hub, and of some after its end."""

    cases: dict[str, Case]
    ends: dict[str, tuple[int, list[str]]]
    gone: dict[str, tuple[int, list[str]]]
    hub: Hub
    folder: Path

    def source(self, kind: str, repo: str, revision: str = "main") -> Path:
        return self.hub.root / kind / repo / revision


@pytest.fixture(scope="module")
def ended(repositories: tuple[Path, set[str]], paper: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """Run all cases against a hub with faults."""
    folder = tmp_path_factory.mktemp("messages")
    root = folder / "repositories"
    shutil.copytree(repositories[0], root, symlinks=True)
    shutil.rmtree(root / "datasets/baber/piqa")
    tagged = root / "models" / MASKS / OTHER
    shutil.copytree(tagged.parent / COMMIT, tagged)
    np.savez(tagged / MASK, other=np.zeros(3000))
    (tagged.parent / "v1").symlink_to(OTHER)
    (tagged.parent / "refs/pr").mkdir(parents=True)
    (tagged.parent / "refs/pr/1").symlink_to(f"../../{OTHER}")
    shards = root / "datasets/allenai/c4/main"
    (shards / DAMAGED).write_bytes(gzip.compress(b"{not json"))
    (shards / UNZIPPED).write_bytes(b"not compressed")
    some = cases(paper)
    with serve(root) as hub:
        hub.gated = {*repositories[1], "allenai/ai2_arc"}
        hub.faults = {
            f"{QWEN}/model.safetensors": ["whole", *["drop"] * 6],
            f"{SHARDED}/model-00002-of-00005.safetensors": ["cut", "cut"],
            f"{MASKS}/{MASK}": ["whole", "whole", "whole", "cut", "whole", "slow", "short", 503],
            f"allenai/c4/{SHARD}": ["cut"],
            f"DKYoon/SlimPajama-6B/{SLIMPAJAMA}": ["short"],
            "allenai/openbookqa/main/test-00000-of-00001.parquet": ["cut"],
        }
        stages = Stages(hub.endpoint, folder)
        with stages.process:
            ends = stages.run(some)
            hub.close()
            gone = stages.run({name: some[name] for name in ("model", "mask", "corpus gated", "tasks gated")}, " again")
            stages.process.stdin.close()
    return Ended(some, ends, gone, hub, folder)


def test_each_failure_names_its_cause(ended: Ended) -> None:
    for name, case in ended.cases.items():
        code, errors = ended.ends[name]
        if not case.words:
            assert (code, errors) == (0, []), name
            continue
        assert (code, len(errors)) == (2, 1), (name, errors)
        assert "cannot be fetched: " in errors[0] or "no column" in errors[0], name
        assert all(word in errors[0] for word in case.words), (name, errors[0])
        assert not (ended.folder / name).exists(), name


def test_models_have_the_files_that_are_loaded_and_no_others(ended: Ended) -> None:
    for name, repo in (("model", QWEN), ("model cut", SHARDED)):
        source, out = ended.source("models", repo), (ended.folder / name)
        found = {path.name for path in out.iterdir() if path.is_file()}
        assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= found
        assert not [path for path in found if path.endswith((".bin", ".pth"))]
        assert [path for path in found if path.endswith(".md")] == (["README.md"] if repo == QWEN else [])
        assert all((out / path).read_bytes() == (source / path).read_bytes() for path in found)
        weights = {path.name for path in source.glob("*.safetensors*")}
        assert weights <= found and len(weights) == (1 if repo == QWEN else 6)


def test_interrupted_downloads_resume_where_they_stopped(ended: Ended) -> None:
    def ranges(requests: list[Request]) -> list[str | None]:
        return [one.range for one in requests]

    first, *rest = ranges(ended.hub.downloads(SHARDED, "model-00002-of-00005.safetensors"))
    starts = [int(span.removeprefix("bytes=").removesuffix("-")) for span in rest]
    assert first is None and len(starts) == 2 and 0 < starts[0] < starts[1]
    # Three whole downloads, one that is cut and resumed, and those that follow.
    masks = ranges(ended.hub.downloads(MASKS, MASK))
    assert masks[:4] == [None] * 4 and masks[4].startswith("bytes=") and masks[5:] == [None] * 4


def test_masks_are_those_of_their_revision(ended: Ended) -> None:
    newest, tagged = COMMIT, OTHER
    commits = {"mask": newest, "mask of a tag": tagged, "mask of a pull request": tagged, "mask cut": newest}
    for name, commit in (commits | {"mask slow": newest}).items():
        assert json.loads(((ended.folder / name) / "receipt.json").read_text())["commit"] == commit, name
        assert ((ended.folder / name) / MASK).read_bytes() == (
            ended.source("models", MASKS, commit) / MASK
        ).read_bytes()


def test_tokens_do_not_leave_the_hub(ended: Ended) -> None:
    sent = {one.authorization for one in ended.hub.requests if one.host.startswith("127.0.0.1")}
    assert f"Bearer {MEMBER}" in sent
    assert {one.authorization for one in ended.hub.requests if one.host.startswith("localhost")} == {None}


def test_the_advance_checks_find_the_same_causes(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    wanted = [
        Wanted("models.a.source", "model", QWEN, "060db6499f32faf8b98477b0a26969ef7d8b9987"),
        Wanted("models.b.source", "model", GATED),
        Wanted("models.c.source", "model", "a/b"),
        Wanted("corpora.d.source", "dataset", "allenai/c4", OTHER),
        Wanted("imports.e.source", "mask", MASKS),
    ]
    lines = hub_problems(wanted, True, {}, HfApi(endpoint=hub.endpoint, token=False))
    assert [line.split(":")[0] for line in lines] == [
        f"`models.b.source.repo` is '{GATED}'",
        "`models.c.source.repo` is 'a/b'",
        f"`corpora.d.source.revision` is '{OTHER}'",
    ]
    assert f"gated: accept its licence at https://huggingface.co/{GATED}" in lines[0]
    assert "no such repository" in lines[1] and "no such commit" in lines[2]
    assert hub_problems(wanted[:2], True, {}, HfApi(endpoint=hub.endpoint, token=MEMBER)) == []


def test_every_stage_reports_a_hub_that_is_gone(ended: Ended) -> None:
    for name, (code, errors) in ended.gone.items():
        assert code == 2 and len(errors) == 1, name
        assert "cannot be fetched: the Hugging Face hub cannot be reached (" in errors[0], errors[0]
