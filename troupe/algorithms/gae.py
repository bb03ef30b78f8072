"""What PPO adds to the losses: rewards per token, generalised advantage estimation, and the loss of a critic.

The critic's value of token n is its estimate at the position that predicts n, of the state before it. Advantages are
computed once per step on the step's whole batch and know no gradient; `value_loss` runs on parts, as all losses do.
Tokens of a branch stand in the order in which they were sampled; those outside the mask may hold anything, NaN too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from troupe.algorithms.losses import Metrics, weighted_metrics, weighted_sum


def token_rewards(scores: Tensor, token_kl: Tensor, loss_mask: Tensor, branch_ids: Tensor, coef: float) -> Tensor:
    """r_n = -coef * kl_n, plus the branch's score at its last trained token; [B], [N], bool [N], [N] -> [N].

    `token_kl` is k1 of the sampling policy (Stiennon et al. 2009.01325, section 3.4, spread over the tokens as in
    2402.03300, Eq. 2). A branch's rewards sum to `shaping.kl_in_reward`. 0 outside the mask; the score of a branch
    without trained tokens has no place and is lost.
    """
    rewards = torch.where(loss_mask, -coef * token_kl.detach().double(), 0.0)
    last = _last_trained(loss_mask, branch_ids, len(scores))  # [B]
    present = last >= 0
    return rewards.index_add(0, last[present], scores.detach().double()[present]).to(scores.dtype)


def gae(
    rewards: Tensor, values: Tensor, loss_mask: Tensor, branch_ids: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Return (advantages, returns) of every trained token, 0 elsewhere; [N], [N], bool [N], [N] -> [N], [N].

        delta_n = r_n + gamma V_next - V_n,  A_n = delta_n + gamma lam A_next,  return_n = A_n + V_n

    1506.02438, Eq. 16. `next` is the next trained token of the branch: what an environment wrote in between is no
    action and takes no time. After the last one value and advantage are 0, whether the answer ended or was cut off.
    """
    order, lengths = _by_branch(loss_mask, branch_ids)
    longest = int(lengths.max()) if len(lengths) else 0
    filled = torch.arange(longest, device=lengths.device) < lengths[:, None]  # bool [B, T]

    def padded(column: Tensor) -> Tensor:
        trained = column.detach()[order].double()
        return trained.new_zeros(filled.shape).masked_scatter(filled, trained)  # [N] -> [B, T]

    baseline = padded(values)
    successor = torch.nn.functional.pad(baseline[:, 1:], (0, 1))
    deltas = padded(rewards) + gamma * successor - baseline
    advantages, later = torch.zeros_like(deltas), deltas.new_zeros(len(deltas))
    for t in reversed(range(longest)):
        # Behind a branch's end every delta is 0, and so is the advantage that its last token inherits.
        later = deltas[:, t] + gamma * lam * later
        advantages[:, t] = later

    def flat(columns: Tensor) -> Tensor:
        return values.new_zeros(len(values)).index_put((order,), columns[filled].to(values.dtype))  # [B, T] -> [N]

    return flat(advantages), flat(advantages + baseline)


def whiten(advantages: Tensor, mask: Tensor) -> Tensor:
    """Return (A - mean A) / sqrt(var A + 1e-8) over the tokens of the mask, 0 elsewhere; [N], bool [N] -> [N].

    The variance is the population's, over the batch of the whole step. Common practice, in no paper's formula.
    """
    trained = advantages.detach()[mask].double()
    if not len(trained):
        return torch.zeros_like(advantages)
    whitened = (trained - trained.mean()) / (trained.var(correction=0) + 1e-8).sqrt()
    return torch.zeros_like(advantages).masked_scatter(mask, whitened.to(advantages.dtype))


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    loss_weights: Tensor,
    *,
    clip: float | None,
    metric_weights: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """Return 1/2 sum_n w_n max((V - Ret)^2, (clip(V, V_old - c, V_old + c) - Ret)^2); every tensor [n] -> 0-d loss and
    metrics.

    The squared error of PPO, 1707.06347, Eq. 9; the clip is that of its authors' code, not of the paper, and `clip`
    None leaves it out. A token counts as clipped where the clipped error is the larger: it has no gradient.
    """
    counted = loss_weights != 0
    values, old_values, returns = (torch.where(counted, column, 0.0) for column in (values, old_values, returns))
    old_values, returns = old_values.detach(), returns.detach()
    squared = (values - returns).square()
    near = values if clip is None else old_values + (values - old_values).clamp(-clip, clip)
    clipped = (near - returns).square()
    loss = weighted_sum(torch.maximum(squared, clipped), loss_weights) / 2
    metrics = {
        "value/clip_fraction": clipped > squared,
        "value/mean": values,
        "value/error": (values - returns).abs(),
    }
    return loss, {"value/loss": loss.detach()} | weighted_metrics(metrics, loss_weights, metric_weights)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """Return 1 - var(returns - values) / var(returns) over the tokens of the mask; [N], [N], bool [N] -> 0-d float32.

    1: the critic knows the returns; 0: it does no better than a constant, and the value where all returns are equal;
    below 0: worse than a constant. Not additive: compute it on the whole step.
    """
    known, expected = returns.detach()[mask].double(), values.detach()[mask].double()
    if not len(known) or known.max() == known.min():
        return torch.zeros((), device=values.device)
    return (1 - (known - expected).var(correction=0) / known.var(correction=0)).float()


def _by_branch(loss_mask: Tensor, branch_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the trained tokens, branch after branch, and how many each branch has; bool [N], [N] -> [n], [B]."""
    trained = loss_mask.nonzero().flatten()
    by_branch = torch.argsort(branch_ids[trained], stable=True)
    return trained[by_branch], torch.bincount(branch_ids[trained])


def _last_trained(loss_mask: Tensor, branch_ids: Tensor, num_branches: int) -> Tensor:
    """Return [B]: index on N of each branch's last trained token, -1 where it has none."""
    positions = torch.arange(len(loss_mask), device=loss_mask.device)
    nowhere = positions.new_full((num_branches,), -1)
    return nowhere.scatter_reduce(0, branch_ids[loss_mask], positions[loss_mask], "amax")
