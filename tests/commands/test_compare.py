"""The whole comparison on a random model: complete, resumable, self-contained, and never mixed with another run."""

import json
import re
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from basinguard.cli import main
from basinguard.commands.compare import compare
from basinguard.core.estimate import Estimate
from basinguard.core.stats import rate
from basinguard.mitigations import costs as costs_module
from basinguard.mitigations import held_out
from basinguard.mitigations import price as pricing
from basinguard.mitigations import runner as running
from basinguard.mitigations import testbed as module
from basinguard.mitigations.comparison import Comparison
from basinguard.mitigations.measure import Point, measure_point
from basinguard.mitigations.pairs import pairs_of_comparison
from basinguard.mitigations.ranking import best_within, rival_wins
from basinguard.mitigations.registry import MITIGATIONS
from basinguard.mitigations.report import comparison_table
from basinguard.mitigations.runner import command_line, run_comparison
from basinguard.mitigations.settings import ComparisonOptions
from basinguard.mitigations.tradeoff_figure import tradeoff
from basinguard.similarity.kernel_distance import kernel_shares
from support.testbeds import STEPS

RECIPE = Path(__file__).parents[2] / "recipes" / "studies" / "rivals_table.py"
TRIED = ("stp", "interpolate", "early-stopped")


@pytest.fixture(scope="module", autouse=True)
def little():
    """How much is drawn and how often it is timed proves nothing here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs_module, "ROUNDS", 2)
        for counting in (held_out, pricing):
            patch.setattr(counting, "SAMPLES", 8)
        yield


@pytest.fixture(scope="module")
def arguments(tmp_path_factory, tiny_pipeline_dir):
    data = tmp_path_factory.mktemp("art") / "images"
    data.mkdir()
    rng = np.random.default_rng(0)
    names = ["<b>ball</b>", "star", "box"]
    for k in range(3):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(data / f"{k}.png")
    rows = [json.dumps({"file_name": f"{k}.png", "text": name}) for k, name in enumerate(names)]
    (data / "metadata.jsonl").write_text("\n".join(rows))
    return {"model": str(tiny_pipeline_dir), "data": data}


@pytest.fixture(scope="module")
def done(arguments, tmp_path_factory):
    out, base = tmp_path_factory.mktemp("comparison"), arguments["model"]
    options = ComparisonOptions(mitigations=TRIED, base=base, captions=2, per_caption=2, timesteps=STEPS, scale=3.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "alignment_for", lambda base, model: lambda images, texts: images.mean((1, 2, 3)))
        result = run_comparison(**arguments, options=options, out=out, command="basinguard compare x")
    return result, out, options


def test_table_has_every_point_and_the_reason_of_every_missing_method(done):
    result, _, _ = done
    assert [(p.mitigation, p.intensity) for p in result.points][:2] == [("plain", 1.0), ("stp", 950.0)]
    assert len(result.points) == 1 + 5 + 5
    assert [(s.mitigation, s.reason.split(":")[0]) for s in result.skipped] == [
        ("early-stopped", "needs earlier checkpoints of the run")
    ]
    assert {c.mitigation for c in result.costs} == {"plain", "stp", "interpolate"}
    assert result.clusters == (0, 0, 1, 1)
    for point in result.points:
        assert len(point.similarities) == len(point.alignments) == 4
        assert point.risk.n == 4
        assert point.diversity is not None
        assert "kernel distance to 16 samples of the base model" in point.quality.method
    assert "early-stopped" in comparison_table(result)


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(done, arguments, tmp_path):
    result, _, options = done
    price = compare(**arguments, options=replace(options, alignment="none"), out=tmp_path / "out", dry_run=True)
    assert not (tmp_path / "out").exists()
    assert f"{len(result.points)} points of at most 20 pictures" in str(price), "4 pairs and 16 held-out ones"
    per_sample = sum(point.unet_evals for point in result.points)
    assert per_sample * 20 * 0.5 <= price.evaluations <= per_sample * 20 * 1.5, "by each mitigation's default intensity"


def test_json_reads_back(done):
    result, out, _ = done
    assert Comparison.from_json((out / "comparison.json").read_text()) == result


@pytest.mark.usefixtures("drawn_figures")
def test_recipe_publishes_a_row_for_every_method_with_the_reason_of_the_missing_one(done, tmp_path, monkeypatch):
    shutil.copytree(done[1], tmp_path / "s1" / "comparison")
    (tmp_path / "s1" / "commit").write_text("abc1234\n")
    monkeypatch.setattr(sys, "argv", ["rivals_table.py", str(tmp_path / "s1" / "comparison"), "--out", str(tmp_path)])
    runpy.run_path(str(RECIPE), run_name="__main__")
    page = (tmp_path / "rivals_table.md").read_text()
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| ")]
    assert [row[0].strip("* ") for row in rows] == ["mitigation", "plain", "stp", "interpolate", "early-stopped"]
    assert {len(row) for row in rows} == {11}
    assert "needs earlier checkpoints" in rows[-1][1]
    published = json.loads((tmp_path / "rivals_s1.json").read_text())
    assert Comparison.model_validate(published["comparison"]) == done[0]
    assert (published["command"], published["commit"]) == ("basinguard compare x", "abc1234")
    assert (tmp_path / "rivals_s1.png").stat().st_size > 10_000


def test_page_opens_offline_and_escapes_what_comes_from_files(done):
    _, out, _ = done
    page = (out / "comparison.html").read_text()
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)=[\"'](?!data:)", page)
    assert page.count("<img") == 1 + 3
    assert "needs earlier checkpoints" in page
    assert "<b>ball" not in page


def test_costs_are_relative_to_plain_cfg(done):
    costs = {c.mitigation: c for c in done[0].costs}
    assert costs["plain"].unet_evals == 2 * STEPS
    assert costs["plain"].memory_ratio == 1.0
    assert costs["stp"].unet_evals == 7
    assert costs["stp"].time_ratio.n == 2


def test_quality_is_the_kernel_distance_to_held_out_images_where_there_are_enough(done, arguments, tmp_path):
    _, _, options = done
    rng, folder = np.random.default_rng(1), tmp_path / "others"
    folder.mkdir()
    for k in range(16):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{k}.png")
        (folder / f"{k}.txt").write_text(f"thing {k}")
    testbed, _ = load(arguments, options)
    pairs, _ = pairs_of_comparison(testbed, replace(options, heldout=folder))
    point, images = measure_point(testbed, MITIGATIONS["plain"], 1.0, pairs)
    eye = testbed.guard.embedder
    expected = kernel_shares(
        eye(images), eye(module.heldout_pixels(folder, testbed.model.resolution)), torch.tensor(pairs.cluster)
    )
    assert point.quality.value == pytest.approx(float(expected.mean()))
    assert "kernel distance to 16 held-out images (lower is better), structure" in point.quality.method


def test_quality_prefers_held_out_images_of_the_very_prompts(done, arguments, tmp_path):
    _, _, options = done
    rng, folder = np.random.default_rng(1), tmp_path / "fresh"
    folder.mkdir()
    for k, name in enumerate(["<b>ball</b>", "star", "box"] * 8):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{k:02}.png")
        (folder / f"{k:02}.txt").write_text(name)
    testbed, _ = load(arguments, options)
    pairs, prompts = pairs_of_comparison(testbed, replace(options, heldout=folder))
    assert prompts == ("<b>ball</b>", "box")
    assert pairs.quality.groups.tolist() == [0, 1] * 8
    assert "16 held-out images of the same prompts" in pairs.quality.method
    assert not {"<b>ball</b>", "box"} & set(pairs.held_out.batch.prompts), "what was trained on shows nothing of taught"


def test_goes_on_where_it_was_and_refuses_other_settings(done, arguments, monkeypatch):
    result, out, options = done
    (out / "points" / "stp_650.json").unlink()
    drawn = []
    measure = running.measure_point
    monkeypatch.setattr(module, "alignment_for", lambda base, model: lambda images, texts: images.mean((1, 2, 3)))
    monkeypatch.setattr(
        running, "measure_point", lambda b, m, s, p: (drawn.append((m.name, s)), measure(b, m, s, p))[1]
    )
    again = run_comparison(**arguments, options=options, out=out, command="basinguard compare x")
    assert drawn == [("stp", 650.0)]
    assert [p.similarities for p in again.points] == [p.similarities for p in result.points]
    with pytest.raises(FileExistsError, match=r"timesteps=4, now it is 3: name another folder with --out"):
        run_comparison(**arguments, options=replace(options, timesteps=3), out=out)


def test_a_first_look_is_the_default_points_of_the_same_run(done, arguments, monkeypatch, tmp_path):
    result, there, options = done
    out = shutil.copytree(there, tmp_path / "copy")
    monkeypatch.setattr(module, "alignment_for", lambda base, model: lambda images, texts: images.mean((1, 2, 3)))
    look = run_comparison(
        **arguments, options=replace(options, first_look=True), out=out, command="basinguard compare x"
    )
    assert [(p.mitigation, p.intensity) for p in look.points] == [("plain", 1.0), ("stp", 650.0), ("interpolate", 0.5)]
    assert {p.similarities for p in look.points} <= {p.similarities for p in result.points}
    assert look.costs == ()
    assert "Methods and costs" not in (out / "comparison.html").read_text()


def test_costs_can_be_left_out_without_losing_a_point(done, arguments, monkeypatch, tmp_path):
    result, there, options = done
    out = shutil.copytree(there, tmp_path / "copy")
    monkeypatch.setattr(module, "alignment_for", lambda base, model: lambda images, texts: images.mean((1, 2, 3)))
    without = run_comparison(
        **arguments, options=replace(options, costs=False), out=out, command="basinguard compare x"
    )
    assert [p.similarities for p in without.points] == [p.similarities for p in result.points]
    assert without.costs == ()


def test_mistakes_are_one_line(capsys, tmp_path):
    for given, said in (
        (["compare", "tinyworld"], "--data DIR"),
        (["compare", "tinyworld", "--data", str(tmp_path), "--mitigations", "magic"], "['magic'] not known"),
        (["compare", "tinyworld", "--data", str(tmp_path), "--per_caption", "0"], "at least 1 caption"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(given)
        assert stop.value.code == 2
        assert said in capsys.readouterr().err


def test_command_line_names_no_folder_of_this_machine():
    assert command_line(["compare", "/home/me/model", "--data", "art"]) == "basinguard compare model --data art"
    assert (
        command_line(["--checkpoints", '["/home/me/run/a", "/home/me/run/b"]']) == 'basinguard --checkpoints ["a", "b"]'
    )


def load(arguments, options):
    unscored = replace(options, alignment="none")
    return module.load_testbed(arguments["model"], arguments["data"], unscored)


def point(mitigation, intensity, copies, alignment):
    hits = np.array([1.0] * copies + [0.0] * (40 - copies))
    level = {"low": alignment, "high": alignment, "level": 0.95, "n": 20, "method": "given"}
    return Point(
        mitigation=mitigation, intensity=intensity, note="", risk=rate(hits, [i // 2 for i in range(40)]),
        similarity_p95=Estimate(value=0.5, **{**level, "low": 0.4, "high": 0.6}),
        alignment=Estimate(value=alignment, **level), diversity=None, unet_evals=8, seconds=0.1,
        similarities=tuple(hits), alignments=(alignment,) * 40,
    )  # fmt: skip


def test_a_rival_wins_only_at_no_less_alignment_and_says_how_sure_that_is():
    clusters = tuple(i // 2 for i in range(40))
    points = [
        point("ours", 0.1, 10, 0.8),
        point("ours", 0.2, 2, 0.6),
        point("stp", 650, 0, 0.7),  # ours at 0.8 copies 10 of 40: certainly beaten
        point("stp", 750, 9, 0.7),  # beaten by a hair
        point("ren", 1.25, 2, 0.5),  # ours at 0.6 is as safe
        point("wen", 0.5, 30, 0.9),  # none of ours follows captions that well
    ]
    wins = rival_wins(points, clusters, threshold=0.5)
    assert {(b.rival, b.intensity, b.ours, b.certain) for b in wins} == {
        ("stp", 650.0, "ours", True),
        ("stp", 750.0, "ours", False),
        ("wen", 0.5, None, False),
    }
    best = {entry.mitigation: entry.point for entry in best_within(points, 0.1)}
    assert best == {"ours": 1, "stp": 2, "ren": 4, "wen": None}


def test_figure_needs_a_utility():
    blind = [p.model_copy(update={"alignment": None}) for p in [point("stp", 650, 3, 0.5)]]
    with pytest.raises(ValueError, match="nothing that is kept was measured"):
        tradeoff(blind)
    figure = tradeoff([point("stp", 650, 3, 0.5), point("ours", 0.1, 1, 0.6)])
    assert len(figure.axes) == 2
    assert torch.tensor(figure.axes[0].lines[0].get_ydata()).tolist() == [3 / 40]
