"""What several ranks read is what one process reads, and a scan after them decodes nothing."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from basinguard.curation import scan as scanning
from basinguard.curation.folder import read_folder
from basinguard.curation.scan import cache_thumbnails, scan_images
from basinguard.curation.thumbnail_cache import Store

SCRIPT = Path(__file__).parents[1] / "support" / "scan_on_two.py"


def remembered(cache: Path) -> int:
    with closing(sqlite3.connect(cache)) as database:
        return database.execute("SELECT count(*) FROM thumbs").fetchone()[0]


@pytest.fixture
def photos(folder_of, pictures):
    directory = folder_of({f"{n:02d}.png": (picture, "") for n, picture in enumerate(pictures[:9])})
    (directory / "bad.png").write_bytes(b"not an image")
    return directory


@pytest.mark.long
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_scan_after_the_ranks_decodes_nothing(photos, tmp_path, monkeypatch, ranks):
    cache = tmp_path / "out" / "cache.sqlite"
    subprocess.run([sys.executable, str(SCRIPT), str(photos), str(cache), str(ranks)], check=True)
    assert remembered(cache) == 9
    shares = [remembered(cache.with_name(f"cache-rank{rank}.sqlite")) for rank in range(ranks)]
    assert sum(shares) == 9
    items = read_folder(photos, decode=False).items
    plain = scan_images(items)
    monkeypatch.setattr(scanning, "shrink", lambda path: pytest.fail(f"decoded {path} again"))
    assert np.array_equal(scan_images(items, cache=cache).thumbs, plain.thumbs)


def test_caches_are_joined_once_each(photos, tmp_path):
    names = [str(path) for path in sorted(photos.glob("*.png"))]
    cache_thumbnails(names[:6], tmp_path / "a.sqlite")
    cache_thumbnails(names[3:], tmp_path / "b.sqlite")
    with closing(Store(tmp_path / "a.sqlite")) as store:
        store.merge(tmp_path / "b.sqlite")
    assert remembered(tmp_path / "a.sqlite") == 9
    (tmp_path / "c.sqlite").write_bytes(b"something else" * 100)
    with closing(Store(tmp_path / "a.sqlite")) as store, pytest.raises(ValueError, match="not a cache"):
        store.merge(tmp_path / "c.sqlite")
