"""A saved pipeline as the hub's own files are: what older diffusers, older transformers and ComfyUI look for.

Newer transformers write a tokenizer as `tokenizer.json` alone, and CLIP's text model without its `text_model.` prefix.
Clients from before that fail on the first, and start the second from random weights with no more than a warning.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

VOCABULARY, MERGES, PREFIX = "vocab.json", "merges.txt", "text_model."


def save_stock(pipe: DiffusionPipeline, folder: Path) -> None:
    """Writes a pipeline that every client opens: `save_pretrained` and what older ones need beside it."""
    pipe.save_pretrained(folder, safe_serialization=True)
    for tokenizer in folder.glob("tokenizer*"):
        add_vocabulary(tokenizer)
    for text_encoder in folder.glob("text_encoder*"):
        add_prefix(text_encoder)


def add_vocabulary(tokenizer: Path) -> None:
    """Writes vocab.json and merges.txt beside a byte-pair `tokenizer.json`, where they are missing.

    Source: the format of OpenAI's CLIP, as `transformers.CLIPTokenizer` read it before version 5.
    """
    source = tokenizer / "tokenizer.json"
    if not source.is_file() or (tokenizer / VOCABULARY).exists():
        return
    model = json.loads(source.read_text(encoding="utf-8"))["model"]
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (tokenizer / VOCABULARY).write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    (tokenizer / MERGES).write_text("\n".join(["#version: 0.2", *pairs]) + "\n", encoding="utf-8")


def add_prefix(text_encoder: Path) -> None:
    """Names CLIP's weights as the hub's files do, below `text_model.`; transformers of every version read that."""
    from safetensors.torch import load_file, save_file

    for path in text_encoder.glob("*.safetensors"):
        state = load_file(path)
        if any(name.startswith(PREFIX) for name in state):
            continue
        named = {name if name.startswith("text_projection.") else PREFIX + name: value for name, value in state.items()}
        save_file(named, path, metadata={"format": "pt"})
