"""Strict schemas of what files hold."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from patch.errors import InputError


class Schema(BaseModel):
    """A JSON object of known keys: text and truth values are no numbers, and numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Checked = TypeVar("Checked", bound=BaseModel)


def check(schema: type[Checked], value: Any, where: str) -> Checked:
    """Validate ``value``.

    Raises:
        InputError: it does not fit; ``where``, the key of the first fault and the reason, on one line.
    """
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        fault, *others = error.errors(include_url=False, include_input=False)
        # A key may come from the file: no line breaks, and not thousands of characters.
        key = repr(".".join(map(str, fault["loc"])))[1:-1][:120] or "the file"
        more = f" (and {len(others)} more)" if others else ""
        reason = fault["msg"].removeprefix("Value error, ")
        raise InputError(f"{where}: `{key}`: {reason}{more}") from None
