"""How far a change of a matrix moves a model's predictions, to second order, for every matrix and any change at once.

Rules: nothing is decided here. Logits that move by d at a position move its distribution p by KL = d'Fd / 2 with
F = diag(p) - pp', the Fisher information of a softmax. For random signs e the vector g = sqrt(p)e - p<sqrt(p), e> has
E[gg'] = F; carried back to the outputs of a matrix it tells, for any change D of it, the KL of a sequence with inputs x
as half the mean square of sum <g, Dx> over the positions, whose signs are independent. So one pass forward and a few
backward serve all matrices and all their quantizations. Layers are gone back through one by one over stored hidden
states: memory holds the model as it is stored, and one layer in f32 with what goes into and comes out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import StageError
from pipeline.stages.golden import Request
from pipeline.stages.survey import HINT

LOGITS = 1 << 24  # values of one batch's logits, 64 MiB in f32
ROWS = 32  # sequences of a batch at most


@dataclass(frozen=True)
class Part:
    """Some positions: what goes into a matrix (of the embedding: token ids), the vectors g at its outputs (draws,
    positions, outputs), and the sequence each position is of."""

    inputs: Tensor
    gradients: Tensor
    sequences: Tensor


@dataclass(frozen=True)
class Matrix:
    """A matrix by its module's name, (outputs, inputs); the embedding's is (vocabulary, outputs).

    `scale` is what the embedding's outputs are multiplied by.
    """

    name: str
    weight: Tensor
    parts: Callable[[], Iterator[Part]]
    embedding: bool = False
    scale: float = 1.0

    def moved(self, change: Tensor, draws: int, sequences: int) -> Tensor:
        """Return the sum of <g, Dx> over each sequence's positions, (draws, sequences), for a change D."""
        found = torch.zeros(draws, sequences)
        for part in self.parts():
            outputs = change[part.inputs] * self.scale if self.embedding else part.inputs @ change.T
            found.index_add_(1, part.sequences, torch.einsum("to,kto->kt", outputs, part.gradients))
        return found


@dataclass
class _Batch:
    """Sequences of like length, padded on the right, and what the way forward leaves for the way back.

    `real` and `answer` mark positions (rows, tokens); `calls` are each layer's input and its other arguments; `cut` is
    the output matrix's output, where the graph is cut.
    """

    places: list[int]
    ids: Tensor
    real: Tensor
    answer: Tensor
    calls: list[tuple[Tensor, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    backward: list[Tensor] = field(default_factory=list)
    embedded: Any = None
    first: Any = None
    last: Any = None
    head_input: Any = None
    head_output: Any = None
    cut: Any = None
    logits: Any = None

    def part(self, inputs: Tensor, gradients: Sequence[Tensor]) -> Part:
        """Return the real positions of (rows, tokens, ...) tensors."""
        sequences = torch.tensor(self.places)[:, None].expand_as(self.real)[self.real]
        return Part(inputs[self.real], torch.stack([g[self.real] for g in gradients]), sequences)


class Curvature:
    """A model's predictions over sequences, gone through once forward and once back."""

    def __init__(self, model: Any, requests: Sequence[Request], *, draws: int, seed: int = 0) -> None:
        """Take a transformers model, its weights in any type, and sequences of prompt and answer.

        Args:
            draws: vectors g a position; of the rows of `moved` the first `draws` are of prompt positions, as many more
                of those that predict the answer. A mean KL's relative error is about sqrt(2 / (draws * sequences)).

        Raises:
            StageError: the model has no row of layers, or no output matrix.
        """
        self.rows, self.sequences = 2 * draws, len(requests)
        self._model, self._draws, self._seed = model.requires_grad_(False).eval(), draws, seed
        self._layers, self._stored = _layers(model), model.dtype
        self._names = {module: name for name, module in model.named_modules()}
        self._head, self._embedding = model.get_output_embeddings(), model.get_input_embeddings()
        if self._head is None:
            raise StageError("the model has no output matrix", hint=HINT)
        self._batches = _batches(requests, len(self._head.weight))

    @property
    def names(self) -> list[str]:
        """The modules whose matrices `matrices` yields, in its order; tied embeddings stand twice."""
        inner = [linear for layer in reversed(self._layers) for linear in _linears(layer)]
        return [self._names[module] for module in (self._head, *inner, self._embedding)]

    @property
    def tied(self) -> bool:
        """Whether the output's matrix is the embedding's."""
        return self._head.weight is self._embedding.weight

    def matrices(self) -> Iterator[Matrix]:
        """Go through the model and yield its matrices: the output's, each layer's from the last, the embedding's."""
        inside = {parameter for layer in self._layers for parameter in layer.parameters()}
        for parameter in self._model.parameters():
            if parameter not in inside:
                parameter.data = parameter.data.float()
        for batch in self._batches:
            self._forward(batch)
        yield Matrix(self._names[self._head], self._head.weight, self._at_head)
        for batch in self._batches:
            batch.head_input = batch.head_output = batch.cut = batch.logits = None
        for number in reversed(range(len(self._layers))):
            yield from self._back(number)
        yield Matrix(
            self._names[self._embedding], self._embedding.weight, self._at_embedding, embedding=True,
            scale=float(getattr(self._embedding, "embed_scale", 1.0)),
        )  # fmt: skip

    def _forward(self, batch: _Batch) -> None:
        """Run the model as graphs cut at the embedding, at each layer's input, before the last norm and at the head."""

        def embedded(_module: Any, _args: Any, output: Tensor) -> Tensor:
            batch.embedded = output.detach().requires_grad_()
            return batch.embedded  # type: ignore[no-any-return]

        def enter(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            batch.first = args[0] if batch.first is None else batch.first
            batch.calls.append((args[0].detach(), args[1:], kwargs))
            layer.float()
            return (batch.calls[-1][0], *args[1:]), kwargs

        def leave(layer: Any, _args: Any, _output: Any) -> None:
            layer.to(self._stored)

        def end(_module: Any, _args: Any, output: Any) -> Any:
            batch.last = _hidden(output).detach().requires_grad_()
            return (batch.last, *output[1:]) if isinstance(output, tuple) else batch.last

        def head(_module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            batch.head_input, batch.head_output = args[0].detach(), output
            batch.cut = output.detach().requires_grad_()
            return batch.cut  # type: ignore[no-any-return]

        with ExitStack() as hooks, torch.enable_grad():
            handles = [
                self._embedding.register_forward_hook(embedded),
                *(layer.register_forward_pre_hook(enter, with_kwargs=True) for layer in self._layers),
                *(layer.register_forward_hook(leave) for layer in self._layers),
                self._layers[-1].register_forward_hook(end),
                self._head.register_forward_hook(head),
            ]
            for handle in handles:
                hooks.callback(handle.remove)
            batch.logits = self._model(input_ids=batch.ids, use_cache=False).logits
        batch.backward = [_grad(batch.head_output, batch.last, g) for g in self._at_cut(batch)]

    def _at_cut(self, batch: _Batch) -> Iterator[Tensor]:
        """The vectors g at the output matrix's output, the same at every call: prompt positions', then the answer's."""
        random = torch.Generator().manual_seed(self._seed + batch.places[0])
        p = torch.softmax(batch.logits.detach(), -1)
        root = p.sqrt()
        for chosen in (batch.real & ~batch.answer, batch.real & batch.answer):
            for _ in range(self._draws):
                v = root * (torch.randint(0, 2, p.shape, generator=random, dtype=torch.int8) * 2 - 1)
                g = (v - p * (v * root).sum(-1, keepdim=True)) * chosen[..., None]
                yield g if batch.logits is batch.cut else _grad(batch.logits, batch.cut, g)

    def _at_head(self) -> Iterator[Part]:
        return (batch.part(batch.head_input, list(self._at_cut(batch))) for batch in self._batches)

    def _at_embedding(self) -> Iterator[Part]:
        for batch in self._batches:
            same = batch.first is batch.embedded
            yield batch.part(batch.ids, [g if same else _grad(batch.first, batch.embedded, g) for g in batch.backward])

    def _back(self, number: int) -> Iterator[Matrix]:
        """Yield a layer's matrices, and carry the vectors g back to its input."""
        layer = self._layers[number].float()
        linears = _linears(layer)
        parts: list[list[Part]] = [[] for _ in linears]
        for batch in self._batches:
            kept: dict[int, tuple[Tensor, Tensor]] = {}
            hidden, args, kwargs = batch.calls.pop()
            hidden = hidden.requires_grad_()
            with ExitStack() as hooks, torch.enable_grad():
                for place, linear in enumerate(linears):
                    hooks.callback(linear.register_forward_hook(_keep(kept, place)).remove)
                after = _hidden(layer(hidden, *args, **kwargs))
            ends = [hidden, *(kept[place][1] for place in range(len(linears)))]
            back = [torch.autograd.grad(after, ends, g, retain_graph=True) for g in batch.backward]
            batch.backward = [found[0] for found in back]
            for place, (into, _) in kept.items():
                parts[place].append(batch.part(into, [found[place + 1] for found in back]))
        for linear, held in zip(linears, parts, strict=True):
            yield Matrix(self._names[linear], linear.weight, held.__iter__)
        layer.to(self._stored)


def _layers(model: Any) -> Any:
    count = model.config.get_text_config().num_hidden_layers
    rows = [m for m in model.base_model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count]
    if not rows:
        raise StageError(f"{type(model).__name__} has no row of {count} layers", hint=HINT)
    return rows[0]


def _linears(layer: Any) -> list[Any]:
    return [module for module in layer.modules() if isinstance(module, torch.nn.Linear)]


def _keep(kept: dict[int, tuple[Tensor, Tensor]], place: int) -> Callable[[Any, Any, Any], None]:
    def hook(_module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        kept[place] = args[0].detach(), output

    return hook


def _hidden(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def _grad(output: Tensor, to: Tensor, g: Tensor) -> Tensor:
    return torch.autograd.grad(output, [to], g, retain_graph=True)[0]


def _batches(requests: Sequence[Request], vocabulary: int) -> list[_Batch]:
    order = sorted(range(len(requests)), key=lambda place: len(requests[place].forced))
    longest = max((len(request.forced) for request in requests), default=0)
    rows = max(1, min(ROWS, LOGITS // max(1, longest * vocabulary)))
    return [
        _batch([requests[place] for place in order[at : at + rows]], order[at : at + rows])
        for at in range(0, len(order), rows)
    ]


def _batch(requests: Sequence[Request], places: list[int]) -> _Batch:
    shape = len(requests), max(len(request.forced) for request in requests)
    ids, real, answer = (
        torch.zeros(shape, dtype=torch.long),
        torch.zeros(shape, dtype=torch.bool),
        torch.zeros(shape, dtype=torch.bool),
    )
    for row, request in enumerate(requests):
        length = len(request.forced)
        ids[row, :length], real[row, :length] = torch.tensor(request.forced), True
        answer[row, request.answer_start : length] = True
    return _Batch(places, ids, real, answer)
