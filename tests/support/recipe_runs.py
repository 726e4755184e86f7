"""The accelerate recipe, run in this process on a small model."""

import runpy
from pathlib import Path

from accelerate.state import AcceleratorState

RECIPE = Path(__file__).parents[2] / "recipes" / "accelerate_lora.py"


def run_recipe(base, pictures, out, *more):
    """What its `main` returns: the guard, or None without one."""
    AcceleratorState._reset_state(True)
    asked = [f"--pretrained_model_name_or_path={base}", f"--train_data_dir={pictures}", f"--output_dir={out}"]
    asked += ["--resolution=32", "--train_batch_size=2", "--probe_captions=2", "--probe_timesteps=2", "--rank=2"]
    return runpy.run_path(str(RECIPE))["main"]([*asked, "--heldout_prompts", "a blue box", *more])
