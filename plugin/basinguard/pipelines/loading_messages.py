"""What libraries print while a pipeline is loaded or saved: their bars, and an export's notice for plain loads."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from ..exports.layout import NOTICE_KEY


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Inside, a pipeline is loaded and saved without a bar for each part; what others set is as before afterwards."""
    bars = [(library, library.is_progress_bar_enabled()) for library in (diffusers_logging, transformers_logging)]
    try:
        for library, _ in bars:
            library.disable_progress_bar()
        yield
    finally:
        for library, enabled in bars:
            if enabled:
                library.enable_progress_bar()


@contextmanager
def without_notice() -> Iterator[None]:
    """Inside, diffusers does not print an export's notice for plain loads: who loads here knows what it samples by."""
    logger = logging.getLogger("diffusers.configuration_utils")

    def other(entry: logging.LogRecord) -> bool:
        return NOTICE_KEY not in entry.getMessage()

    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)
