"""Model cards: metadata that the hub reads, properties, results, and licences of base models."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from patch.errors import InputError
from patch.inference.export import Sizes
from patch.masks.packed import MaskSet
from patch.pipeline.config.load import validate_experiment
from patch.pipeline.reporting.model_card import (
    CardFacts,
    base_licence,
    describe_pattern,
    describe_quantization,
    model_card,
    run_facts,
)
from patch.pipeline.results.record import Record
from patch.pipeline.runs.plan import Plan
from patch.quantization.absmax import quantize
from patch.quantization.model import QuantizedLayer
from patch.quantization.slim_lora import Adapter

from ..results.conftest import RAW

SIZES = Sizes(2_000_000, 1_500_000, 1_000_000, 562_500)
HYBRID = MaskSet(
    {"a": torch.tensor([[True, True, False, False], [True, True, True, True]])},
    "hybrid",
    {"a": torch.tensor([[False], [True]])},
    1,
)


def facts(**changes: Any) -> CardFacts:
    known = {"name": "owner/sparse", "form": "packed", "base": "Org/Base", "repo": "Org/Base", "licence": {}}
    known |= {"method": "Wanda", "pattern": "2:4", "sparsity": 0.5, "digest": "abcd"}
    return CardFacts(**(known | changes))


def rows(text: str) -> list[list[str]]:
    """Return the cells of all rows of the tables of a page, as a reader sees them."""
    found: list[list[str]] = []
    inside = False
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type in ("table_open", "table_close"):
            inside = token.type == "table_open"
        elif token.type == "tr_open":
            found.append([])
        elif inside and token.type == "inline":
            found[-1].append("".join(child.content for child in token.children))
    return found


def test_the_metrics_are_in_the_metadata_and_in_the_table_with_their_errors() -> None:
    raw = copy.deepcopy(RAW)
    raw["metrics"] |= {"order/acc_norm": {"value": 0.4, "stderr": 0.02, "samples": 50, "fewshot": 5}}
    record = Record.model_validate(raw)
    card = ModelCard(model_card(facts(record=record, text=("text (test)", "Org/text", "test")), SIZES))
    (index,) = card.data.to_dict()["model-index"]
    found = {(one["dataset"]["type"], metric["type"]): (metric["value"], metric.get("args"))
             for one in index["results"] for metric in one["metrics"]}  # fmt: skip
    assert index["name"] == "sparse" and found == {
        ("Org/text", "perplexity"): (28.5, {"stderr": 0.2, "samples": 400}),
        ("mean", "accuracy"): (0.55, {"stderr": 0.01}),
        ("next_verse", "accuracy"): (0.6, {"stderr": 0.03, "samples": 200}),
        ("order", "accuracy"): (0.5, None),
        ("order", "acc_norm"): (0.4, {"stderr": 0.02, "samples": 50, "num_fewshot": 5}),
    }
    table = rows(card.text)
    assert ["text (test)", "perplexity", "28.50", "0.20", "400"] in table
    assert ["mean of 2 tasks", "accuracy", "55.00 %", "1.00 %", "–"] in table
    assert ["order", "acc_norm (5-shot)", "40.00 %", "2.00 %", "50"] in table


def test_properties_and_metadata() -> None:
    licence = {"license": "other", "license_name": "llama", "license_link": "https://huggingface.co/Org/Base/LICENSE"}
    card = ModelCard(model_card(facts(licence=licence, quantization="4 bits (AbsMax), a scale for 128 weights"), SIZES))
    assert card.data.base_model == "Org/Base" and card.data.license == "other" and card.data.license_name == "llama"
    assert card.data.library_name == "transformers" and "2:4" in card.data.tags and card.data.eval_results is None
    found = {row[0]: row[1] for row in rows(card.text) if len(row) == 2}
    assert found["Licence of the base model"] == "llama"
    assert f"[llama](<{licence['license_link']}>)" in card.text
    assert found["Sparsity"] == "50.00 %" and found["Quantization"].startswith("4 bits")
    assert (
        found["Weights"] == "2 MB, 75.0 % of the dense model's 2 MB; 56.2 % in the linear layers of the decoder blocks"
    )
    assert "was not evaluated" in card.text and "pruned by Wanda to 50 % zeros" in card.text
    for author in ("Hourri, Younes", "Mozaffari, Mohammad", "Mehri Dehnavi, Maryam", "arXiv:2509.23410"):
        assert author in card.text


@pytest.mark.parametrize(
    ("form", "shown", "hidden"),
    [
        ("packed", "import patch.inference", "mask.npz"),
        ("dense", "mask.npz", "import patch.inference"),
        ("compressed-tensors", "pack-quantized", "import patch.inference"),
    ],
)
def test_each_form_has_its_own_way_to_load_it(form: str, shown: str, hidden: str) -> None:
    text = model_card(facts(form=form), SIZES)
    assert shown in text and hidden not in text and "vllm serve owner/sparse\n" in text


def test_names_are_shown_literally() -> None:
    hostile = "a|b *c* <img src=x> [d](e) `f`\n# g"
    card = ModelCard(model_card(facts(base=hostile, repo=None, method=hostile, digest=hostile), SIZES))
    shown = " ".join(hostile.split())
    table = {row[0]: row[1] for row in rows(card.text) if len(row) == 2}
    assert table["Base model"] == table["Method"] == table["Digest of the settings"] == shown
    assert "<img" not in MarkdownIt("commonmark").render(card.text) and card.data.base_model is None
    quoted = model_card(facts(name="my models/it's"), SIZES)
    assert """vllm serve 'my models/it'"'"'s'""" in quoted


def test_a_licence_is_that_of_the_card_or_of_the_configuration(tmp_path: Path) -> None:
    config, card = tmp_path / "config.json", tmp_path / "README.md"
    config.write_text('{"license": "mit"}')
    assert base_licence(tmp_path) == {"license": "mit"}
    card.write_text("# No metadata\n")
    assert base_licence(tmp_path) == {"license": "mit"}
    card.write_text("---\nlicense: other\nlicense_name: llama3.2\nlicense_link: LICENSE\n---\n# Card\n")
    named = {"license": "other", "license_name": "llama3.2"}
    assert base_licence(tmp_path) == named
    link = {"license_link": "https://huggingface.co/Org/Base/blob/main/LICENSE"}
    assert base_licence(tmp_path, "Org/Base") == named | link
    card.unlink()
    config.write_text("{}")
    assert base_licence(tmp_path) == {}
    for damaged in ("---\nlicense: [\n---\n", "---\n- list\n---\n"):
        card.write_text(damaged)
        with pytest.raises(InputError, match=f"model card {card} cannot be read"):
            base_licence(tmp_path)


def test_descriptions_of_patterns_and_of_quantized_layers() -> None:
    assert describe_pattern(None) == "dense"
    assert describe_pattern(MaskSet({}, "2:4")) == "2:4"
    assert describe_pattern(HYBRID) == "hybrid: 2:4 in 1 of 2 tiles of 1×1, all others are dense"
    weight = quantize(torch.ones(2, 8), 4, 4)
    assert describe_quantization(None) == ""
    assert describe_quantization({"a": QuantizedLayer(weight)}) == "4 bits (AbsMax), a scale for 4 weights"
    adapted = QuantizedLayer(weight, Adapter(torch.ones(2, 1), torch.ones(1, 8)))
    assert describe_quantization({"a": adapted}).startswith("4 bits (AbsMax + SLiM-LoRA)")


def test_facts_of_a_run(raw_config: dict, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    plan = Plan(validate_experiment(raw_config))
    run = next(run for run in plan.exported_runs if run.method == "patch-joint")
    settings = plan.settings.export(run)
    found = run_facts(settings, "out", tmp_path, HYBRID, None, None)
    assert (found.base, found.repo, found.form, found.sparsity) == (run.model, None, "packed", 0.25)
    assert found.method == "PATCH (joint)" or found.method.startswith("PATCH")
    assert found.digest == plan.settings.record_digest(run) and found.text[1] == settings.perplexity.use.corpus
    assert f"sequences of {settings.perplexity.seqlen} tokens" in found.text[0]
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    shape |= {"num_key_value_heads": 1, "head_dim": 8, "vocab_size": 8}
    source = {"kind": "hub", "repo": "Org/Base", "revision": "0123456", "shape": shape}
    of_hub = type(settings).model_validate(settings.model_dump() | {"source": source})
    assert run_facts(of_hub, "out", tmp_path, HYBRID, None, None).repo == "Org/Base"
