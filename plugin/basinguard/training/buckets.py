"""Pictures that keep their proportions: each is cropped to the nearest of a few shapes, and a batch holds one shape.

Source: NovelAI's aspect-ratio bucketing (2022), as kohya's and other trainers have it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import log

from torch.utils.data import Sampler

from .epoch_order import MARK, EpochOrder

Shape = tuple[int, int]  # width, height in pixels
LONGEST = 2.0  # most width for a height, or the other way round


def shapes(resolution: int, multiple: int = 64, longest: float = LONGEST) -> tuple[Shape, ...]:
    """Shapes of about as many pixels as the square, and never more, whose sides are multiples of `multiple`.

    Args:
        resolution: side of the square.
        multiple: of the sides, in pixels; Stable Diffusion's UNet halves its latents three times, so 64.
        longest: most width for a height.

    Example:
        >>> shapes(512, multiple=128)
        ((384, 640), (512, 512), (640, 384))
    """
    sizes = {(resolution, resolution)}
    for long in range(resolution // multiple * multiple + multiple, int(resolution * longest) + 1, multiple):
        short = resolution**2 // long // multiple * multiple
        if long <= longest * short:
            sizes |= {(long, short), (short, long)}
    return tuple(sorted(sizes))


def nearest_bucket(size: Shape, among: Sequence[Shape]) -> int:
    """Position of the shape whose proportions are nearest, in log; of equals the one with more pixels.

    Example:
        >>> nearest_bucket((1500, 1000), ((384, 640), (512, 512), (640, 384)))
        2
    """
    proportion = log(size[0] / size[1])
    return min(
        range(len(among)), key=lambda k: (abs(log(among[k][0] / among[k][1]) - proportion), -among[k][0] * among[k][1])
    )


class BucketBatches(Sampler[list[int]]):
    """Batches of one bucket each, in an order that depends on `EpochOrder` alone.

    Args:
        order: of the pictures, as keys epoch * count + index.
        bucket: of every index.
        batch_size: most pictures in a batch; the last of each bucket may be smaller.
    """

    def __init__(self, order: EpochOrder, bucket: Sequence[int], batch_size: int) -> None:
        self.sampler, self.bucket, self.batch_size = order, tuple(bucket), batch_size
        self.skip = 0  # batches to leave out, once, when a run resumes

    def __len__(self) -> int:
        return sum(-(-self.bucket.count(each) // self.batch_size) for each in set(self.bucket))

    def __iter__(self) -> Iterator[list[int]]:
        skip, self.skip = self.skip, 0
        for number, batch in enumerate(self._batches()):
            if number >= skip:
                yield batch

    def _batches(self) -> Iterator[list[int]]:
        """A batch as soon as its bucket has enough; what is left over comes last."""
        waiting: dict[int, list[int]] = {}
        for key in self.sampler:
            queue = waiting.setdefault(self.bucket[key % MARK % len(self.bucket)], [])
            queue.append(key)
            if len(queue) == self.batch_size:
                yield list(queue)
                queue.clear()
        yield from (queue for queue in waiting.values() if queue)
