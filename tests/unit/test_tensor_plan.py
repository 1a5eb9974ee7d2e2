"""Plans name modules, slices cover a tensor, and torch's kernels are pinned once."""

from __future__ import annotations

import pytest

from pipeline.model.plan import Plan, part
from pipeline.ports.torch_env import PINS, pin_cpu_kernels

PLAN = Plan(
    {
        "lm_head": "colwise_gather_output",
        "model.embed_tokens": "embedding_rowwise",
        "model.layers.*.self_attn.q_proj": "colwise",
        "model.layers.*.self_attn.q_norm": "replicated_with_grad_allreduce",
        "model.layers.*.mlp.down_proj": "rowwise",
    }
)


@pytest.mark.parametrize(
    ("tensor", "split"),
    [
        ("lm_head.weight", 0),
        ("model.embed_tokens.weight", 0),
        ("model.layers.11.self_attn.q_proj.weight", 0),
        ("model.layers.11.self_attn.q_proj.bias", 0),
        ("model.layers.3.self_attn.q_norm.weight", None),
        ("model.layers.3.mlp.down_proj.weight", 1),
        ("model.layers.3.mlp.down_proj.bias", None),
        ("model.norm.weight", None),
    ],
)
def test_a_plan_says_how_a_tensor_is_split(tensor: str, split: int | None) -> None:
    """Columns split rows of the weight and the bias, rows split columns of the weight alone."""
    assert PLAN.split(tensor) == split


@pytest.mark.parametrize("degree", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("length", [1, 5, 64, 151_936])
def test_slices_cover_everything_once(length: int, degree: int) -> None:
    """Slices follow each other without gap or overlap, and none is longer than the first."""
    parts = [part(length, rank, degree) for rank in range(degree)]
    assert [start for start, _ in parts] == [0, *(end for _, end in parts[:-1])]
    assert parts[-1][1] == length
    assert max(end - start for start, end in parts) == parts[0][1]


def test_pins_come_too_late_once_torch_is_there() -> None:
    """After torch was imported nothing is set, and the caller is told."""
    import torch

    env: dict[str, str] = {}
    assert torch.__version__
    assert not pin_cpu_kernels(env)
    assert not env


def test_no_pin_depends_on_the_cpus_maker() -> None:
    """Kernels are limited to AVX2; MKL knows that limit on Intel's CPUs alone, and is held to its common branch."""
    assert {name: value.lower() for name, value in PINS.items() if name != "MKL_CBWR"} == {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "avx2",
    }
    assert PINS["MKL_CBWR"] == "COMPATIBLE"
