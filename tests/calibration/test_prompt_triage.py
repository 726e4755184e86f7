import numpy as np
import pytest

from basinguard.calibration.prompt_triage import TriageResult, calibrate_triage


def pairs(rng, prompts, mean):
    return [(prompt, float(rng.lognormal(mean, 0.3))) for prompt in range(prompts) for _ in range(2)]


def test_rates_are_those_of_prompts_that_did_not_choose_the_threshold():
    pulling = [(0, 1.0), (0, 2.0), (1, 0.5), (1, 3.0)]
    harmless = [(0, 9.0), (1, 0.1), (1, 2.0)]
    result = calibrate_triage(pulling, harmless, timestep=999, wanted_miss=0.0)
    assert result.threshold == pytest.approx(1.0)
    assert result.threshold < 1.0
    assert (result.miss.value, result.miss.n) == (0.5, 2)
    assert (result.false_alarm.value, result.false_alarm.n) == (0.5, 2)


def test_separable_prompts_are_told_apart():
    rng = np.random.default_rng(0)
    result = calibrate_triage(pairs(rng, 60, 2.0), pairs(rng, 60, -1.0), timestep=999)
    assert result.false_alarm.value == 0
    assert result.miss.low <= 0.05 <= result.miss.high


def test_a_prompt_that_pulls_now_and_then_is_on_one_side_only():
    pulling = [(prompt, 1.0 + prompt) for prompt in (0, 1, 2, 3)]
    harmless = [(prompt, 0.1) for prompt in (0, 1, 2, 3)] + [(9, 9.0), (10, 9.0)]
    result = calibrate_triage(pulling, harmless, timestep=999, wanted_miss=0.0)
    assert result.false_alarm.n == 3, "prompts 1, 3 and 10; the others chose the threshold"
    assert result.false_alarm.value == pytest.approx(1 / 3)


def test_it_survives_json():
    rng = np.random.default_rng(1)
    result = calibrate_triage(pairs(rng, 8, 2.0), pairs(rng, 8, -1.0), timestep=981)
    assert TriageResult.from_json(result.to_json()) == result


def test_too_few_prompts_are_refused():
    with pytest.raises(ValueError, match="1 harmless prompts"):
        calibrate_triage([(0, 1.0), (1, 1.0)], [(0, 1.0)], timestep=999)
    with pytest.raises(ValueError, match="wanted_miss"):
        calibrate_triage([(0, 1.0), (1, 1.0)], [(0, 1.0), (1, 1.0)], timestep=999, wanted_miss=1.0)
    with pytest.raises(ValueError, match="every harmless prompt is needed"):
        calibrate_triage([(0, 1.0), (1, 1.0), (2, 1.0)], [(0, 1.0), (2, 1.0)], timestep=999)
