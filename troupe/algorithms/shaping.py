"""What changes a score or the loss mask between the rewards and the advantages.

Each function stands for one setting of a recipe: overlong answers (DAPO, 2503.14476), answers without an end, scores
out of range, and KL in the reward. Scores are per branch [B], before any baseline is subtracted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from troupe.algorithms.advantages import sum_by


def overlong_penalty(lengths: Tensor, max_tokens: int, cache_tokens: int) -> Tensor:
    """DAPO's soft overlong punishment, added to the score; [B] -> float32 [B].

    0 up to max_tokens - cache_tokens, then a straight line down to -1 at max_tokens, -1 beyond
    (2503.14476, L_max = max_tokens, L_cache = cache_tokens).
    """
    if not 0 < cache_tokens <= max_tokens:
        raise ValueError(f"cache_tokens ({cache_tokens}) must be between 1 and max_tokens ({max_tokens})")
    return ((max_tokens - cache_tokens - lengths.float()) / cache_tokens).clamp(min=-1, max=0)


def mask_truncated(loss_mask: Tensor, branch_ids: Tensor, truncated: Tensor) -> Tensor:
    """Return the loss mask without the tokens of truncated branches; bool [N], [N], bool [B] -> bool [N].

    DAPO's overlong filtering: an answer that was cut off states little about what it would have become.
    """
    return loss_mask & ~truncated[branch_ids]


def kl_in_reward(scores: Tensor, token_kl: Tensor, loss_mask: Tensor, branch_ids: Tensor, coef: float) -> Tensor:
    """R_i = r_i - coef * sum over the branch's trained tokens of log(pi / pi_ref); [B], [N], [N], [N] -> [B].

    `token_kl` is k1 of the sampling policy (Stiennon et al. 2009.01325, section 3.4; RLOO, 2402.14740, where the
    baseline is computed from R as well). Tokens outside the mask may hold anything, NaN too. No gradient flows.
    """
    trained = torch.where(loss_mask, token_kl.detach().double(), 0.0)
    penalty = coef * sum_by(trained, branch_ids, len(scores))  # [N] -> [B]
    return (scores.double() - penalty).to(scores.dtype)


def missing_eos_penalty(scores: Tensor, truncated: Tensor, penalty: float) -> Tensor:
    """Return the score minus `penalty` where the answer was cut before its end of turn; [B], bool [B] -> [B]."""
    return torch.where(truncated, scores - penalty, scores)


def clip_scores(scores: Tensor, limit: float) -> Tensor:
    """Scores within [-limit, limit]; [B] -> [B]. A reward model's outliers would otherwise set the critic's scale."""
    if limit <= 0:
        raise ValueError(f"the limit of scores ({limit}) must be greater than 0")
    return scores.clamp(-limit, limit)
