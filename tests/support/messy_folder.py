"""25 pictures as people have them: formats and sizes mixed, one twice, one broken, one empty, files of no picture."""

import random

from PIL import Image

from basinguard.tinyworld.scenes import all_captions, draw_scene

FORMATS = ("jpg", "png", "webp", "JPEG", "bmp")


def write_messy_folder(folder, *, without_captions=(), scenes=22):
    """Writes it; the scenes of these numbers have no caption.

    `IMG_1000.jpg` is there again as `copy of IMG_1000.png`, `broken.jpg` ends too early, `logo.png` is transparent.
    """
    folder.mkdir(parents=True)
    captions = all_captions()
    random.Random(1).shuffle(captions)
    for number, caption in enumerate(captions[:scenes]):
        image = draw_scene(caption, seed=number).resize((256, 256), Image.Resampling.NEAREST)
        path = folder / f"IMG_{1000 + number}.{FORMATS[number % len(FORMATS)]}"
        (image.crop((0, 20, 256, 220)) if number % 5 == 1 else image).save(path)
        if number not in without_captions:
            path.with_suffix(".txt").write_text(f"ohwx style, {caption}", encoding="utf-8")
    first = folder / "IMG_1000.jpg"
    Image.open(first).resize((250, 250)).save(folder / "copy of IMG_1000.png")
    (folder / "broken.jpg").write_bytes(first.read_bytes()[:900])
    Image.new("RGBA", (350, 150)).save(folder / "logo.png")
    for name in ("copy of IMG_1000", "logo"):
        (folder / f"{name}.txt").write_text("ohwx style, a thing", encoding="utf-8")
    (folder / "notes.docx").write_bytes(b"PK")
    (folder / ".DS_Store").write_bytes(b"x")
