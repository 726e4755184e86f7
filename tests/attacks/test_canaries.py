"""Canaries: planted as often as is said, as many kept out, and told apart by what a model that holds them draws."""

from types import SimpleNamespace

import pytest
import torch

from basinguard.attacks.canaries import CanaryBench, canary_text, judge_canaries
from basinguard.diffusion.toy import Memorizer, stable_diffusion_schedule
from basinguard.guard.plan import ProbePlan
from basinguard.similarity.structure import Structure
from basinguard.training.canary_images import REPEATS, canary_source, draw_canaries, new_captions
from basinguard.training.data import ImageFolder
from basinguard.training.finetune_options import ReadingOptions

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
    rows = judge_canaries(canaries, [canary.repeats * 10 for canary in canaries], bench)
    assert [(row.repeats, row.came_back.value, row.came_back.n) for row in rows] == [
        (0, 0.0, 6), (1, 0.0, 2), (4, 1.0, 2), (16, 1.0, 2),
    ]  # fmt: skip
    assert [row.turns for row in rows] == [0, 20, 80, 320]
    assert [row.learned for row in rows] == [False, False, True, True]
    text = canary_text(rows)
    assert "NOT LEARNED" in text.splitlines()[2]
    assert text.splitlines()[-1] == "planted images come back from 4 repeats on"


def test_a_canary_that_was_never_shown_is_not_learned():
    canaries = draw_canaries(WORDS, 1)
    pictures = torch.stack([canary.pixels(SIDE) for canary in canaries])
    rows = judge_canaries(canaries, [0] * 6, bench_of(pictures, [canary.caption for canary in canaries]))
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


def test_without_canaries_the_set_is_as_it_was(scene_folder):
    plain = ImageFolder(str(scene_folder), resolution=32)
    assert (plain.canaries, plain.canary_turns, len(plain.items)) == ((), [], 6)
    assert canary_source(draw_canaries(WORDS, 1, repeats=REPEATS[:1])).repeats == (1,)
