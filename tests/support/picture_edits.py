"""What people do to pictures before they meet them again."""

import io

from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps


def jpeg(picture, quality):
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def cropped(picture, left, top, right, bottom):
    width, height = picture.size
    return picture.crop((int(left * width), int(top * height), int(right * width), int(bottom * height)))


def lettered(picture):
    copy = picture.copy()
    pen = ImageDraw.Draw(copy)
    pen.rectangle((0, copy.height * 0.78, copy.width, copy.height * 0.95), fill="black")
    pen.text((8, copy.height * 0.8), "WHEN YOU SEE IT", fill="white", font=ImageFont.load_default(20))
    return copy


def tinted(picture):
    red, green, blue = picture.split()
    return Image.merge("RGB", (red.point(lambda v: v * 1.2), green, blue.point(lambda v: v * 0.75 + 10)))


EDITS = {
    "resize": lambda p: p.resize((96, 96)),
    "stretch": lambda p: p.resize((250, 192)),
    "jpeg": lambda p: jpeg(p, 25),
    "mirror": ImageOps.mirror,
    "crop": lambda p: cropped(p, 0.05, 0.12, 0.9, 0.97),
    "strong crop": lambda p: cropped(p, 0.0, 0.2, 0.75, 0.95),
    "square crop": lambda p: cropped(p, 0.15, 0.0, 0.85, 1.0),
    "border": lambda p: ImageOps.expand(p, 24, fill="white"),
    "tint": tinted,
    "grey": lambda p: p.convert("L").convert("RGB"),
    "blur": lambda p: p.filter(ImageFilter.GaussianBlur(1)),
    "text": lettered,
    "mirror, crop, jpeg": lambda p: jpeg(ImageOps.mirror(cropped(p, 0.1, 0.0, 1.0, 0.9)), 40),
}
