"""Answers, their scores, and the tables that compare models: `evaluate(config)` returns an `EvaluationResult`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from troupe.evaluation.program import EvaluationResult, evaluate

__all__ = ["EvaluationResult", "evaluate"]


def __getattr__(name: str) -> Any:
    """Import the program when it is asked for: it loads engines and models, which most files here do not need."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from troupe.evaluation import program

    return getattr(program, name)
