"""`help()` of what takes option objects shows every option of each, with its default."""

from dataclasses import fields, is_dataclass
from inspect import signature

import pytest


@pytest.mark.parametrize("name", ["lightning", "pytorch_lightning"])
def test_help_of_the_guard_shows_every_option_with_its_default(name):
    module = pytest.importorskip(f"basinguard.training.{name}")
    text = module.MemorizationGuard.__doc__
    for parameter in signature(module.MemorizationGuard).parameters.values():
        assert f"{parameter.name}: " in text
        if is_dataclass(parameter.default):
            for field in fields(parameter.default):
                assert f"\n    {field.name}: " in text, field.name
                assert f"{field.name}={getattr(type(parameter.default)(), field.name)!r}" in text
