"""Attacks on folders of packed models.

    attack(rng, folder) -> str

makes a random change to a copy of a saved model in the empty ``folder``, loads it in another process, and returns the
change and the outcome, `CHANGE: OUTCOME`:

    refused            an InputError
    same               a model with the logits of the saved one
    another model      a model with other logits, since a folder has no checksum
    refused at use     a model whose forward call raises an exception

Raises:
    AssertionError: a signal, another exception, a call that does not end, or a model from incomplete files; ``folder``
        keeps the files.
"""

from __future__ import annotations

import hashlib
import json
import random
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CONFIG, GENERATION, INDEX = "config.json", "generation_config.json", "model.safetensors.index.json"
# Time limit of a call in seconds, including the start of a process on a busy machine.
LIMIT = 120
SIZES = {"vocab_size": 50, "max_position_embeddings": 64, "hidden_size": 32, "intermediate_size": 64}
SIZES |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
# The last two have the same shapes.
MODELS: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("qwen2", 8, {"tie_word_embeddings": True}),
    ("llama", 16, {"rms_norm_eps": 1e-5}),
    ("llama", 16, {"rms_norm_eps": 1e-1}),
)
Change = Callable[[random.Random, Path, Path], None]


def attack(rng: random.Random, folder: Path) -> str:
    """Change a saved model, load it, and return the change and the outcome; see above."""
    saved, logits = originals()
    name = rng.choice(list(CHANGES))
    index, other = rng.sample(range(len(MODELS)), 2)
    target = folder / "packed"
    shutil.copytree(saved[index], target)
    CHANGES[name](rng, target, saved[other])
    found, detail = reader().ask(target)
    # All files may have been replaced by those of the other model.
    if found == "loaded":
        found = "same" if detail in (logits[index], logits[other]) else "another model"
    allowed = ("refused",) if name in INCOMPLETE else ("refused", "same", "another model", "refused at use")
    assert found in allowed, f"{name}: {found}: {detail}"
    return f"{name}: {found}"


@cache
def originals() -> tuple[list[Path], list[str]]:
    """Save models, and return their folders and the digests of their logits."""
    keep(home := tempfile.TemporaryDirectory(prefix="packed-"))
    folders = [Path(home.name) / str(index) for index in range(len(MODELS))]
    for folder, model in zip(folders, MODELS, strict=True):
        _save(folder, *model)
    answers = [reader().ask(folder) for folder in folders]
    assert all(found == "loaded" for found, _ in answers), answers
    return folders, [digest for _, digest in answers]


def _save(folder: Path, family: str, tile: int, changes: dict[str, Any]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from patch.inference import convert, save
    from patch.masks.packed import MaskSet
    from patch.models.loading import prunable_linears

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES | changes)).eval()
    masks, tiles = {}, {}
    for name, linear in prunable_linears(model).items():
        rows, columns = linear.weight.shape
        height, width = min(rows, tile), min(columns, tile)
        tiles[name] = torch.rand(rows // height, columns // width) < 0.4
        whole = tiles[name].repeat_interleave(height, 0).repeat_interleave(width, 1)
        masks[name] = (torch.rand(rows, columns // 4, 4).argsort(-1) < 2).view(rows, columns) | whole
    save(convert(model, MaskSet(masks, "hybrid", tiles, tile)), folder)


# Changes.

ODD: tuple[Any, ...] = (0, 1, -1, 3, 8, 64, 2.5, -0.0, True, False, None, "", "x", "2:4", [], {}, [[]], [1, 2])
HUGE: tuple[Any, ...] = (10**12, 2**31, 2**63, 2**64, -(2**63), 1e300, 10**300)


def _bytes(rng: random.Random, data: bytes) -> bytes:
    """Return data with changed, removed or inserted bytes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        # Changes of headers find more faults than those of data.
        place = rng.randrange(min(len(changed), rng.choice((8, 64, 4096, 1 << 30))) or 1)
        kind = rng.randrange(5)
        if kind == 0:
            changed[place : place + 1] = bytes([rng.randrange(256)])
        elif kind == 1 and changed[place : place + 1]:
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del changed[place : place + rng.choice((1, 8, 4096))]
        elif kind == 3:
            changed[place:place] = rng.randbytes(rng.choice((1, 8, 64)))
        else:
            del changed[place:]
    return bytes(changed)


def _tree(rng: random.Random, value: Any, odd: tuple[Any, ...]) -> Any:
    """Return a JSON value with one changed place."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key, changed = rng.choice(keys), value.copy()
        kind = rng.randrange(8)
        if kind == 0:
            del changed[key]
        elif kind == 1:
            changed[key] = changed[rng.choice(keys)]
        else:
            changed[key] = _tree(rng, value[key], odd)
        return changed
    return rng.choice(odd)


def _text(rng: random.Random, text: str) -> str:
    """Return text with an insertion that is rare or invalid in JSON."""
    odd = ("Infinity", "NaN", "1e999", "9" * 5000, "[" * 100_000, "-", "\x00", '"\\ud800"', "null")
    place = rng.randrange(len(text) + 1)
    return text[:place] + rng.choice(odd) + text[rng.choice((place, place + 1, len(text))) :]


def _shard(rng: random.Random, folder: Path) -> Path:
    """Return one of the weight files."""
    return rng.choice(sorted(folder.glob("*.safetensors")))


def weights_bytes(rng: random.Random, folder: Path, _: Path) -> None:
    path = _shard(rng, folder)
    path.write_bytes(_bytes(rng, path.read_bytes()))


def weights_header(rng: random.Random, folder: Path, _: Path) -> None:
    """Change dtypes, shapes or offsets in the header of safetensors."""
    path = _shard(rng, folder)
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    text = json.dumps(_tree(rng, json.loads(data[8 : 8 + size]), (*ODD, *HUGE, "F32", "I32", "BF16", "U8"))).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


def description(rng: random.Random, folder: Path, _: Path) -> None:
    config = json.loads((folder / CONFIG).read_text())
    for _ in range(rng.choice((1, 1, 3))):
        config["quantization_config"] = _tree(rng, config["quantization_config"], (*ODD, *HUGE))
    text = json.dumps(config)
    (folder / CONFIG).write_text(_text(rng, text) if rng.random() < 0.2 else text, errors="surrogatepass")


def configuration(rng: random.Random, folder: Path, _: Path) -> None:
    """Change a JSON file, without huge sizes: a model may have any number of layers."""
    path = folder / rng.choice((CONFIG, GENERATION, INDEX))
    kind = rng.random()
    if kind < 0.3:
        path.write_bytes(_bytes(rng, path.read_bytes()))
    elif kind < 0.5:
        path.write_text(_text(rng, path.read_text()), errors="surrogatepass")
    else:
        path.write_text(json.dumps(_tree(rng, json.loads(path.read_text()), ODD)))


def missing_file(rng: random.Random, folder: Path, _: Path) -> None:
    rng.choice((_shard(rng, folder), folder / CONFIG, folder / INDEX)).unlink()


def truncated_file(rng: random.Random, folder: Path, _: Path) -> None:
    path = rng.choice((_shard(rng, folder), folder / CONFIG, folder / INDEX))
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size - 1)])


def missing_tensor(rng: random.Random, folder: Path, _: Path) -> None:
    path = _shard(rng, folder)
    tensors = _read_tensors(path)
    del tensors[rng.choice(list(tensors))]
    _write_tensors(path, tensors)


def files_of_another(rng: random.Random, folder: Path, other: Path) -> None:
    names = sorted(path.name for path in other.iterdir())
    for name in rng.sample(names, rng.randint(1, len(names))):
        shutil.copy(other / name, folder / name)


def tensors(rng: random.Random, folder: Path, _: Path) -> None:
    import torch

    path = _shard(rng, folder)
    tensors = _read_tensors(path)
    for _ in range(rng.choice((1, 1, 2, 5))):
        names = [name for name in tensors if rng.random() < 0.3 or name.endswith((".bits", ".dense", ".values"))]
        name = rng.choice(names or list(tensors))
        tensor, kind = tensors[name], rng.randrange(9)
        if kind == 0 and len(tensors) > 1:
            del tensors[name]
        elif kind == 1:
            tensors[rng.choice((name + "x", "x." + name, "", "model", rng.choice(names or [name])))] = tensors.pop(name)
        elif kind == 2:
            dtypes = (torch.uint8, torch.bool, torch.float32, torch.bfloat16, torch.float64, torch.int64)
            tensors[name] = tensor.to(rng.choice((*dtypes, torch.float16, torch.complex64, torch.float8_e5m2)))
        elif kind == 3:
            tensors[name] = tensor[: rng.randrange(len(tensor) + 1)]
        elif kind == 4:
            tensors[name] = rng.choice((tensor[None], tensor.flatten(), torch.cat([tensor, tensor])))
        elif kind == 5:
            tensors[name] = torch.full_like(tensor, rng.choice((0, 1)))
        elif kind == 6:
            tensors[name] = tensors[rng.choice(names or [name])]
        else:
            flat = tensor.contiguous().view(-1).view(torch.uint8).clone() if tensor.numel() else torch.empty(0)
            if tensor.dtype == torch.bool:
                tensors[name] = ~tensor
            elif len(flat):
                flat[rng.randrange(len(flat))] ^= 1 << rng.randrange(8)
                tensors[name] = flat.view(tensor.dtype).view(tensor.shape)
    _write_tensors(path, tensors)


def _read_tensors(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def _write_tensors(path: Path, tensors: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path, {"format": "pt"})


CHANGES: dict[str, Change] = {
    "bytes of the weights": weights_bytes,
    "header of the weights": weights_header,
    "description of the layers": description,
    "a configuration": configuration,
    "a missing file": missing_file,
    "a truncated file": truncated_file,
    "a missing tensor": missing_tensor,
    "files of another model": files_of_another,
    "tensors": tensors,
}
INCOMPLETE = ("a missing file", "a truncated file", "a missing tensor")


# The process that loads.

_kept: list[object] = []


def keep(value: object) -> None:
    """Keep an object until the process ends."""
    _kept.append(value)


class Reader:
    """Child process that loads folders one after the other; it is started again after it ends."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def ask(self, folder: Path) -> tuple[str, str]:
        """Return the outcome of a folder, and a message or the digest of the logits."""
        if self._process is None:
            command = [sys.executable, "-m", "tests.fuzz.packed"]
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self._process = subprocess.Popen(command, text=True, cwd=ROOT, **pipes)
        process = self._process
        process.stdin.write(f"{folder}\n")
        process.stdin.flush()
        in_time = bool(select.select([process.stdout], [], [], LIMIT)[0])
        line = process.stdout.readline() if in_time else ""
        if line.endswith("\n"):
            found, detail = json.loads(line)
            return found, detail
        self._process = None
        if not in_time:
            process.kill()
        return "ended", f"with the exit code {process.wait()}, or after {LIMIT} s"


@cache
def reader() -> Reader:
    return Reader()


def _outcome(folder: str) -> tuple[str, str]:
    import torch

    import patch.inference  # noqa: F401 -- registers the format
    from patch.errors import InputError
    from patch.models.loading import load_model

    try:
        model = load_model(folder)
    except InputError as error:
        return "refused", str(error)
    except Exception as error:
        return "not an InputError", f"{type(error).__name__}: {error}"
    try:
        with torch.inference_mode():
            logits = [model(torch.arange(length)[None]).logits for length in (1, 3, 20)]
    except Exception as error:
        return "refused at use", f"{type(error).__name__}: {error}"
    data = b"".join(one.float().numpy().tobytes() for one in logits)
    return "loaded", hashlib.sha256(data).hexdigest()


def _read() -> None:
    """Print an outcome for each line of the input, a folder."""
    import os
    import resource

    sys.path.insert(0, str(ROOT))
    # Output of libraries must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch

    torch.set_num_threads(1)
    # A size in a file must not lead to a huge allocation.
    resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30))
    for line in sys.stdin:
        answers.write(json.dumps(_outcome(line.removesuffix("\n"))) + "\n")
        answers.flush()


if __name__ == "__main__":
    _read()
