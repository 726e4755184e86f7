"""What cannot be sampled is refused wherever it can be asked for."""

import pytest

from basinguard.diffusion.sampling_options import SamplingOptions
from basinguard.guard.plan import ProbePlan
from basinguard.mitigations.settings import ComparisonOptions
from basinguard.pipelines.session_settings import SessionSettings


@pytest.mark.parametrize("kind", [SamplingOptions, ProbePlan, SessionSettings, ComparisonOptions])
def test_no_guidance_and_no_step_are_refused(kind):
    for scale in (1.0, -2.0, float("nan")):
        with pytest.raises(ValueError, match=r"plain CFG is above 1; 7\.5 is usual"):
            kind(scale=scale)
    with pytest.raises(ValueError, match="timesteps=0: expected at least 1 sampling step"):
        kind(timesteps=0)
    assert (kind(timesteps=1).timesteps, kind(scale=1.5).scale) == (1, 1.5)
