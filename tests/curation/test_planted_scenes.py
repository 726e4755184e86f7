"""TinyWorld's scenes, which are harder than photographs: flat colours, soft hills, one style. Truth is known."""

import numpy as np
import pytest
from PIL import ImageOps

from basinguard.core.stats import wilson
from basinguard.curation.duplicates import find_pairs
from basinguard.curation.folder import read_folder
from basinguard.curation.groups import find_groups
from basinguard.curation.outliers import find_leaks
from basinguard.curation.scan import scan_images
from basinguard.tinyworld.scenes import Caption, all_captions, draw_scene
from support.picture_edits import EDITS, cropped, jpeg

SEED = 900_000  # far from those the thresholds were chosen on
PLANTED = {name: EDITS[name] for name in ("resize", "jpeg", "mirror", "tint", "grey", "blur")} | {
    "crop": lambda p: cropped(p, 0.1, 0.05, 0.95, 0.9),
    "border": lambda p: ImageOps.expand(p, 8, fill="white"),
    "mirror, jpeg": lambda p: jpeg(ImageOps.mirror(p), 40),
}


def scan_of(directory, scenes):
    for name, scene in scenes.items():
        scene.save(directory / f"{name}.png")
    return scan_images(read_folder(directory, decode=False).items)


@pytest.mark.parametrize(
    ("strangers", "twins", "sources"), [(12, 6, 3), pytest.param(60, 20, 12, marks=pytest.mark.long)]
)
def test_planted_edits_are_found_and_twins_are_not_merged(tmp_path, strangers, twins, sources):
    captions = all_captions()
    scenes = {f"{n:03d}": draw_scene(captions[7 * n % len(captions)], SEED + n) for n in range(strangers)}
    scenes |= {f"{strangers + n:03d}": draw_scene(Caption("star", "striped"), SEED + 500 + n) for n in range(twins)}
    edited = {f"{n:03d} {name}": edit(scenes[f"{n:03d}"]) for name, edit in PLANTED.items() for n in range(sources)}
    scan = scan_of(tmp_path, scenes | edited)
    names = [item.file_name[:-4] for item in scan.items]
    groups = find_groups(scan, find_pairs(scan))
    together = {frozenset((names[a], names[b])) for g in groups for a in g.members for b in g.members if a < b}
    right = sum(len({name[:3] for name in pair}) == 1 for pair in together)
    paired_edits = sum(frozenset((name, name[:3])) in together for name in edited)
    precision, recall = wilson(right, len(together)), wilson(paired_edits, len(edited))
    assert (precision.low if sources == 12 else precision.value) > 0.95, f"precision {precision}"
    assert (recall.low if sources == 12 else recall.value) > 0.85, f"recall {recall}"


def test_planted_leaks_are_found_and_held_out_twins_are_none(tmp_path):
    captions = all_captions()
    train = {f"{n:03d}": draw_scene(captions[n], SEED + n) for n in range(30)}
    heldout = {f"t{n:03d}": draw_scene(captions[n], SEED + 700 + n) for n in range(16)}
    heldout |= {f"l{n:03d}": jpeg(train[f"{n:03d}"], 50) for n in range(8)}
    scan = scan_of(tmp_path, train | heldout)
    assert [item.file_name[0] for item in scan.items] == ["0"] * 30 + ["l"] * 8 + ["t"] * 16
    leaks = find_leaks(find_pairs(scan), 30)
    assert {(scan.items[p.first].file_name, scan.items[p.second].file_name) for p in leaks} == {
        (f"{n:03d}.png", f"l{n:03d}.png") for n in range(8)
    }


@pytest.mark.parametrize("name", ["resize", "mirror"])
def test_the_edits_do_change_the_files(name):
    scene = draw_scene(all_captions()[0], SEED)
    assert np.asarray(PLANTED[name](scene)).tobytes() != np.asarray(scene).tobytes()
