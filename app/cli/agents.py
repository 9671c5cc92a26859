"""`easel mcp`: chat agents that start a program, instead of going to an address."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx2

from app.cli._server import At, Key
from app.cli._shell import errors_told, own_address, own_pass, shell
from app.settings import load_settings

if TYPE_CHECKING:
    from mcp import Client
    from mcp.server.context import ServerRequestContext
    from mcp_types import CallToolRequestParams, CallToolResult

_HOURS = 4 * 3600.0
"""Seconds for which a call may be silent: a large picture on a slow machine, behind others."""


@shell.command("mcp")
def serve_agents(
    server: At = "",
    key: Key = "",
) -> None:
    """Serve a chat agent on standard input and output (Model Context Protocol).

    Each call goes to the server that runs with these settings, or to --server.
    """
    with errors_told():
        asyncio.run(_serve(server, key))


async def _serve(server: str, key: str) -> None:
    from mcp.server.lowlevel import Server
    from mcp.server.stdio import stdio_server
    from mcp_types import CallToolResult, ListToolsResult, TextContent

    import app
    from app.api._mcp_tools import TOOLS

    settings = load_settings()
    address = f"{(server or own_address(settings)).rstrip('/')}/mcp"

    def headers() -> Mapping[str, str]:  # made anew for each call: a pass is soon over
        if key:
            return {"authorization": f"Bearer {key}"}
        return {} if server else own_pass(settings)

    async def tools(*_: Any) -> ListToolsResult:
        return ListToolsResult(tools=TOOLS)

    async def call(
        context: ServerRequestContext[Any, Any], params: CallToolRequestParams
    ) -> CallToolResult:
        try:
            async with _agent(address, headers()) as client:
                return await client.call_tool(
                    params.name,
                    params.arguments,
                    progress_callback=context.session.report_progress,
                )
        except Exception as error:  # groups of whatever went wrong on the way
            return CallToolResult(content=[TextContent(text=_told(error))], is_error=True)

    serving = Server("easel", version=app.__version__, on_list_tools=tools, on_call_tool=call)
    async with stdio_server() as (read, write):
        await serving.run(read, write, serving.create_initialization_options())


@asynccontextmanager
async def _agent(address: str, headers: Mapping[str, str]) -> AsyncIterator[Client]:
    from mcp import Client
    from mcp.client.streamable_http import streamable_http_client

    timeout = httpx2.Timeout(_HOURS, connect=10)
    async with (
        httpx2.AsyncClient(headers=dict(headers), timeout=timeout, trust_env=False) as http,
        Client(streamable_http_client(address, http_client=http)) as client,
    ):
        yield client


def _told(error: BaseException) -> str:
    """Why a call came to nothing, for the agent."""
    from mcp import MCPError

    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, MCPError):
        return error.message
    if isinstance(error, httpx2.HTTPStatusError):
        status = error.response.status_code
        return f"The server answered {status}" + (": it wants a key." if status == 401 else ".")
    return "No Easel answers at the server's address."
