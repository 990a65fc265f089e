"""A FastAPI app as somebody would write it for any server."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import BaseModel

state: dict[str, str] = {}
background: list[str] = []


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    state["opened"] = "by the lifespan"
    yield
    state.clear()


app = FastAPI(lifespan=lifespan)


async def opened() -> str:
    return state["opened"]


@app.get("/hello/{name}", response_class=PlainTextResponse)
async def hello(name: str, opened: Annotated[str, Depends(opened)]) -> str:
    return f"Hello {name}, {opened}"


class Item(BaseModel):
    name: str
    price: float


@app.post("/items")
async def create(item: Item) -> Item:
    return item


@app.post("/upload")
async def upload(request: Request) -> dict[str, object]:
    digest, size = hashlib.sha256(), 0
    async for part in request.stream():
        digest.update(part)
        size += len(part)
    return {"sha256": digest.hexdigest(), "size": size}


@app.get("/stream")
async def stream() -> StreamingResponse:
    async def parts() -> AsyncIterator[bytes]:
        for number in range(100):
            yield b"%d\n" % number
            if number % 10 == 0:
                await asyncio.sleep(0)

    return StreamingResponse(parts(), media_type="text/plain")


@app.post("/later")
async def later(tasks: BackgroundTasks, order: Annotated[str, Query(alias="id")]) -> str:
    async def work() -> None:
        await asyncio.sleep(0.2)
        background.append(order)

    tasks.add_task(work)
    return "accepted"


@app.get("/done")
async def done() -> list[str]:
    return background


@app.post("/slow", response_class=PlainTextResponse)
async def slow(request: Request) -> str:
    body = await request.body()
    print("slow has the body", flush=True)
    await asyncio.sleep(0.3)
    return str(len(body))


@app.get("/threaded")
def threaded() -> str:
    """A `def` endpoint: FastAPI runs it in a thread."""
    return "from a thread"


@app.get("/broken")
async def broken() -> None:
    raise RuntimeError("on purpose")


@app.get("/refused")
async def refused() -> None:
    raise HTTPException(418, "a teapot")
