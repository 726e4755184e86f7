"""`MemorizationGuard`: the guard as a callback of `lightning.pytorch`."""

from __future__ import annotations

import lightning.pytorch as pl

from .callback import GuardHooks


class MemorizationGuard(GuardHooks, pl.Callback):
    """Probes a fine-tune, logs `guard/...`, exports a protected checkpoint; how: see `GuardHooks`."""
