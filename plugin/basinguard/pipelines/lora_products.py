"""What an adapter's factors add to a layer's weight, as the two halves of a plain LoRA that adds the very same.

So everything after the loader knows one kind: strengths, calibration and exports take a LoHa, LoKr, IA3 or DoRA as a
LoRA whose rank is what the product needs. At strength s each adds s times what it was trained to add, a DoRA too.

Source: the formulas are LyCORIS's (Yeh et al., arXiv 2309.14859, section 3) and DoRA's (Liu et al., arXiv 2402.09353).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Factors = Mapping[str, Tensor]  # by their names in `exports.lora_names`
Halves = tuple[Tensor, Tensor]  # up [out, r], down [r, in * kernel]


def as_lora(factors: Factors, share: float, weight: Tensor) -> tuple[Tensor, Tensor, float]:
    """Halves and alpha of the LoRA that changes a layer as these factors do.

    Args:
        factors: of one layer, in float32.
        share: alpha / rank, which multiplies their product.
        weight: of the layer in the base, [out, in] or [out, in, h, w].

    Returns:
        Down [r, in, ...], up [out, r, ...] and alpha.

    Raises:
        RuntimeError, ValueError: the factors do not fit each other or the layer.
    """
    weight = weight.detach().float().cpu()
    up, down = _halves(factors, weight)
    if up.shape[0] != len(weight) or down.shape[1] != weight[0].numel() or up.shape[1] != down.shape[0]:
        raise ValueError("the product of the factors has another shape than the layer")
    if "dora_scale" in factors or "magnitude" in factors:
        (up, down), share = _of_delta(_decomposed(factors, weight, share * (up @ down))), 1.0
    elif up.shape[1] > min(up.shape[0], down.shape[1]):
        up, down = _of_delta(up @ down)
    outputs, inputs, *kernel = weight.shape
    rank = len(down)
    return down.reshape(rank, inputs, *kernel), up.reshape(outputs, rank, *(1 for _ in kernel)), share * rank


def _halves(factors: Factors, weight: Tensor) -> Halves:
    if "down" in factors:
        return _lora(factors)
    if "hada_w1_a" in factors:
        return _loha(factors)
    return _ia3(factors, weight) if "ia3" in factors else _lokr(factors, weight)


def _lora(factors: Factors) -> Halves:
    """LoRA, and LoCon with a Tucker core (`mid`), which lies between its halves."""
    up, down = factors["up"].flatten(1), factors["down"]
    if "mid" in factors:
        down = torch.einsum("rs...,si->ri...", factors["mid"], down.flatten(1))
    return up, down.flatten(1)


def _loha(factors: Factors) -> Halves:
    """(a1 b1) * (a2 b2), elementwise: each column of one `a` times each of the other, and the rows of `b` likewise."""
    a1, b1, a2, b2 = (factors[f"hada_w{k}"] for k in ("1_a", "1_b", "2_a", "2_b"))
    if "hada_t1" in factors:
        return _of_delta((_tucker(factors["hada_t1"], a1, b1) * _tucker(factors["hada_t2"], a2, b2)).flatten(1))
    a1, b1, a2, b2 = (factor.flatten(1) for factor in (a1, b1, a2, b2))
    up, down = torch.einsum("or,os->ors", a1, a2), torch.einsum("rc,sc->rsc", b1, b2)
    return up.flatten(1), down.flatten(0, 1)


def _lokr(factors: Factors, weight: Tensor) -> Halves:
    """w1 (x) w2; with w2 = a b that is (w1 (x) a) (1 (x) b)."""
    w1 = factors["lokr_w1"] if "lokr_w1" in factors else factors["lokr_w1_a"] @ factors["lokr_w1_b"]
    if "lokr_w2" in factors:
        b = factors["lokr_w2"]
        a = torch.eye(len(b))
    elif "lokr_t2" in factors:
        b = _tucker(factors["lokr_t2"], factors["lokr_w2_a"], factors["lokr_w2_b"])
        a = torch.eye(len(b))
    else:
        a, b = factors["lokr_w2_a"], factors["lokr_w2_b"]
    inputs, *kernel = weight.shape[1:]
    b = b.reshape(len(b), inputs // w1.shape[1], *kernel)
    one = torch.eye(w1.shape[1]).reshape(w1.shape[1], w1.shape[1], *(1 for _ in kernel))
    return torch.kron(w1, a), torch.kron(one, b).flatten(1)


def _ia3(factors: Factors, weight: Tensor) -> Halves:
    """The weight itself, scaled by its inputs or by its outputs."""
    scale, kernel = factors["ia3"].flatten(), (1 for _ in weight.shape[2:])
    shape = (1, -1) if factors["on_input"].any() else (-1, 1)
    return _of_delta((weight * scale.reshape(*shape, *kernel)).flatten(1))


def _tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """A core [r, s, h, w] between factors [r, out] and [s, in]."""
    return torch.einsum("rs...,ro,si->oi...", core, a, b).contiguous()


def _decomposed(factors: Factors, weight: Tensor, delta: Tensor) -> Tensor:
    """What a DoRA adds: the changed weight's direction at the trained magnitude, without the weight [out, ...].

    The magnitude is one number for each output (peft, LyCORIS) or each input (OneTrainer's default).
    """
    changed = weight + delta.reshape(weight.shape)
    magnitude = factors["magnitude"].reshape(-1, 1) if "magnitude" in factors else factors["dora_scale"]
    by_output = magnitude.shape[0] == len(weight) and magnitude.numel() == len(weight)
    axes = tuple(axis for axis in range(weight.ndim) if axis != (0 if by_output else 1))
    length = changed.square().sum(axes, keepdim=True).sqrt()
    return (magnitude.reshape(length.shape) * changed / length - weight).flatten(1)


def _of_delta(delta: Tensor) -> Halves:
    """A matrix as a product: with the identity on its narrower side."""
    outputs, columns = delta.shape
    return (torch.eye(outputs), delta) if outputs <= columns else (delta, torch.eye(columns))
