"""ComfyUI's node *Basinguard rule*: install it by copying or linking this folder into `ComfyUI/custom_nodes`.

It needs nothing that ComfyUI does not have; the package `basinguard` need not be installed.
"""

from .node import BasinguardRule

NODE_CLASS_MAPPINGS = {"BasinguardRule": BasinguardRule}
NODE_DISPLAY_NAME_MAPPINGS = {"BasinguardRule": "Basinguard rule"}
