"""`FineTune` and `ImageFolder` from flat options, sorted into the objects they belong to."""

from dataclasses import fields

from basinguard.training.data import ImageFolder
from basinguard.training.finetune import FineTune
from basinguard.training.finetune_options import (
    FramingOptions,
    LoraOptions,
    LossOptions,
    MemoryOptions,
    OptimizerOptions,
    ReadingOptions,
)

MODEL = {"lora": LoraOptions, "optimizer": OptimizerOptions, "loss": LossOptions, "memory": MemoryOptions}
DATA = {"framing": FramingOptions, "reading": ReadingOptions}


def grouped(kinds, flat):
    """Arguments in which every option stands in its object; what belongs to none stays as it is."""
    arguments = dict(flat)
    for name, kind in kinds.items():
        inner = {field.name: arguments.pop(field.name) for field in fields(kind) if field.name in arguments}
        if inner:
            arguments[name] = kind(**inner)
    return arguments


def fine_tune(base, **flat):
    return FineTune(str(base), **grouped(MODEL, flat))


def image_folder(*source, **flat):
    return ImageFolder(*source, **grouped(DATA, flat))
