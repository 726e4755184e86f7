"""How many bytes would this computation hold at once? Counted on weightless tensors, in seconds, whatever the size.

A module on torch's `meta` device runs without numbers, so a training step of the full-size model can be followed
tensor by tensor on any machine. What a kernel takes and gives back within itself is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint

LOWERED = {F.linear, F.conv2d, F.scaled_dot_product_attention, torch.matmul, torch.bmm}
RAISED = {F.group_norm, F.layer_norm, F.mse_loss, F.softmax}


def peak_bytes(forward: Callable[[], Tensor], *, backward: bool = False, autocast: torch.dtype | None = None) -> int:
    """Most bytes that tensors made inside hold at one time.

    Args:
        forward: computes on meta tensors; what exists before does not count, what it returns does.
        backward: then differentiate its result, a scalar; the gradients of parameters count.
        autocast: follow torch's mixed precision on a GPU with this type.
    """
    with LiveBytes() as living, _Kernels(autocast) as kernels:
        result = forward()
        kernels.casts = None
        if backward:
            torch.autograd.backward(result)
        del result
    return living.peak


def checkpointing(autocast: torch.dtype | None) -> Callable[..., Any]:
    """What to give a diffusers model as its checkpointing function, so that recomputing is followed as well."""
    contexts = partial(_forward_and_again, autocast)
    return partial(checkpoint, use_reentrant=False, context_fn=contexts)


def _forward_and_again(autocast: torch.dtype | None) -> tuple[Any, Any]:
    return nullcontext(), _Kernels(autocast)  # the backward pass runs outside of function modes


def _group_norm(x: Tensor, weight: Any, bias: Any, rows: int, width: int, area: int, groups: int, eps: float) -> Any:
    return torch.empty_like(x), x.new_empty(rows, groups), x.new_empty(rows, groups)


def _group_norm_gradients(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Any, rows: int, width: int, area: int, groups: int,
    wanted: Sequence[bool],
) -> Any:  # fmt: skip
    shapes = (x.shape, (width,), (width,))
    return tuple(x.new_empty(shape) if asked else None for shape, asked in zip(shapes, wanted, strict=True))


# what these make, without the many operations in Python that torch takes to it on the meta device: a quarter of all
SHAPES: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.native_group_norm.default: _group_norm,
    torch.ops.aten.native_group_norm_backward.default: _group_norm_gradients,
}


class LiveBytes(TorchDispatchMode):
    """Adds the bytes of each storage that operations make, and takes them off when it dies; views add nothing.

    Attributes:
        now, peak: bytes at this moment, and the most at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.counted: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and looks at what it made."""
        weightless = func in SHAPES and args[0].is_meta
        made = (SHAPES[func] if weightless else func)(*args, **(kwargs or {}))
        before = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and id(tensor.untyped_storage()) not in before:
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: Any) -> None:
        if storage in self.counted:
            return
        self.counted.add(storage)
        self._change(storage.nbytes())
        weakref.finalize(storage, self._change, -storage.nbytes())

    def _change(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


class _Kernels(TorchFunctionMode):
    """Attention as fused kernels compute it, without its matrix; and mixed precision, if asked for.

    Source of the lists: torch's documentation of autocast, "CUDA ops that autocast to float16" and "to float32".
    """

    def __init__(self, autocast: torch.dtype | None) -> None:
        super().__init__()
        self.autocast = autocast
        self.casts: dict[int, Tensor] | None = {}  # of parameters: autocast keeps them until the forward pass ends

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.autocast is not None and func in LOWERED:
            args, kwargs = tree_map(lambda part: self._cast(part, self.autocast), (args, kwargs))
        elif self.autocast is not None and func in RAISED:
            args, kwargs = tree_map(lambda part: self._cast(part, torch.float32), (args, kwargs))
        if func is F.scaled_dot_product_attention:
            return _Attention.apply(*args[:3])
        return func(*args, **kwargs)

    def _cast(self, part: Any, dtype: torch.dtype | None) -> Any:
        if not isinstance(part, Tensor) or not part.is_floating_point() or part.dtype == dtype:
            return part
        if self.casts is None or not part.requires_grad or not part.is_leaf:
            return part.to(dtype)
        return self.casts.setdefault(id(part), part.to(dtype))


class _Attention(torch.autograd.Function):
    """Keeps what flash attention keeps: queries, keys, values, the result, and one number for each row.

    Source: Dao et al., arXiv 2205.14135, section 3.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The result's shape; the numbers do not matter."""
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> Any:
        """Shapes of the gradients."""
        return tuple(torch.empty_like(part) for part in ctx.saved_tensors[:3])
