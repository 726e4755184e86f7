"""Data flows one way: a module imports only what stands above it in one list; frameworks stay from one folder on."""

# ruff: noqa: E501 - a folder is one line of the list
import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "plugin" / "basinguard"
ORDER = """
core: progress seeds spread text generation schema exif images folder_files safetensors_header files provenance extras estimate html metric report_parts report stats betting pooled_risk attack_table membership_table gate update_filter recorded_weights record option_errors option_docs
guidance: core strength triage dynamic schedules serialization
diffusion: sampling_options noise_schedule solvers sampler_path batching sampling evaluation_count model toy
basin: trajectories early_decision plain_run ordered_search exit_search curves critical_scale detectors gap heldout_contrast
similarity: detail diversity cross_correlation overlay_fit registration preprocessing embedder scores kernel_distance energy_distance feature_sets colour_texture prompt_draws feature_space taught clip_score image_files structure matching aligned either sampler_edits distribution_metrics pixel_distances networks structure_figure local_copies copy_detector distance_ratio sscd_canary sscd efficientnet image_pair registry rulers thresholds copy_detector_settings choice_cache detector_choice detector_loading duplicate_groups judgement folder_matches folder_metrics
curation: descriptors tiles nearest_neighbours thumbnail_cache workers caption_files alignment colour_match pooling pixel_agreement kohya_layout folder sources run_evidence findings scan caption_words captions shared_phrases caption_conflict same_picture picture_quality likely_best duplicates placement reconstruction true_detail collages groups outliers decisions embedding_map selection run_remedies manifest trainer_settings trainer_folders trainer_configs report output_files dataset_export analysis curate
guard: caption_groups control_prompts checkpoint_selection measures training_set taught_ledger budget verdict changes plan probe_costs coverage pooled_report critical_scale_stage forecast measured_model probe status guard
calibration: prompt_triage terms cost design promise candidate danger fixed_sequence grids rules choice ladders trial weights sample_archive lessons bench search knobs certification record_builder
plots: style contact_sheet run basin tradeoff
tinyworld: scenes styles creature materials emoji tasks demo_folder
exports: layout model_kind sentences stored_tensors fingerprints original_layout lora_formats lora_names lora_layout privacy comfyui_nodes comfyui_strength inspect client_files sampler_grids card_plots attack_section membership_section merge provenance a1111 comfyui ui_instructions model_card lora_header stamp lora_filter lora directory single_file integrity hub
audits: findings page judge_page
pipelines.families: family stable_diffusion stable_diffusion_xl flow repeated_token stable_diffusion_3 flux2_klein z_image registry
pipelines: session_settings schedulers architecture forward_process latent_model timing distillation model_edits resolution list_steering attachment modular_guider lora lora_products lora_files original_weights single_file prediction_type filter_check interpolation base_check loading_messages loading lora_apart low_rank product alignment protect stock_sampling triage_sampling evaluation transfer paired_samples
training: guard_options complaints finetune_options checkpoints pixel_checks cropping data_sources distributed_scan caption_augmentation canary_images trained_weights loss_filters protocols isolation loader_images distributed peak_memory optimizer requirements epoch_order logging objective forward_processes memory_footprint buckets encoding resources pictures data canary_steps rank_mask prior_preservation finetune preflight control_group best_weights epoch_archive epoch_series run_epochs guard_assembly guarded_export breach_responder guarded_run run_settings dry_run loop_settings monitors callback accelerate pytorch_lightning lightning shipped_configs fit_cli
watching: unet_files checkpoints checkpoint_pipeline request caption_tables trainer_data training_images state page reaction probe_process watcher measuring __main__
mitigations: settings testbed base cross_attention stock_pipeline plain_cfg guidance_interval guidance_schedules delayed_guidance delayed_guidance_released prompt_perturbation prompt_optimization summary_tokens initial_noise attention_attenuation anti_memorization_guidance checkpoints less_finetuning ours update_edits registry held_out pairs measure costs ranking comparison tradeoff_figure sample_strips report runner price
attacks: denoising_loss conditional_gap compressed_size operating_point membership target attack captions image_to_image inversion extrapolation clusters registry extraction options plan round exchangeability monitor canaries
sessions: session calibration attack canary_run audit verification_options verification dry_run monitoring demo_run judging
commands: demo curate fit calibrate audit verify monitor triage export stamp inspect check sample compare compare_images metrics judge watch completion
cli
__main__
"""
FRAMEWORKS_FROM = "pipelines"  # the first folder that may import one
FRAMEWORKS = {"diffusers", "lightning", "pytorch_lightning", "accelerate", "transformers", "peft", "datasets"}
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if "assets" not in path.parts and path != PACKAGE / "__init__.py"
)


def places() -> dict[str, int]:
    """Module -> its place in the list; a folder's own `__init__` stands below its modules."""
    names = []
    for line in ORDER.strip().splitlines():
        folder, _, modules = line.partition(":")
        names += [f"{folder}.{module}" for module in modules.split()] + [f"{folder}.__init__"] if modules else [folder]
    return {name: place for place, name in enumerate(names)}


PLACES = places()


def imports(source: str, module: str) -> set[str]:
    """Everything a module imports, at any depth: absolute names, `basinguard.` included; type checking is free."""
    package = ["basinguard", *module.split(".")[:-1]]
    names: set[str] = set()
    for node in reading(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names |= {stem} | {f"{stem}.{alias.name}" for alias in node.names}
    return names


def reading(tree: ast.AST):
    """Every node but those under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node
        yield from reading(node)


def source_of(module: str) -> str:
    return (PACKAGE / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8")


def test_every_module_has_one_place():
    assert sorted(PLACES) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_from_above(module):
    for name in imports(source_of(module), module):
        imported = name.removeprefix("basinguard.")
        for place in (imported, f"{imported}.__init__"):
            if name.startswith("basinguard.") and place in PLACES and not module.startswith(f"{imported}."):
                assert PLACES[place] < PLACES[module], f"{module} imports {imported}, which does not stand above it"


@pytest.mark.parametrize("module", MODULES)
def test_frameworks_only_from_pipelines_on(module):
    first = min(place for name, place in PLACES.items() if name.startswith(f"{FRAMEWORKS_FROM}."))
    used = {name.split(".")[0] for name in imports(source_of(module), module)} & FRAMEWORKS
    assert not used or PLACES[module] >= first, f"{module} imports {used}; only {FRAMEWORKS_FROM} and below may"


@pytest.mark.parametrize("module", ["guidance.core", "guidance.strength"])
def test_files_that_ship_need_torch_alone(module):
    used = {name.split(".")[0] for name in imports(source_of(module), module)}
    assert used <= {"torch", *sys.stdlib_module_names}


def test_importing_the_package_loads_no_framework():
    code = f"import sys, basinguard; print(sorted(set(sys.modules) & {FRAMEWORKS | {'torch'}!r}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_the_import_reader_sees_relative_imports():
    text = "if TYPE_CHECKING:\n    from ..training import data\nfrom ..guard.guard import Guard\nfrom . import loading"
    assert imports(text, "pipelines.protect") == {
        "basinguard.guard.guard",
        "basinguard.guard.guard.Guard",
        "basinguard.pipelines",
        "basinguard.pipelines.loading",
    }
