"""Strict schemas of file contents."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from patch.errors import InputError


def _printable(name: str) -> str:
    if not name.isprintable():
        raise ValueError("a name has no control characters")
    return name


# Names are printed in messages and tables.
Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]

# Integers of at most 64 bits: much larger ones overflow a float.
Count = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(ge=1, lt=2**63)]


class Schema(BaseModel):
    """JSON object of known keys, with strict types and finite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Checked = TypeVar("Checked", bound=BaseModel)


def check(schema: type[Checked], value: Any, where: str) -> Checked:
    """Validate ``value`` against a schema.

    Raises:
        InputError: the value is invalid; one line with ``where``, the key of the first fault and the reason.
    """
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        fault, *others = error.errors(include_url=False, include_input=False)
        # A key may come from the file, so it is escaped and truncated.
        key = repr(".".join(map(str, fault["loc"])))[1:-1][:120] or "the file"
        more = f" (and {len(others)} more)" if others else ""
        reason = fault["msg"].removeprefix("Value error, ")
        raise InputError(f"{where}: `{key}`: {reason}{more}") from None
