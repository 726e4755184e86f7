"""The README's table of model families: each cell is what the package says of itself, and names the test that ran it.

A cell is flipped by the family's `Capabilities` and a line here; `python tests/test_family_table.py` writes the table.
"""

import re
import sys
from pathlib import Path

import pytest

from basinguard.pipelines.families.registry import FAMILIES

ROOT = Path(__file__).parents[1]
PLACE = re.compile(r"(?<=<!-- families -->\n).*?(?=<!-- /families -->)", re.DOTALL)
COLUMNS = ("train", "probe", "calibrate", "rule", "schedule", "export", "ComfyUI")
FAMILY_TESTS, CALIBRATIONS = "pipelines/test_families.py", "commands/test_calibrate_families.py"
SCHEDULED = "pipelines/test_strength_by_family.py::test_a_record_samples_as_its_weights_switched_by_hand"
RAN = {  # class and column: the test that runs it
    ("StableDiffusionPipeline", "train"): "training/test_finetune.py::test_loss_equals_diffusers",
    ("StableDiffusionPipeline", "probe"): "pipelines/test_latent_model.py::test_a_probe_equals_the_stock_pipeline",
    ("StableDiffusionPipeline", "calibrate"): "commands/test_calibrate.py::test_both_verbs_run_from_the_command_line",
    ("StableDiffusionPipeline", "rule"): "pipelines/test_protect.py::test_constant_equals_stock_cfg_to_the_bit",
    ("StableDiffusionPipeline", "export"): "exports/test_directory.py::"
    "test_basinguard_load_samples_as_the_pipeline_in_memory",
    ("StableDiffusionPipeline", "ComfyUI"): "exports/test_ui_workflows.py::"
    "test_the_comfyui_workflow_draws_what_we_draw_on_the_toy",
    ("StableDiffusionPipeline", "schedule"): "pipelines/test_strength_schedule.py::"
    "test_a_record_samples_as_its_weights_switched_by_hand",
    ("StableDiffusionXLPipeline", "schedule"): SCHEDULED,
    ("StableDiffusion3Pipeline", "schedule"): SCHEDULED,
    ("StableDiffusionXLPipeline", "train"): "training/test_finetune_xl.py::test_the_loss_is_that_of_diffusers_script",
    ("StableDiffusionXLPipeline", "probe"): "watching/test_measuring.py::test_xl_is_watched",
    ("StableDiffusionXLPipeline", "calibrate"): f"{CALIBRATIONS}::test_xl_is_calibrated",
    ("StableDiffusionXLPipeline", "rule"): "pipelines/test_protect.py::test_constant_equals_stock_cfg_to_the_bit",
    ("StableDiffusionXLPipeline", "export"): "exports/test_xl_directory.py::"
    "test_every_way_to_load_it_draws_what_the_pipeline_in_memory_draws",
    ("StableDiffusionXLPipeline", "ComfyUI"): "exports/test_xl_directory.py::"
    "test_the_workflow_tells_xl_the_calibrated_size_and_zeros",
    ("StableDiffusion3Pipeline", "train"): "training/test_finetune_sd3.py::test_the_loss_is_that_of_diffusers_script",
    ("StableDiffusion3Pipeline", "probe"): f"{FAMILY_TESTS}::test_a_family_is_probed",
    ("StableDiffusion3Pipeline", "calibrate"): f"{CALIBRATIONS}::"
    "test_an_audit_of_a_lora_finds_its_copies_and_its_record_speaks_flow",
    ("StableDiffusion3Pipeline", "export"): "exports/test_sd3_directory.py::"
    "test_with_and_without_basinguard_it_draws_what_the_pipeline_in_memory_draws",
    ("StableDiffusion3Pipeline", "rule"): f"{CALIBRATIONS}::test_what_was_calibrated_is_what_protect_samples",
    ("Flux2KleinPipeline", "probe"): f"{FAMILY_TESTS}::test_a_family_is_probed",
    ("Flux2KleinPipeline", "calibrate"): f"{CALIBRATIONS}::"
    "test_the_command_line_calibrates_flux_and_says_how_a_rule_is_delivered",
    ("Flux2KleinPipeline", "rule"): f"{FAMILY_TESTS}::test_the_guider_delivers_what_our_sampler_samples",
    ("ZImagePipeline", "probe"): f"{FAMILY_TESTS}::test_a_family_is_probed",
    ("ZImagePipeline", "calibrate"): f"{CALIBRATIONS}::"
    "test_an_audit_of_a_lora_finds_its_copies_and_its_record_speaks_flow",
    ("ZImagePipeline", "rule"): f"{CALIBRATIONS}::test_what_was_calibrated_is_what_protect_samples",
}
DELIVERED = {"batched": "by `protect`", "guider": "by `RuleGuider`"}


def cell(family, column):
    """What the table says: "no" where nothing ran it."""
    able = family.capabilities
    said = {"train": able.trainable, "export": able.exportable, "ComfyUI": able.comfyui, "schedule": able.scheduled}
    if not said.get(column, True):
        return "no"
    return DELIVERED[able.guidance] if column == "rule" else "yes"


def table():
    head = ["| models | pipeline class | " + " | ".join(COLUMNS) + " |", "|" + "---|" * (len(COLUMNS) + 2)]
    rows = [[f.models, f"`{f.class_name}`", *(cell(f, column) for column in COLUMNS)] for f in FAMILIES]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def test_the_readme_has_the_table_of_today():
    assert PLACE.search((ROOT / "README.md").read_text("utf-8"))[0] == table()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.class_name)
def test_each_cell_that_says_yes_names_a_test_that_is_there(family):
    said = {column for column in COLUMNS if cell(family, column) != "no"}
    assert said == {column for name, column in RAN if name == family.class_name}
    for column in said:
        path, _, name = RAN[family.class_name, column].partition("::")
        assert re.search(rf"^def {name}\(", (ROOT / "tests" / path).read_text("utf-8"), re.MULTILINE), f"no {name}"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(PLACE.sub(table().replace("\\", r"\\"), readme.read_text("utf-8")), "utf-8")
    sys.stdout.write(table())
