"""`MemorizationGuard` for code that imports Lightning by its older name, `pytorch_lightning`."""

from __future__ import annotations

import pytorch_lightning as pl

from .callback import GuardHooks


class MemorizationGuard(GuardHooks, pl.Callback):
    """Probes a fine-tune, logs `guard/...`, exports a protected checkpoint; how: see `GuardHooks`."""
