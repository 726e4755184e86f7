"""What every value that is written to JSON is built on: pydantic, strict, frozen, with errors that name the key.

A file may come from a stranger, so size, keys, types and non-finite numbers are checked before a value exists.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AllowInfNan, BaseModel, ConfigDict, Field, ValidationError

MAX_BYTES = 4 * 2**20  # a record is a few kilobytes; anything near this was not written by us

Finite = Annotated[float, AllowInfNan(False)]
Timestep = Annotated[float, Field(ge=0, le=999)]  # of training, high = noisy


class Schema(BaseModel):
    """The base class of all that goes to disk: a frozen value with one JSON form; unknown keys are refused.

    A subclass lists its fields under "Attributes"; a field without a default is required when reading.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    def to_json(self) -> str:
        """The JSON form, keys in declaration order, indented for people."""
        return self.model_dump_json(indent=2)

    @classmethod
    def from_json(cls, text: str | bytes, *, most: int = MAX_BYTES) -> Self:
        """Reads what `to_json` wrote, of at most `most` bytes.

        Raises:
            ValueError: not JSON, too large, or a key that is missing, unknown or out of range; the key is named.
        """
        if len(text) > most:
            raise ValueError(f"{cls.__name__}: {len(text)} bytes given, at most {most} accepted")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ValueError(f"not a valid {cls.__name__}: {_first_problem(error)}") from None


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])[:200] or "the whole text"
    return f"{where}: {first['msg']} (given: {repr(first.get('input'))[:80]})"
