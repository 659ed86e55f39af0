"""The whole workflow on a tiny experiment, and the jobs that a change reruns."""

import json
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import yaml

from patch.pipeline.results.speed import SpeedRecord


def test_every_file_is_there(finished: Path) -> None:
    root = finished / "results/tiny"
    for model in ("trained", "local"):
        for figure in ("pareto", "density", "curves", "speedup"):
            for kind in ("svg", "pdf", "png"):
                assert (root / f"figures/{model}/{figure}.{kind}").stat().st_size > 1000
    for table in ("joint", "tile", "unstructured", "quantized", "tasks", "speedup"):
        for kind in ("csv", "md", "tex"):
            assert (root / f"tables/{table}.{kind}").stat().st_size > 100
    assert len(list((root / "records").rglob("*.json"))) == 20
    assert not list((finished / "work").rglob("weights/**/*.safetensors")), "updated weights are temporary"
    assert not list((finished / "work").rglob("updated/**/*.safetensors"))
    assert not list((finished / "work").rglob("quantized/**/*.safetensors"))


def test_records_say_what_was_measured(finished: Path) -> None:
    for path in (finished / "results/tiny/records").rglob("*.json"):
        record = json.loads(path.read_text())
        assert abs(record["achieved_sparsity"] - record["run"]["sparsity"]) < 0.02, path
        assert record["metrics"]["perplexity"]["value"] > 1
        assert {"continuation", "word_order", "next_word", "cloze"} < set(record["metrics"])
        run, held_out = record["run"], record.get("held_out")
        learned = run["method"] in ("maskllm", "proxsparse") or run["pattern"] == "hybrid"
        assert (held_out is not None) == (learned and not run["quantization"] and not run["finetune"]), path
        if held_out:
            curve = finished / f"results/tiny/curves/{run['model']}/{path.stem}.jsonl"
            lines = [json.loads(line) for line in curve.read_text().splitlines()]
            assert held_out["initial"] == lines[0]["initial_held_out_loss"]
            assert held_out["final"] == lines[-1]["held_out_loss"]


def test_fine_tuned_runs_keep_their_zeros_and_have_rows(finished: Path) -> None:
    root = finished / "results/tiny"
    rows = {
        "trained/sparsegpt_2of4_0.5_s0": ("lora", "tile"),
        "local/patch-joint_hybrid_0.45_t16_s0": ("full", "joint"),
    }
    for name, (kind, table) in rows.items():
        plain, tuned = (
            json.loads((root / f"records/{name}{end}.json").read_text()) for end in ("", f"_finetune-{kind}")
        )
        assert tuned["achieved_sparsity"] == plain["achieved_sparsity"] and tuned["density"] == plain["density"]
        assert tuned["metrics"]["perplexity"] != plain["metrics"]["perplexity"]
        assert tuned["stages"]["finetune"]["seconds"] > 0 and tuned["run"]["finetune"] == kind
        assert len((root / f"curves/{name}_finetune-{kind}.jsonl").read_text().splitlines()) == 3
        assert (" + LoRA" if kind == "lora" else " + fine-tuning") in (root / f"tables/{table}.md").read_text()
    page = (root / "README.md").read_text()
    assert "Fine-tuning: 3 steps of 2 sequences of 32 tokens from made (train)" in page


def test_speed_is_measured_beside_dense(finished: Path) -> None:
    for model, hybrid in (("trained", "patch-tile"), ("local", "patch-joint")):
        record = SpeedRecord.read(finished / f"results/tiny/speedup/{model}.json")
        assert [timed.run.method for timed in record.timed] == ["dense", "magnitude", hybrid]
        assert record.environment.threads == 2, "all cores of the run"
        for timed in record.timed:
            assert timed.tokens_per_second.median > 0 and timed.speedup.low <= timed.speedup.high
            assert timed.linear_bytes.measured == timed.linear_bytes.expected
            assert sum(timed.backends["decode"].values()) == (14 if model == "trained" else 8)
        dense, pattern, tiles = record.timed
        assert pattern.linear_bytes.measured < tiles.linear_bytes.measured < dense.linear_bytes.measured
    table = (finished / "results/tiny/tables/speedup.md").read_text()
    assert record.hardware in table and "demo size" in table
    page = (finished / "results/tiny/README.md").read_text()
    assert "Speed: batch of 2 sequences, prompt of 6 tokens, 3 new tokens, 4 repeats" in page
    assert "### speedup" in page and "figures/local/speedup.png" in page and "does not measure speed" not in page


def test_other_sizes_measure_speed_alone_again(copied: Path, planned) -> None:
    settings = yaml.safe_load((copied / "tiny.yaml").read_text())
    settings["speedup"]["new_tokens"] = 4
    (copied / "tiny.yaml").write_text(yaml.safe_dump(settings))
    assert planned(copied) == Counter({"speedup": 2, "table": 1, "speedup_figure": 2, "summary": 1, "all": 1})
    del settings["speedup"]
    (copied / "tiny.yaml").write_text(yaml.safe_dump(settings))
    assert not {"speedup", "speedup_figure", "evaluate"} & set(planned(copied))


def test_results_are_tidy(finished: Path) -> None:
    header, *rows = (finished / "results/tiny/results.csv").read_text().splitlines()
    assert header == (
        "model,method,pattern,sparsity,tile,seed,quantization,finetune,variant,experiment,metric,value,stderr,published,"
        "achieved_sparsity,seconds,peak_memory_mb,held_out_loss,initial_held_out_loss,config_digest"
    )
    # Perplexity, the mean and four tasks; densities of Llama's seven projections and GPT-2's four.
    assert len(rows) == 20 * 6 + 7 + 4


def test_a_second_run_does_nothing(finished: Path, planned) -> None:
    assert planned(finished) == Counter()


def test_the_number_of_processes_reruns_nothing(copied: Path, planned) -> None:
    settings = yaml.safe_load((copied / "tiny.yaml").read_text())
    settings["resources"] = {"learn_gpus": 2, "shard_weights": True, "offload": True}
    (copied / "tiny.yaml").write_text(yaml.safe_dump(settings))
    assert planned(copied) == Counter()


def test_a_deleted_record_is_evaluated_again_and_nothing_is_learned(copied: Path, snakemake, planned) -> None:
    (copied / "results/tiny/records/trained/sparsegpt_2of4_0.5_s0.json").unlink()
    jobs = planned(copied)
    after = {
        "collect": 1,
        "compare": 1,
        "table": 7,
        "pareto": 2,
        "speedup_figure": 2,
        "explore": 1,
        "overview": 1,
        "summary": 1,
    }
    after["all"] = 1
    assert jobs == Counter({"evaluate": 1, "update_weights": 1, **after})
    run = snakemake(copied)
    assert run.returncode == 0, run.stdout + run.stderr
    before = json.loads((copied / "results/tiny/records/local/sparsegpt_2of4_0.5_s0.json").read_text())
    again = json.loads((copied / "results/tiny/records/trained/sparsegpt_2of4_0.5_s0.json").read_text())
    assert set(before) == set(again)


def test_one_learning_rate_reruns_what_it_touches(copied: Path, planned) -> None:
    settings = yaml.safe_load((copied / "tiny.yaml").read_text())
    settings["learning"]["methods"]["maskllm"]["lr"] = 0.002
    (copied / "tiny.yaml").write_text(yaml.safe_dump(settings))
    jobs = planned(copied)
    # MaskLLM of both models, patch-tile with MaskLLM as its frozen mask, and their quantized runs.
    assert jobs["learn"] == 3 and jobs["evaluate"] == 5 and jobs["quantize"] == 2
    assert set(jobs) == {
        "learn",
        "quantize",
        "evaluate",
        "collect",
        "compare",
        "table",
        "pareto",
        "curves",
        "density",
        "speedup",
        "speedup_figure",
        "explore",
        "overview",
        "summary",
        "all",
    }
    assert jobs["density"] == 1
    # Runs of the model whose patch-tile has another frozen mask.
    assert jobs["speedup"] == 1


def test_dense_statistics_are_taken_once_for_all_methods(copied: Path, snakemake, planned) -> None:
    settings = yaml.safe_load((copied / "tiny.yaml").read_text())
    settings["calibration"]["propagate"] = "dense"
    (copied / "tiny.yaml").write_text(yaml.safe_dump(settings))
    jobs = planned(copied)
    # For each model SparseGPT, Thanos, and unstructured Wanda and SparseGPT, the tile prior; magnitude needs none.
    assert jobs["statistics"] == 2 and jobs["prune"] == 8
    run = snakemake(copied, "results/tiny/records/local/thanos_2of4_0.5_s0.json")
    assert run.returncode == 0, run.stdout + run.stderr
    (folder,) = (copied / "work/statistics").iterdir()
    assert len(list(folder.glob("block-*.safetensors"))) == 2
    assert not list((copied / "work").rglob("weights/**/*.safetensors"))


def test_a_new_ratio_adds_its_runs_alone(copied: Path, planned) -> None:
    settings = yaml.safe_load((copied / "tiny.yaml").read_text())
    settings["grid"][2]["sparsity"] = [0.45, 0.25]
    (copied / "tiny.yaml").write_text(yaml.safe_dump(settings))
    jobs = planned(copied)
    # One PATCH run for each model, with its own tile prior.
    assert (jobs["learn"], jobs["prune"], jobs["evaluate"]) == (2, 2, 2)
    assert not {"train_model", "tokenize", "calibrate", "fetch_corpus"} & set(jobs)


def test_perplexity_alone_needs_no_tasks(copied: Path, snakemake, planned) -> None:
    settings = yaml.safe_load((copied / "tiny.yaml").read_text())
    settings["evaluation"]["tasks"] = []
    settings["grid"] = [
        {"methods": ["dense", "magnitude"], "models": ["local"]},
        {"methods": ["patch"], "models": ["local"], "sparsity": [0.45]},
    ]
    (copied / "tiny.yaml").write_text(yaml.safe_dump(settings))
    jobs = planned(copied)
    assert jobs["evaluate"] == 3 and jobs["table"] == 3  # joint, density, speedup
    assert not {"make_tasks", "learn", "prune", "speedup"} & set(jobs)
    run = snakemake(copied)
    assert run.returncode == 0, run.stdout + run.stderr
    root = copied / "results/tiny"
    metrics = set(pd.read_csv(root / "results.csv")["metric"])
    assert "perplexity" in metrics and all(name.startswith("density/") for name in metrics - {"perplexity"})
    page = (root / "README.md").read_text()
    assert "### joint" in page and "PPL" in page and "### tasks" not in page and "Tasks:" not in page
    assert "Acc. (%)" not in page and "accuracy on questions" not in page
    assert planned(copied) == Counter()


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["evaluation", "tasks"], ["continuation", "clozze"], ["clozze", "cloze"]),
        (["evaluation", "num_fewshot"], {"cloze": 5}, ["num_fewshot", "'cloze'", "no examples"]),
        (["evaluation", "acc_norm"], True, ["evaluation.acc_norm", "no task has it"]),
        (["corpora", "made", "source", "files"], ["text/*.md"], ["text/*.md", "files"]),
        (["models", "local", "source", "path"], "nowhere", ["nowhere", "save_pretrained"]),
        (["tile"], 20, ["tile 20", "16"]),
        (["grid"], [{"methods": ["wnda"]}], ["wnda", "wanda"]),
        (["grid"], [{"methods": ["patch"], "sparsity": [0.6]}], ["0.6", "[0, 0.5]"]),
        (["sed"], [1], ["sed", "seeds"]),
    ],
)
def test_bad_input_stops_with_one_message(
    copied: Path, path: list[str], value: object, words: list[str], snakemake
) -> None:
    settings = yaml.safe_load((copied / "tiny.yaml").read_text())
    place = settings
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (copied / "tiny.yaml").write_text(yaml.safe_dump(settings))
    run = snakemake(copied, "--quiet", "rules")
    output = run.stdout + run.stderr
    assert run.returncode != 0
    assert all(word in output for word in words), output
    assert "Traceback" not in output, output
