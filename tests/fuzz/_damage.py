"""Random damage to files: changed bytes, changed JSON values with a correct checksum, hostile text."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from patch.errors import InputError
from patch.files.io import CHECKSUM, json_checksum

LONGEST_MESSAGE = 1500
VALUES: tuple[Any, ...] = (
    *(None, True, False, "", "x", "0.5", "nan", "2:0", "2:4\n", "\ud800", "\0", "9" * 5000 + ":4"),
    *([], {}, [None], [[]], {"": 1}, {"x": None}, [1, 2, 3], [-8, -12], [8.0, 12], [2**30, 2**30]),
    *(-1, 0, 1, 2, 3, 0.5, 1.5, -0.0, 5e-324, 1e308, math.inf, -math.inf, math.nan, 2**31, 2**63, 10**30, 10**400),
)
# Replacements of a value or of the whole text.
TEXTS = ("NaN", "-Infinity", "1e999", "9" * 5000, "[" * 50_000, '{"a":' * 50_000, '{"a":1,"a":2}', "", "\x00", "nul")


def damaged_bytes(rng: Random, content: bytes) -> bytes:
    """Flip bits, overwrite, cut off, remove, repeat or insert bytes."""
    data, place = bytearray(content), rng.randrange(len(content))
    end = min(len(data), place + 2 ** rng.randrange(8))
    match rng.randrange(7):
        case 0 | 1:
            for _ in range(rng.randint(1, 3)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 2:
            data[place] = rng.choice(b'0123456789-.,:"{}[]eE \n\x00\xff')
        case 3:
            del data[place:]
        case 4:
            del data[place:end]
        case 5:
            data[place:place] = data[place:end]
        case _:
            data[place:end] = bytes(end - place)
    return bytes(data)


def damaged_json(rng: Random, value: Any) -> Any:
    """Change one value, key or length somewhere in a JSON value."""
    value = copy.deepcopy(value)
    container, key = rng.choice(list(_places(value)))
    old = container[key]
    match rng.randrange(6):
        case 0 | 1:
            container[key] = rng.choice(VALUES)
        case 2:
            del container[key]
        case 3 if isinstance(old, int | float):
            container[key] = rng.choice((-old, old + 1, old * 2, old / 2, float(old), str(old), bool(old)))
        case 4 if isinstance(container, dict):
            container[rng.choice(("more", "", "a\nb", key + "x"))] = container.pop(key)
        case _:
            other = rng.choice(list(container) if isinstance(container, dict) else range(len(container)))
            container[key], container[other] = container[other], container[key]
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list) and value[key]:
            yield from _places(value[key])


def checked_text(value: Any) -> str:
    """Return a JSON object as `write_checked_json` writes it, including numbers that it refuses to write."""
    text = json.dumps({**value, CHECKSUM: json_checksum(value)})
    return text.replace("-Infinity", "-1e999").replace("Infinity", "1e999")


def hostile_text(rng: Random, text: str) -> str:
    """Replace a number, or the whole text, by hostile text."""
    text_of = rng.choice(TEXTS)
    numbers = [place for place, letter in enumerate(text) if letter.isdigit()]
    if not numbers or rng.random() < 0.2:
        return text_of
    place = rng.choice(numbers)
    return text[:place] + text_of + text[place + 1 :]


def outcome(read: Callable[[], Any], original: Any, sound: Callable[[Any], None] | None = None) -> str:
    """Read a damaged file and return the outcome.

    Args:
        read: function that reads the file into comparable facts.
        original: the facts before the damage.
        sound: function that checks other facts against the schema; None if no other facts are allowed.

    Returns:
        `refused`, `same` or `sound`.

    Raises:
        AssertionError: an exception other than `InputError`, a long message, or a result that is not allowed.
    """
    try:
        found = read()
    except InputError as error:
        message = str(error)
        assert "\n" not in message and 0 < len(message) < LONGEST_MESSAGE, f"message: {message[:3000]!r}"
        return "refused"
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}") from error
    if found == original:
        return "same"
    assert sound, f"another result was accepted: {str(found)[:500]}"
    sound(found)
    return "sound"
