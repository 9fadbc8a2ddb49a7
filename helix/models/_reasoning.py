"""How much a model reasons, where a provider counts it in tokens or knows it by other words.

Floor 3, below the adapters. Pure.
"""

from __future__ import annotations

import re
from typing import Any, Final

from helix.errors import ModelError
from helix.model import ModelSettings

BUDGETS: Final = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24_576, "xhigh": 24_576}
"""Tokens for an effort; Google's own table (https://ai.google.dev/gemini-api/docs/openai#thinking)."""

_BUDGETED_CLAUDES = re.compile(r"claude-(?:[123]|[a-z]+-4(?:-[0-5])?(?:$|[-@]\d{6,}|-latest))")
"""Up to Claude 4.5: a budget, and no adaptive thinking."""
_EITHER_CLAUDES = re.compile(r"claude-[a-z]+-4-6")


def refuse_budget(name: str, settings: ModelSettings) -> None:
    """Raises ModelError if the settings have a `reasoning_budget`, for a model that knows only efforts."""
    if settings.reasoning_budget is not None:
        text = f"{name} takes no reasoning_budget: give it a reasoning_effort."
        raise ModelError("model_rejected", text)


def claude_fields(model: str, settings: ModelSettings) -> dict[str, Any]:
    """The fields of Anthropic's request: `thinking`, and the effort where the model decides itself how long it thinks.

    Raises:
        ModelError: the model takes no budget.
    """
    effort, budget = settings.reasoning_effort, settings.reasoning_budget
    budgeted = _BUDGETED_CLAUDES.search(model) is not None
    if not budgeted and not _EITHER_CLAUDES.search(model):
        refuse_budget(f"anthropic:{model}", settings)
    if budgeted and budget is None and effort is not None:
        room = None if settings.max_tokens is None else max(1024, settings.max_tokens // 2)
        budget = min(BUDGETS[effort], room) if room else BUDGETS[effort]
    if budget:
        display = {"display": "omitted"} if settings.show_reasoning is False else {}
        return {"thinking": {"type": "enabled", "budget_tokens": budget, **display}}
    if budget == 0 or effort in (None, "none"):
        return {}
    shown = {None: {}, True: {"display": "summarized"}, False: {"display": "omitted"}}[settings.show_reasoning]
    said = "low" if effort == "minimal" else effort
    return {"thinking": {"type": "adaptive", **shown}, "output_config": {"effort": said}}


def gemini_fields(settings: ModelSettings, *, levels: bool) -> dict[str, Any]:
    """Google's `thinkingConfig`; with `levels`, for a model that knows levels beside budgets."""
    effort, budget = settings.reasoning_effort, settings.reasoning_budget
    level: str | None = None
    if budget is None and effort is not None:
        if levels:
            level = {"none": "minimal", "xhigh": "high"}.get(effort, effort)
        else:
            budget = BUDGETS[effort]
    fields = {"thinkingBudget": budget, "thinkingLevel": level, "includeThoughts": settings.show_reasoning}
    return {name: value for name, value in fields.items() if value is not None}
