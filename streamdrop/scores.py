"""How much each layer is still learning: Equations 1-4 of Learn & Drop (Cruciata et al. 2024, section 3).

``g[i, j]`` is the gradient of weight ``i`` at iteration ``j``; a layer has ``N`` weights, a window ``M`` iterations.
Two running sums per weight suffice: ``Σ_j g`` and ``Σ_j |g|``; a calibrated test of agreement adds two a layer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor


def magnitude(absolute_sum: Tensor) -> float:
    """Eq. 1: ``mean_i Σ_j |g[i, j]|`` from the per-weight sums ``Σ_j |g|``; ≥ 0."""
    return float(absolute_sum.double().mean())


def importance(signed_sum: Tensor, absolute_sum: Tensor) -> float:
    """Eq. 2: ``P = 1 - Σ_i |Σ_j g| / Σ_i Σ_j |g|``, in [0, 1]; 1 when every gradient is zero.

    Near 1 the steps cancel: the layer has stopped learning. Near 0 they agree: it is learning.
    """
    return _importance(float(signed_sum.double().abs().sum()), float(absolute_sum.double().sum()))


def _importance(signed: float, absolute: float) -> float:
    return 1.0 if absolute == 0.0 else min(1.0, max(0.0, 1.0 - signed / absolute))


def standardise(p: Tensor) -> Tensor:
    """Eq. 3: ``(P - mean) / σ`` with the population σ, [L] → [L], computed in float64; all zeros where σ = 0."""
    values = p.double()
    dtype = p.dtype if p.is_floating_point() else torch.float64
    # Equal values, not a computed σ of 1e-17: rounding in the mean must not make candidates out of nothing.
    if values.numel() == 0 or bool(values.max() == values.min()):
        return torch.zeros_like(values, dtype=dtype)
    return ((values - values.mean()) / values.std(correction=0)).to(dtype)


def first_crossing(z: Tensor) -> int:
    """Eq. 4: how many layers up to and including the first ``t`` with ``z[t] > 0`` and ``z[t+1] < 0``; 0 if none."""
    crossings = ((z[:-1] > 0) & (z[1:] < 0)).nonzero()
    return int(crossings[0]) + 1 if len(crossings) else 0


def best_prefix(z: Tensor) -> int:
    """Length of the prefix with the largest sum (section 3.2's text); 0 when no sum is positive; ties: the shorter."""
    best, length, total = 0.0, 0, 0.0
    for count, value in enumerate(z.double().tolist(), start=1):
        total += value
        if total > best:
            best, length = total, count
    return length


def agreement(cross: float, cross_squared: float) -> float:
    """How far a layer's gradients agree beyond chance, in standard deviations of chance: ``z = Σ_j c_j / √(Σ_j c_j²)``.

    ``c_j = g_j · Σ_{k<j} g_k`` says whether a step goes where those before it went. While a layer's gradients are noise
    around zero, whatever their distribution, the ``c_j`` are martingale differences: z is then about N(0, 1). It is
    large while they agree, negative where steps undo each other. 0 when every gradient is zero.
    """
    return cross / math.sqrt(cross_squared) if cross_squared > 0.0 else 0.0


class GradientScores:
    """Running sums of each layer's gradients over a window of iterations.

    ``layers`` maps a layer's name to its weights (one parameter or several; biases do not count). Call ``update``
    after each backward pass, before gradients are cleared. ``iterations`` is M of the current window. ``most`` bounds
    the work: of a larger parameter about so many weights are followed, whole output filters evenly spread, and scores
    are estimates of what all weights would give; None: all, as in the paper. ``at_once`` lays all gradients side by
    side before they are summed: a few operations in place of a few for each weight, which on a GPU cost more than
    what they do; None: on a GPU. Sums are kept in the widest dtype of the weights, float32 at least. A complex weight
    counts as two real ones, and the rows that a sparse gradient leaves out as zeros.
    """

    def __init__(
        self, layers: Mapping[str, Tensor | Sequence[Tensor]], most: int | None = None, at_once: bool | None = None
    ) -> None:
        self._weights = {
            name: (given,) if isinstance(given, Tensor) else tuple(given) for name, given in layers.items()
        }
        self._most = most
        device = next((w.device for w in self._all_weights()), torch.device("cpu"))
        dtypes = {_real(weight).dtype for weight in self._all_weights()}
        self._dtype = functools.reduce(torch.promote_types, dtypes, torch.float32)
        self._at_once = device.type == "cuda" if at_once is None else at_once
        # Of each layer: Σ_i Σ_j |g|, Σ_j c, Σ_j c². No equation needs Σ_j |g| of single weights.
        self._sums = torch.zeros(3, len(self._weights), dtype=torch.float64, device=device)
        self._lay_out({})
        self.iterations = 0

    @property
    def layers(self) -> tuple[str, ...]:
        """The names scored, in the order given."""
        return tuple(self._weights)

    def _all_weights(self) -> list[Tensor]:
        """The weights of all layers, in their order."""
        return [weight for weights in self._weights.values() for weight in weights]

    def _lay_out(self, kept: Mapping[str, Sequence[Tensor]]) -> None:
        """Σ_j g of every weight followed, one beside the other, and each weight's part of it; from ``kept``, else 0."""
        parts = {
            name: list(kept.get(name, ())) or [self._followed(self._zeros(w)) for w in weights]
            for name, weights in self._weights.items()
        }
        device = self._sums.device
        order = [part for tensors in parts.values() for part in tensors]
        self._total = torch.cat([part.flatten() for part in order]) if order else torch.zeros(0, device=device)
        lengths = [part.numel() for part in order]
        views = iter(view.view(part.shape) for view, part in zip(torch.split(self._total, lengths), order, strict=True))
        self._signed = {name: [next(views) for _ in tensors] for name, tensors in parts.items()}
        owners = [layer for layer, tensors in enumerate(parts.values()) for _ in tensors]
        self._owners = torch.tensor(owners, dtype=torch.long, device=device)
        of_layers = [sum(part.numel() for part in tensors) for tensors in parts.values()]
        self._lengths = torch.tensor(of_layers, dtype=torch.long, device=device)
        self._places = self._places_followed(device) if self._at_once and self._most is not None and order else None

    def _places_followed(self, device: torch.device) -> Tensor:
        """Where the followed weights lie in all weights side by side, int64."""
        start, places = 0, []
        for weight in map(_real, self._all_weights()):
            own = torch.arange(start, start + weight.numel(), device="cpu").view(weight.shape)
            places.append(self._followed(own).flatten())
            start += weight.numel()
        return torch.cat(places).to(device)

    def _zeros(self, weight: Tensor) -> Tensor:
        return torch.zeros_like(_real(weight.detach()), dtype=self._dtype)

    def _followed(self, values: Tensor) -> Tensor:
        """The part of a parameter, or of its gradient, that is scored."""
        if self._most is None or values.numel() <= self._most or values.ndim == 0:
            return values
        filters = max(1, self._most * len(values) // values.numel())
        return values[:: max(1, len(values) // filters)]

    @torch.no_grad()
    def update(self) -> None:
        """Add the gradients that the weights hold now; a weight without one counts as zero."""
        self.iterations += 1
        weights = self._all_weights()
        if not any(weight.grad is not None for weight in weights):
            return
        gradients = [self._zeros(w) if w.grad is None else _real(w.grad).to(self._dtype) for w in weights]
        cross, absolute = self._add_at_once(gradients) if self._at_once else self._add_one_by_one(gradients)
        self._sums += torch.stack((absolute, cross, cross.square()))

    def _add_one_by_one(self, gradients: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Each layer's ``Σ g · Σ_j g`` and ``Σ |g|``, float64 [L]; then g is added to the sums."""
        followed = [self._followed(g) for g in gradients]
        signed = [total for totals in self._signed.values() for total in totals]
        cross = torch.stack([_dot(g, s) for g, s in zip(followed, signed, strict=True)]).double()
        absolute = torch.stack(torch._foreach_norm(followed, 1)).double()
        torch._foreach_add_(signed, followed)
        none = torch.zeros_like(self._sums[0])
        return none.index_add(0, self._owners, cross), none.index_add(0, self._owners, absolute)

    def _add_at_once(self, gradients: list[Tensor]) -> tuple[Tensor, Tensor]:
        """What ``_add_one_by_one`` does, of all gradients side by side."""
        flat = torch.cat([g.flatten() for g in gradients])
        flat = flat if self._places is None else flat[self._places]
        cross, absolute = self._of_layers(flat * self._total), self._of_layers(flat.abs())
        self._total += flat
        return cross.double(), absolute.double()

    def _of_layers(self, values: Tensor) -> Tensor:
        """The sum of each layer's part of values that lie side by side, [L]."""
        return torch.segment_reduce(values, "sum", lengths=self._lengths, unsafe=True, initial=0)

    def importance(self) -> dict[str, float]:
        """Eq. 2 for every layer over the window, in [0, 1]."""
        if self._at_once:
            signed = self._of_layers(self._total.double().abs())
            both = torch.stack((signed, self._sums[0])).tolist()  # one wait for the device, not two a layer
            return {name: _importance(*sums) for name, *sums in zip(self._weights, *both, strict=True)}
        return {
            name: importance(_flat(self._signed[name]), total)
            for name, total in zip(self._weights, self._sums[0], strict=True)
        }

    def magnitude(self) -> dict[str, float]:
        """Eq. 1 for every layer over the window, ≥ 0."""
        counts = [sum(part.numel() for part in parts) for parts in self._signed.values()]
        totals = zip(self._weights, self._sums[0].tolist(), counts, strict=True)
        return {name: total / max(count, 1) for name, total, count in totals}

    def agreement(self) -> dict[str, float]:
        """z of every layer over the window: about N(0, 1) for noise, large while the gradients agree."""
        sums = zip(self._weights, *self._sums[1:].tolist(), strict=True)
        return {name: agreement(cross, squared) for name, cross, squared in sums}

    @torch.no_grad()
    def reset(self) -> None:
        """Start a new window."""
        self._sums.zero_()
        self._total.zero_()
        self.iterations = 0

    def keep(self, names: Iterable[str]) -> None:
        """Forget every other layer: the window of the kept ones goes on."""
        kept = set(names)
        self._sums = self._sums[:, [i for i, name in enumerate(self._weights) if name in kept]]
        self._weights = {name: weights for name, weights in self._weights.items() if name in kept}
        self._lay_out(self._signed)

    def tensors(self) -> dict[str, Tensor]:
        """The window's sums by name, for a checkpoint; ``restore`` takes them back."""
        named = {"sums": self._sums}
        for name, tensors in self._signed.items():
            named.update({f"signed.{i}.{name}": tensor for i, tensor in enumerate(tensors)})
        return named

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], iterations: int) -> None:
        """Take back what ``tensors`` gave for the same layers. Raises KeyError for a layer that is missing."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])
        self.iterations = iterations


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """``Σ a·b``, in their dtype; both lie in memory alike."""
    return torch.dot(a.flatten(), b.flatten()) if a.is_contiguous() and b.is_contiguous() else (a * b).sum()


def _real(values: Tensor) -> Tensor:
    """A weight or its gradient as dense real numbers; a complex one has a last dimension of two."""
    dense = values.to_dense() if values.layout != torch.strided else values
    return torch.view_as_real(dense.resolve_conj()) if dense.is_complex() else dense


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors]) if tensors else torch.zeros(0, device="cpu")
