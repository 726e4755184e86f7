"""Reading a large set on several processes or machines: Lightning's predict hands every rank its share of the files.

Each rank fills a cache of its own; the first one joins them into the cache that `curate` reads, on a disk that all of
them see. Launch it as any Lightning script, for example with `torchrun --nnodes 2 --nproc-per-node 8`:

    trainer = Trainer(accelerator="cpu", strategy="ddp", devices=8, num_nodes=2, logger=False)
    scan_on_ranks(Path("photos"), Path("photos-curation/cache.sqlite"), trainer)
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from ..curation.folder import read_folder
from ..curation.scan import cache_thumbnails
from ..curation.thumbnail_cache import Store

BATCH = 64  # files between two looks at what the trainer wants


def scan_on_ranks(directory: Path, cache: Path, trainer: Trainer) -> None:
    """Fills the cache of a curation; an interrupted scan goes on where it stopped.

    Args:
        directory: folder of images, the same on every machine.
        cache: the cache to fill, `cache.sqlite` in the folder that `curate` writes to.
        trainer: says which ranks there are; it should have no logger.
    """
    names = [str(item.path) for item in read_folder(directory, decode=False).items]
    cache.parent.mkdir(parents=True, exist_ok=True)
    loader: DataLoader = DataLoader(names, batch_size=BATCH, collate_fn=list)  # type: ignore[arg-type]
    trainer.predict(_Scan(cache), loader, return_predictions=False)
    trainer.strategy.barrier()
    if trainer.is_global_zero:
        join(cache, [_part(cache, rank) for rank in range(trainer.world_size)])
    trainer.strategy.barrier()


def join(cache: Path, parts: Sequence[Path]) -> None:
    """Joins the ranks' caches; they stay, for an interrupted scan to go on from."""
    with closing(Store(cache)) as store:
        for part in parts:
            if part.is_file():
                store.merge(part)


def _part(cache: Path, rank: int) -> Path:
    return cache.with_name(f"{cache.stem}-rank{rank}{cache.suffix}")


class _Scan(LightningModule):
    """Reads batches of files; there is nothing to learn and nothing to return."""

    def __init__(self, cache: Path) -> None:
        super().__init__()
        self.cache = cache

    def predict_step(self, batch: list[str], batch_idx: int) -> None:
        """Remembers the thumbnails of some files."""
        cache_thumbnails(batch, _part(self.cache, self.global_rank))
