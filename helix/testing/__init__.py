"""For tests of agents, and of helix itself: models without a network, recorded runs, a context for a tool, a judge."""

from helix.testing.check import GRAMMAR, GrammarError, Violation, check_stream, find_violations
from helix.testing.context import ContextRecord, context, recorded
from helix.testing.models import Call, FunctionModel, ScriptedModel, Turn
from helix.testing.network import no_real_models
from helix.testing.playback import Recorded

__all__ = [
    "GRAMMAR",
    "Call",
    "ContextRecord",
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
