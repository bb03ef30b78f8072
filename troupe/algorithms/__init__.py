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
    )
    from troupe.algorithms.advantage_stage import (
        with_advantages as with_advantages,
    )
    from troupe.algorithms.advantage_stage import (
        with_gae as with_gae,
    )
    from troupe.algorithms.advantage_stage import (
        with_importance as with_importance,
    )
    from troupe.algorithms.advantage_stage import (
        with_loss_weights as with_loss_weights,
    )
    from troupe.algorithms.advantage_stage import (
        with_preference_pairs as with_preference_pairs,
    )
    from troupe.algorithms.kl_coefficient import (
        KLCoefficient as KLCoefficient,
    )
    from troupe.algorithms.objective import (
        PolicyObjective as PolicyObjective,
    )
    from troupe.algorithms.objective import (
        PreferenceObjective as PreferenceObjective,
    )
    from troupe.algorithms.objective import (
        RankingObjective as RankingObjective,
    )
    from troupe.algorithms.objective import (
        SupervisedObjective as SupervisedObjective,
    )
    from troupe.algorithms.objective import (
        ValueObjective as ValueObjective,
    )
    from troupe.algorithms.packing import (
        Batch as Batch,
    )
    from troupe.algorithms.packing import branch_scores as branch_scores
    from troupe.algorithms.preference_losses import bradley_terry_loss as bradley_terry_loss
    from troupe.algorithms.preference_losses import ranked_pairs as ranked_pairs

__getattr__ = lazy_exports(
    __name__,
    {
        "Batch": "packing",
        "KLCoefficient": "kl_coefficient",
        "PolicyObjective": "objective",
        "PreferenceObjective": "objective",
        "RankingObjective": "objective",
        "SupervisedObjective": "objective",
        "ValueObjective": "objective",
        "split_minibatches": "advantage_stage",
        "branch_scores": "packing",
        "bradley_terry_loss": "preference_losses",
        "ranked_pairs": "preference_losses",
        "with_advantages": "advantage_stage",
        "with_gae": "advantage_stage",
        "with_importance": "advantage_stage",
        "with_loss_weights": "advantage_stage",
        "with_preference_pairs": "advantage_stage",
    },
)
