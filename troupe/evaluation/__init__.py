"""Answers, their scores, and the tables that compare models: `evaluate(config)` returns an `EvaluationResult`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from troupe.lazy import lazy_exports

if TYPE_CHECKING:
    from troupe.evaluation.plan import prepare as prepare
    from troupe.evaluation.program import EvaluationResult as EvaluationResult, evaluate as evaluate

__getattr__ = lazy_exports(__name__, __file__)
