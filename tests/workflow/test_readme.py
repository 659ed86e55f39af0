"""The Python examples of the documentation, on a tiny model, its commands, and its links."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from patch.data.tokenizer import train_tokenizer
from patch.inference import HybridLinear
from patch.masks.packed import load_masks
from patch.models.loading import load_model, prunable_linears
from patch.pipeline.cli import export

from .test_dry_runs import link, snakemake

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
EXPORTED = "results/smollm2-135m/export/smollm2-135m/wanda_2of4_0.5_s0"
SERVING, MASKS, LEARNING = (ROOT / f"docs/{name}.md" for name in ("serving", "masks", "learn-a-mask"))
COMMANDS = [ROOT / "docs/quick-start.md", SERVING, MASKS]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def commands(page: Path, program: str) -> list[list[str]]:
    """Return the arguments of each call of a program in a page's shell blocks, comments removed."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL)
    lines = (line for block in blocks for line in block.replace("\\\n", " ").splitlines())
    return [
        shlex.split(line, comments=True)[program.count(" ") + 1 :] for line in lines if line.startswith(f"{program} ")
    ]


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


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
    [served] = [block for block in python_blocks(SERVING) if EXPORTED in block]
    code = "".join([*python_blocks(LEARNING), served])
    names: dict[str, Any] = {}
    # The folder of the page on serving takes an hour to make; the packed one of the other page is like it.
    code = code.replace("steps=300", "steps=4").replace(EXPORTED, "my-packed-model")
    exec(compile(code, "docs", "exec"), names)

    masks = load_masks("my-mask.safetensors")
    assert abs(masks.sparsity - 0.45) < 0.02
    sparse = prunable_linears(load_model("my-sparse-model"))
    zeros = sum(int((linear.weight == 0).sum()) for linear in sparse.values())
    assert zeros == sum(int((~mask).sum()) for mask in masks.masks.values())
    tokens = torch.arange(6)[None]
    packed = names["model"]
    assert names["folder"] == "my-packed-model" and names["tokens"].shape[1] > 20
    assert any(isinstance(layer, HybridLinear) for layer in packed.modules())
    wanted = load_model("my-sparse-model")(tokens).logits
    torch.testing.assert_close(packed(tokens).logits, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("page", COMMANDS, ids=lambda page: page.name)
def test_snakemake_knows_the_targets_of_each_command(page: Path, tmp_path: Path) -> None:
    found = commands(page, "snakemake")
    assert found
    for arguments in found:
        # A file of the reader, and an executor, which tests/slurm runs.
        if "mine.yaml" not in arguments and "slurm" not in arguments:
            run = snakemake(tmp_path, "-n", *arguments)
            assert run.returncode == 0, (arguments, run.stderr)


def test_make_knows_its_targets() -> None:
    assert commands(README, "make") == [["demo"], ["test"]]
    assert ["serving"] in commands(SERVING, "make")
    found = [arguments for page in PAGES for arguments in commands(page, "make")]
    for arguments in found:
        assert subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True).returncode == 0, arguments


@pytest.mark.parametrize("page", [SERVING, MASKS], ids=lambda page: page.name)
def test_each_export_stops_at_what_is_not_made_yet(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    link(tmp_path)
    found = commands(page, "python -m patch export")
    assert found
    for arguments in found:
        assert export.main(arguments) == 2
        expected = (
            "no token"
            if "--push" in arguments
            else "folder my-model"
            if "--mask" in arguments
            else "needs work/models/"
        )
        assert expected in capsys.readouterr().err, arguments


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_each_row_of_the_failure_table_names_a_test() -> None:
    rows = re.findall(r"`(test_\w+\.py)::(test_\w+)` \|$", (ROOT / "docs/slurm.md").read_text(), flags=re.MULTILINE)
    assert len(rows) > 20
    missing = [name for file, name in rows if f"def {name}(" not in (ROOT / "tests/slurm" / file).read_text()]
    assert not missing
