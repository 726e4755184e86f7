"""Where a DDP probe is shared: each process computes some rows of every network call, all get the whole result.

Every process runs the same measurement and takes the same decisions; only what the networks compute is split. Rows go
through the networks in the same small groups however many processes there are, so a report does not depend on their
number, not in the last bit. Processes meet at every call; one that failed says so at its next meeting, and all of them
raise there: nobody waits for a message that will not come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..core.report import Report
from ..diffusion.model import Model
from ..diffusion.sampling import Denoiser
from ..guard.guard import Guard
from ..guard.probe import Early

ROWS, ROWS_OF_SMALL = 8, 32  # of one network call: few are enough to fill a machine, unless they are small
SMALL = 4 * 16 * 16  # numbers in one sample's latents
MESSAGE = 200  # bytes of a problem that the others hear
NUMBERS, DIMENSIONS = 8, 5  # that a message, and the shape of one row of a result, have room for
FINE, NO_MEMORY, FAILED = 0, 1, 2


class TeamFailure(RuntimeError):
    """Some process failed, and every process raises this at the same place."""


class TeamOutOfMemory(torch.OutOfMemoryError, TeamFailure):
    """The same, when what was missing is memory: whoever tries again with less may."""


@dataclass(frozen=True)
class Team:
    """The processes that measure together.

    Attributes:
        rank: number of this one, from 0.
        size: how many there are.
        group: what connects them; None for a single process.
    """

    rank: int = 0
    size: int = 1
    group: Any = None

    @classmethod
    def current(cls) -> Team:
        """The processes torch.distributed knows; every one of them must call this. Their meetings go over gloo."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return cls()
        return cls(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo"))

    def meet(self, error: Exception | None = None, numbers: Sequence[int] = ()) -> list[int]:
        """Waits for the others and compares.

        Args:
            error: what went wrong here, if anything did.
            numbers: what this process counts; 0 where it does not know.

        Returns:
            The largest of each number over all processes.

        Raises:
            TeamFailure: some process has an error, or the processes are not at the same place.
        """
        if self.size == 1:
            if error is not None:
                raise error
            return list(numbers)
        first = numbers[0] if numbers else 0
        counts = torch.tensor([_kind(error), len(numbers), -len(numbers), first, -first, *[0] * NUMBERS])
        counts[-NUMBERS:][: len(numbers)] = torch.tensor(numbers, dtype=torch.long)
        dist.all_reduce(counts, dist.ReduceOp.MAX, group=self.group)
        worst, most, fewest, high, low, *largest = counts.tolist()
        if worst != FINE or (most, high) != (-fewest, -low):
            self._fail(error, worst)
        return largest[: len(numbers)]

    def least(self, number: int) -> int:
        """The smallest of a number that each process knows its own of, such as what its clock says can be paid."""
        return -self.meet(numbers=[0, -number])[1]

    def gather(self, own: Tensor) -> list[Tensor]:
        """The same-shaped tensor of every process, in their order."""
        if self.size == 1:
            return [own]
        everyone = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(everyone, own.contiguous(), group=self.group)
        return everyone

    def _fail(self, error: Exception | None, worst: int) -> None:
        """Tells the others what happened here, and raises what happened anywhere."""
        message = f"{type(error).__name__}: {error}".encode()[:MESSAGE] if error else b""
        messages = self.gather(torch.tensor([*message, *bytes(MESSAGE - len(message))], dtype=torch.uint8))
        texts = [bytes(message.tolist()).rstrip(b"\0").decode("utf-8", "replace") for message in messages]
        problems = [f"process {rank} of {self.size}: {text}" for rank, text in enumerate(texts) if text]
        text = "; ".join(problems) or "the processes measured different things"
        raise (TeamOutOfMemory if worst == NO_MEMORY else TeamFailure)(text) from error


def _kind(error: Exception | None) -> int:
    if error is None:
        return FINE
    return NO_MEMORY if isinstance(error, torch.OutOfMemoryError) else FAILED


def measure_together(
    guard: Guard, model: Model, team: Team, *, epoch: int, train_step: int, early: Early | None = None
) -> Report | None:
    """One probe by all processes of a team, see `Guard.measure`; whoever fails, all of them raise.

    Raises:
        TeamFailure: some process failed.
    """
    try:
        return guard.measure(Sharded(model, team), epoch=epoch, train_step=train_step, team=team, early=early)
    except TeamFailure:
        raise  # the others know already
    except Exception as error:
        team.meet(error)
        raise


def rows_at_once(latent_shape: tuple[int, ...]) -> int:
    """Rows of one network call.

    Networks round differently for other batch sizes, so this depends on nothing but the model.

    Args:
        latent_shape: of one sample, [C, H, W].

    Example:
        >>> rows_at_once((4, 16, 16)), rows_at_once((4, 64, 64))
        (32, 8)
    """
    return ROWS_OF_SMALL if prod(latent_shape) <= SMALL else ROWS


class Sharded:
    """A `Model` whose network calls are shared out among a team.

    Args:
        model: the model; every process holds the same weights.
        team: the processes.
    """

    def __init__(self, model: Model, team: Team) -> None:
        self.model, self.team, self.schedule = model, team, model.schedule
        self.rows = rows_at_once(model.latent_shape)
        self.turn = 0  # whose turn the next group is: calls of few rows must not all fall to the first process

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one sample's latents."""
        return self.model.latent_shape

    def denoiser(self, prompts: Sequence[str]) -> Denoiser:
        """The denoiser whose prompt k is `prompts[k]`."""
        inner = self.model.denoiser(prompts)

        def denoise(x: Tensor, timestep: Tensor, prompt: Tensor) -> Tensor:
            return self._share(x, lambda rows: inner(x[rows], timestep[rows], prompt[rows]))

        return denoise

    def decode(self, latents: Tensor) -> Tensor:
        """Images in [0, 1], [B, 3, H, W]."""
        return self._share(latents, lambda rows: self.model.decode(latents[rows]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)  # what else a model offers is not shared out

    def _share(self, x: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """`compute` of all rows of `x`, [B, ...], of which this process computes every `size`-th group."""
        groups, team, turn = torch.arange(len(x)).split(self.rows), self.team, self.turn
        self.turn = (turn + len(groups)) % team.size
        own, error = [], None
        try:
            own = [compute(rows) for rows in groups[(team.rank - turn) % team.size :: team.size]]
        except Exception as caught:  # the others must hear of it, or they wait for ever
            error = caught
        if team.size == 1 and error is None:
            return torch.cat(own)
        shape = own[0].shape[1:] if own else ()
        _, *row_shape = team.meet(error, [len(x), *shape, *[0] * (DIMENSIONS - len(shape))])
        mine = torch.zeros(-(-len(groups) // team.size), self.rows, *[n for n in row_shape if n], dtype=x.dtype)
        for slot, part in enumerate(own):
            mine[slot, : len(part)] = part
        everyone = team.gather(mine)
        parts = [everyone[(turn + k) % team.size][k // team.size, : len(rows)] for k, rows in enumerate(groups)]
        return torch.cat(parts).to(x.device)
