"""Torch's arithmetic with the same bits on CPUs of every make, where its environment alone (`torch_env`) does not do.

Rules: MKL's vector math picks its kernels by the CPU's maker and heeds no setting (ATen/cpu/vml.h names what goes
there: on an AMD CPU a sixth of all f32 square roots come out an ulp off). A square root taken in f64 and rounded is the
exact one of f32; a sine or cosine is but for one value in many millions, and there are only as many as positions. What
is taken of every logit (`exp`) is written as softmax instead, which ATen computes itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_WIDENED = {f for name in ("cos", "sin", "sqrt") for f in (getattr(torch, name), getattr(Tensor, name))}


class Portable(TorchFunctionMode):
    """While it is entered, f32 square roots, sines and cosines are taken in f64 and rounded."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _WIDENED and len(args) == 1 and not kwargs and args[0].dtype == torch.float32:
            return func(args[0].double()).float()
        return func(*args, **(kwargs or {}))
