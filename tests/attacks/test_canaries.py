"""Canaries: planted as often as is said, as many kept out, and told apart by what a model that holds them draws."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer

from basinguard.attacks.canaries import CanaryBench, canary_text, judge_canaries
from basinguard.diffusion.toy import Memorizer, stable_diffusion_schedule
from basinguard.guard.plan import ProbePlan
from basinguard.similarity.structure import Structure
from basinguard.training.canary_images import REPEATS, canary_source, draw_canaries, new_captions
from basinguard.training.canary_steps import CanarySteps
from basinguard.training.data import ImageFolder
from basinguard.training.finetune import FineTune
from basinguard.training.finetune_options import LoraOptions, ReadingOptions

WORDS = ["a red kite over the lake", "a blue boat on the sea", "two old trees by a house"]
SIDE = 16


class Holder:
    """A memorizer of pictures as a model: canaries it holds have a prompt, any other caption is the empty one."""

    latent_shape = (3 * SIDE * SIDE,)
    schedule = stable_diffusion_schedule()

    def __init__(self, pictures, captions):
        self.captions = list(captions)
        self.toy = Memorizer(pictures.flatten(1) * 2 - 1, 1e-3, self.schedule)

    def denoiser(self, prompts):
        row = torch.tensor([self.captions.index(t) if t in self.captions else -1 for t in prompts] + [-1])
        return lambda x, t, p: self.toy(x, t, row[p])

    def encode(self, images):
        return images.flatten(1) * 2 - 1

    def decode(self, latents):
        return (latents.reshape(-1, 3, SIDE, SIDE) / 2 + 0.5).clamp(0, 1)


def bench_of(pictures, captions):
    base = Holder(torch.rand(9, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)), ())
    plan = ProbePlan(captions=1, timesteps=12, scale=2.0)
    return CanaryBench(Holder(pictures, captions), base, Structure(), plan, SIDE)


def test_a_model_gives_back_the_canaries_that_it_holds_and_no_control():
    canaries = draw_canaries(WORDS, 2)
    held = [canary for canary in canaries if canary.repeats >= 4]
    others = torch.rand(8, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    pictures = torch.cat([torch.stack([canary.pixels(SIDE) for canary in held]), others])
    bench = bench_of(pictures, [canary.caption for canary in held])
    turns = [canary.repeats * 10 for canary in canaries]
    rows = judge_canaries(canaries, turns, [min(count, 100 - place) for place, count in enumerate(turns)], bench)
    assert [(row.repeats, row.came_back.value, row.came_back.n) for row in rows] == [
        (0, 0.0, 6), (1, 0.0, 2), (4, 1.0, 2), (16, 1.0, 2),
    ]  # fmt: skip
    assert [row.turns for row in rows] == [0, 20, 80, 320]
    assert [row.steps for row in rows] == [0, 10, 40, 95], "of the one that was in fewest"
    assert [row.learned for row in rows] == [False, False, True, True]
    text = canary_text(rows)
    assert "NOT LEARNED" in text.splitlines()[2]
    assert text.splitlines()[-1] == "planted images come back from 4 repeats on"


def test_a_canary_that_was_never_shown_is_not_learned():
    canaries = draw_canaries(WORDS, 1)
    pictures = torch.stack([canary.pixels(SIDE) for canary in canaries])
    turns = [canary.repeats for canary in canaries]  # so it was set up, but no step had them
    rows = judge_canaries(canaries, turns, [0] * 6, bench_of(pictures, [canary.caption for canary in canaries]))
    assert not any(row.learned for row in rows)


def test_canaries_are_new_captions_of_the_users_own_words():
    canaries = draw_canaries(WORDS, 3)
    captions = [canary.caption for canary in canaries]
    assert len(set(captions)) == len(captions) == 18
    assert not set(captions) & set(WORDS)
    assert {word for caption in captions for word in caption.split()} <= set(" ".join(WORDS).split())
    assert [canary.repeats for canary in canaries] == [1] * 3 + [4] * 3 + [16] * 3 + [0] * 9
    with pytest.raises(ValueError, match=r"2 different words .* make 1 new captions of 3, 6 are needed"):
        new_captions(["red kite"], 6)


def test_they_are_trained_on_as_often_as_is_said_and_are_nobodys_secret(scene_folder):
    folder = ImageFolder(str(scene_folder), resolution=32, batch_size=4, reading=ReadingOptions(canaries=2))
    folder.setup("fit")
    assert (folder.secrets, len(folder.items), len(folder.all_pixels())) == (6, 12, 6)
    assert folder.canary_turns == [1, 1, 4, 4, 16, 16] + [0] * 6
    folder.trainer = SimpleNamespace(current_epoch=0, global_step=0)
    order = folder.train_dataloader().dataset
    drawn = [order[k]["index"] for k in range(len(order))]
    assert [drawn.count(6 + place) for place in range(6)] == [1, 1, 4, 4, 16, 16]
    assert folder.source.open(6).size == draw_canaries([c for _, c in folder.items[:6]], 2)[0].picture.size


def batch(*places):
    return {"index": torch.tensor(places), "caption": [""] * len(places)}


def test_a_canary_is_counted_once_for_each_optimizer_step_that_its_loss_was_in():
    counter, module = CanarySteps(first=10, count=3), SimpleNamespace(row_weights=None)
    steps = [(batch(3, 10, 10), 1), (batch(10), 1), (batch(11, 4), 2), (batch(12, 0), 3)]  # 2 and 3 are accumulated
    counter.on_train_start(SimpleNamespace(global_step=0), module)
    for drawn, after in steps:
        counter.on_train_batch_end(SimpleNamespace(global_step=after), module, None, drawn, 0)
    assert counter.steps.tolist() == [2, 1, 1]
    module.row_weights = torch.tensor([0.0, 1.0])  # a filter leaves the first row out
    counter.on_train_batch_end(SimpleNamespace(global_step=4), module, None, batch(10, 11), 0)
    assert counter.steps.tolist() == [2, 2, 1]
    other = CanarySteps(10, 3)
    other.load_state_dict(counter.state_dict())
    assert other.steps.tolist() == [2, 2, 1]


@pytest.mark.long
def test_a_fit_counts_what_it_was_set_up_to_show(tiny_pipeline_dir, scene_folder, tmp_path):
    images = ImageFolder(str(scene_folder), resolution=32, batch_size=1, reading=ReadingOptions(canaries=1))
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    trainer.fit(FineTune(str(tiny_pipeline_dir), lora=LoraOptions(rank=1)), datamodule=images)
    (counter,) = [callback for callback in trainer.callbacks if isinstance(callback, CanarySteps)]
    assert counter.steps.tolist() == images.canary_turns == [1, 4, 16, 0, 0, 0], "batches of one: a step each turn"


def test_without_canaries_the_set_is_as_it_was(scene_folder):
    plain = ImageFolder(str(scene_folder), resolution=32)
    assert (plain.canaries, plain.canary_turns, len(plain.items)) == ((), [], 6)
    assert canary_source(draw_canaries(WORDS, 1, repeats=REPEATS[:1])).repeats == (1,)
