"""Attacks on configurations: changed text and changed values of `config/demo.yaml`.

`attack(rng, folder)` writes one random hostile configuration into ``folder`` and plans it as `python -m patch plan`
does. It returns `planned` or `refused`, and raises `AssertionError` with the configuration in its message for any other
outcome: an exception other than `InputError`, a long message, or more than `SECONDS`. The same seed makes the same
configuration. The current folder must be the repository, whose files the demo names.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from patch.errors import InputError
from patch.pipeline.config.load import load_experiment
from patch.pipeline.runs.plan import Plan

DEMO = Path("config/demo.yaml")
SECONDS = 20
LONGEST_MESSAGE = 4000
TEXTS = [
    *(
        "",
        " ",
        "~",
        "null",
        "true",
        "yes",
        "2:4",
        "1e400",
        "0x10",
        "matrix",
        "import",
        "none",
        "patch",
        "dense",
        "hybrid",
    ),
    *(
        "kjv",
        "llama",
        "qwen",
        "train",
        "test",
        "config/demo.yaml",
        "config",
        "/",
        "..",
        "../../etc/passwd",
        "*",
        "[",
        "=",
    ),
    *("$^$", "a_b*c|d", "<script>", "\\input{x}", "`", ".. include:: /etc/passwd", "{x}", "%s", "&amp;", "#", "'", '"'),
    *(
        "a\nb",
        "\0",
        "\x1b[31m",
        "\x7f",
        "\x85",
        "\u2028",
        "\u202e",
        "\ufeff",
        "\ud800",
        "\U0001f600",
        "é",
        "x" * 100,
        "x" * 5000,
    ),
]
NUMBERS = [
    *(0, 1, -1, 2, 3, 4, 7, 16, 128, 2**20, 2**31, 2**63 - 1, 2**63, -(2**63), 10**20, 10**400, 10**4999),
    *(0.0, -0.0, 0.5, 1.0, 0.45, 1e-300, 1e300, -1e300, float("inf"), float("-inf"), float("nan")),
]
OTHERS = [None, True, False, [], {}, [[]], [None], {"a": 1}, {1: 2}, {None: None}, {True: 1}, ("a",), b"a", {1, 2}]
# Parts of YAML that change the meaning of the text around them.
YAML_PARTS = [
    *("&a ", "*a", "*trained", "*sizes", "<<: *trained", "<<: *a", "<<: [*sizes, *sizes]", "!!python/name:os.system"),
    *(
        "!!int ",
        "!!float ",
        "!!bool ",
        "!!set ",
        "!!binary ",
        "!!omap ",
        "!x ",
        "? ",
        ": ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        ",",
    ),
    *(
        "|\n",
        ">-\n",
        "---\n",
        "...\n",
        "%YAML 1.1\n",
        "#",
        "'",
        '"',
        "\t",
        "\n",
        "\r\n",
        "\0",
        "\x1b",
        "\ufeff",
        "\\x00",
    ),
    *(
        ".inf",
        "-.inf",
        ".nan",
        "1e999",
        "1.0e+999",
        "1:00:00",
        "0o17",
        "2024-01-01",
        "2024-99-99",
        "9" * 5000,
        "=",
        "~",
    ),
    *("seeds: [1]", "experiment: x\n", "tile: 4\n", "__use_yte__: true\n"),
    *(f"extends: {Path('config/demo.yaml').resolve()}\n", "grid+: [{methods: [wanda]}]\n", "seeds+: 1\n"),
]


def attack(rng: random.Random, folder: Path) -> str:
    """Make and plan one configuration, and return the outcome; see above."""
    content = rng.choice([_changed_text, _changed_values, _changed_values, _nested])(rng)
    path = Path(folder) / "attack.yaml"
    path.write_bytes(content)
    started = time.monotonic()
    try:
        Plan(load_experiment(path))
    except InputError as error:
        fault = _fault(str(error))
        outcome = "refused"
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error!s:.500}\n{_excerpt(content)}") from error
    else:
        fault, outcome = "", "planned"
    seconds = time.monotonic() - started
    assert not fault, f"{fault}\n{_excerpt(content)}"
    assert seconds < SECONDS, f"took {seconds:.0f} s\n{_excerpt(content)}"
    return outcome


def _fault(message: str) -> str:
    # Each fault of a configuration is on its own line.
    lines = message.split("\n")
    if not all(line.startswith("  ") for line in lines[1:]) or not message.strip():
        return f"the message has other lines than faults: {message!r:.1000}"
    return f"the message has {len(message)} characters" if max(map(len, lines)) > LONGEST_MESSAGE else ""


def _excerpt(content: bytes) -> str:
    """Return the lines that differ from the demo."""
    known = set(DEMO.read_bytes().splitlines())
    lines = [f"{number}: {line!r:.300}" for number, line in enumerate(content.splitlines(), 1) if line not in known]
    return "\n".join(lines[:40])


@cache
def _demo() -> dict[str, Any]:
    return yaml.safe_load(DEMO.read_text(encoding="utf-8"))


def _changed_text(rng: random.Random) -> bytes:
    """Return the demo's text with inserted, removed, repeated or exchanged pieces."""
    text = DEMO.read_text(encoding="utf-8")
    changes: list[Callable[[str, int, int], str]] = [
        lambda text, start, stop: text[:start] + rng.choice(YAML_PARTS) + text[start:],
        lambda text, start, stop: text[:start] + rng.choice(YAML_PARTS) + text[stop:],
        lambda text, start, stop: text[:start] + text[stop:],
        lambda text, start, stop: text[:stop] + text[start:],
        lambda text, start, stop: text[:start] + text[start:stop].swapcase() + text[stop:],
    ]
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        start = rng.randrange(len(text))
        if rng.random() < 0.5:
            # YAML interprets these only at the beginning of a value.
            start = text.find(": ", start) + 2
        text = rng.choice(changes)(text, start, start + rng.choice([1, 2, 5, 20, 100]))
    content = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.1:
        place = rng.randrange(len(content))
        content = content[:place] + bytes([rng.randrange(256)]) + content[place + 1 :]
    return content


def _changed_values(rng: random.Random) -> bytes:
    """Return the demo with values of any type and size, removed values and renamed keys."""
    raw = copy.deepcopy(_demo())
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        parent, key = rng.choice(list(_places(raw)))
        if rng.random() < 0.15 and isinstance(parent, dict):
            parent[rng.choice(TEXTS)] = parent.pop(key)
        elif rng.random() < 0.1:
            del parent[key]
        else:
            parent[key] = _value(rng, parent[key])
    try:
        text = yaml.dump(raw, Dumper=_Dumper, allow_unicode=rng.random() < 0.5, sort_keys=False)
    except ValueError:
        # Python refuses to write integers of several thousand digits.
        return b"seeds: [" + b"9" * 5000 + b"]\n"
    return text.encode("utf-8", "surrogatepass")


class _Dumper(yaml.Dumper):
    """YAML writer that uses an alias only for the same object."""


def _value(rng: random.Random, old: Any) -> Any:
    kinds = [
        lambda: rng.choice(TEXTS),
        lambda: rng.choice(NUMBERS),
        lambda: rng.choice(OTHERS),
        lambda: [old],
        lambda: {"kind": old},
        lambda: [old, old],
        lambda: _text(old),
        lambda: [rng.choice(TEXTS + NUMBERS) for _ in range(rng.choice([1, 3, 300]))],
        lambda: copy.deepcopy(rng.choice(list(_places(_demo())))[0]),
        lambda: old * rng.choice([-1, 2, 1000, 10**15]) if isinstance(old, int | float) else old,
    ]
    return rng.choice(kinds)()


def _text(value: Any) -> str:
    """Return a value as text; Python refuses to write integers of thousands of digits."""
    try:
        return str(value)
    except ValueError:
        return "9" * 5000


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every list and mapping in ``value`` with each of its keys."""
    for key, child in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(child, dict | list):
            yield from _places(child)


def _nested(rng: random.Random) -> bytes:
    """Return nested lists, mappings, aliases and merges beside or inside the demo."""
    depth, width = rng.choice([3, 10, 40, 60, 2000]), rng.choice([1, 2, 9])
    forms = {
        "lists": lambda level: f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]\n",
        "mappings": lambda level: (
            f"a{level}: &a{level} {{{', '.join(f'k{i}: *a{level - 1}' for i in range(width))}}}\n"
        ),
        "merges": lambda level: f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * width)}]}}\n",
        "parents": lambda level: f"a{level}: &a{level} {{x: [*a{level}]}}\n",
    }
    form = forms[rng.choice(sorted(forms))]
    aliases = "a0: &a0 {x: 1}\n" + "".join(form(level) for level in range(1, depth))
    deep = rng.choice(["[", "{a: ", "- ", "? "]) * depth
    inside = "learning:\n  common:\n" + "".join(f"    {line}\n" for line in aliases.splitlines())
    text = DEMO.read_text(encoding="utf-8")
    return rng.choice([text + aliases, aliases + text, inside, text + f"x: {deep}", deep, text + inside]).encode()
