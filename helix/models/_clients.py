"""Which client an event loop gets: aiohttp's on asyncio with the extra `fast`, else httpx2's.  Floor 3."""

from __future__ import annotations

import importlib.util

import httpx2
import openai
import sniffio

from helix.models._lines import HttpxLine, Line, tls


def new_line() -> Line:
    """A line for the running event loop."""
    if not _fast():
        return HttpxLine(http_client())
    from helix.models._aiohttp import AiohttpLine

    return AiohttpLine()


def http_client() -> httpx2.AsyncClient:
    """A new client for the running event loop, with the `openai` client's defaults."""
    return (openai.DefaultAioHttpClient if _fast() else openai.DefaultAsyncHttpxClient)(verify=tls())


def _fast() -> bool:
    return sniffio.current_async_library() == "asyncio" and importlib.util.find_spec("aiohttp") is not None
