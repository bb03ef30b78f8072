"""What one training run is made of: roles, rollouts, episodes, evaluation, the supervised loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from troupe.lazy import lazy_exports

if TYPE_CHECKING:
    from troupe.training.context import (
        RunContext as RunContext,
    )
    from troupe.training.context import (
        attempts as attempts,
    )
    from troupe.training.context import (
        open_context as open_context,
    )
    from troupe.training.reference_cache import (
        ReferenceCache as ReferenceCache,
    )
    from troupe.training.result import (
        TrainingResult as TrainingResult,
    )
    from troupe.training.result import (
        read_result as read_result,
    )
    from troupe.training.roles import Roles as Roles
    from troupe.training.roles import start_roles as start_roles
    from troupe.training.rollouts import (
        Rollouts as Rollouts,
    )
    from troupe.training.supervised import (
        SupervisedContext as SupervisedContext,
    )
    from troupe.training.supervised import (
        train_supervised as train_supervised,
    )

__getattr__ = lazy_exports(
    __name__,
    {
        "Roles": "roles",
        "Rollouts": "rollouts",
        "RunContext": "context",
        "TrainingResult": "result",
        "attempts": "context",
        "open_context": "context",
        "read_result": "result",
        "ReferenceCache": "reference_cache",
        "SupervisedContext": "supervised",
        "train_supervised": "supervised",
        "start_roles": "roles",
    },
)
