"""What the layers below the first trained one make of a text: computed once, for as long as they do not change.

Adapters on the last layers leave the ones below as they were. Their states of a row are the same for the reference and
the policy, before training, while it runs and after it, so they are kept and the row goes on from there; of SmolLM2's
30 layers with adapters on 8, that is most of a forward pass.
Limit: on a CPU, where time is dearer than memory, and up to `ROOM`; rows beyond it are computed as ever.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

ROOM = 2**29  # bytes of states kept
_FROZEN = "karma_frozen"
States = dict[Hashable, torch.Tensor]  # a row's key -> (tokens, width)


def keep_frozen(model: Any, n_layers: int, states: States) -> None:
    """Let a model keep what its first layers make of rows, where it allows that.

    Args:
        model: a causal language model, without wrappers. n_layers: the first so many never change.
        states: what is kept; models that share their first layers may share it.
    """
    layers = getattr(model.base_model, "layers", None)
    if n_layers < 1 or not layers or model.device.type != "cpu" or getattr(model.config, "attention_dropout", None):
        return
    if any(
        module.p for layer in layers[:n_layers] for module in layer.modules() if isinstance(module, torch.nn.Dropout)
    ):
        return
    setattr(model, _FROZEN, FrozenLayers(layers[:n_layers], states))


def keeps_frozen(model: Any) -> bool:
    """Tell whether a model keeps what its first layers make of rows."""
    return hasattr(model, _FROZEN)


def count_frozen(model: Any) -> int:
    """Return how many of a model's first layers have nothing to train."""
    layers = getattr(model.base_model, "layers", None) or []
    trained = [k for k, layer in enumerate(layers) if any(p.requires_grad for p in layer.parameters())]
    return trained[0] if trained else len(layers)


def run_rows(model: Any, keys: Sequence[Hashable], widths: Sequence[int], run: Callable[[], Any]) -> Any:
    """Return what `run` returns, a forward pass over rows padded on the right, from kept states if all are there."""
    frozen = getattr(model, _FROZEN, None)
    return frozen.run_rows(keys, widths, run) if frozen else run()


class FrozenLayers:
    """The first layers of a model, which hand on what they are given while `run_rows` has the states of all rows."""

    def __init__(self, layers: Sequence[Any], states: States):
        self.states, self.last = states, len(layers) - 1
        self.given: torch.Tensor | None = None  # what the last of the layers is to return
        self.made: torch.Tensor | None = None  # what it returned
        for number, layer in enumerate(layers):
            layer.forward = self._wrap(layer.forward, number)

    def _wrap(self, forward: Callable[..., Any], number: int) -> Callable[..., Any]:
        def forward_or_skip(hidden_states: torch.Tensor, *args: Any, **options: Any) -> Any:
            if self.given is not None:
                return self.given if number == self.last else hidden_states
            output = forward(hidden_states, *args, **options)
            if number == self.last:
                self.made = output
            return output

        return forward_or_skip

    def run_rows(self, keys: Sequence[Hashable], widths: Sequence[int], run: Callable[[], Any]) -> Any:
        """See the function of this name."""
        if all(key in self.states for key in keys):
            self.given = torch.nn.utils.rnn.pad_sequence([self.states[key] for key in keys], batch_first=True)
        try:
            output = run()
            if self.given is None and isinstance(self.made, torch.Tensor) and not self.made.requires_grad:
                self._keep(keys, widths, self.made)
        finally:
            self.given = self.made = None
        return output

    def _keep(self, keys: Sequence[Hashable], widths: Sequence[int], made: torch.Tensor) -> None:
        room = ROOM - sum(states.nbytes for states in self.states.values())
        for key, width, row in zip(keys, widths, made, strict=True):
            if key not in self.states and (room := room - row[:width].nbytes) >= 0:
                self.states[key] = row[:width].clone()
