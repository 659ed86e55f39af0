"""Tests of `python -m patch add-model` on folders and packages; tests/hub has those on a hub."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoConfig

from patch.models.description import describe_folder
from patch.models.loading import load_skeleton, prunable_linears, weight_matrix
from patch.models.shapes import parameters
from patch.pipeline.cli.add_model import main
from patch.pipeline.config.load import load_experiment
from patch.pipeline.runs.plan import Plan

PUBLISHED = str(Path(__file__).parents[4] / "config/published.json")
SIZES = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 64,
}
# Families whose sizes, without those of norms, biases and positions, follow from the configuration.
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "olmo2", "phi3", "smollm3", "granite")


def write_config(folder: Path, family: str = "qwen3", **changes: Any) -> Path:
    """Write the file `config.json` of a model without weights."""
    folder.mkdir(exist_ok=True)
    AutoConfig.for_model(family, **SIZES | {"pad_token_id": 0, "eos_token_id": 0}).save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable:
    """Return a function that runs the command in an empty folder and returns its code and what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        code = main(arguments)
        printed = capsys.readouterr()
        return code, printed.err if code else printed.out

    return run


@pytest.fixture
def base(raw_config: dict[str, Any], tmp_path: Path) -> Path:
    """Return a configuration without models, in another folder than the new ones."""
    del raw_config["models"], raw_config["tile"]
    raw_config["published"] = PUBLISHED
    path = tmp_path / "shared/base.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(raw_config))
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_are_those_of_the_layers(family: str, tmp_path: Path) -> None:
    write_config(tmp_path, family)
    found, model = describe_folder(tmp_path), load_skeleton(tmp_path)
    matrices = {id(p): p.numel() for p in model.parameters() if p.dim() > 1}
    assert parameters(found.shape) == sum(matrices.values())
    lengths = [size for layer in prunable_linears(model).values() for size in weight_matrix(layer).shape]
    assert found.tile in (16, 32) and all(length % found.tile == 0 for length in lengths)
    assert any(length % (2 * found.tile) for length in lengths)


@pytest.mark.parametrize(
    ("keys", "dtype"),
    [
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": None, "torch_dtype": "float16"}, "float16"),
        ({"dtype": None}, "float32"),
        ({"dtype": "float64"}, "float32"),
    ],
)
def test_dtype(keys: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    assert describe_folder(write_config(tmp_path, **keys)).dtype == dtype


def test_the_printed_block_of_a_folder(add: Callable, tmp_path: Path) -> None:
    write_config(tmp_path / "My Model_1", dtype="bfloat16")
    code, text = add("My Model_1")
    source = {"kind": "local", "path": "My Model_1"}
    model = {"title": "My Model_1", "dtype": "bfloat16", "source": source}
    assert code == 0 and yaml.safe_load(text) == {"models": {"my-model_1": model}, "tile": 32}


def test_a_new_configuration_extends_a_base(add: Callable, base: Path, tmp_path: Path) -> None:
    write_config(tmp_path / "model")
    code, text = add("model", "--configfile", "own/My grid.yaml", "--extends", "shared/base.yaml")
    assert code == 0, text
    assert f"`model` of {parameters(describe_folder('model').shape):,} weights" in text
    assert text.endswith("python -m patch plan --configfile 'own/My grid.yaml'\n")
    raw = yaml.safe_load(Path("own/My grid.yaml").read_text())
    assert (raw["extends"], raw["experiment"], raw["tile"]) == ("../shared/base.yaml", "my-grid", 32)
    plan = Plan(load_experiment("own/My grid.yaml"))
    assert {run.model for run in plan.grid.runs} == {"model"}


def test_a_model_joins_a_configuration(add: Callable, raw_config: dict[str, Any], tmp_path: Path) -> None:
    write_config(tmp_path / "model")
    path = tmp_path / "mine.yaml"
    raw_config["published"] = PUBLISHED
    path.write_text(f"# Mine.\n{yaml.safe_dump(raw_config)}# The end.\n")
    before = path.read_text().splitlines()
    code, text = add("model", "--configfile", "mine.yaml", "--name", "other")
    assert code == 0, text
    after = iter(path.read_text().splitlines())
    assert all(line in after for line in before), "in this order"
    experiment = load_experiment(path)
    assert experiment.models.keys() == {*raw_config["models"], "other"} and experiment.tile == raw_config["tile"]
    before = path.read_bytes()
    code, text = add("model", "--configfile", "mine.yaml", "--name", "other")
    assert code == 2 and "mine.yaml has a model `other`, which is not overwritten; choose another name" in text
    assert path.read_bytes() == before


def test_an_invalid_result_changes_nothing(add: Callable, base: Path, tmp_path: Path) -> None:
    write_config(tmp_path / "model")
    path = tmp_path / "mine.yaml"
    path.write_text("extends: shared/base.yaml\nexperiment: mine\ntile: 64\n")
    before = path.read_bytes()
    code, text = add("model", "--configfile", "mine.yaml")
    assert code == 2 and "mine.yaml is not changed, since with the model: tile 64 does not divide" in text
    assert path.read_bytes() == before
    path.write_text("extends: shared/base.yaml\nseed: 3\n")
    assert "unknown key `seed`; did you mean `seeds`" in add("model", "--configfile", "mine.yaml")[1]
    code, text = add("model", "--configfile", "new.yaml", "--extends", "shared/base.yaml", "--name", "a/b")
    assert code == 2 and "new.yaml is not made" in text and "a/b" in text
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mine.yaml", "model", "shared"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such folder and no such package; a model of the hub is `owner/name`"),
        (["./nowhere/model"], "no such folder"),
        (["a/b/c"], "no such folder"),
        (["empty"], "model folder empty: no config.json in it"),
        (["model", "--revision", "main"], "--revision is 'main', but model is a local model, which has none"),
        (["model", "--file", "a.gguf"], "--file is 'a.gguf', but model is no installed package"),
        (["model", "--extends", "base.yaml"], "--extends is the base of a new configuration"),
        (["model", "--configfile", "new.yaml"], "config/shared/pretrained.yaml: no such file"),
        (["yaml"], "PyYAML"),
    ],
)
def test_invalid_arguments(arguments: list[str], message: str, add: Callable, tmp_path: Path) -> None:
    write_config(tmp_path / "model")
    (tmp_path / "empty").mkdir()
    code, text = add(*arguments)
    assert code == 2 and message in text and text.startswith("error: ") and text.count("\n") == 1


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("qwen3", {"model_type": "qwen33"}, "has no model type 'qwen33'; correct it, or install a version"),
        (
            "qwen3",
            {"model_type": "own", "auto_map": {"AutoConfig": "a.B"}},
            "no model type 'own'; it needs its own code",
        ),
        ("qwen3", {"model_type": None}, "no model type None"),
        ("qwen3", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "the weights are quantized"),
        ("qwen3", {"hidden_size": None}, "hidden_size"),
        ("qwen3", {"hidden_size": 90}, "no tile fits"),
        ("qwen3_moe", {"num_experts": 4}, "models of the type 'qwen3_moe' are not supported: .* weights in linear"),
        ("vit", {}, "models of the type 'vit' are no causal language models"),
    ],
)
def test_models_that_cannot_be_pruned(
    family: str, changes: dict[str, Any], message: str, add: Callable, tmp_path: Path
) -> None:
    write_config(tmp_path / "model", family, **changes)
    code, text = add("model")
    assert code == 2 and text.startswith("error: ") and text.count("\n") == 1
    assert re.search(message, text), text


def test_a_package(add: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = pytest.importorskip("gguf")
    package, metadata = tmp_path / "packages/some_model", tmp_path / "packages/some_model_gguf-1.0.dist-info"
    package.mkdir(parents=True)
    metadata.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('it must not be imported')\n")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: some-model.gguf\nVersion: 1.0\n")
    (metadata / "top_level.txt").write_text("some_model\n")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    writer = gguf.GGUFWriter(package / "Some-1M.gguf", "llama")
    writer.add_embedding_length(96)
    writer.add_feed_forward_length(160)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_context_length(64)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(64)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for name in ("some_model", "some-model.gguf", "Some-Model"):
        code, text = add(name)
        assert code == 0, text
        (found,) = yaml.safe_load(text)["models"].items()
        assert found[0] == "some-1m" and found[1]["dtype"] == "float32"
        shape = {key: size for key, size in SIZES.items() if key != "max_position_embeddings"}
        assert found[1]["source"].pop("shape").items() >= (shape | {"head_dim": 24}).items()
        names = {"kind": "gguf", "package": "some_model", "file": "Some-1M.gguf", "distribution": "some-model.gguf"}
        assert found[1]["source"] == names
    (package / "Other.gguf").touch()
    assert "has several GGUF files; choose one by --file: Other.gguf, Some-1M.gguf" in add("some_model")[1]
    assert add("some_model", "--file", "Some-1M.gguf")[0] == 0
    assert "has no file `a.gguf`" in add("some_model", "--file", "a.gguf")[1]
