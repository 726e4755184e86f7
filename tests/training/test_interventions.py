"""What a run does when it is told to act: who rests, what is drawn, what is left out; and nothing unless asked."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from basinguard.core.report_parts import ImageResult
from basinguard.training.breach_responder import AppliedInterventions, advice, every_rise, memorized
from basinguard.training.data import ImageFolder
from basinguard.training.epoch_order import EpochOrder
from basinguard.training.finetune import FineTune
from basinguard.training.finetune_options import FramingOptions
from basinguard.training.guard_options import BreachResponse, Interventions
from basinguard.training.loss_filters import Both, LargeGap, LowLoss, filtered_mean
from support.guarded_runs import Spy, digest, fit, make_guard, picture_folder
from support.reports import near, report
from support.scripted_probes import BREACH, COPYING, QUIET, scripted

FOUND = {**COPYING, "images": (ImageResult(index=0, width=0.4), ImageResult(index=3, width=0.0)), "probed": (0, 3)}


def several_captions(directory):
    folder = picture_folder(directory)
    for k in range(4):
        (folder / f"{k}.txt").unlink()
    rows = [f'{{"file_name": "{k}.png", "text": ["a ball {k}", "a round ball {k}", "ball {k}"]}}' for k in range(4)]
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def test_a_resting_image_gives_its_turns_to_others_and_the_epoch_stays_as_long():
    order = EpochOrder(6, seed=0)
    plain = list(order)
    order.shares = {2: 0.0, 4: 0.5}
    shown = []
    for epoch in range(400):
        order.set_epoch(epoch)
        shown += [key % 6 for key in order]
    counts = torch.bincount(torch.tensor(shown), minlength=6)
    assert counts.sum() == 6 * 400
    assert counts[2] == 0
    assert 160 < counts[4] < 240, "half of its 400 turns"
    assert counts[[0, 1, 3, 5]].min() > 450
    order.shares = {}
    order.set_epoch(0)
    assert list(order) == plain


def test_when_every_image_rests_none_does():
    order = EpochOrder(3, seed=0)
    plain = list(order)
    order.shares = dict.fromkeys(range(3), 0.0)
    assert list(order) == plain


def test_a_marked_image_gets_its_captions_in_turn_and_others_their_first(tmp_path):
    data = ImageFolder(str(several_captions(tmp_path / "pictures")), resolution=32, batch_size=4)
    data.act_on({}, {1})
    loader = data.train_dataloader()
    texts = {k: set() for k in range(4)}
    for epoch in range(12):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            for index, caption in zip(batch["index"].tolist(), batch["caption"], strict=True):
                texts[index].add(caption)
    assert texts[1] == {"a ball 1", "a round ball 1", "ball 1"}
    assert texts[0] == {"a ball 0"}


def test_images_that_were_not_sampled_rest_when_their_gap_rose_as_much():
    rises = {0: 0.3, 1: 0.5, 2: 0.1, 3: 0.9}
    assert memorized(report(0, **FOUND), rises) == {0, 1}, "3 was sampled and did not copy"
    assert memorized(report(0, **FOUND), {}) == {0}
    assert memorized(report(0), rises) == set()
    assert every_rise({0: 2.0, 1: 3.0}, {0: 1.5}) == {0: 0.5}


def test_a_low_loss_is_left_out_once_its_timestep_is_known():
    rule, times = LowLoss(ratio=2.0, decay=0.8), torch.tensor([10, 10, 990])
    errors = torch.tensor([1.0, 1.0, 0.1])
    assert rule(errors, times, None).tolist() == [1, 1, 1]
    assert rule.means[[0, 19]].tolist() == pytest.approx([0.2 + 0.8 * 0.2, 0.02])
    assert rule(torch.tensor([0.17, 0.19, 0.1]), times, None).tolist() == [0, 1, 1], "half of 0.36 is the bar"


def test_a_large_gap_is_left_out_and_both_rules_must_agree():
    gaps = lambda: torch.tensor([0.01, 0.02, 0.01])  # noqa: E731
    rule = Both([LargeGap(2 / 128), LowLoss()])
    assert rule(torch.ones(3), torch.tensor([1, 1, 1]), gaps).tolist() == [1, 0, 1]
    again = Both([LargeGap(2 / 128), LowLoss()])
    again.load_state_dict(rule.state_dict())
    assert torch.equal(again.filters[1].means, rule.filters[1].means)


def test_where_no_row_counts_the_loss_is_zero_and_has_a_gradient():
    errors = torch.ones(2, requires_grad=True)
    loss = filtered_mean(errors, torch.zeros(2))
    loss.backward()
    assert loss == 0
    assert errors.grad.tolist() == [0, 0]
    assert filtered_mean(torch.tensor([1.0, 3.0, 8.0]), torch.tensor([1.0, 1.0, 0.0])) == 2


def test_the_gap_of_a_row_is_that_of_the_two_branches_in_epsilon(tiny_pipeline_dir, tiny_epsilon_dir):
    for base in (tiny_pipeline_dir, tiny_epsilon_dir):
        model, notes = FineTune(str(base), method="full").eval(), {}
        model.train()

        class Note(LargeGap):
            def __call__(self, errors, timesteps, gaps, notes=notes):
                notes["gaps"] = gaps()
                return torch.ones(len(errors))

        generator = torch.Generator().manual_seed(0)
        latents, noise = (torch.randn(2, 4, 16, 16, generator=generator) for _ in range(2))
        times, schedule = torch.tensor([100, 700]), model.forward_process.schedule
        text_states = model.encode_captions(["a ball", "a box"])
        plain = model.denoising_loss(latents, text_states, noise, times)
        model.filter = Note(1.0)
        assert torch.allclose(model.denoising_loss(latents, text_states, noise, times), plain, rtol=1e-5)
        noisy = schedule.add_noise(latents, noise, times)
        branches = [
            model.unet(noisy, times, **model.encode_captions(texts).texts, return_dict=False)[0].detach()
            for texts in (["a ball", "a box"], ["", ""])
        ]
        signal_power = schedule.alphas_cumprod[times].reshape(-1, 1, 1, 1)
        if schedule.config.prediction_type == "v_prediction":
            branches = [signal_power.sqrt() * v + (1 - signal_power).sqrt() * noisy for v in branches]
        wanted = (branches[0] - branches[1]).flatten(1).square().mean(1).sqrt()
        assert torch.allclose(notes["gaps"], wanted, rtol=1e-3)


@BREACH
def test_acting_at_a_breach_rests_draws_and_slows(tiny_pipeline_dir, tmp_path, monkeypatch):
    folder, spy = several_captions(tmp_path / "pictures"), Spy()
    scripted(monkeypatch, QUIET, FOUND, FOUND, QUIET, QUIET)
    acting = Interventions(rest=0.0, vary_captions=True, learning_rate=0.5)
    guard = make_guard(respond=BreachResponse("act", interventions=acting), plan={"alpha": 0.15})
    trainer, _ = fit(tiny_pipeline_dir, folder, tmp_path, spy, guard, epochs=4)
    shown = [[index for batch in spy.batches[2 * e : 2 * e + 2] for index in batch[0]] for e in range(4)]
    assert [0 in epoch for epoch in shown] == [True, False, False, True], "it rests until it is no longer found"
    assert [len(epoch) for epoch in shown] == [4] * 4
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3 / 4)


def test_acting_changes_nothing_until_there_is_a_breach(tiny_pipeline_dir, tmp_path, monkeypatch):
    folder, bare, calm = several_captions(tmp_path / "pictures"), Spy(), Spy()
    fit(tiny_pipeline_dir, folder, tmp_path, bare)
    scripted(monkeypatch, QUIET, QUIET, QUIET)
    acting = Interventions(rest=0.0, vary_captions=True, learning_rate=0.5, low_loss=2.0, filters_from="breach")
    fit(tiny_pipeline_dir, folder, tmp_path, calm, make_guard(respond=BreachResponse("act", interventions=acting)))
    assert (calm.batches, calm.losses) == (bare.batches, bare.losses)
    weights = [spy.end["weights"] for spy in (bare, calm)]
    assert weights[0] == weights[1]


@pytest.mark.long  # reliability/test_resume.py has it without acting
@BREACH
def test_a_resumed_run_goes_on_acting_as_an_uninterrupted_one(tiny_pipeline_dir, tmp_path, monkeypatch):
    folder = several_captions(tmp_path / "pictures")
    plan = [QUIET, FOUND, FOUND, FOUND]
    acting = Interventions(rest=0.25, vary_captions=True, learning_rate=0.5, low_loss=1.5)

    def run(*callbacks, **options):
        scripted(monkeypatch, *plan)
        guard = make_guard(respond=BreachResponse("act", interventions=acting), plan={"alpha": 0.15})
        _, module = fit(tiny_pipeline_dir, folder, tmp_path, guard, *callbacks, **options)
        return digest(dict(module.named_parameters()))

    keep = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=1, save_top_k=-1, filename="{step}")
    whole = run(keep, epochs=3)
    for step in (2, 3):
        assert run(epochs=3, ckpt=tmp_path / "kept" / f"step={step}.ckpt") == whole


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "nothing to do"),
        ({"rest": 1.0}, r"expected rest in \[0, 1\)"),
        ({"learning_rate": 2.0}, r"learning_rate in \(0, 1\)"),
        ({"low_loss": 0.5}, "low_loss above 1"),
        ({"large_gap": 0.0}, "large_gap above 0"),
    ],
)
def test_options_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Interventions(**settings)


def test_what_cannot_be_done_is_said_before_training(tiny_pipeline_dir, tmp_path):
    folder = picture_folder(tmp_path / "pictures")
    model = FineTune(str(tiny_pipeline_dir))
    with pytest.raises(ValueError, match="no image has a second caption"):
        AppliedInterventions(Interventions(vary_captions=True), model, ImageFolder(str(folder), resolution=32))
    with pytest.raises(ValueError, match="rest and buckets do not go together"):
        AppliedInterventions(
            Interventions(rest=0.0),
            model,
            ImageFolder(str(folder), resolution=32, framing=FramingOptions(buckets=True)),
        )
    with pytest.raises(ValueError, match="has no `filter`"):
        AppliedInterventions(Interventions(low_loss=2.0), torch.nn.Identity(), ImageFolder(str(folder), resolution=32))


def test_advice_names_what_this_run_can_no_longer_change():
    assert advice({"method": "lora", "lora": {"rank": 16, "dropout": 0.0}}) == (
        "next time: rank 16 could be 4 and dropout could be 0.1"
    )
    assert advice({"method": "lora", "lora": {"rank": 4, "dropout": 0.1}}) == ""
    assert "LoRA of low rank" in advice({"method": "full"})
    rarely, uniform = ({"method": "full", "loss": {"high_noise": share}} for share in (0.25, 1.0))
    assert "high_noise" not in advice(rarely)
    assert advice(uniform).startswith("next time: loss.high_noise could be 0.25 and a LoRA")


def test_an_alarm_that_is_up_is_no_reason_to_act(tiny_pipeline_dir, tmp_path, monkeypatch):
    forming = {"gap_excess": near(0.01, 0.005)}
    scripted(monkeypatch, QUIET, forming, forming)
    guard = make_guard(respond=BreachResponse("act", interventions=Interventions(learning_rate=0.5)))
    trainer, _ = fit(tiny_pipeline_dir, picture_folder(tmp_path / "pictures"), tmp_path, guard)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 1e-3
