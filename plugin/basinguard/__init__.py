"""A guard against memorization for people who fine-tune Stable Diffusion 2.1 on small image sets."""

__version__ = "0.1.0"
