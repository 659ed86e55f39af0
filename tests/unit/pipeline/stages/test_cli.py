"""Command line of the stages: invalid input gives one message and exit code 2, and no traceback."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from patch.masks.nm import NM, nm_mask
from patch.masks.packed import MaskSet
from patch.models.loading import prunable_linears
from patch.pipeline.stages.__main__ import main
from patch.pipeline.stages._run import STAGES
from patch.pruning.weights import save_weights

ROOT = Path(__file__).parents[4]


def two_four(model: torch.nn.Module) -> MaskSet:
    linears = prunable_linears(model).items()
    return MaskSet({name: nm_mask(linear.weight.abs(), NM(2, 4)) for name, linear in linears}, "2:4")


def one_message(ended: Any, *expected: str) -> None:
    """Check for exit code 2 and one message with the expected parts, without a traceback."""
    assert ended.code == 2
    assert "Traceback" not in ended.error and 'File "' not in ended.error
    messages = [line for line in ended.error.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1, ended.error
    for part in expected:
        assert re.search(part, ended.error), (part, ended.error)


@pytest.mark.parametrize(
    ("arguments", "code"), [([], 2), (["prnue"], 2), (["--help"], 0), (["-h"], 0), (["__main__"], 2)]
)
def test_usage_names_the_stages(arguments: list[str], code: int, capsys: pytest.CaptureFixture) -> None:
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert "usage: python -m patch.pipeline.stages STAGE" in error and "prune" in error and "_common" not in error


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_explains_itself(name: str, stage: Callable, capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    assert "--settings FILE" in capfd.readouterr().out


def test_missing_and_unknown_options(files: Any, stage: Callable) -> None:
    for options in ({}, {"model": "m", "mask": "m", "what": "x"}):
        with pytest.raises(SystemExit) as end:
            stage("prune", files.settings("magnitude"), **options)
        assert end.value.code == 2


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], "`settings` is \\[\\]"),
        (3, "`settings` is 3"),
        ({"sparsity": None}, "`settings.sparsity` is None"),
        ({"sedd": 1}, "unknown key `settings.sedd`; did you mean `seed`"),
        ({"seed": "x"}, "`settings.seed` is 'x'"),
        (
            {"pruning": {"sparsegpt": {"dmap": 1}}},
            "unknown key `settings.pruning.sparsegpt.dmap`; did you mean `damp`",
        ),
        ({"pruning": {"sparsegpt": {"damp": -1}}}, "`settings.pruning.sparsegpt.damp` is -1: .*greater than 0"),
    ],
)
def test_bad_settings(settings: Any, expected: str, files: Any, stage: Callable) -> None:
    whole = files.settings("magnitude", **settings) if isinstance(settings, dict) else settings
    one_message(stage("prune", whole, model=files.model, mask=files.folder / "m"), expected)
    assert not (files.folder / "m").exists()


def test_model_folders(files: Any, stage: Callable, tmp_path: Path) -> None:
    def prune(model: Path) -> Any:
        return stage("prune", files.settings("magnitude"), model=model, mask=tmp_path / "m")

    one_message(prune(tmp_path / "none"), "none: no config.json in it")
    weights = files.model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    one_message(prune(files.model), "model folder .* cannot be loaded")
    weights.unlink()
    one_message(prune(files.model), "model folder .* cannot be loaded")
    save_file({"model.norm.weight": torch.ones(24)}, weights, metadata={"format": "pt"})
    one_message(prune(files.model), "model folder .* lack the weights")
    weights.write_bytes(whole)
    (files.model / "config.json").write_text("{")
    one_message(prune(files.model), "config.json: not valid JSON")
    assert not (tmp_path / "m").exists()


def test_sequences(files: Any, stage: Callable, tmp_path: Path) -> None:
    def prune(**options: Any) -> Any:
        return stage("prune", files.settings("wanda"), model=files.model, mask=tmp_path / "m", **options)

    one_message(prune(), "wanda needs calibration sequences")
    one_message(prune(sequences=tmp_path / "none.npy"), "none.npy: no such file")
    files.sequences.write_bytes(files.sequences.read_bytes()[:-3])
    one_message(prune(sequences=files.sequences), "sequences.npy: truncated")
    files.sequences.write_bytes(b"")
    one_message(prune(sequences=files.sequences), "sequences.npy")
    assert not (tmp_path / "m").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_no_gpu(files: Any, stage: Callable, tmp_path: Path) -> None:
    settings = files.settings("magnitude", device="cuda")
    one_message(
        stage("prune", settings, model=files.model, mask=tmp_path / "m"), "`resources.device` is 'cuda'", "'cpu'"
    )
    assert not (tmp_path / "m").exists()


def test_damping_that_is_too_small(files: Any, stage: Callable, tmp_path: Path, sequences: Callable) -> None:
    """A sequence of one repeated token gives a Hessian of rank one."""
    import numpy as np

    np.save(files.sequences, np.zeros((1, 12), dtype=np.uint16))
    settings = files.settings("sparsegpt", pruning={"sparsegpt": {"damp": 1e-12}})
    ended = stage("prune", settings, model=files.model, sequences=files.sequences, mask=tmp_path / "m")
    one_message(ended, "raise `pruning.sparsegpt.damp`")
    assert not (tmp_path / "m").exists()


def test_priors_of_learning(files: Any, stage: Callable, tmp_path: Path, tiny_model: Callable) -> None:
    expected: dict[str, Any] = {}

    def learn(method: str, **masks: Path) -> Any:
        outputs = {"mask": tmp_path / "m", "curve": tmp_path / "c", "checkpoints": tmp_path / "run"}
        settings = files.settings(method, masks=dict.fromkeys(masks, expected))
        return stage("learn", settings, model=files.model, sequences=files.sequences, **outputs, **masks)

    other = tmp_path / "other.safetensors"
    expected |= files.save(other, two_four(tiny_model(num_hidden_layers=1)))
    other.unlink()
    one_message(learn("patch-joint", pattern_mask=other), "other.safetensors: no such file")
    files.save(other, two_four(tiny_model(num_hidden_layers=1)))
    for name in ("pattern_mask", "tile_mask"):
        one_message(learn("patch-joint", **{name: other}), "masks are of another model")
    files.save(other, two_four(tiny_model(intermediate_size=48)))
    one_message(learn("patch-tile", frozen_mask=other), "masks are of another model", "48")
    other.write_bytes(other.read_bytes()[:100])
    one_message(learn("patch-tile", frozen_mask=other), "other.safetensors: truncated")
    one_message(learn("patch-tile"), "--frozen-mask")
    assert not (tmp_path / "m").exists() and not (tmp_path / "run").exists()


def test_a_run_that_diverges(files: Any, stage: Callable, tmp_path: Path, tiny_model: Callable) -> None:
    model = tiny_model()
    model.model.embed_tokens.weight.data.fill_(float("nan"))
    model.save_pretrained(files.model)
    settings = files.settings("maskllm")
    outputs = {"mask": tmp_path / "m", "curve": tmp_path / "c", "checkpoints": tmp_path / "run"}
    one_message(
        stage("learn", settings, model=files.model, sequences=files.sequences, **outputs),
        "at step 0 of 5",
        "learning rate",
    )
    assert not (tmp_path / "m").exists() and not (tmp_path / "c").exists()


def test_inputs_of_evaluation(files: Any, stage: Callable, tmp_path: Path, tiny_model: Callable) -> None:
    def evaluate(**options: Path) -> Any:
        outputs = {
            "record": tmp_path / "r.json",
            "samples": tmp_path / "s.json",
            "tasks": tmp_path,
            "sequences": files.sequences,
        }
        return stage("evaluate", settings, model=files.model, **outputs | options)

    mask, weights = tmp_path / "m.safetensors", tmp_path / "w.safetensors"
    settings = files.evaluation("magnitude", mask=files.save(mask, two_four(tiny_model(num_hidden_layers=1))))
    one_message(evaluate(mask=mask), "masks are of another model")
    mask.unlink()
    one_message(evaluate(mask=mask), "m.safetensors: no such file")
    settings = files.evaluation("magnitude", mask=files.save(mask, two_four(tiny_model())))
    one_message(evaluate(mask=mask, weights=weights), "w.safetensors: no such file")
    save_weights(weights, prunable_linears(tiny_model()), "other settings")
    one_message(evaluate(mask=mask, weights=weights), "w.safetensors: made with other settings")
    save_weights(weights, prunable_linears(tiny_model(intermediate_size=48)), settings["mask"]["digest"])
    one_message(evaluate(mask=mask, weights=weights), "belong to another one")
    weights.write_bytes(weights.read_bytes()[:-10])
    one_message(evaluate(mask=mask, weights=weights), "w.safetensors: .*truncated")
    settings = files.settings("dense")
    one_message(evaluate(sequences=tmp_path / "none.npy"), "none.npy: no such file")
    assert not (tmp_path / "r.json").exists()


def test_stages_that_read_a_corpus(stage: Callable, files: Any, tmp_path: Path) -> None:
    store = files.plan.store
    (tmp_path / "corpus").mkdir()
    settings = store.tokenizer_settings("qwen").model_dump(mode="json")
    one_message(stage("tokenizer", settings, corpus=tmp_path / "corpus", out=tmp_path / "t"), "split `train`")
    assert not (tmp_path / "t").exists()
    settings = store.perplexity_sequences("qwen").settings.model_dump(mode="json")
    ended = stage("sequences", settings, corpus=tmp_path / "corpus", tokenizer=tmp_path / "t", out=tmp_path / "w.npy")
    one_message(ended, "split `test`|tokenizer folder")
    one_message(
        stage("fetch_corpus", store.corpus_settings("text").model_dump(mode="json"), out=tmp_path / "c"),
        "pip install none",
    )
    assert not (tmp_path / "c").exists() and not (tmp_path / "w.npy").exists()


def test_a_local_model_that_is_not_there(stage: Callable, tmp_path: Path) -> None:
    settings = {"upstream": "", "source": {"kind": "local", "path": str(tmp_path / "none")}}
    one_message(stage("fetch_model", settings, out=tmp_path / "m"), "none: no config.json in it")
    assert list(tmp_path.iterdir()) == []


def gguf_model(package: str, **others: str) -> dict[str, Any]:
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    shape = dict.fromkeys((*sizes, "head_dim", "vocab_size"), 8)
    source = {"kind": "gguf", "package": package, "distribution": "a-package", "shape": shape, **others}
    return {"upstream": "", "source": source}


def test_a_gguf_model_of_a_missing_package(stage: Callable, tmp_path: Path) -> None:
    ended = stage("fetch_model", gguf_model("no_such_package"), out=tmp_path / "m")
    one_message(ended, "package `no_such_package` is missing; install a-package and gguf", "#models-in-packages")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(("files", "found"), [(("a.gguf", "b.txt"), "a.gguf"), ((), "none")])
def test_a_gguf_file_that_the_package_does_not_have(
    files: tuple[str, ...], found: str, stage: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gguf", "some_model"):
        (tmp_path / name).mkdir()
        # Neither the reader nor the package is imported before the file is found.
        (tmp_path / name / "__init__.py").write_text("raise AssertionError")
    for name in files:
        (tmp_path / "some_model" / name).write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    ended = stage("fetch_model", gguf_model("some_model", file="none.gguf"), out=tmp_path / "m")
    one_message(ended, f"a-package has no file `none.gguf`; its GGUF files: {found}")


def test_exit_code_of_the_process(tmp_path: Path, job_file: Callable) -> None:
    """Run a real command line, where a traceback may come from outside `main`."""
    file = job_file("fetch_model", {"upstream": "", "source": {"kind": "local", "path": "nowhere"}})
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "patch.pipeline.stages",
            "fetch_model",
            "--settings",
            str(file),
            "--out",
            str(tmp_path / "m"),
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert (
        ended.stderr == "error: model folder nowhere: no config.json in it; give a folder that save_pretrained wrote\n"
    )
