"""The whole workflow on one tiny trained model and one tiny local one: every rule that needs no network runs."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
VOWELS, CONSONANTS = "aeiou", "bdfgklmnprst"
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}


def _text(seed: int) -> str:
    """Paragraphs of made-up words with a skewed frequency, in sentences."""
    rng = random.Random(seed)
    words = ["".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(rng.randint(1, 3))) for _ in range(400)]
    weights = [1 / (rank + 3) for rank in range(len(words))]

    def sentence() -> str:
        return " ".join(rng.choices(words, weights, k=rng.randint(8, 20))).capitalize() + "."

    return "\n\n".join(" ".join(sentence() for _ in range(rng.randint(2, 6))) for _ in range(1500))


def _experiment(folder: Path) -> dict:
    use = {split: {"corpus": "made", "split": split} for split in ("train", "calibration", "test")}
    source = {
        "kind": "train",
        "architecture": "qwen2",
        "corpus": "made",
        "tokenizer": {"vocab_size": 400},
        "config": SIZES,
        "training": {"steps": 30, "batch_size": 4, "seqlen": 32},
    }
    return {
        "experiment": "tiny",
        "corpora": {
            "made": {
                "source": {
                    "kind": "files",
                    "files": ["text/*.txt"],
                    "split": {"train": 0.5, "calibration": 0.1, "validation": 0.1, "test": 0.3},
                }
            }
        },
        "models": {
            "trained": {"title": "Trained", "variant": "tile", "source": source},
            "local": {"title": "Local", "variant": "joint", "source": {"kind": "local", "path": "local-model"}},
        },
        "calibration": {"use": use["calibration"], "samples": 8, "seqlen": 32, "batch_size": 4},
        "learning": {
            "common": {"use": use["train"], "steps": 3, "batch_size": 2, "micro_batch_size": 1, "seqlen": 32},
            "methods": {"maskllm": {"lr": 0.001}},
        },
        "evaluation": {
            "perplexity": {"use": use["test"], "seqlen": 32, "batch_size": 8},
            "tasks": ["continuation", "word_order", "next_word", "cloze"],
            "include_path": str(ROOT / "workflow/tasks"),
            "task_use": use["test"],
            "task_samples": 12,
        },
        "grid": [
            {"methods": ["dense"]},
            {"methods": ["magnitude", "sparsegpt", "thanos", "proxsparse", "maskllm"]},
            {"methods": ["patch"], "sparsity": [0.45]},
            {"methods": ["wanda"], "pattern": "unstructured", "sparsity": [0.45]},
            {"methods": ["maskllm"], "models": ["trained"], "quantization": "absmax"},
            {"methods": ["patch"], "models": ["trained"], "sparsity": [0.45], "quantization": "slim-lora"},
        ],
        "tile": 16,
        "published": str(ROOT / "config/published.json"),
        "resources": {"warm_start": True},
    }


def _snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    command += ["--configfile", str(folder / "tiny.yaml"), "--workflow-profile", str(ROOT / "profiles/default")]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        [*command, "--cores", "2", *arguments], capture_output=True, text=True, env=os.environ | {"PATH": path}
    )


def _planned(folder: Path) -> Counter:
    """Jobs that a run would do, by rule."""
    run = _snakemake(folder, "--dry-run", "--quiet", "rules")
    assert run.returncode == 0, run.stdout + run.stderr
    table = re.search(r"^job +count\n[- ]+\n(.*?)^total", run.stdout + run.stderr, re.MULTILINE | re.DOTALL)
    rows = [line.split() for line in table[1].splitlines()] if table else []
    return Counter({rule: int(count) for rule, count in rows})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the tiny experiment has run."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from patch.data.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("workflow")
    (folder / "text").mkdir()
    (folder / "text/made.txt").write_text(_text(0))
    tokenizer = train_tokenizer(_text(0).split("\n\n"), 400)
    # Transposed weights, one layer for query, key and value, biases: all that the trained one does not have.
    sizes = {"n_embd": 32, "n_inner": 48, "n_layer": 2, "n_head": 2, "n_positions": 128}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes))
    model.save_pretrained(folder / "local-model")
    tokenizer.save_pretrained(folder / "local-model")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(_experiment(folder)))
    run = _snakemake(folder)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy to change, with the times of its files."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder, copy_function=shutil.copy2, symlinks=True)
    return folder


def test_every_file_is_there(finished: Path) -> None:
    root = finished / "results/tiny"
    for model in ("trained", "local"):
        for figure in ("pareto", "density", "curves"):
            for kind in ("svg", "pdf", "png"):
                assert (root / f"figures/{model}/{figure}.{kind}").stat().st_size > 1000
    for table in ("joint", "tile", "unstructured", "quantized", "tasks"):
        for kind in ("csv", "md", "tex"):
            assert (root / f"tables/{table}.{kind}").stat().st_size > 100
    assert len(list((root / "records").rglob("*.json"))) == 18
    assert not list((finished / "work").rglob("weights/**/*.safetensors")), "updated weights are temporary"
    assert not list((finished / "work").rglob("spare/**/*.safetensors"))
    assert not list((finished / "work").rglob("quantized/**/*.safetensors"))


def test_records_say_what_was_measured(finished: Path) -> None:
    for path in (finished / "results/tiny/records").rglob("*.json"):
        record = json.loads(path.read_text())
        assert abs(record["achieved_sparsity"] - record["cell"]["sparsity"]) < 0.02, path
        assert record["metrics"]["perplexity"]["value"] > 1
        assert {"continuation", "word_order", "next_word", "cloze"} < set(record["metrics"])


def test_results_are_tidy(finished: Path) -> None:
    header, *rows = (finished / "results/tiny/results.csv").read_text().splitlines()
    assert header == (
        "experiment,model,method,pattern,sparsity,tile,quantization,seed,metric,value,stderr,published,achieved_sparsity,"
        "seconds,peak_memory_mb"
    )
    assert len(rows) == 18 * 6


def test_a_second_run_does_nothing(finished: Path) -> None:
    assert _planned(finished) == Counter()


def test_the_number_of_processes_reruns_nothing(copied: Path) -> None:
    settings = yaml.safe_load((copied / "tiny.yaml").read_text())
    settings["resources"]["learn_gpus"] = 2
    (copied / "tiny.yaml").write_text(yaml.safe_dump(settings))
    assert _planned(copied) == Counter()


def test_a_deleted_record_is_evaluated_again_and_nothing_is_learned(copied: Path) -> None:
    (copied / "results/tiny/records/trained/sparsegpt_2of4_0.5_s0.json").unlink()
    planned = _planned(copied)
    after = {"collect": 1, "table": 5, "pareto": 2, "all": 1}
    assert planned == Counter({"evaluate": 1, "update_weights": 1, **after})
    run = _snakemake(copied)
    assert run.returncode == 0, run.stdout + run.stderr
    before = json.loads((copied / "results/tiny/records/local/sparsegpt_2of4_0.5_s0.json").read_text())
    again = json.loads((copied / "results/tiny/records/trained/sparsegpt_2of4_0.5_s0.json").read_text())
    assert set(before) == set(again)


def test_one_learning_rate_reruns_what_it_touches(copied: Path) -> None:
    settings = yaml.safe_load((copied / "tiny.yaml").read_text())
    settings["learning"]["methods"]["maskllm"]["lr"] = 0.002
    (copied / "tiny.yaml").write_text(yaml.safe_dump(settings))
    planned = _planned(copied)
    # maskllm of both models, and patch-tile, whose frozen mask is maskllm's; and what is quantised of them.
    assert planned["learn"] == 3 and planned["evaluate"] == 5 and planned["quantize"] == 2
    assert set(planned) == {"learn", "quantize", "evaluate", "collect", "table", "pareto", "curves", "density", "all"}
    assert planned["density"] == 1


def test_dense_statistics_are_taken_once_for_all_methods(copied: Path) -> None:
    settings = yaml.safe_load((copied / "tiny.yaml").read_text())
    settings["calibration"]["propagate"] = "dense"
    (copied / "tiny.yaml").write_text(yaml.safe_dump(settings))
    planned = _planned(copied)
    # Of each model: SparseGPT, Thanos, and unstructured Wanda and SparseGPT, the tile prior; magnitude needs none.
    assert planned["statistics"] == 2 and planned["prune"] == 8
    run = _snakemake(copied, "results/tiny/records/local/thanos_2of4_0.5_s0.json")
    assert run.returncode == 0, run.stdout + run.stderr
    (folder,) = (copied / "work/statistics").iterdir()
    assert len(list(folder.glob("block-*.safetensors"))) == 2
    assert not list((copied / "work").rglob("weights/**/*.safetensors"))


def test_a_new_ratio_adds_its_runs_alone(copied: Path) -> None:
    settings = yaml.safe_load((copied / "tiny.yaml").read_text())
    settings["grid"][2]["sparsity"] = [0.45, 0.25]
    (copied / "tiny.yaml").write_text(yaml.safe_dump(settings))
    planned = _planned(copied)
    # One patch cell for each model, with a tile prior of its own.
    assert (planned["learn"], planned["prune"], planned["evaluate"]) == (2, 2, 2)
    assert not {"train_model", "tokenize", "calibrate", "fetch_corpus"} & set(planned)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["evaluation", "tasks"], ["continuation", "clozze"], ["clozze", "cloze"]),
        (["corpora", "made", "source", "files"], ["text/*.md"], ["text/*.md", "files"]),
        (["models", "local", "source", "path"], "nowhere", ["nowhere", "save_pretrained"]),
        (["tile"], 20, ["tile 20", "16"]),
        (["grid"], [{"methods": ["wnda"]}], ["wnda", "wanda"]),
        (["grid"], [{"methods": ["patch"], "sparsity": [0.6]}], ["0.6", "[0, 0.5]"]),
        (["sed"], [1], ["sed", "seeds"]),
    ],
)
def test_bad_input_stops_with_one_message(copied: Path, path: list[str], value: object, words: list[str]) -> None:
    settings = yaml.safe_load((copied / "tiny.yaml").read_text())
    place = settings
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (copied / "tiny.yaml").write_text(yaml.safe_dump(settings))
    run = _snakemake(copied, "--quiet", "rules")
    output = run.stdout + run.stderr
    assert run.returncode != 0
    assert all(word in output for word in words), output
    assert "Traceback" not in output, output
