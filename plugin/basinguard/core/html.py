"""Self-contained HTML pages: every value is escaped, every picture lies in the page; it loads and sends nothing."""

from __future__ import annotations

import base64
import io
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from .estimate import Estimate

if TYPE_CHECKING:
    from jinja2 import Template
    from matplotlib.figure import Figure
    from PIL.Image import Image

DASH = "\N{EN DASH}"
TINY = 100  # pixels below which JPEG would be both larger and blurred


def render_template(package: str, template: str, **values: Any) -> str:
    """A jinja template of a package, filled in; a value that it names and is not given is an error.

    `x|number(2)` and `estimate|interval(2)` print numbers, with a dash where there is none.
    """
    return str(_compiled(package, template).render(**values))


@cache
def _compiled(package: str, template: str) -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=_number, interval=_interval)
    return environment.from_string(files(package).joinpath(template).read_text("utf-8"))


def data_uri(content: bytes, kind: str = "png") -> str:
    """An encoded picture as the address of itself."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def thumbnail_uri(image: Image, side: int) -> str:
    """An RGB picture, shrunk in place to at most `side` pixels, as a data URI."""
    image.thumbnail((side, side))
    kind, buffer = "png" if max(image.size) < TINY else "jpeg", io.BytesIO()
    image.save(buffer, kind, quality=75)
    return data_uri(buffer.getvalue(), kind)


def figure_uri(figure: Figure, dpi: int = 150) -> str:
    """A matplotlib figure as a data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return data_uri(buffer.getvalue())


def _number(value: float | None, digits: int = 3) -> str:
    return DASH if value is None else f"{value:.{digits}f}"


def _interval(estimate: Estimate | None, digits: int = 3) -> str:
    return DASH if estimate is None else estimate.interval(digits)
