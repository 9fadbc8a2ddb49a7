"""Models by name."""

from __future__ import annotations

import subprocess
import sys

import anyio
import pytest

from helix import models
from helix.errors import MissingKey, UnknownModel
from helix.messages import UserMessage
from helix.model import History, ModelRequest, ModelSettings
from helix.models import resolve_model
from helix.models.openai_chat import OpenAIChatModel
from tests.recorded import Recorder
from tests.replay import Answer, ReplayServer

KEY = "sk-not-a-real-key-0123456789"
AZURE = {"AZURE_OPENAI_API_KEY": KEY, "AZURE_OPENAI_ENDPOINT": "http://127.0.0.1", "OPENAI_API_VERSION": "2024-10-21"}

KNOWN = ", ".join(f"{prefix}:" for prefix in models._PROVIDERS)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "AZURE_OPENAI_AD_TOKEN", *AZURE):
        monkeypatch.delenv(name, raising=False)


def test_a_name_gives_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    model = resolve_model("openai:ft:gpt-5:mine")
    assert isinstance(model, OpenAIChatModel)
    assert model.name == "openai:ft:gpt-5:mine"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("opnai:gpt-5", "Did you mean 'openai:gpt-5'?"),
        ("OpenAI:gpt-5", "Did you mean 'openai:gpt-5'?"),
        ("azur:mine", "Did you mean 'azure:mine'?"),
        ("gpt-5", "Did you mean 'openai:gpt-5'?"),
        ("openai", "Name the model too: 'openai:MODEL'."),
        ("openai:", "Name the model too: 'openai:MODEL'."),
        ("zzz:gpt-5", f"the known prefixes are {KNOWN}."),
        ("", f"the known prefixes are {KNOWN}."),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest_known_one(name: str, hint: str) -> None:
    with pytest.raises(UnknownModel) as caught:
        resolve_model(name)
    assert str(caught.value).startswith(f"Unknown model {name!r}.")
    assert str(caught.value).endswith(hint)


def test_a_missing_key_is_told_with_its_variable() -> None:
    with pytest.raises(MissingKey, match="OPENAI_API_KEY is not set"):
        resolve_model("openai:gpt-5")
    with pytest.raises(MissingKey, match="AZURE_OPENAI_ENDPOINT and OPENAI_API_VERSION and AZURE_OPENAI_API_KEY"):
        resolve_model("azure:mine")


@pytest.mark.parametrize("token", ["", "an-entra-token"])
def test_azure_is_configured_by_its_own_variables(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    with ReplayServer(Answer(body=b"data: [DONE]\n\n")) as server:
        for name, value in {**AZURE, "AZURE_OPENAI_ENDPOINT": server.url, "AZURE_OPENAI_AD_TOKEN": token}.items():
            monkeypatch.setenv(name, value)
        model = resolve_model("azure:mine")
        asked = ModelRequest("r", "agent", 1, 1, "", History([UserMessage("hi")]), (), None, ModelSettings())
        anyio.run(model.respond, asked, Recorder())
    received = server.requests[0]
    assert model.name == "azure:mine"
    assert received.target == "/openai/deployments/mine/chat/completions?api-version=2024-10-21"
    assert received.headers.get("api-key") == (None if token else KEY)
    assert received.headers.get("authorization") == (f"Bearer {token}" if token else None)


def test_no_provider_library_is_imported_before_one_of_its_models_is_named() -> None:
    program = "import helix.models, sys; print({'openai', 'httpx2'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
