"""helix: trees of agents whose every word can be watched live, kept, replayed and resumed.

Chunk classes live in `helix.chunks`, test doubles and the grammar's judge in `helix.testing`.
"""

from helix.agent import Agent
from helix.api import RunStream, run, stream
from helix.chunks import Chunk, UnknownChunk, chunk_to_dict, chunk_to_json, parse_chunk
from helix.commands import Approve, ClientResult, Deny
from helix.context import ToolContext
from helix.errors import (
    AgentEnded,
    AlreadyAnswered,
    DefinitionError,
    HelixError,
    InvalidAnswer,
    InvalidChunk,
    InvalidPatch,
    LimitReached,
    MissingKey,
    ModelError,
    ModelRetry,
    RunBusy,
    RunEnded,
    RunExists,
    SessionBusy,
    StaleWriter,
    StateError,
    StoreError,
    ToolEnded,
    UnknownAgent,
    UnknownApproval,
    UnknownModel,
    UnknownRun,
    UsageError,
)
from helix.executor import Executor
from helix.filters import collect, filter_stream, filter_stream_by_agent, filter_stream_by_type, partial_outputs, text
from helix.fold import RunTree
from helix.handle import RunHandle
from helix.items import partial_items
from helix.limits import Limits, Usage
from helix.messages import AssistantMessage, Message, ToolMessage, UserMessage
from helix.model import Model, ModelProfile, ModelReply, ModelRequest, ModelSettings
from helix.parts import Audio, File, Image
from helix.prices import Price
from helix.providers import ProviderLimits
from helix.results import RunCancelled, RunError, RunFailed, RunResult, RunSuspended
from helix.session import Session
from helix.state import StateMirror, apply_patches
from helix.stores.memory import MemoryStore
from helix.sync import run_sync, stream_sync
from helix.tools import Tool, Toolset, tool

__version__ = "0.1.0"

__all__ = [
    "Agent",
    "AgentEnded",
    "AlreadyAnswered",
    "Approve",
    "AssistantMessage",
    "Audio",
    "Chunk",
    "ClientResult",
    "DefinitionError",
    "Deny",
    "Executor",
    "File",
    "HelixError",
    "Image",
    "InvalidAnswer",
    "InvalidChunk",
    "InvalidPatch",
    "LimitReached",
    "Limits",
    "MemoryStore",
    "Message",
    "MissingKey",
    "Model",
    "ModelError",
    "ModelProfile",
    "ModelReply",
    "ModelRequest",
    "ModelRetry",
    "ModelSettings",
    "Price",
    "ProviderLimits",
    "RunBusy",
    "RunCancelled",
    "RunEnded",
    "RunError",
    "RunExists",
    "RunFailed",
    "RunHandle",
    "RunResult",
    "RunStream",
    "RunSuspended",
    "RunTree",
    "Session",
    "SessionBusy",
    "StaleWriter",
    "StateError",
    "StateMirror",
    "StoreError",
    "Tool",
    "ToolContext",
    "ToolEnded",
    "ToolMessage",
    "Toolset",
    "UnknownAgent",
    "UnknownApproval",
    "UnknownChunk",
    "UnknownModel",
    "UnknownRun",
    "Usage",
    "UsageError",
    "UserMessage",
    "apply_patches",
    "chunk_to_dict",
    "chunk_to_json",
    "collect",
    "filter_stream",
    "filter_stream_by_agent",
    "filter_stream_by_type",
    "parse_chunk",
    "partial_items",
    "partial_outputs",
    "run",
    "run_sync",
    "stream",
    "stream_sync",
    "text",
    "tool",
]
