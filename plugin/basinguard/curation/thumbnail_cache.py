"""Thumbnails remembered between runs, by content hash, so that a renamed file is known and a changed one is not."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SIDE = 64  # thumbnail side; edits that matter survive it, JPEG noise does not
PATIENCE = 5.0  # seconds that a run waits for another one that writes
CACHE_VERSION = 2  # rises with every change of what a thumbnail shows


def pixels(thumb: bytes) -> NDArray[np.uint8]:
    """A thumbnail's bytes as uint8 [64, 64, 3]."""
    return np.frombuffer(thumb, np.uint8).reshape(SIDE, SIDE, 3)


class Store:
    """Thumbnails by content hash in a SQLite file; without a file it remembers nothing."""

    def __init__(self, path: Path | None) -> None:
        self.database = sqlite3.connect(path, timeout=PATIENCE) if path else None
        self.pending = 0
        try:
            self._prepare()
        except sqlite3.OperationalError:  # locked by another run, or read-only: the file may well be one of ours
            if self.database is not None:
                self.database.close()
            raise
        except sqlite3.DatabaseError:
            self.close()
            raise ValueError(f"{path}: not a cache of basinguard; give another file, or move this one away") from None

    def _prepare(self) -> None:
        if self.database is None:
            return
        (version,) = self.database.execute("PRAGMA user_version").fetchone()
        if version != CACHE_VERSION:
            self.database.execute("DROP TABLE IF EXISTS thumbs")
        self.database.execute(
            "CREATE TABLE IF NOT EXISTS thumbs (sha256 TEXT PRIMARY KEY, rgb BLOB, aspect REAL, inside REAL)"
        )
        self.database.execute(f"PRAGMA user_version = {CACHE_VERSION}")
        self.database.commit()

    def knows(self, digest: str) -> bool:
        """Whether this content was seen before."""
        query = "SELECT 1 FROM thumbs WHERE sha256 = ?"
        return self.database is not None and self.database.execute(query, (digest,)).fetchone() is not None

    def merge(self, other: Path) -> None:
        """Takes over what another cache remembers."""
        if self.database is None:
            return
        with closing(Store(other)):  # refuses a file that is no cache
            pass
        self.database.execute("ATTACH DATABASE ? AS other", (str(other),))
        self.database.execute("INSERT OR IGNORE INTO thumbs SELECT * FROM other.thumbs")
        self.database.commit()
        self.database.execute("DETACH DATABASE other")

    def load(self, digest: str, thumbs: NDArray[np.uint8], shapes: NDArray[np.float32], rows: list[int]) -> bool:
        """Copies a known thumbnail and its shape to `rows`; False when there is none."""
        if self.database is None:
            return False
        row = self.database.execute("SELECT rgb, aspect, inside FROM thumbs WHERE sha256 = ?", (digest,)).fetchone()
        if row is None or len(row[0]) != SIDE * SIDE * 3:
            return False
        thumbs[rows], shapes[rows] = pixels(row[0]), row[1:]
        return True

    def save(self, digest: str, thumb: bytes, aspect: float, inside: float) -> None:
        """Remembers a thumbnail; written out every 256, so an interruption loses little."""
        if self.database is None:
            return
        self.database.execute("INSERT OR REPLACE INTO thumbs VALUES (?, ?, ?, ?)", (digest, thumb, aspect, inside))
        self.pending += 1
        if self.pending % 256 == 0:
            self.database.commit()

    def close(self) -> None:
        """Writes out what is left, also after Ctrl-C."""
        if self.database is not None:
            self.database.commit()
            self.database.close()
