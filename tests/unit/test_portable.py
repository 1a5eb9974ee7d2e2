"""Square roots and turns come out rounded from f64, whatever kernels the CPU's maker gets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.stages.portable import Portable

VALUES = torch.rand(4096, generator=torch.Generator().manual_seed(0)) * 100


@pytest.mark.parametrize(
    "function", [torch.sqrt, Tensor.sqrt, torch.cos, Tensor.sin], ids=["sqrt", ".sqrt", "cos", ".sin"]
)
def test_a_value_is_that_of_f64_rounded(function: Callable[[Tensor], Tensor]) -> None:
    """In f32 the result is f64's, rounded once."""
    with Portable():
        found = function(VALUES)
    assert found.dtype == torch.float32
    assert torch.equal(found, function(VALUES.double()).float())


def test_other_types_and_operators_pass() -> None:
    """What is f64 already, and every other operator, is left as it is."""
    with Portable():
        assert torch.equal(VALUES.double().sqrt(), torch.sqrt(VALUES.double()))
        assert torch.equal(torch.add(VALUES, 1, alpha=2), VALUES + 2)
