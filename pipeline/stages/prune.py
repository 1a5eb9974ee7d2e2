"""A student cut out of its teacher: some of the layers, and of each layer's feed-forward the most active channels.

Rules: a channel's importance is the energy it sends on, sum of its squared activations on calibration prompts times the
squared norm of its output weights (Muralidharan et al. 2024, arXiv:2407.14679); everything else is taken over as it
is. Works for gated feed-forwards named as in Llama, Qwen2, Qwen3 and Mistral; other names are an error, not a guess.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.catalog.tiers import Distill
from pipeline.errors import StageError
from pipeline.stages.batches import Row

LISTS_BY_LAYER = ("layer_types", "no_rope_layers")
GATED = ("gate_proj", "up_proj", "down_proj")


def prune(teacher: Any, recipe: Distill, calibration: Sequence[Row]) -> Any:
    """Return a student in f32 with the teacher's layers `recipe.layers`, each `recipe.ffn` channels wide.

    Raises:
        StageError: the teacher has no such layers or is narrower, or its modules have names that are not known here.
    """
    student = blank(teacher, recipe)
    kept = most_active(teacher, recipe, calibration)
    prefix = _layers_name(teacher)
    weights = {key: value.float() for key, value in teacher.state_dict().items() if not key.startswith(prefix)}
    for new, old in enumerate(recipe.layers):
        for key, value in _layers(teacher)[old].state_dict().items():
            weights[f"{prefix}{new}.{key}"] = _narrowed(key, value.float(), kept[old])
    student.load_state_dict(weights)
    return student


def blank(teacher: Any, recipe: Distill) -> Any:
    """Return an untrained student of the recipe's shape, in f32; its weights depend on the seed alone."""
    config = copy.deepcopy(teacher.config)
    _check_fits(config, recipe)
    for name in LISTS_BY_LAYER:
        if getattr(config, name, None):
            setattr(config, name, [getattr(config, name)[layer] for layer in recipe.layers])
    config.num_hidden_layers, config.intermediate_size = len(recipe.layers), recipe.ffn
    config.dtype = torch.float32
    torch.manual_seed(recipe.seed)
    return type(teacher)(config).eval()


def most_active(teacher: Any, recipe: Distill, calibration: Sequence[Row]) -> dict[int, Tensor]:
    """Return the indexes of the most important channels, ascending, by teacher layer."""
    downs = {layer: _down(teacher, layer) for layer in recipe.layers}
    energy = {layer: torch.zeros(down.in_features, device=down.weight.device) for layer, down in downs.items()}

    def watch(layer: int) -> Any:
        return downs[layer].register_forward_pre_hook(lambda _, args: energy[layer].add_(_energy(args[0])))

    hooks = [watch(layer) for layer in recipe.layers]
    try:
        with torch.inference_mode():
            for row in calibration:
                teacher(input_ids=torch.tensor([row.ids], device=teacher.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    scores = {layer: energy[layer] * downs[layer].weight.detach().float().pow(2).sum(0) for layer in downs}
    return {layer: s.argsort(descending=True, stable=True)[: recipe.ffn].sort().values for layer, s in scores.items()}


def _energy(activations: Tensor) -> Tensor:
    """Sum over all positions of the squares; returned as a channel vector."""
    return activations.float().pow(2).flatten(0, -2).sum(0)


def _narrowed(key: str, value: Tensor, kept: Tensor) -> Tensor:
    if key.startswith(("mlp.gate_proj.", "mlp.up_proj.")):
        return value[kept]
    return value[:, kept] if key == "mlp.down_proj.weight" else value


def _check_fits(config: Any, recipe: Distill) -> None:
    if recipe.layers[-1] >= config.num_hidden_layers:
        raise StageError(
            f"distill.layers names layer {recipe.layers[-1]}, the teacher has 0 to {config.num_hidden_layers - 1}",
            hint="choose layers the teacher has",
        )
    if recipe.ffn > config.intermediate_size:
        raise StageError(
            f"distill.ffn is {recipe.ffn}, the teacher's feed-forward is {config.intermediate_size} wide",
            hint="choose a width up to the teacher's",
        )


def _layers(model: Any) -> nn.ModuleList:
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise _unknown(model, "no list 'layers' in the decoder")
    return layers


def _layers_name(model: Any) -> str:
    layers = _layers(model)
    name: str = next(name for name, module in model.named_modules() if module is layers)
    return f"{name}."


def _down(model: Any, layer: int) -> nn.Linear:
    mlp = getattr(_layers(model)[layer], "mlp", None)
    missing = [name for name in GATED if not isinstance(getattr(mlp, name, None), nn.Linear)]
    if missing:
        raise _unknown(model, f"no linear layer mlp.{missing[0]} in layer {layer}")
    down = getattr(mlp, "down_proj")  # noqa: B009 - mypy knows nothing of the module's fields
    assert isinstance(down, nn.Linear)
    return down


def _unknown(model: Any, what: str) -> StageError:
    return StageError(
        f"{type(model).__name__} cannot be pruned: {what}", hint="choose a teacher like Llama, Qwen2, Qwen3 or Mistral"
    )
