"""Triage on a pipeline: calibrated by sampling it, kept in the record, honoured only when asked for."""

import pytest
import torch

from basinguard.calibration.prompt_triage import calibrate_triage
from basinguard.core.record import TriageResult
from basinguard.diffusion.sampling_options import SamplingOptions
from basinguard.guidance.core import Constant, SwitchAt
from basinguard.guidance.triage import Triage
from basinguard.pipelines.protect import is_protected, last_trace, load, protect, rule_of
from basinguard.pipelines.triage_sampling import calibrate_by_sampling, first_gap
from support import tiny_pipelines as tiny

PROMPTS = ["red circle", "blue square"]
TEXTS = ["red", "blue", "circle", "square", "photo", "red circle", "blue square", "a photo"]


def sample(pipe, **options):
    noise = torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))] * 2)
    return pipe(PROMPTS, latents=noise, output_type="latent", **{"num_inference_steps": 10} | options).images


@pytest.fixture(scope="module")
def pipe():
    return tiny.pipeline()


@pytest.fixture(scope="module")
def record(pipe):
    """Its threshold lies between the gaps of the two prompts, so that one of them counts as harmless."""
    sample(protect(pipe, Constant(7.5)))
    first = last_trace(pipe)[0]
    low, high = sorted(first.gap.tolist())
    some = tiny.make_record().risk
    triage = TriageResult(
        threshold=(low + high) / 2, timestep=first.timestep, false_alarm=some, miss=some, wanted_miss=0.05
    )
    return tiny.make_record().model_copy(update={"triage": triage})


def test_one_run_of_plain_cfg_gives_the_gap_and_the_outcome(pipe):
    copied = [k % 4 < 2 for k in range(len(TEXTS)) for _ in range(3)]
    sizes = []

    def is_copy(images):
        assert images.shape[1:] == (3, 16, 16)
        sizes.append(len(images))
        return torch.tensor(copied)

    sampling = SamplingOptions(timesteps=4, scale=3.0)
    result = calibrate_by_sampling(pipe, TEXTS, is_copy, sampling, per_prompt=3, wanted_miss=0.3, first_seed=50)
    assert (sizes, is_protected(pipe)) == ([24], False)
    single = [first_gap(pipe, [TEXTS[row // 3]], 50 + row, sampling) for row in range(24)]
    pulling = [(row // 3, gap) for row, (_, (gap,)) in enumerate(single) if copied[row]]
    harmless = [(row // 3, gap) for row, (_, (gap,)) in enumerate(single) if not copied[row]]
    expected = calibrate_triage(pulling, harmless, timestep=single[0][0], wanted_miss=0.3)
    assert result.threshold == pytest.approx(expected.threshold, rel=1e-4)
    assert (result.timestep, result.miss.value) == (expected.timestep, expected.miss.value)
    assert result.false_alarm.value == expected.false_alarm.value


def test_a_record_honours_its_triage_only_when_asked(pipe, record):
    sample(protect(pipe, record))
    assert {tuple(o.scale.tolist()) for o in last_trace(pipe)} == {(-2.0, -2.0), (7.5, 7.5)}
    sample(protect(pipe, record, triage=True))
    assert rule_of(pipe) == Triage(SwitchAt(600, -2.0, None), record.triage.threshold, None, record.triage.timestep)
    assert {tuple(sorted(o.scale.tolist())) for o in last_trace(pipe)} == {(-2.0, 7.5), (7.5, 7.5)}


def test_load_takes_triage_from_the_file(pipe, record, tmp_path):
    pipe.save_pretrained(tmp_path)
    (tmp_path / "basinguard.json").write_text(record.to_json())
    assert rule_of(load(tmp_path)) == SwitchAt(600, -2.0, None)
    assert rule_of(load(tmp_path, triage=True)) == rule_of(protect(pipe, record, triage=True))


def test_a_record_without_triage_cannot_be_asked_for_it(pipe):
    with pytest.raises(ValueError, match="needs a record with a calibrated triage"):
        protect(pipe, tiny.make_record(), triage=True)
    with pytest.raises(ValueError, match="needs a record"):
        protect(pipe, SwitchAt(600), triage=True)


def test_a_first_gap_at_another_noise_level_is_refused(pipe, record):
    with pytest.raises(ValueError, match="calibrated at timestep 901, this sampler shows its first gap at 751"):
        sample(protect(pipe, record, triage=True), num_inference_steps=4)
    assert not pipe.unet._forward_hooks


def test_the_first_gap_costs_one_evaluation():
    pipe, sizes = tiny.pipeline(), []
    pipe.unet.conv_in.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    timestep, gaps = first_gap(pipe, PROMPTS, sampling=SamplingOptions(timesteps=10))
    assert (timestep, sizes) == (901.0, [4])
    assert len(gaps) == 2
    assert min(gaps) > 0
    assert not is_protected(pipe)
    protect(pipe, SwitchAt(600, 0.0, None))
    assert first_gap(pipe, PROMPTS, sampling=SamplingOptions(timesteps=10)) == (timestep, gaps)
    assert is_protected(pipe)
