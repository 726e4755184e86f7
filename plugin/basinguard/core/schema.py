"""TODO one line."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AllowInfNan, BaseModel, ConfigDict, Field, ValidationError

MAX_BYTES = 4 * 2**20  # a record is a few kilobytes; anything near this was not written by us


Finite = Annotated[float, AllowInfNan(False)]


Timestep = Annotated[float, Field(ge=0, le=999)]


class Schema(BaseModel):
    """A frozen value with one JSON form."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    def to_json(self) -> str:
        """The JSON form, keys in declaration order, indented for people."""
        return self.model_dump_json(indent=2)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: not JSON, too large, or a key that is missing, unknown or out of range; the key is named.
        """
        if len(text) > MAX_BYTES:
            raise ValueError(f"{cls.__name__}: {len(text)} bytes given, at most {MAX_BYTES} accepted")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ValueError(f"not a valid {cls.__name__}: {_first_problem(error)}") from None


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])[:200] or "the whole text"
    given = repr(first.get("input"))
    return f"{where}: {first['msg']} (given: {given[:80]})"
