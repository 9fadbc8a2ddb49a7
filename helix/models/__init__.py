"""Models by name: `openai:gpt-5` to something that agents can talk to.

Floor 3, above `model`. A provider's SDK is imported when one of its models is named, not before.
"""

from __future__ import annotations

from collections.abc import Callable

from helix.errors import UnknownModel, did_you_mean
from helix.model import Model

__all__ = ["resolve_model"]


def resolve_model(name: str) -> Model:
    """The model that `provider:model` names, such as `openai:gpt-5` or `azure:my-deployment`.

    Nothing is connected yet: whether the provider has such a model shows at the first request. Each call gives a model
    of its own.

    Raises:
        UnknownModel: the name has no provider, or one that helix does not know.
        MissingKey: the provider's key is not in the environment.
    """
    provider, _, model = name.partition(":")
    load = _PROVIDERS.get(provider)
    if load is None or not model:
        raise UnknownModel(_explanation(name, provider, model))
    return load(model)


def _explanation(name: str, provider: str, model: str) -> str:
    known = ", ".join(f"{known}:" for known in _PROVIDERS)
    if model:
        near = [f"{known}:{model}" for known in _PROVIDERS if did_you_mean(provider.lower(), [known])]
        hint = did_you_mean(name, near)
    elif provider in _PROVIDERS:
        hint = f" Name the model too: '{provider}:MODEL'."
    else:
        hint = f" Did you mean 'openai:{provider}'?" if provider else ""
    return f"Unknown model {name!r}. Models are named provider:model, and the known prefixes are {known}.{hint}"


def _openai(model: str) -> Model:
    from helix.models.openai_chat import OpenAIChatModel

    return OpenAIChatModel(model)


def _azure(deployment: str) -> Model:
    from helix.models.openai_chat import AzureOpenAIChatModel

    return AzureOpenAIChatModel(deployment)


def _openai_responses(model: str) -> Model:
    from helix.models.openai_responses import OpenAIResponsesModel

    return OpenAIResponsesModel(model)


def _azure_responses(deployment: str) -> Model:
    from helix.models.openai_responses import AzureOpenAIResponsesModel

    return AzureOpenAIResponsesModel(deployment)


def _anthropic(model: str) -> Model:
    from helix.models.anthropic import AnthropicModel

    return AnthropicModel(model)


def _google(model: str) -> Model:
    from helix.models.google import GoogleModel

    return GoogleModel(model)


_PROVIDERS: dict[str, Callable[[str], Model]] = {
    "openai": _openai,
    "azure": _azure,
    "openai-responses": _openai_responses,
    "azure-responses": _azure_responses,
    "anthropic": _anthropic,
    "google": _google,
}
