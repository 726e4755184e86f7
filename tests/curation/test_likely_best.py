"""The copy that probably stays, guessed before anything is compared."""

from basinguard.curation.duplicates import find_pairs
from basinguard.curation.folder import read_folder
from basinguard.curation.groups import find_groups
from basinguard.curation.likely_best import likely_best
from basinguard.curation.same_picture import Judge
from basinguard.curation.scan import scan_images
from support.picture_edits import EDITS

CROPS = 4  # among the edits: a crop is first found in whichever copy the search comes upon


class Counting(Judge):
    """A judge that counts how often it was asked."""

    asked = 0

    def __call__(self, *arguments, **options):
        self.asked += 1
        return super().__call__(*arguments, **options)


def scan_of_copies(directory, picture):
    picture.save(directory / "original.png")
    for name, edit in EDITS.items():
        edit(picture).save(directory / f"{name}.jpg", quality=90)
    return scan_images(read_folder(directory, decode=False).items)


def test_most_copies_are_compared_once(pictures, tmp_path):
    scan = scan_of_copies(tmp_path, pictures[2])
    judge = Counting(scan)
    (group,) = find_groups(scan, find_pairs(scan, judge=judge), judge=judge)
    assert scan.items[group.representative].file_name == "original.png"
    assert judge.asked <= len(group.members) + CROPS


def test_what_most_copies_are_is_likelier(pictures, tmp_path):
    scan = scan_of_copies(tmp_path, pictures[2])
    names = [item.file_name[:-4] for item in scan.items]
    rows = [names.index(name) for name in ("original", "stretch", "mirror", "tint", "jpeg")]
    fits = [(0, other, names[rows[other]] == "mirror") for other in range(1, len(rows))]
    guesses = likely_best(scan, rows, fits)
    assert [guess[1:4] for guess in guesses] == [(1, 1, 1), (1, 0, 1), (0, 1, 1), (1, 1, 0), (1, 1, 1)]
    assert likely_best(scan, rows, [])[1][1:4] == (1, 1, 1)
