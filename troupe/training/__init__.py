"""What one training run is made of: roles, rollouts, episodes, evaluation, the supervised loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from troupe.lazy import lazy_exports

if TYPE_CHECKING:
    from troupe.training.context import (
        RunContext as RunContext,
        attempts as attempts,
        open_context as open_context,
        recoveries as recoveries,
    )
    from troupe.training.kept_rollouts import Kept as Kept, KeptRollouts as KeptRollouts
    from troupe.training.reference_cache import ReferenceCache as ReferenceCache
    from troupe.training.result import TrainingResult as TrainingResult, read_result as read_result
    from troupe.training.roles import Roles as Roles, start_roles as start_roles
    from troupe.training.rollouts import Rollout as Rollout, Rollouts as Rollouts
    from troupe.training.supervised import SupervisedContext as SupervisedContext, train_supervised as train_supervised

__getattr__ = lazy_exports(__name__, __file__)
