"""Samples side by side for a person to compare: captions down and ways to sample across, or the other way round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..core.text import one_line
from .style import VERMILLION

TILE = 144  # small enough for a row of five on a laptop, large enough to see a copy
LINE = 18  # height of a line of a title
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def to_image(pixels: Tensor) -> Image.Image:
    """An image from [3, H, W] in [0, 1]."""
    return Image.fromarray((pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def contact_sheet(
    columns: Mapping[str, Tensor], captions: Sequence[str], marks: Mapping[str, Sequence[bool]]
) -> Image.Image:
    """One row a caption, one column a method; samples that reproduce a training image get a thick frame.

    Args:
        columns: title -> images [N, 3, H, W] in [0, 1]; dictionary order is column order.
        captions: one for each row.
        marks: title -> whether each image of that column is a copy.
    """
    font, title_font, foot, gap = ImageFont.load_default(size=13), ImageFont.load_default(size=15), 22, 10
    titles = [title_lines(title, title_font) for title in columns]
    head = 12 + LINE * max(map(len, titles))
    width = gap + len(columns) * (TILE + gap)
    sheet = Image.new("RGB", (width, head + len(captions) * (TILE + foot + gap)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, (title, images) in enumerate(columns.items()):
        x = gap + column * (TILE + gap)
        pen.multiline_text((x, 6), "\n".join(titles[column]), fill="black", font=title_font, spacing=2)
        for row, pixels in enumerate(images):
            _place(sheet, (x, head + row * (TILE + foot + gap)), pixels, title in marks and marks[title][row])
    for row, caption in enumerate(captions):
        pen.text(
            (gap, head + row * (TILE + foot + gap) + TILE + 4), _fit(caption, width, font), fill="#333333", font=font
        )
    return sheet


def contact_strip(
    rows: Mapping[str, Tensor], captions: Sequence[str], marks: Mapping[str, Sequence[bool]]
) -> Image.Image:
    """The same with one row a method and one column a caption: a card of TensorBoard is wider than it is high."""
    font, title_font, gap = ImageFont.load_default(size=17), ImageFont.load_default(size=20), 10
    titles = {title: title_lines(title, title_font) for title in rows}
    foots = [title_lines(one_line(caption), font) for caption in captions]
    left = gap + int(max(title_font.getlength(line) for lines in titles.values() for line in lines)) + gap
    size = (left + len(captions) * (TILE + gap), gap + len(rows) * (TILE + gap) + 21 * max(map(len, foots), default=0))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for row, (title, images) in enumerate(rows.items()):
        y = gap + row * (TILE + gap)
        pen.multiline_text((gap, y), "\n".join(titles[title]), fill="black", font=title_font)
        for column, pixels in enumerate(images):
            _place(sheet, (left + column * (TILE + gap), y), pixels, title in marks and marks[title][column])
    for column, lines in enumerate(foots):
        place = (left + column * (TILE + gap), gap + len(rows) * (TILE + gap))
        pen.multiline_text(place, "\n".join(lines), fill="#333333", font=font, spacing=2)
    return sheet


def _place(sheet: Image.Image, corner: tuple[int, int], pixels: Tensor, copy: bool) -> None:
    """A tile, in a thick frame where it is a copy."""
    sheet.paste(_tile(pixels), corner)
    if copy:
        x, y = corner
        ImageDraw.Draw(sheet).rectangle((x - 3, y - 3, x + TILE + 2, y + TILE + 2), outline=VERMILLION, width=4)


def _tile(pixels: Tensor) -> Image.Image:
    """Small images keep their pixels, large ones are averaged."""
    image = to_image(pixels)
    return image.resize((TILE, TILE), Image.Resampling.NEAREST if image.width <= TILE else Image.Resampling.LANCZOS)


def title_lines(title: str, font: Font) -> list[str]:
    """A title in lines no wider than its column; a single word that is wider stays whole."""
    lines: list[str] = []
    for word in title.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= TILE:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _fit(text: str, width: int, font: Font) -> str:
    """Cuts a caption that would run off the sheet; line breaks become spaces, control characters go."""
    line = one_line(text)
    while font.getlength(line) > width - 20 and len(line) > 1:
        line = line[:-2].rstrip() + "…"
    return line
