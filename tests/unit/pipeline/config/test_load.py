"""Tests of loading a configuration and of the error messages for invalid ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from patch.errors import InputError
from patch.pipeline.config.load import load_experiment, read_configuration, validate_experiment
from patch.pipeline.runs.plan import Plan

ROOT = Path(__file__).parents[4]


def put(*path: Any) -> Callable[[dict], None]:
    """Return a change that sets the last argument at the path of the others."""
    *keys, last, value = path

    def change(raw: dict) -> None:
        for key in keys:
            raw = raw[key]
        raw[last] = value

    return change


def drop(*path: Any) -> Callable[[dict], None]:
    """Return a change that deletes the key at ``path``."""
    *keys, last = path

    def change(raw: dict) -> None:
        for key in keys:
            raw = raw[key]
        del raw[last]

    return change


def add(entry: dict) -> Callable[[dict], None]:
    """Return a change that appends a block to the grid."""
    return lambda raw: raw["grid"].append(entry)


HYBRID = {"methods": ["patch"], "sparsity": [0.4]}
CONFIG = ("models", "qwen", "source", "config")
FAULTS: dict[str, tuple[Callable[[dict], None], list[str]]] = {
    # Change -> expected parts of the message: the key, its value and the valid values.
    "key": (put("evalutaion", {}), ["`evalutaion`", "did you mean `evaluation`?"]),
    "key-missing": (drop("calibration"), ["`calibration` is missing"]),
    "nested-key": (put("evaluation", "batchsize", 3), ["`evaluation.batchsize`", "`batch_size`"]),
    "key-in-union": (
        put("models", "qwen", "source", "training", {"stpes": 3}),
        ["`models.qwen.source.training.stpes`", "did you mean `steps`?"],
    ),
    "kind": (
        put("models", "qwen", "source", "kind", "trian"),
        ["`models.qwen.source.kind` is 'trian'; did you mean `train`? known: train, hub, local, gguf"],
    ),
    "kind-missing": (
        put("corpora", "text", "source", {"files": ["a.txt"]}),
        ["`corpora.text.source.kind` is missing; known: package, files, hub"],
    ),
    "architecture": (
        put("models", "qwen", "source", "architecture", "bloom"),
        ["`models.qwen.source.architecture` is 'bloom'", "qwen2", "llama", "gemma3_text", "opt", "gpt2"],
    ),
    "variant": (put("models", "qwen", "variant", "both"), ["`models.qwen.variant` is 'both'", "joint", "tile"]),
    "model-name": (lambda raw: raw["models"].update({"../a b": raw["models"]["qwen"]}), ["../a b", "pattern"]),
    "corpus-name": (lambda raw: raw["corpora"].update({"a/b": raw["corpora"]["text"]}), ["a/b", "pattern"]),
    "experiment-name": (put("experiment", "My run"), ["`experiment` is 'My run'"]),
    "seed": (put("seeds", [0, -1]), ["`seeds.1` is -1", "greater than or equal to 0"]),
    "no-seeds": (put("seeds", []), ["`seeds`"]),
    "fractions": (
        put("corpora", "text", "source", "split", {"train": 0.5}),
        ["corpora.text.source", "must sum to 1"],
    ),
    "corpus-of-calibration": (
        put("calibration", "use", "corpus", "txet"),
        ["`calibration.use.corpus` is 'txet'", "did you mean `text`?"],
    ),
    "corpus-of-perplexity": (
        put("evaluation", "perplexity", "use", "corpus", "txet"),
        ["`evaluation.perplexity.use.corpus` is 'txet'", "`text`"],
    ),
    "corpus-of-tasks": (put("evaluation", "task_use", "corpus", "x"), ["`evaluation.task_use.corpus` is 'x'", "text"]),
    "corpus-of-model": (
        put("models", "qwen", "source", "corpus", "txet"),
        ["`models.qwen.source.corpus` is 'txet'", "`text`"],
    ),
    "corpus-of-learning": (
        put("learning", "common", "use", {"corpus": "txet", "split": "train"}),
        ["use.corpus` is 'txet'", "`text`"],
    ),
    "part": (put("calibration", "use", "split", "calib"), ["`calibration.use.split` is 'calib'", "calibration"]),
    "tasks-without-text": (put("evaluation", "task_use", None), ["`evaluation.task_use` is missing"]),
    "method": (add({"methods": ["sparsgpt"]}), ["unknown method `sparsgpt`", "did you mean `sparsegpt`?"]),
    "model": (add({"methods": ["wanda"], "models": ["qwne"]}), ["unknown model `qwne`", "did you mean `qwen`?"]),
    "pattern": (add({"methods": ["wanda"], "pattern": "hybrid"}), ["`wanda`", "`hybrid`", "n:m, unstructured"]),
    "pattern-word": (add({"methods": ["wanda"], "pattern": "2-4"}), ["`wanda`", "`2-4`"]),
    "pattern-too-many": (add({"methods": ["wanda"], "pattern": "5:4"}), ["'5:4'", "2:4"]),
    "pattern-none": (add({"methods": ["wanda"], "pattern": "0:4"}), ["'0:4'", "2:4"]),
    "pattern-does-not-fit": (
        add({"methods": ["wanda"], "pattern": "12:16"}),
        ["`pattern` is `12:16`", "groups of 16", "24 inputs of q_proj", "`qwen`", "M divides 8"],
    ),
    "pattern-of-maskllm": (add({"methods": ["maskllm"], "pattern": "3:4"}), ["`maskllm`", "`3:4`", "it makes: 2:4"]),
    "pattern-unquoted": (add({"methods": ["wanda"], "pattern": 124}), ["`grid.3.pattern`", "124", '"2:4"']),
    "sparsity-above": (add(HYBRID | {"sparsity": [0.51]}), ["0.51", "[0, 0.5]"]),
    "sparsity-below": (add(HYBRID | {"sparsity": [-0.1]}), ["-0.1", "[0, 0.5]"]),
    "sparsity-nan": (add(HYBRID | {"sparsity": [float("nan")]}), ["`grid.3.sparsity.0` is nan", "finite"]),
    "sparsity-missing": (add({"methods": ["patch"]}), ["patch-joint", "`sparsity`"]),
    "sparsity-empty": (add(HYBRID | {"sparsity": []}), ["`sparsity`"]),
    "sparsity-one": (
        add({"methods": ["wanda"], "pattern": "unstructured", "sparsity": [1.0]}),
        ["1.0", "[0, 1)"],
    ),
    "sparsity-of-two-four": (add({"methods": ["wanda"], "sparsity": [0.4]}), ["`2:4`", "0.5", "0.4"]),
    "tile": (put("tile", 16), ["tile 16", "q_proj", "`qwen`", "use one of 4"]),
    "tile-odd": (add(HYBRID | {"tiles": [6]}), ["tile 6"]),
    "tile-zero": (add(HYBRID | {"tiles": [0]}), ["`grid.3.tiles.0` is 0"]),
    "tile-negative": (add(HYBRID | {"tiles": [-4]}), ["`grid.3.tiles.0` is -4"]),
    "learning-key": (put("learning", "common", "stpes", 3), ["`learning.common.stpes`", "did you mean `steps`?"]),
    "learning-value": (put("learning", "common", "lr", -1), ["`learning.common.lr` is -1", "greater than 0"]),
    "learning-value-of-method": (
        put("learning", "methods", {"patch-joint": {"steps": -5}}),
        ["`learning.methods.patch-joint.steps` is -5"],
    ),
    "learning-value-of-override": (
        put("learning", "overrides", [{"method": "maskllm", "set": {}}, {"model": "qwen", "set": {"steps": -5}}]),
        ["`learning.overrides.1.set.steps` is -5"],
    ),
    "learning-prior-of-method": (
        put("learning", "methods", {"patch-joint": {"tile_prior": "wnada"}}),
        ["`learning.methods.patch-joint.tile_prior` is 'wnada'", "did you mean `wanda`?"],
    ),
    "learning-method": (
        put("learning", "methods", {"patch-jiont": {"lr": 1}}),
        ["`learning.methods.patch-jiont`", "did you mean `patch-joint`?"],
    ),
    "learning-method-key": (
        put("learning", "methods", {"patch-tile": {"l2": 1}}),
        ["`learning.methods.patch-tile.l2`"],
    ),
    "override-model": (
        put("learning", "overrides", [{"model": "lama", "set": {}}]),
        ["`learning.overrides.0.model` is 'lama'", "did you mean `llama`?"],
    ),
    "override-method": (
        put("learning", "overrides", [{"method": "patch", "set": {}}]),
        ["`learning.overrides.0.method` is 'patch'", "patch-joint"],
    ),
    "override-key": (
        put("learning", "overrides", [{"method": "maskllm", "set": {"lrr": 1}}]),
        ["`learning.overrides.0.set.lrr`", "`lr`"],
    ),
    "micro-batch": (
        put("learning", "common", "micro_batch_size", 3),
        ["`learning.common`: micro_batch_size 3", "batch_size 4", "divisor"],
    ),
    "temperature": (
        put("learning", "common", "tile_temperature", [2, 0]),
        ["tile_temperature", "[2.0, 0.0]", "positive"],
    ),
    "config-key": (
        put(*CONFIG, "hiden_size", 24),
        ["unknown key `models.qwen.source.config.hiden_size` of a qwen2 model", "did you mean `hidden_size`?"],
    ),
    "config-key-of-the-tokenizer": (
        put(*CONFIG, "vocab_size", 24),
        ["`models.qwen.source.config.vocab_size`", "leave"],
    ),
    "size-missing": (drop(*CONFIG, "hidden_size"), ["models.qwen.source.config", "`hidden_size` is missing"]),
    "size-word": (put(*CONFIG, "hidden_size", "24"), ["models.qwen.source.config.hidden_size", "'24'"]),
    "size-zero": (put(*CONFIG, "num_attention_heads", 0), ["models.qwen.source.config.num_attention_heads", "0"]),
    "size-negative": (put(*CONFIG, "intermediate_size", -4), ["models.qwen.source.config.intermediate_size", "-4"]),
    "heads": (put(*CONFIG, "num_key_value_heads", 3), ["num_key_value_heads` is 3", "divide", "4"]),
    "local": (
        put("models", "qwen", "source", {"kind": "local", "path": "no/such"}),
        ["models.qwen.source.path", "'no/such'", "save_pretrained"],
    ),
    "gpu": (
        put("resources", {"gpu": "V100"}),
        ["`resources.gpu` is 'V100'", "'A100', 'H100', 'H200', 'A6000' or 'L40S'"],
    ),
    "gpu-throughput": (put("resources", {"gpu_tflops": 400}), ["unknown key `resources.gpu_tflops`", " gpu, "]),
    "files": (
        put("corpora", "more", {"source": {"kind": "files", "files": ["no/such/*.txt"]}}),
        ["`corpora.more.source.files`", "'no/such/*.txt'"],
    ),
    "files-key": (
        put("corpora", "more", {"source": {"kind": "files", "files": ["a.txt"], "feild": "a"}}),
        ["unknown key `corpora.more.source.feild`", "did you mean `field`?", "known: field, files, kind, split"],
    ),
    "files-word": (
        put("corpora", "more", {"source": {"kind": "files", "files": [1, {}]}}),
        ["`corpora.more.source.files.0` is 1"],
    ),
    "files-empty": (
        put("corpora", "more", {"source": {"kind": "files", "files": [""]}}),
        ["`corpora.more.source.files`", "''"],
    ),
    "files-glob": (
        put("corpora", "more", {"source": {"kind": "files", "files": ["**x"]}}),
        ["`corpora.more.source.files`", "'**x'"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_message_names_key_value_and_cure(fault: str, raw_config: dict) -> None:
    change, expected = FAULTS[fault]
    change(raw_config)
    with pytest.raises(InputError) as error:
        plan = Plan(validate_experiment(raw_config))
        for run in plan.grid.closure:
            plan.settings.mask_digest(run)
    for part in expected:
        assert part in str(error.value), str(error.value)


def test_every_fault_is_reported(raw_config: dict) -> None:
    put("seeds", [-1])(raw_config)
    put("evaluation", "batchsize", 3)(raw_config)
    with pytest.raises(InputError) as error:
        validate_experiment(raw_config)
    assert "seeds.0" in str(error.value) and "evaluation.batchsize" in str(error.value)


def test_a_good_file_is_loaded_and_frozen(tmp_path: Path, raw_config: dict) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(raw_config))
    experiment = load_experiment(path)
    assert experiment.experiment == "tiny" and set(experiment.models) == {"qwen", "llama"}
    assert experiment == validate_experiment(raw_config)
    with pytest.raises(ValidationError):
        experiment.tile = 8


def test_unquoted_pattern_in_yaml(tmp_path: Path, raw_config: dict) -> None:
    """Check the message for an unquoted 2:4, which YAML 1.1 reads as a sexagesimal number."""
    path = tmp_path / "c.yaml"
    text = yaml.safe_dump(raw_config).replace("grid:\n", "grid:\n- methods: [wanda]\n  pattern: 2:4\n")
    path.write_text(text)
    with pytest.raises(InputError, match='quotes: "2:4"'):
        load_experiment(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"a: [", "is not YAML"),
        (b"- a\n- b\n", "is list; expected a mapping"),
        (b"", "is NoneType; expected a mapping"),
        (b"\xff\xfe\x00\x01", "c.yaml"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        load_experiment(path)
    assert "c.yaml" in str(error.value)


def test_folder_instead_of_configuration(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_experiment(tmp_path)


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations_of_the_repository_plan(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plan = Plan(load_experiment(path))
    assert plan.grid.runs
    names = [plan.layout.record(run) for run in plan.grid.runs]
    assert len(set(names)) == len(names)


OTHER_KINDS = """
corpora: {text: {source: {kind: hub, repo: a/b, revision: "0123456", splits: {train: train, test: test}}}}
models: {qwen: {source: {kind: local, path: a}}}
"""


@pytest.mark.parametrize("extended", [True, False])
def test_a_section_of_another_kind_replaces_that_of_the_base(
    extended: bool, raw_config: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(yaml.safe_dump(raw_config))
    Path("c.yaml").write_text("extends: base.yaml\n" * extended + OTHER_KINDS)
    experiment = validate_experiment(read_configuration(["c.yaml"] if extended else ["base.yaml", "c.yaml"]))
    assert experiment.corpora["text"].source.repo == "a/b"
    assert experiment.models["qwen"].source.path == "a"
    # All else is merged.
    assert experiment.models["qwen"].title == raw_config["models"]["qwen"]["title"]
    assert experiment.models["llama"] == validate_experiment(raw_config).models["llama"]


@pytest.mark.parametrize("null", ["null", "~", None])
def test_null_on_the_command_line(null: str | None, raw_config: dict, tmp_path: Path) -> None:
    raw_config["speedup"], raw_config["evaluation"]["limit"] = {"batch_size": 2}, 3
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw_config))
    changes = {"speedup": null, "evaluation": {"limit": null}, "grid": [{"methods": ["wanda"], "pattern": null}]}
    experiment = validate_experiment(read_configuration([tmp_path / "c.yaml"], changes))
    assert (experiment.speedup, experiment.evaluation.limit, experiment.grid[0].pattern) == (None, None, None)
    assert experiment.evaluation.tasks == raw_config["evaluation"]["tasks"]


@pytest.mark.parametrize(
    "source",
    [{"kind": "hub", "repo": "a/b", "revision": "0123456"}, {"kind": "gguf", "package": "c", "distribution": "a/b"}],
)
def test_the_command_that_writes_missing_sizes(source: dict, raw_config: dict) -> None:
    put("models", "qwen", "source", source)(raw_config)
    with pytest.raises(
        InputError, match="`models.qwen.source`: `shape` is missing; `python -m patch add-model a/b` wri"
    ):
        validate_experiment(raw_config)
    put("models", "qwen", "source", source | {"shpe": {}})(raw_config)
    with pytest.raises(InputError, match="unknown key `models.qwen.source.shpe`; did you mean `shape`"):
        validate_experiment(raw_config)
