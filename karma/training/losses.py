"""The losses of a pair that TRL has as experimental trainers, or not on pairs: SimPO, ORPO, KTO.

Each takes log-probabilities of the whole batch and returns its loss with the rewards that are logged, so that a loss
can be checked by hand; `karma.training.pairwise` computes the log-probabilities. Decision: ORPO's first term is the
loss of the chosen response alone, as its paper's Eq. 1 and 6 have it (TRL 1.16 counts the prompt's tokens, too).
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Side:
    """One side's responses of a batch of n pairs.

    Attributes:
        logps: log-probabilities of whole responses, in nats (n,). lengths: in tokens (n,).
        reference: log-probabilities under the untrained policy, in nats (n,); None where there is none.
    """

    logps: torch.Tensor
    lengths: torch.Tensor
    reference: torch.Tensor | None = None

    @property
    def means(self) -> torch.Tensor:
        """Log-probability a token, in nats (n,)."""
        return self.logps / self.lengths

    @property
    def ratios(self) -> torch.Tensor:
        """Log-ratio to the untrained policy, in nats (n,)."""
        assert self.reference is not None
        return self.logps - self.reference


Loss = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # the loss; rewards of both sides (n,)


def compute_simpo(chosen: Side, rejected: Side, beta: float, gamma: float) -> Loss:
    """Return SimPO's loss: the chosen response is likelier a token by a target margin; no reference.

    Args:
        chosen, rejected: of n pairs. beta: scale of a token's log-probability. gamma: target margin of rewards.

    Example:
        >>> side = [Side(torch.tensor([v]), torch.tensor([2.0])) for v in (-2.0, -4.0)]
        >>> round(compute_simpo(*side, beta=2.0, gamma=1.0)[0].item(), 4)  # -log sigmoid(2 * (-1 + 2) - 1)
        0.3133

    Paper: arXiv 2405.14734, Eq. 6.
    """
    rewards = [beta * side.means for side in (chosen, rejected)]
    return -logsigmoid(rewards[0] - rewards[1] - gamma).mean(), rewards[0], rewards[1]


def compute_orpo(chosen: Side, rejected: Side, beta: float) -> Loss:
    """Return ORPO's loss: the chosen response's own, and the odds of chosen over rejected; no reference.

    Args:
        chosen, rejected: of n pairs. beta: weight of the odds (the paper's lambda).

    Example:
        >>> side = [Side(torch.tensor([p]).log(), torch.tensor([1.0])) for p in (0.5, 0.2)]
        >>> round(compute_orpo(*side, beta=0.1)[0].item(), 4)  # -log .5 - .1 * log sigmoid(log(1 / .25))
        0.7155

    Paper: arXiv 2403.07691, Eq. 6 and 7.
    """
    odds = [side.means - _log1mexp(side.means) for side in (chosen, rejected)]
    loss = (-chosen.means - beta * logsigmoid(odds[0] - odds[1])).mean()
    return loss, beta * chosen.means, beta * rejected.means


def compute_kto(chosen: Side, rejected: Side, kl: torch.Tensor, beta: float, weights: tuple[float, float]) -> Loss:
    """Return KTO's loss: chosen responses are desirable ones, rejected undesirable ones, each against a shared point.

    Args:
        chosen, rejected: of n pairs, with their reference.
        kl: the point z0, an estimate of the divergence from the untrained policy, in nats, at least 0.
        beta: how fast gain and loss saturate. weights: of desirable and of undesirable responses.

    Example:
        >>> at_start = Side(torch.tensor([-3.0]), torch.tensor([3.0]), torch.tensor([-3.0]))
        >>> compute_kto(at_start, at_start, torch.tensor(0.0), beta=0.1, weights=(1.0, 1.0))[0].item()
        0.5

    Paper: arXiv 2402.01306, Eq. 7 and 8.
    """
    gain = weights[0] * (1 - torch.sigmoid(beta * (chosen.ratios - kl)))
    harm = weights[1] * (1 - torch.sigmoid(beta * (kl - rejected.ratios)))
    return torch.cat([gain, harm]).mean(), beta * chosen.ratios, beta * rejected.ratios


def _log1mexp(x: torch.Tensor) -> torch.Tensor:
    """Return log(1 - e^x) of x < 0, without cancellation on either side of -log 2."""
    return torch.where(x < -0.6931472, torch.log1p(-torch.exp(x)), torch.log(-torch.expm1(x)))
