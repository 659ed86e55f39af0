import json
import math
from pathlib import Path

import pytest

from patch.errors import InputError
from patch.pipeline.results.published import load_published, published_value

QWEN, GEMMA, LLAMA2, LLAMA31 = (
    "Qwen/Qwen2.5-0.5B",
    "google/gemma-3-1b-pt",
    "meta-llama/Llama-2-7b-hf",
    "meta-llama/Llama-3.1-8B",
)


# Copied from the paper's tables by hand.
@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ((LLAMA2, "dense", "dense", 0.0, "accuracy"), 54.61),
        ((LLAMA2, "dense", "dense", 0.0, "hellaswag"), 57.13),
        ((QWEN, "magnitude", "2:4", 0.5, "perplexity"), 6734.97),
        ((QWEN, "thanos", "2:4", 0.5, "accuracy"), 34.85),
        ((GEMMA, "proxsparse", "2:4", 0.5, "perplexity"), 90.5),
        ((GEMMA, "maskllm", "2:4", 0.5, "arc_challenge"), 27.65),
        ((QWEN, "patch-joint", "hybrid", 0.45, "perplexity"), 14.57),
        ((QWEN, "patch", "hybrid", 0.25, "accuracy"), 42.39),
        ((LLAMA31, "patch-tile", "hybrid", 0.35, "accuracy"), 55.28),
        ((QWEN, "wanda", "unstructured", 0.45, "accuracy"), 41.45),
        ((GEMMA, "sparsegpt", "unstructured", 0.35, "perplexity"), 16.92),
        ((LLAMA31, "sparsegpt", "unstructured", 0.25, "accuracy"), 59.52),
    ],
)
def test_hand_checked_numbers(published, run, expected):
    assert published_value(published, *run) == expected


@pytest.mark.parametrize(
    "run",
    [
        (QWEN, "patch-tile", "hybrid", 0.45, "perplexity"),  # the rows of Qwen are the joint variant's
        (LLAMA2, "patch-joint", "hybrid", 0.45, "perplexity"),
        (QWEN, "patch-joint", "hybrid", 0.4, "perplexity"),
        (QWEN, "wanda", "4:8", 0.5, "perplexity"),
        (QWEN, "wanda", "unstructured", 0.5, "perplexity"),
        (QWEN, "magnitude", "unstructured", 0.45, "perplexity"),
        (QWEN, "wanda", "unstructured", 0.45, "piqa"),
        (QWEN, "wanda", "2:4", 0.5, "next_verse"),
        (QWEN, "someone-elses", "2:4", 0.5, "accuracy"),
        ("meta-llama/Llama-2-13b-hf", "maskllm", "2:4", 0.5, "accuracy"),
        ("meta-llama/Llama-2-13b-hf", "wanda", "unstructured", 0.45, "accuracy"),
        ("nobody/nothing", "dense", "dense", 0.0, "accuracy"),
    ],
)
def test_none_where_the_paper_prints_nothing(published, run):
    assert published_value(published, *run) is None


def test_other_tile_sizes_have_a_table_of_one_model(published):
    run = ("patch-joint", "hybrid", 0.45, "perplexity")
    assert published_value(published, QWEN, *run, tile=128) == 14.57
    assert [published_value(published, QWEN, *run, tile=tile) for tile in (64, 4, 12)] == [14.66, 14.55, None]
    assert published_value(published, "google/gemma-3-1b-pt", *run, tile=64) is None
    assert published_value(published, QWEN, *run[:3], "accuracy", tile=64) is None
    assert published_value(published, QWEN, *run, tile=64, quantization="absmax") is None


@pytest.mark.parametrize(
    ("method", "sparsity", "variant", "value"),
    [
        ("patch-tile", 0.45, "frozen_mask=maskllm", 15.06),
        ("patch-tile", 0.35, "frozen_mask=sparsegpt", 17.29),
        ("patch-tile", 0.25, "frozen_mask=magnitude", 16.05),
        ("patch-joint", 0.45, "tile_prior=none", 14.8),
        ("patch-joint", 0.35, "tile_prior=random", 13.79),
        ("patch-joint", 0.25, "tile_prior=wanda", 13.37),
        ("patch-joint", 0.45, "target=global", 14.57),
        ("patch-joint", 0.25, "target=block", 13.95),
        ("patch-joint", 0.3, "target=block", None),
        ("patch-joint", 0.25, "target=layer", None),
        ("patch-tile", 0.45, "target=block", None),
        ("patch-joint", 0.45, "tile_prior=thanos", None),
        ("patch-joint", 0.45, "lr=0.001", None),
        ("patch-joint", 0.45, "tile_prior=wanda,target=block", None),
    ],
)
def test_ablations(published, method, sparsity, variant, value):
    run = (QWEN, method, "hybrid", sparsity, "perplexity")
    assert published_value(published, *run, tile=128, variant=variant) == value
    assert published_value(published, *run, tile=64, variant=variant) is None


def test_each_mean_is_the_mean_of_its_tasks(published):
    for rows in published.per_task.values():
        for row in rows:
            assert math.fsum(row.acc.values()) / len(row.acc) == pytest.approx(row.avg, abs=0.012)


def test_names_what_is_missing(tmp_path):
    path = tmp_path / "p.json"
    path.write_text('{"source": "x"}')
    with pytest.raises(InputError, match=r"p\.json.*`models`"):
        load_published(path)


@pytest.mark.parametrize(
    ("table", "change", "fault"),
    [
        ("per_task", lambda t: t[QWEN][0].update(ppl=-1), r"`per_task.Qwen/Qwen2.5-0.5B.0.ppl`"),
        ("per_task", lambda t: t[QWEN][0].update(avg="46.0"), r"`per_task.Qwen/Qwen2.5-0.5B.0.avg`"),
        ("per_task", lambda t: t[QWEN][0]["acc"].update(mmlu=147.7), r"`per_task.*mmlu`"),
        ("unstructured_acc_ppl", lambda t: t["Wanda45"].pop(), "the row 'Wanda45' has 4 values; expected 5"),
        ("unstructured_acc_ppl", lambda t: t["Wanda45"][0].__setitem__(0, True), r"`unstructured_acc_ppl.Wanda45.0.0`"),
        ("unstructured_acc_ppl", lambda t: t["Wanda45"][0].__setitem__(1, 0.5), r"`unstructured_acc_ppl.Wanda45.0.1`"),
        ("fixed_mask_ppl_qwen", lambda t: t["45"].append(3.0), "the row '45' has 6 values; expected 5"),
        ("tile_size_ppl_qwen_joint", lambda t: t["45"].update({"64": 0}), r"`tile_size_ppl_qwen_joint.45.64`"),
        ("throughput_tok_s_bs16_prompt128", lambda t: t["A100"]["gen128"].update({"0": 0}), r"`throughput.*`"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path, table, change, fault):
    numbers = json.loads((Path(__file__).parents[4] / "config/published.json").read_text())
    change(numbers[table])
    (tmp_path / "p.json").write_text(json.dumps(numbers))
    with pytest.raises(InputError, match=rf"p\.json: not the paper's numbers: .*{fault}"):
        load_published(tmp_path / "p.json")
