"""The README's Python example, on a tiny model, and the links of the documentation."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from patch.data.tokenizer import train_tokenizer
from patch.inference import HybridLinear
from patch.masks.packed import load_masks
from patch.models.loading import load_model, prunable_linears

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


def test_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "\n\n".join(f"In the beginning was word number {n}, and then came others." for n in range(900))
    Path("my-text.txt").write_text(text)
    tokenizer = train_tokenizer(text.split("\n\n"), 320)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained("my-model")
    tokenizer.save_pretrained("my-model")
    code = "".join(re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL))
    names: dict[str, Any] = {}
    exec(compile(code.replace("steps=300", "steps=4"), "README.md", "exec"), names)

    masks = load_masks("my-mask.safetensors")
    assert abs(masks.sparsity - 0.45) < 0.02
    sparse = prunable_linears(load_model("my-sparse-model"))
    zeros = sum(int((linear.weight == 0).sum()) for linear in sparse.values())
    assert zeros == sum(int((~mask).sum()) for mask in masks.masks.values())
    tokens = torch.arange(6)[None]
    packed = names["model"]
    assert any(isinstance(layer, HybridLinear) for layer in packed.modules())
    wanted = load_model("my-sparse-model")(tokens).logits
    torch.testing.assert_close(packed(tokens).logits, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("page", [README, *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_each_row_of_the_failure_table_names_a_test() -> None:
    rows = re.findall(r"`(test_\w+\.py)::(test_\w+)` \|$", (ROOT / "docs/slurm.md").read_text(), flags=re.MULTILINE)
    assert len(rows) > 20
    missing = [name for file, name in rows if f"def {name}(" not in (ROOT / "tests/slurm" / file).read_text()]
    assert not missing
