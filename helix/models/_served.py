"""A model that answers one request with a stream: what all adapters share, whoever does the HTTP.

Floor 3, above `_transport`, below `_http` and `_openai`. Clients belong to one event loop and live as long as their
users; a reply is read under one clock; an answer that is an error becomes one of ours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, Generic, Literal, Protocol, Self, TypeAlias, TypeVar

import anyio
from anyio.lowlevel import RunVar, RunvarToken
from pydantic_core import from_json

from helix.errors import ModelError
from helix.limits import Usage
from helix.model import (
    Emit,
    ModelProfile,
    ModelReply,
    ModelRequest,
    ModelSettings,
    OutputDefinition,
    ToolDefinition,
    check_real_requests,
)
from helix.models._errors import from_status, secrets_in
from helix.models._lines import Answer
from helix.models._transport import Decoder, Patience, read, words

ClientT = TypeVar("ClientT")
Choice: TypeAlias = Literal["auto", "none", "any", "output"]
"""What a model is to call: what it likes, nothing, something, the tool that takes the output."""

_CLOSE_SECONDS = 1.0
_KEPT_TOOL_SETS = 16


class ReplyDecoder(Decoder, Protocol):
    """A decoder of one whole reply.

    Attributes:
        sent: the request's headers, whose secrets no error may repeat.
        takes_whole: whether a reply in one piece is one, too.
    """

    sent: Mapping[str, str]
    takes_whole: bool

    @property
    def usage(self) -> Usage | None:
        """What the provider told so far."""
        ...

    def end(self) -> ModelReply:
        """The reply's ending, once the body has ended or `done` is set. Raises ModelError if it is not complete."""
        ...


class ServedModel(ABC, Generic[ClientT]):
    """A model behind a client.

    It may be shared by agents, threads and event loops: each event loop gets a client of its own, made at the first
    call. As an async context manager it keeps that client, and its connections, until the last user of the loop has
    left; without one, each call opens and closes its own. An injected client is used as it is and never closed.

    Retries are helix's: each is a visible attempt of the step, so the client itself makes none.

    Attributes:
        profile: what the model can do.
    """

    keeps_timeout: Final = True

    def __init__(self, model_name: str, injected: ClientT | None, profile: ModelProfile) -> None:
        """Opens no connection."""
        self._model_name = model_name
        self.profile: Final = profile
        self._injected = injected
        self._cannot_stream = False  # as the server has shown
        self._leases: RunVar[_Lease[ClientT]] = RunVar("helix.models")
        self._encoded_tools: list[tuple[tuple[ToolDefinition, ...], bytes]] = []

    @property
    @abstractmethod
    def name(self) -> str:
        """The prefix and the model's name, such as `anthropic:claude-sonnet-4-5`."""

    @abstractmethod
    def _open(self) -> ClientT:
        """A client for the running event loop."""

    @abstractmethod
    async def _close(self, client: ClientT) -> None:
        """Closes a client that `_open` has made."""

    @abstractmethod
    async def _send(self, client: ClientT, request: ModelRequest) -> Answer:
        """Asks; gives the answer once its head has arrived. Raises ModelError."""

    @abstractmethod
    def _decoder(self, emit: Emit) -> ReplyDecoder:
        """A decoder for one reply, pushing into `emit`."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._model_name!r})"

    async def __aenter__(self) -> Self:
        lease = self._leases.get(None)
        if lease is None:
            lease = _Lease[ClientT]()
            lease.token = self._leases.set(lease)
        lease.users += 1
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        lease = self._leases.get()
        lease.users -= 1
        if lease.users:
            return
        if lease.token is not None:
            self._leases.reset(lease.token)
        if lease.client is not None:
            with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
                await self._close(lease.client)

    async def respond(self, request: ModelRequest, emit: Emit) -> ModelReply:
        """Asks the model, pushes what arrives into `emit`, and returns when the reply is complete.

        Complete means that the provider said so: a stream that ends before that is an error wherever it was cut. What
        was pushed before an error is void. A cancellation closes the connection at once.

        Raises:
            ModelError: the call failed; `usage` holds what the provider had told by then.
        """
        check_real_requests(self.name)
        decoder = self._decoder(emit)
        decoder.takes_whole = bool(request.settings.stream_fallback)
        async with self:
            with Patience(request.settings) as patience:
                return await self._exchange(self._client(), request, decoder, patience)
        if decoder.done:
            return decoder.end()  # the time ran out behind the reply
        raise ModelError("model_unavailable", patience.ran_out, retryable=True, usage=decoder.usage)

    async def _exchange(
        self, client: ClientT, request: ModelRequest, decoder: ReplyDecoder, patience: Patience
    ) -> ModelReply:
        """One exchange; asks for the reply in one piece if the server refuses to stream, and that is allowed."""
        streams = not (decoder.takes_whole and self._cannot_stream)
        try:
            answer = await self._ask(client, request if streams else replace(request, stream=False))
        except ModelError as error:
            about_streams = error.code == "model_rejected" and "stream" in error.message.lower()
            if not (decoder.takes_whole and streams and about_streams):
                raise
            streams = False
            answer = await self._ask(client, replace(request, stream=False))
        decoder.sent = answer.sent
        try:
            await read(answer, decoder, patience)
            reply = decoder.end()
        finally:
            await answer.close()
        if not streams:
            self._cannot_stream = True
        return reply

    async def _ask(self, client: ClientT, request: ModelRequest) -> Answer:
        """The answer, if it is no error. Raises ModelError."""
        answer = await self._send(client, request)
        if 200 <= answer.status < 300:
            return answer
        try:
            raise await status_error(answer) from None
        finally:
            await answer.close()

    def _client(self) -> ClientT:
        if self._injected is not None:
            return self._injected
        lease = self._leases.get()
        if lease.client is None:
            lease.client = self._open()
        return lease.client

    def _is_native(self, output: OutputDefinition) -> bool:
        """Whether the output is asked for in the provider's own format."""
        return self.profile.is_native(output)

    def _forces_calls(self, settings: ModelSettings) -> bool:
        """Whether the model can be made to call a tool."""
        return self.profile.forced_calls

    def _choice(self, request: ModelRequest) -> Choice:
        """What the model is to call."""
        output = request.output
        if output is None:
            return "auto"
        if self._is_native(output):
            return "none" if request.force_output and request.tools else "auto"
        if not self._forces_calls(request.settings):
            return "auto"
        return "output" if request.force_output or not request.tools else "any"

    def _output_tool(self, output: OutputDefinition) -> ToolDefinition:
        """The tool that takes the output."""
        schema, strict = self.profile.schema_of(output)
        return ToolDefinition(output.name, output.description, schema, strict)

    def _tools(self, request: ModelRequest, encode: Callable[[Sequence[ToolDefinition]], bytes]) -> bytes:
        """All that the model may call through `encode`, once for each set of definitions; empty when there is none."""
        tools, output = tuple(request.tools), request.output
        if output is not None and not self._is_native(output):
            tools += (self._output_tool(output),)
        if not tools:
            return b""
        for known, encoded in self._encoded_tools:
            if known == tools:
                return encoded
        encoded = encode(tools)
        self._encoded_tools = [(tools, encoded), *self._encoded_tools[: _KEPT_TOOL_SETS - 1]]
        return encoded


@dataclass(slots=True)
class _Lease(Generic[ClientT]):
    """One event loop's share of a model: its client, and how many use it."""

    client: ClientT | None = None
    users: int = 0
    token: RunvarToken[Any] | None = None


async def status_error(answer: Answer) -> ModelError:
    """The error for an answer that is one."""
    content = await words(answer)
    try:
        body: object = from_json(content)
    except ValueError:
        body = content.decode("utf-8", "replace")
    url, secrets = answer.url, secrets_in(answer.sent)
    place = f"{url.scheme}://{url.host}{url.path}"
    return from_status(answer.status, body, answer.headers, secrets=secrets, place=place)
