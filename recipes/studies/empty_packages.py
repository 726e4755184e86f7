"""Stand-ins for a trainer's packages that are not installed and that saving does not need."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock


class EmptyType(type):
    """Of classes that have every attribute."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=name)


class EmptyModule(ModuleType):
    """A module whose every name is there: a class where it is capitalized, else something that can be called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return EmptyType(name, (), {}) if name[:1].isupper() else MagicMock(name=name)


class EmptyPackages(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stand-ins for packages that are not installed."""

    def __init__(self, names: set[str]) -> None:
        self.names, self.imported = names, set()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Of one of the packages."""
        if name.partition(".")[0] not in self.names:
            return None
        self.imported.add(name.partition(".")[0])
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> Any:
        """An empty package."""
        module = EmptyModule(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module: Any) -> None:
        """Nothing is in it."""
