"""Records and reports with nothing in them but what a test is about."""

from basinguard.core.estimate import Estimate
from basinguard.core.metric import Metric
from basinguard.core.record import Guidance, Record, Sampler
from basinguard.core.report import Report
from basinguard.core.report_parts import Basin, Exit

SOME = Estimate(value=0.5, low=0.1, high=0.9, level=0.95, n=4, method="made up")


def report_with(*, epoch: int, exits: list[Exit], probed: tuple[int, ...]) -> Report:
    return Report.missed(epoch, 1, "").model_copy(update={"basin": Basin(exits=tuple(exits)), "probed": probed})


def record_with(history: tuple[Report, ...]) -> Record:
    return Record(
        guidance=Guidance(transition=500.0, sigma=1.0, before=0.0),
        risk=SOME,
        plain=SOME,
        alpha=0.1,
        delta=0.05,
        promise="",
        population="",
        metric=Metric(embedder="made-up", threshold=0.5, source="made up"),
        sampler=Sampler(scheduler="DDIM", timesteps=8, prediction_type="epsilon", resolution=64, scale=3.0),
        seeds=(0,),
        base="tinyworld",
        weights_sha256="0" * 64,
        dataset_sha256="0" * 64,
        versions={},
        history=history,
    )
