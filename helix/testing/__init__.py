"""For tests of agents, and of helix itself: models without a network, a context for one tool, the grammar's judge."""

from helix.testing.check import GRAMMAR, GrammarError, Violation, check_stream, find_violations
from helix.testing.context import Recorded, context, recorded
from helix.testing.models import Call, FunctionModel, ScriptedModel, Turn
from helix.testing.network import no_real_models

__all__ = [
    "GRAMMAR",
    "Call",
    "FunctionModel",
    "GrammarError",
    "Recorded",
    "ScriptedModel",
    "Turn",
    "Violation",
    "check_stream",
    "context",
    "find_violations",
    "no_real_models",
    "recorded",
]
