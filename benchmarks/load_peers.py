"""The bare cost beside which the API is measured: FastAPI routes that do only the work itself.

    python -m benchmarks.load_peers PORT FOLDER [DATABASE_URL]

No callers, no limits, no ids, no log: what a request costs in FastAPI and uvicorn on this machine.
"""

import asyncio
import hashlib
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, StreamingResponse
from sqlalchemy import JSON, Column, Integer, MetaData, Table, insert
from starlette.concurrency import run_in_threadpool

from adap.store.database import Database
from adap.store.settings import Settings

TICK_S = 0.3  # as often as the API looks for news of a job

rows = Table("bare", MetaData(), Column("id", Integer, primary_key=True), Column("body", JSON))


def bare_app(folder: Path, database: Database) -> FastAPI:
    """The routes; `folder` holds the bytes that come and go."""
    app = FastAPI()

    @app.get("/")
    async def answer() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/known")
    async def known() -> Response:
        return Response(status_code=304, headers={"ETag": '"0"'})

    @app.post("/rows", status_code=201)
    def add_row(body: dict[str, Any]) -> dict[str, Any]:
        """One row in one transaction."""
        with database.writing() as session:
            session.execute(insert(rows).values(body=body))
        return body

    @app.get("/events")
    async def events() -> StreamingResponse:
        return StreamingResponse(_ticks(), media_type="text/event-stream")

    @app.put("/bytes/{number}")
    async def take(number: int, request: Request) -> dict[str, str]:
        """Write what comes and hash it."""
        digest, buffer = hashlib.sha256(), bytearray()
        with (folder / str(number)).open("wb") as file:

            def keep(data: bytes) -> None:
                file.write(data)
                digest.update(data)

            async for chunk in request.stream():
                buffer += chunk
                if len(buffer) >= 1 << 20:
                    await run_in_threadpool(keep, bytes(buffer))
                    buffer.clear()
            await run_in_threadpool(keep, bytes(buffer))
        return {"sha256": digest.hexdigest()}

    @app.get("/bytes/{number}")
    def give(number: int) -> FileResponse:
        return FileResponse(folder / str(number))

    return app


async def _ticks() -> AsyncIterator[str]:
    while True:
        yield f'data: {{"sent": {time.time()}}}\n\n'
        await asyncio.sleep(TICK_S)


def main() -> None:
    """Serve until told to stop."""
    port, folder = int(sys.argv[1]), Path(sys.argv[2])
    url = sys.argv[3] if len(sys.argv) > 3 else None
    database = Database(Settings(home=folder, database_url=url))
    rows.metadata.create_all(database.engine)
    uvicorn.run(bare_app(folder, database), port=port, log_config=None, access_log=False)


if __name__ == "__main__":
    main()
