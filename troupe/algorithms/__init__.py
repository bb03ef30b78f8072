"""The mathematics: packing, log-probabilities, advantages, KL estimators, losses. Tensors in, tensors out.

Letters: G groups, B branches, N branch tokens in canonical order (group, branch, token). `branch_ids [N]` says which
branch a token belongs to, `group_ids [B]` which group a branch belongs to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from troupe.lazy import lazy_exports

if TYPE_CHECKING:
    from troupe.algorithms.advantage_stage import (
        split_minibatches as split_minibatches,
        with_advantages as with_advantages,
        with_gae as with_gae,
        with_importance as with_importance,
        with_loss_weights as with_loss_weights,
        with_preference_pairs as with_preference_pairs,
    )
    from troupe.algorithms.kl_coefficient import KLCoefficient as KLCoefficient
    from troupe.algorithms.objective import (
        PolicyObjective as PolicyObjective,
        PreferenceObjective as PreferenceObjective,
        RankingObjective as RankingObjective,
        SupervisedObjective as SupervisedObjective,
        ValueObjective as ValueObjective,
    )
    from troupe.algorithms.packing import Batch as Batch, branch_scores as branch_scores
    from troupe.algorithms.preference_losses import (
        bradley_terry_loss as bradley_terry_loss,
        ranked_pairs as ranked_pairs,
    )

__getattr__ = lazy_exports(__name__, __file__)
