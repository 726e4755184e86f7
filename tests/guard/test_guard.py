"""What a report says, on the closed-form memorizer dressed as an image model that can encode."""

import json

import pytest
import torch

from basinguard.core.pooled_risk import pooled_risk
from basinguard.core.report import Basin, Report
from basinguard.diffusion.noise_schedule import FlowSchedule, to_epsilon
from basinguard.diffusion.toy import Memorizer
from basinguard.guard import guard as guard_module
from basinguard.guard.checkpoint_selection import choose_checkpoint
from basinguard.guard.plan import ProbePlan
from basinguard.guard.training_set import TrainingSet
from basinguard.guard.verdict import LEVELS, verdict_on
from support.toy_guard import STRONG, WEAK, Points, make_guard


def untimed(report):
    return report.model_copy(update={"seconds": 0.0})


def test_a_report_counts_what_the_model_evaluated_but_for_padding():
    model = Points()
    report = make_guard(chunk=1).measure(model, epoch=-1, train_step=0)
    assert report.unet_evals == model.evals, "with chunks of 1 nothing is padded"


def test_early_decisions_and_chunks_change_no_report():
    class Blind(Points):
        encode = property()  # no encoder: nothing is decided early

    def without_cost(report):
        return report.model_copy(update={"seconds": 0.0, "unet_evals": 0})

    reports = [make_guard().measure(model, epoch=0, train_step=1) for model in (Points(), Blind())]
    assert without_cost(reports[0]) == without_cost(reports[1])
    small = make_guard(chunk=3).measure(Points(), epoch=0, train_step=1)
    assert [e.timestep for e in small.basin.exits] == [e.timestep for e in reports[0].basin.exits]


def test_what_the_samples_say_is_known_before_exits_are_searched_for():
    guard, early = make_guard(), []
    report = guard.measure(Points(), epoch=0, train_step=1, early=early.append)
    (first,) = early
    assert report.basin.exits
    assert (first.samples, first.gaps, first.heldout) == (report.samples, report.gaps, report.heldout)
    assert first.basin == Basin()
    assert first.unet_evals < report.unet_evals
    assert guard.history == [report]


@pytest.mark.parametrize("solver", [pytest.param("heun", marks=pytest.mark.long), "pndm"])
def test_memory_that_runs_out_halves_the_batches_and_changes_no_report(solver):
    class Small(Points):
        def denoiser(self, prompts):
            denoise = super().denoiser(prompts)

            def within(x, t, p):
                if len(x) > 5:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return denoise(x, t, p)

            return within

    plan = {"solver": solver, "critical_scales": 2, "order_checks": 1, "captions": 2, "seeds": 2, "timesteps": 8}
    whole = make_guard(**plan).measure(Points(), epoch=0, train_step=1)
    with pytest.warns(UserWarning, match="exhausted the memory; going on with"):
        halved = make_guard(**plan).measure(Small(), epoch=0, train_step=1)
    assert halved.basin.exits == whole.basin.exits
    assert halved.samples.risk == whole.samples.risk
    for name in ("gap", "sigma_c", "similarity_p95"):  # batches of another size round differently
        assert halved.estimates[name].value == pytest.approx(whole.estimates[name].value, rel=1e-4)


@pytest.mark.parametrize(
    "kind",
    ["epsilon", "flow_prediction", *(pytest.param(k, marks=pytest.mark.long) for k in ("v_prediction", "sample"))],
)
def test_a_report_does_not_depend_on_what_the_network_predicts(kind):
    """The same model trained to predict noise, velocity or image, under its own noise schedule."""
    schedule = FlowSchedule() if kind == "flow_prediction" else STRONG.schedule

    class Predicts(Points):
        def denoiser(self, prompts):
            exact = super().denoiser(prompts)

            def denoise(x, t, p):
                a, s = (schedule.signal(t).float()[:, None], schedule.noise(t).float()[:, None])
                eps = exact(x, t, p)
                clean = (x - s * eps) / a
                said = {"v_prediction": a * eps - s * clean, "sample": clean, "flow_prediction": eps - clean}
                return to_epsilon(kind, said.get(kind, eps), x, a[:, 0], s[:, 0])

            return denoise

    toy = Memorizer(STRONG.points, STRONG.leak, schedule)
    predicted, exact = (make_guard().measure(model(toy), epoch=0, train_step=1) for model in (Predicts, Points))
    assert [e.timestep for e in predicted.basin.exits] == [e.timestep for e in exact.basin.exits]
    assert any(e.timestep is not None for e in predicted.basin.exits)
    assert predicted.gaps.train.value == pytest.approx(exact.gaps.train.value, rel=1e-3)


def test_zero_seeds_and_what_is_not_finite_measure_nothing():
    class Broken(Points):
        def denoiser(self, prompts):
            denoise = super().denoiser(prompts)
            return lambda x, t, p: denoise(x, t, p) * float("nan")

    guard = make_guard()
    with pytest.raises(FloatingPointError, match="not finite; nothing can be measured"):
        guard.measure(Broken(), epoch=0, train_step=1)
    assert guard.history == []
    with pytest.raises(ValueError, match=r"ProbePlan\(seeds=0\): expected at least 1"):
        make_guard(seeds=0)


def test_training_moves_every_measure_away_from_the_base():
    guard = make_guard(critical_scales=4)
    guard.measure(Points(WEAK), epoch=-1, train_step=0)
    report = guard.measure(Points(STRONG), epoch=0, train_step=10)
    assert report.basin.width.value > guard.history[0].basin.width.value
    assert report.basin.log_width.value > guard.history[0].basin.log_width.value
    assert report.gaps.since_base.value > 0
    assert report.critical_scales.since_base.low > 0
    assert report.critical_scales.sigma_c.value > report.critical_scales.sigma_c_uncond.value
    assert report.critical_scales.caption_effect.value > 0
    assert report.gaps.auc is not None
    assert guard.history[0].gaps.since_base.value == 0, "the base is its own null"


def test_images_are_ranked_and_numbered_as_in_the_training_set():
    guard = make_guard(critical_scales=2)
    guard.measure(Points(WEAK), epoch=-1, train_step=0)
    report = guard.measure(Points(STRONG), epoch=0, train_step=10)
    assert sorted(image.index for image in report.images) == [0, 1, 2, 3]
    rises = [image.gap_since_base for image in report.images]
    assert rises == sorted(rises, reverse=True)
    assert {image.index for image in report.images if image.sigma_c is not None} == {0, 3}
    by_hand = {k: [e.width for e in report.basin.exits if e.caption == k] for k in range(4)}
    for image in report.images:
        assert image.width == pytest.approx(sum(by_hand[image.index]) / 4)


def test_duplicates_and_held_out_captions_are_groups_of_their_own():
    guard = make_guard(("point 0", "point 1", "point 2", "point 0"))
    groups = {g.name: g for g in guard.measure(Points(), epoch=0, train_step=1).groups}
    assert groups["duplicated"].captions == 1, "two images, each sampled, of one caption"
    assert groups["duplicated"].risk.n == groups["unique"].risk.n == 2 * 4
    assert groups["unique"].captions == 2
    assert groups["heldout"].captions == 2
    assert groups["heldout"].risk.value < groups["unique"].risk.value
    assert groups["heldout"].width.value < groups["unique"].width.value


def test_a_held_out_caption_that_falls_into_a_training_image_has_a_width():
    class Treacherous(Points):
        def denoiser(self, prompts):
            return super().denoiser([p.replace("point 60", "point 0") for p in prompts])

    report = make_guard().measure(Treacherous(), epoch=0, train_step=1)
    held = next(g for g in report.groups if g.name == "heldout")
    assert held.risk.value == 0.5
    assert held.width.value > 0.1


def test_an_unconditional_branch_that_memorizes_is_named():
    report = make_guard().measure(Points(empty=0), epoch=0, train_step=1)
    assert report.basin.risk_uncond.value == 1
    assert "guidance at scale 0" in report.note
    assert "keep_unconditional" in report.note
    assert make_guard().measure(Points(), epoch=0, train_step=1).note == ""


def test_a_budget_of_evaluations_is_kept_and_rotates_captions():
    guard = make_guard(tuple(f"point {k}" for k in range(16)), captions=16, seeds=2, budget=700)
    base = guard.measure(Points(WEAK), epoch=-1, train_step=0)
    assert len(base.probed) == 16
    reports = [guard.measure(Points(), epoch=k, train_step=k) for k in range(8)]
    assert all(report.unet_evals <= 700 for report in reports), [r.unet_evals for r in reports]
    assert all("16 of 16 captions" in report.precision for report in reports)
    assert {i for report in reports for i in report.probed} == set(range(16)), "every caption had its turn"


def test_a_caption_keeps_its_noise_whatever_is_measured_beside_it():
    """The base model's probe included, which samples all captions."""
    guard = make_guard(tuple(f"point {k}" for k in range(16)), captions=16, seeds=2, budget=2000)
    reports = [guard.measure(Points(), epoch=k, train_step=k) for k in range(-1, 4)]
    base_pairs = {(e.caption, e.seed) for e in reports[0].basin.exits}
    assert all((r.probed[e.caption], e.seed) in base_pairs for r in reports for e in r.basin.exits)
    assert all("exits within 50 timesteps" in r.precision for r in reports[1:])
    exit_timesteps: dict[int, set] = {}
    for report in reports:
        for pair_exit in report.basin.exits:
            exit_timesteps.setdefault((report.probed[pair_exit.caption], pair_exit.seed), set()).add(pair_exit.timestep)
    assert all(len(values) == 1 for values in exit_timesteps.values()), (
        "the same model, caption and seed gave two exits"
    )


class Clock:
    """Time that passes only where it is told to: while training, and for each row of the network."""

    def __init__(self, monkeypatch, per_row=0.01):
        self.now, self.per_row = 0.0, per_row
        monkeypatch.setattr(guard_module.time, "monotonic", lambda: self.now)

    def model(self, toy=STRONG):
        clock = self

        class Slow(Points):
            def denoiser(self, prompts):
                denoise = super().denoiser(prompts)

                def timed(x, t, p):
                    clock.now += clock.per_row * len(x)
                    return denoise(x, t, p)

                return timed

        return Slow(toy)

    def probe(self, guard, epoch, training=0.0, team=None):
        """The report after so many seconds of training, and the seconds it took."""
        self.now += training
        begin = self.now
        return guard.measure(self.model(), epoch=epoch, train_step=epoch, team=team), self.now - begin


class Others:
    """Processes that measure together and never fail."""

    def __init__(self, least):
        self.least = least

    def meet(self):
        pass


SIXTEEN = tuple(f"point {k}" for k in range(16))


@pytest.mark.parametrize(("training", "kind"), [(0.5, "nothing"), (15.0, "gap"), (100.0, "samples"), (600.0, "exits")])
def test_every_probe_stays_within_its_own_share(monkeypatch, training, kind):
    """What 5 % of a short, a usual and a long span pay for, at 100 rows a second; savings are not kept."""
    clock, guard = Clock(monkeypatch), make_guard(SIXTEEN, captions=16, seeds=2, budget="5%")
    clock.probe(guard, -1)
    probes = [clock.probe(guard, epoch, training) for epoch in range(3 if kind == "exits" else 8)]
    assert all(seconds <= 0.05 * training for _, seconds in probes)
    reports = [report for report, _ in probes]
    if kind == "nothing":
        assert reports == [None] * len(probes)
        return
    assert all(report.gaps.since_base is not None and "gap of 16 of 16" in report.precision for report in reports)
    assert [report.samples.risk is not None for report in reports] == [kind != "gap"] * len(probes)
    assert [report.searched for report in reports] == [kind == "exits"] * len(probes)
    assert {i for report in reports for i in report.probed} == (set() if kind == "gap" else set(range(16)))


def test_samples_of_a_budget_are_pooled_and_a_breach_is_seen_from_few(monkeypatch):
    """2.4 seconds a probe pay for the gap and samples alone; one model always copies, the other draws nothing."""
    clock, guard = Clock(monkeypatch), make_guard(SIXTEEN, captions=16, seeds=2, budget="5%")
    harmless = clock.model()
    harmless.decode = lambda latents: torch.full((len(latents), 3, 2, 2), 9.0)
    base = guard.measure(harmless, epoch=-1, train_step=0)
    clock.now += 60.0
    safe = guard.measure(harmless, epoch=0, train_step=1)
    clock.now += 60.0
    copying = guard.measure(clock.model(), epoch=1, train_step=2)
    assert base.samples.risk_alone is None
    assert (safe.samples.risk.value < 0.05, safe.samples.risk_alone.value) == (True, 0.0)
    assert safe.samples.risk.high < 0.7 * safe.samples.risk_alone.high, "the base model's samples count"
    assert copying.samples.risk.value > 0.5
    few = len(copying.probed)
    assert 0 < few < 8
    assert copying.samples.risk.n == len(safe.probed) + few
    assert "risk within" in copying.precision.split("; ")[-1]
    again = pooled_risk([(0, 16), (0, len(safe.probed)), (few, few)])
    assert copying.samples.risk == again
    assert safe.samples.risk.high <= 0.3 < safe.samples.risk_alone.high
    assert not choose_checkpoint([base, safe], 0.3, "plain").proven, "by the model of pooling alone"
    assert verdict_on([base, safe], 0.1).state == "safe", "a pooled value above 0 is no copy"
    assert verdict_on([base, safe, copying], 0.1).level == LEVELS["memorizing"]


def test_fewer_timesteps_buy_more_samples_where_no_exit_is_searched(monkeypatch):
    probed = {}
    for fewer in (None, 10):
        clock = Clock(monkeypatch)
        guard = make_guard(SIXTEEN, captions=16, seeds=2, budget="5%", budget_timesteps=fewer)
        clock.probe(guard, -1)
        report, seconds = clock.probe(guard, 0, 60.0)
        assert seconds <= 3.0
        probed[fewer] = len(report.probed)
    assert probed[10] == 2 * probed[None] > 0
    assert "with 10 timesteps" in report.precision
    with pytest.raises(ValueError, match=r"budget_timesteps=21.*expected None or 1 to 20"):
        ProbePlan(timesteps=20, budget_timesteps=21)


def test_gaps_without_their_control_raise_no_alarm():
    guard = make_guard(SIXTEEN, captions=16, seeds=2, budget=5)
    guard.measure(Points(WEAK), epoch=-1, train_step=0)
    report = guard.measure(Points(), epoch=0, train_step=1)
    assert report.gaps.since_base.value > 0
    assert report.gaps.heldout is None
    assert report.gaps.excess is None
    assert "of no held-out prompts" in report.precision


def test_a_probe_that_took_too_long_is_paid_back(monkeypatch):
    clock, guard = Clock(monkeypatch), make_guard(SIXTEEN, captions=16, seeds=2, budget="5%")
    clock.probe(guard, -1)
    clock.per_row = 0.04
    _, dear = clock.probe(guard, 0, 100.0)
    assert dear > 5.0
    paid = [clock.probe(guard, epoch, 100.0)[1] for epoch in range(1, 8)]
    assert max(paid) <= 5.0
    assert dear + sum(paid) <= 0.05 * 800


def test_a_busy_machine_does_not_price_samples_out_for_ever(monkeypatch):
    clock, guard = Clock(monkeypatch, per_row=0.08), make_guard(SIXTEEN, captions=16, seeds=2, budget="5%")
    clock.probe(guard, -1)
    busy, _ = clock.probe(guard, 0, 100.0)
    assert busy.samples.risk is None
    clock.per_row = 0.01
    clock.probe(guard, 1, 100.0)
    idle, seconds = clock.probe(guard, 2, 100.0)
    assert idle.samples.risk is not None
    assert seconds <= 5.0


def test_pictures_are_paid_from_what_is_left(monkeypatch):
    clock, guard = Clock(monkeypatch), make_guard(SIXTEEN, captions=16, seeds=2, budget="5%")
    clock.probe(guard, -1)
    assert guard.affords("curves"), "the base model's are free"
    with guard.charged("curves"):
        clock.now += 3.0
    clock.probe(guard, 0, 20.0)
    assert not guard.affords("curves")
    clock.probe(guard, 1, 600.0)
    assert guard.affords("curves")
    before = guard.spending.account.balance
    with guard.charged("curves"):
        clock.now += 2.0
    assert guard.spending.account.balance == pytest.approx(before - 2.0)
    assert guard.spending.account.prices["curves"] == pytest.approx(2.0)


def test_processes_buy_what_the_poorest_and_slowest_of_them_can_pay(monkeypatch):
    """Every number that decides goes through the team: the others' allowance is less, their prices are higher."""

    def bought(agree):
        clock, guard = Clock(monkeypatch), make_guard(captions=4, seeds=1, budget="5%")
        clock.probe(guard, -1)
        return clock.probe(guard, 0, 30.0, team=Others(agree))[0].precision

    asked = []
    alone = bought(int)
    assert bought(lambda number: asked.append(number) or number) == alone
    assert len(asked) == 6, "one allowance and five prices, in every process"
    poorest = bought(lambda number: number // 2 if number > 0 else number)
    assert poorest == bought(lambda number: number if number > 0 else number * 2) != alone


@pytest.mark.long  # reliability/test_resume.py has it
def test_a_resumed_guard_compares_with_the_same_base():
    whole = make_guard(critical_scales=2)
    whole.measure(Points(WEAK), epoch=-1, train_step=0)
    resumed = make_guard(critical_scales=2)
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    a, b = (g.measure(Points(), epoch=0, train_step=1) for g in (whole, resumed))
    assert untimed(a) == untimed(b)
    assert Report.from_json(a.to_json()) == a


def test_images_smaller_than_the_models_are_refused():
    class Large(Points):
        resolution = 64

    with pytest.raises(ValueError, match="2x2 pixels for a model that draws 64x64"):
        make_guard().measure(Large(), epoch=0, train_step=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"budget": 0.1}, "share of the training time"),
        ({"alpha": 1.0}, "in \\(0, 1\\)"),
        ({"solver": "euler_a"}, "expected one of ddim"),
        ({"critical_scales": -1}, "0 or more"),
        ({"seeds": 0}, "at least 1"),
    ],
)
def test_plans_that_cannot_be_followed_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        ProbePlan(**wrong)


def test_held_out_images_need_their_prompts():
    with pytest.raises(ValueError, match="need one prompt an image"):
        TrainingSet(torch.zeros(1, 3, 2, 2), ("a",), ("b", "c"), torch.zeros(1, 3, 2, 2))


def test_held_out_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="training images are 3 x 2 x 2 and held-out images 3 x 4 x 4"):
        TrainingSet(torch.zeros(1, 3, 2, 2), ("a",), ("b",), torch.zeros(1, 3, 4, 4))
