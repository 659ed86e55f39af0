"""The tutorials, followed command by command: on the tiny experiment, or as dry runs where they need a cluster."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from .test_dry_runs import link
from .test_dry_runs import snakemake as snakemake_in_repository

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "docs/tutorials"
# Names of the demo, and what the tiny experiment has in their places.
TINY = {
    "config/demo.yaml": "tiny.yaml",
    "results/demo": "results/tiny",
    "work/demo": "work/tiny",
    "llama/": "trained/",
    '"llama"': '"trained"',
}
SHELL = ("cat", "cmp", "du", "ls", "rm")
# What needs a network, an editor, a cluster or a server.
OUTSIDE = (
    "git clone",
    "python3 -m venv",
    "source .venv/bin/activate",
    "pip install -c constraints.txt -e .",
    "$EDITOR profiles/",
    "sinfo -s",
    "sacctmgr show",
    "scontrol show config",
    'eval "$(python -m tests.slurm.cluster up)"',
    "python -m tests.slurm.cluster down",
    "export VLLM_",
    ".venv-serving/bin/vllm serve",
    "curl",
)
NOTHING_HAS_RUN = r"results\.csv: no such file|no record with the settings|has no log|needs (work|results)/"


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return the language and the text of each fenced block."""
    return re.findall(r"```(\w+)\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def commands(page: Path) -> list[str]:
    """Return the lines of the shell blocks."""
    text = "".join(text for language, text in blocks(page) if language == "sh")
    return text.replace("\\\n", " ").splitlines()


def patch_command(line: str, default: str = "") -> int:
    """Run a line that begins with `python -m patch` in this process; return its exit status."""
    name, *arguments = shlex.split(line, comments=True)[3:]
    if default and "--configfile" not in arguments:
        arguments += ["--configfile", default]
    return import_module(f"patch.pipeline.cli.{name}").main(arguments)


def steps(page: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the language and text of each step of a page; write its files, and check its `make` commands."""
    for language, text in blocks(page):
        if language == "yaml":
            name = re.match(r"# ([\w/-]+\.yaml)\n", text)
            assert name, f"the first line of a file names it: {text}"
            (folder / name[1]).parent.mkdir(exist_ok=True)
            (folder / name[1]).write_text(text)
        elif language == "python":
            yield language, text
        else:
            assert language == "sh", language
            for line in text.replace("\\\n", " ").splitlines():
                if line.startswith("make "):
                    arguments = shlex.split(line, comments=True)
                    subprocess.run([arguments[0], "-n", *arguments[1:]], cwd=ROOT, check=True, capture_output=True)
                elif not line.startswith(OUTSIDE):
                    yield language, line


def run_shell(line: str, folder: Path) -> None:
    assert line.startswith(SHELL), line
    run = subprocess.run(["bash", "-ec", line], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, (line, run.stderr)


@pytest.mark.parametrize("name", ["review-on-a-laptop", "serve-a-model"])
def test_on_the_tiny_experiment(
    name: str, copied: Path, snakemake: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copied)
    names: dict[str, Any] = {}
    for language, text in steps(TUTORIALS / f"{name}.md", copied):
        for demo, tiny in TINY.items():
            text = text.replace(demo, tiny)
        if language == "python":
            exec(compile(text, name, "exec"), names)
        elif text.startswith("python -m patch "):
            if "my-mask.safetensors" not in text:  # a file of the reader
                assert patch_command(text, "tiny.yaml") == 0, text
        elif not text.startswith("snakemake "):
            run_shell(text, copied)
        elif "--configfile" in text:
            run = snakemake_in_repository(tmp_path, "-n", *shlex.split(text, comments=True)[1:])
            assert run.returncode == 0, run.stderr
        else:
            run = snakemake(copied, *shlex.split(text, comments=True)[1:])
            assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("page", ["tutorials/first-cluster-run", "tutorials/maintain-a-cluster", "quantize"])
def test_as_dry_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    link(tmp_path)
    (tmp_path / "profiles").unlink()
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    (tmp_path / "slurm").symlink_to("profiles/slurm")
    monkeypatch.chdir(tmp_path)
    for _, line in steps(ROOT / f"docs/{page}.md", tmp_path):
        line = re.sub(r"^srun (--gpus 1 )?", "", line)
        if tmux := re.fullmatch(r"tmux new -d '(.*) &> run.log'", line):
            line = tmux[1]
        if line.startswith("snakemake "):
            run = snakemake_in_repository(tmp_path, "-n", *shlex.split(line, comments=True)[1:])
            assert run.returncode == 0, (line, run.stderr)
        elif re.match(r"python -m patch (show|export) |.* --logs ", line):
            assert patch_command(line) == 2, line
            assert re.search(NOTHING_HAS_RUN, capsys.readouterr().err), line
        elif line.startswith("python -m patch "):
            assert patch_command(line) == 0, line
        else:
            run_shell(line, tmp_path)


def test_the_server_of_the_tutorial_serves_what_it_exports() -> None:
    lines = commands(TUTORIALS / "serve-a-model.md")
    folder = next(line for line in lines if line.startswith("python -m patch export")).split()[5]
    served = next(line for line in lines if line.startswith(".venv-serving/bin/vllm")).split()
    assert served[1:3] == ["serve", folder]
    request = shlex.split(next(line for line in lines if line.startswith("curl")))
    assert json.loads(request[request.index("-d") + 1])["model"] == folder
