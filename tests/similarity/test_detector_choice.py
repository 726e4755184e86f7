import pytest
import torch

from basinguard.core.images import to_tensor
from basinguard.core.metric import Metric
from basinguard.similarity.aligned import Aligned
from basinguard.similarity.copy_detector_settings import RECORDED, CopyDetectorSettings
from basinguard.similarity.detector_choice import ModelEdits, choose_detector, installed_embedders
from basinguard.similarity.detector_loading import fitted_embedder, load_detector, load_recorded
from basinguard.similarity.either import Either
from basinguard.similarity.embedder import WithThreshold, unit
from basinguard.similarity.matching import search
from basinguard.similarity.registry import find_embedder
from basinguard.similarity.sampler_edits import PIXEL_EDITS, apply
from basinguard.similarity.structure import Structure
from basinguard.tinyworld.scenes import all_captions, draw_scene


class Blind:
    """Sees nothing but a number of its own for each image: finds no copy."""

    name = "blind"
    metric = Metric(embedder="blind", threshold=1.0, source="none")

    def __call__(self, images):
        seeds = (images.flatten(1).double().sum(1) * 1e6).long() % 2**31
        draws = [torch.randn(16, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds]
        return unit(torch.stack(draws))


def at(embedder, threshold):
    return WithThreshold(embedder, Metric(embedder=embedder.name, threshold=threshold, source="given"))


@pytest.fixture(scope="module")
def scenes():
    return torch.stack([to_tensor(draw_scene(caption, 700 + k)) for k, caption in enumerate(all_captions()[:20])])


def test_the_embedder_that_finds_copies_is_taken_and_says_what_it_misses(scenes):
    chosen, rows = choose_detector(scenes, embedders=[Blind(), Aligned()])
    assert chosen.name == Aligned().name
    assert set(chosen.metric.recalls) == set(PIXEL_EDITS)
    assert chosen.metric.source.startswith("auto: finds most of 20 edited training images; 0.01 of strangers allowed")
    assert rows[0].recall > 0.8
    assert "misses" in chosen.metric.expected_misses
    assert Metric.from_json(chosen.metric.to_json()) == chosen.metric


class Counting(Structure):
    """Counts how often it is asked."""

    asked = 0

    def __call__(self, images):
        Counting.asked += 1
        return super().__call__(images)


def test_a_choice_is_kept_by_content_and_another_model_or_a_damaged_file_makes_it_anew(scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("BASINGUARD_CACHE", str(tmp_path))
    few, embedders = scenes[:8], [Aligned(), Counting()]
    own = {"half": lambda x: x * 0.5 + 0.25}
    first, rows = choose_detector(few, embedders=embedders, model_edits=ModelEdits(own, "a model"))
    asked = Counting.asked
    again, cached_rows = choose_detector(few, embedders=embedders, model_edits=ModelEdits(own, "a model"))
    assert Counting.asked == asked
    assert (again.metric, [str(row) for row in cached_rows]) == (first.metric, [str(row) for row in rows])
    torch.testing.assert_close(again(few), first(few))
    (file,) = tmp_path.rglob("*.json")
    for model in ("a model", "another model"):
        asked = Counting.asked
        file.write_text("{")
        choose_detector(few, embedders=embedders, model_edits=ModelEdits(own, model))
        assert Counting.asked > asked
    assert len(list(tmp_path.rglob("*.json"))) == 2


def test_edits_of_the_model_count_as_well(scenes):
    chosen, _ = choose_detector(
        scenes, embedders=[Aligned()], model_edits=ModelEdits({"half": lambda x: x * 0.5 + 0.25}, "m")
    )
    assert chosen.metric.recalls["half"].n == 20
    assert chosen.metric.recalls["half"].value == 1


def test_images_on_which_no_embedder_separates_are_refused_in_one_line(scenes):
    with pytest.raises(ValueError, match=r"no detector at hand separates.*install basinguard\[sscd\]") as problem:
        choose_detector(scenes, embedders=[Blind()])
    assert "\n" not in str(problem.value)
    with pytest.raises(ValueError, match="with 3 training images: 4 are the least"):
        choose_detector(scenes[:3])


@pytest.mark.long  # test_thresholds.py has it of neighbours
def test_duplicates_are_no_strangers(scenes):
    alone = choose_detector(scenes, embedders=[Aligned()])[0].metric.threshold
    twice = choose_detector(torch.cat([scenes, scenes[:4]]), embedders=[Aligned()])[0].metric.threshold
    assert twice == pytest.approx(alone, abs=0.02)


def test_either_calls_a_copy_what_one_of_the_two_calls_a_copy(scenes):
    pair = Either(at(Aligned(), 0.8), at(Structure(), 0.7))
    copies = apply(PIXEL_EDITS["shift 4 %"], scenes)
    joint = search(pair(copies), pair(scenes), pair)[0][:, 0] >= pair.metric.threshold
    one = search(Aligned()(copies), Aligned()(scenes), Aligned())[0][:, 0] >= 0.8
    two = search(Structure()(copies), Structure()(scenes))[0][:, 0] >= 0.7
    assert torch.equal(joint, one | two)
    assert float(search(pair(scenes), pair(scenes), pair)[0].min()) == pytest.approx(1, abs=1e-3)
    with pytest.raises(ValueError, match="blind has no threshold"):
        Either(Aligned(), Blind())


def test_a_pair_is_found_again_by_its_name(scenes):
    pair = Either(at(Aligned(), 0.8123456789), at(Structure(), 0.7))
    again = find_embedder(pair.name)
    assert again.name == pair.name
    torch.testing.assert_close(again(scenes), pair(scenes))
    assert load_recorded(RECORDED, pair.metric).metric == pair.metric


def test_auto_is_an_embedder_of_the_settings(scenes):
    auto = CopyDetectorSettings("auto")
    assert load_detector(auto).name == installed_embedders()[0].name
    assert fitted_embedder(auto, load_detector(auto), scenes, None).metric.source.startswith("auto: ")
    with pytest.raises(ValueError, match="embedder='auto' sets the threshold itself"):
        CopyDetectorSettings("auto", 0.8)
