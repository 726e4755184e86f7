"""Other mitigations, each written from its paper, behind the one interface of `method`, for side-by-side runs.

`registry.MITIGATIONS` lists them; `compare.compare` runs them on the same prompts and the same initial noise.
"""
