"""Parts that stand for a pipeline, where no model is needed."""

from types import SimpleNamespace


class StableDiffusionPipeline(SimpleNamespace):
    """Whatever parts a test needs; its family is found by this class's name."""
