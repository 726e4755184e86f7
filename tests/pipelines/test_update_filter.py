"""What a filter leaves of a fine-tune: in the weights of a pipeline, in files, and what it cannot act on."""

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from basinguard.calibration.terms import CalibrationTerms
from basinguard.core.recorded_weights import RecordedWeights
from basinguard.exports.directory import export_directory
from basinguard.exports.fingerprints import weights_sha256
from basinguard.exports.inspect import inspect_file
from basinguard.exports.integrity import check_export
from basinguard.exports.lora import export_lora, lora_layers
from basinguard.exports.lora_filter import filtered_layers, truncated_layer
from basinguard.exports.merge import merged
from basinguard.pipelines.filter_check import require_effect, require_filters
from basinguard.pipelines.interpolation import Blend, BlendedWeights
from basinguard.pipelines.product import with_product_weights
from basinguard.training.epoch_series import EpochSeries, require_change_to_filter
from basinguard.training.protocols import PipelineInTraining
from support.exports import build_pipe, build_record, with_lora
from support.tiny_pipeline import build_tiny_sd3

ATTN2 = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight"
CHANGED = ("conv_in.weight", "mid_block.resnets.0.conv1.weight", ATTN2)
LEFT = {"no-cross-attention": CHANGED[:2], "residual-blocks": CHANGED[1:2], "no-attention": CHANGED[:2]}


def fine_tuned():
    """The base with other weights in three layers of its UNet and in its text encoder."""
    pipe, generator = build_pipe(), torch.Generator().manual_seed(1)
    norms = [w for name, w in pipe.text_encoder.named_parameters() if name.endswith("final_layer_norm.weight")]
    for weight in (*norms, *(pipe.unet.get_parameter(name) for name in CHANGED)):
        weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    return pipe


@pytest.fixture(scope="module")
def base():
    return build_pipe()


def states(pipe):
    return {k: v.clone() for part in (pipe.unet, pipe.text_encoder) for k, v in part.state_dict().items()}


@pytest.mark.parametrize("name", LEFT)
def test_of_a_filter_of_parts_each_weight_is_the_tuned_one_or_the_base_s(base, name):
    pipe = fine_tuned()
    tuned, origin = states(pipe), states(base)
    with Blend(pipe, base).at(1.0, name) as model:
        held = states(model.pipe)
    for key, weight in held.items():
        end = origin if key in CHANGED and key not in LEFT[name] else tuned
        assert torch.equal(weight, end[key]), key
    assert all(torch.equal(tuned[key], weight) for key, weight in states(pipe).items()), "no trace"


def test_a_share_of_what_the_largest_singular_values_leave(base):
    pipe = fine_tuned()
    change = pipe.unet.state_dict()[ATTN2] - base.unet.state_dict()[ATTN2]
    u, s, v = torch.linalg.svd(change.double())
    blend = Blend(pipe, base)
    for strength in (0.5, 1.0):
        with BlendedWeights(blend).filtered(None, strength, "rank-2") as opened:
            left = opened.model.pipe.unet.state_dict()[ATTN2] - base.unet.state_dict()[ATTN2]
        expected = strength * (u[:, :2] * s[:2]) @ v[:2]
        torch.testing.assert_close(left.double(), expected, atol=1e-6, rtol=0)
    with blend.at(1.0) as model:
        assert torch.equal(model.pipe.unet.state_dict()[ATTN2], base.unet.state_dict()[ATTN2] + change)


def test_a_filter_that_leaves_all_or_nothing_is_refused(base):
    pipe = build_pipe()
    pipe.unet.conv_in.weight.data *= 2
    blend = Blend(pipe, base)
    for name, what, left in (
        ("no-cross-attention", "all", 1),
        ("residual-blocks", "nothing", 0),
        ("rank-999", "all", 1),
    ):
        assert blend.left(name) == left
        with pytest.raises(ValueError, match=f"'{name}' leaves {what} of this fine-tune's change"):
            BlendedWeights(blend).filtered(None, 1.0, name).__enter__()


def test_how_much_is_left_is_said_by_norm(base):
    pipe = build_pipe()
    for name, size in ((CHANGED[0], 3.0), (ATTN2, 4.0)):
        weight = pipe.unet.get_parameter(name).data
        weight.flatten()[0] += size
    assert Blend(pipe, base).left("no-cross-attention") == pytest.approx(3 / 5)


def test_a_record_of_a_filter_becomes_a_directory_of_exactly_these_weights(base, tmp_path):
    pipe = fine_tuned()
    base.save_pretrained(tmp_path / "base")
    product = RecordedWeights(update_filter="no-cross-attention", tuned_sha256=weights_sha256(pipe))
    with Blend(pipe, base).at(1.0, "no-cross-attention"):
        record = build_record(pipe)
    record = record.model_copy(update={"product": product, "base": str(tmp_path / "base")})
    with with_product_weights(pipe, record):
        export_directory(pipe, record, tmp_path / "export")
    assert check_export(tmp_path / "export").ok
    stored = load_file(tmp_path / "export" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(stored[name], pipe.unet.state_dict()[name]) for name in CHANGED[:2])
    assert torch.equal(stored[ATTN2], base.unet.state_dict()[ATTN2])
    assert "without its change of cross-attention" in (tmp_path / "export" / "README.md").read_text()
    assert "without its change of cross-attention" in str(inspect_file(tmp_path / "export"))


@pytest.mark.parametrize(("kind", "name"), [("kohya", "no-cross-attention"), ("diffusers", "rank-1")])
@pytest.mark.filterwarnings("ignore:No LoRA keys:UserWarning")
def test_a_lora_file_changes_the_base_by_what_is_left(base, tmp_path, kind, name):
    """Loaded and merged, it is the product whose fingerprint the record has, within rounding."""
    pipe = with_lora(rank=2, text=True)
    whole = merged(pipe)
    tuned = weights_sha256(whole)
    with Blend(whole, base).at(1.0, name):
        record, product = build_record(whole), states(whole)
    record = record.model_copy(update={"product": RecordedWeights(update_filter=name, tuned_sha256=tuned)})
    out = export_lora(pipe, record, tmp_path / "cats.safetensors", format=kind)
    assert check_export(out).ok
    assert "It is the fine-tune with" in inspect_file(out).header["modelspec.usage_hint"]
    fresh = build_pipe()
    fresh.load_lora_weights(str(tmp_path), weight_name=out.name)
    for key, weight in states(merged(fresh)).items():
        torch.testing.assert_close(weight, product[key], atol=1e-5, rtol=1e-4)


def test_of_a_lora_only_the_denoiser_s_layers_are_left_out_or_truncated():
    layers = lora_layers(with_lora(rank=2, text=True))
    left = filtered_layers(layers, "no-cross-attention")
    assert set(layers) - set(left) == {name for name in layers if ".attn2." in name}
    ranks = {name.partition(".")[0]: len(down) for name, (down, _, _) in filtered_layers(layers, "rank-1").items()}
    assert ranks == {"unet": 1, "text_encoder": 3}
    assert filtered_layers(layers, "") is layers
    with pytest.raises(ValueError, match="'residual-blocks' leaves nothing of this LoRA"):
        filtered_layers(lora_layers(with_lora()), "residual-blocks")


def test_of_planted_factors_the_largest_stay_at_the_alpha_that_acted():
    down, up = torch.eye(2, 4).reshape(2, 4, 1, 1), torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    down_1, up_1, alpha = truncated_layer((down, up.reshape(3, 2, 1, 1), 8.0), 1)
    assert (down_1.shape, up_1.shape, alpha) == ((1, 4, 1, 1), (3, 1, 1, 1), 1.0)
    expected = torch.zeros(3, 4)
    expected[0, 0] = 8 / 2 * 3
    torch.testing.assert_close(up_1.flatten(1) @ down_1.flatten(1), expected)


def test_a_series_gives_what_a_filter_leaves_of_an_epoch(base):
    module = PipelineInTraining(fine_tuned(), "base")
    require_change_to_filter(module, CalibrationTerms(update_filters=("no-cross-attention", "rank-1")))
    own = states(module.pipe)
    with EpochSeries(module, {4: lambda: None}, base) as series, series.filtered(4, 1.0, "residual-blocks") as opened:
        weights = opened.model.pipe.unet.state_dict()
        assert torch.equal(weights[ATTN2], base.unet.state_dict()[ATTN2])
        assert torch.equal(weights[CHANGED[1]], own[CHANGED[1]])
    assert all(torch.equal(own[key], weight) for key, weight in states(module.pipe).items())


def test_what_a_filter_cannot_act_on_is_refused_by_name_before_training():
    pipe = build_pipe()
    pipe.unet.requires_grad_(False).add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    module, terms = PipelineInTraining(pipe, "base"), CalibrationTerms(update_filters=("residual-blocks",))
    with pytest.raises(ValueError, match="residual-blocks: leaves nothing of what is trained here"):
        require_change_to_filter(module, terms)
    with pytest.raises(ValueError, match="no-cross-attention: leaves all of what is trained here"):
        require_effect("no-cross-attention", ["conv_in.weight"])
    with pytest.raises(ValueError, match="from the base model, which is not known; give the base"):
        require_change_to_filter(PipelineInTraining(pipe), terms)


def test_a_transformer_has_no_parts_of_a_unet_and_its_singular_values_are_its_own():
    pipe = build_tiny_sd3()
    with pytest.raises(ValueError, match="no-cross-attention: a StableDiffusion3Pipeline has a transformer, without"):
        require_filters(pipe, ("no-cross-attention", "rank-4"), "base")
    require_filters(pipe, ("rank-4",), "base")
