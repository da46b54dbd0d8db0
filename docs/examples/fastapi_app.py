from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, Header, Request
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel

from asm_celery import errors
from asm_celery.aio import AsyncAgentSessions, AsyncSessionServer, AsyncSubscription

asm = AsyncAgentSessions.from_env()  # ASM_REDIS_URL, ASM_DATABASE_URL; connects at first use


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with asm:
        yield


app = FastAPI(lifespan=lifespan)


class Message(BaseModel):
    text: str


async def chat_session(chat: str) -> AsyncSessionServer:
    return await asm.attach(f"chat-{chat}")


@app.post("/chats/{chat}", status_code=202)
async def say(
    chat: str, message: Message, idempotency_key: Annotated[str | None, Header()] = None
) -> dict[str, str]:
    server = await asm.start_session("chat", session_id=f"chat-{chat}", if_exists="attach")
    return {"run_id": await server.submit_run(message.text, idempotency_key=idempotency_key)}


@app.delete("/chats/{chat}/runs/{run_id}")
async def stop(run_id: str, server: Annotated[AsyncSessionServer, Depends(chat_session)]) -> dict[str, str]:
    receipt = await server.cancel_run(run_id)
    return {"state": receipt.state, "status": receipt.status}


async def missed_and_live(
    server: Annotated[AsyncSessionServer, Depends(chat_session)],
    last_event_id: Annotated[str | None, Header()] = None,
) -> AsyncIterator[AsyncSubscription]:
    async with server.subscribe(from_sequence=last_event_id or 0) as events:
        yield events


@app.get("/chats/{chat}/events", response_class=EventSourceResponse)
async def follow(
    events: Annotated[AsyncSubscription, Depends(missed_and_live)],
) -> AsyncIterator[ServerSentEvent]:
    async for event in events:
        yield ServerSentEvent(id=event.cursor, event=event.type, data=event.to_map())


@app.exception_handler(errors.AsmError)
async def refuse(request: Request, error: errors.AsmError) -> JSONResponse:
    known = {"session_not_found": 404, "run_not_found": 404, "max_runs_exceeded": 429}
    return JSONResponse(error.to_map(), known.get(error.code, 503 if error.retryable else 400))
