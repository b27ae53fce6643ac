"""The receiver of webhooks: a signed push of an image becomes a run of the apps that wait for it.

A push is answered once it is on the disk, and handed over to the Prefect server from there: nothing
that was answered well is lost, whatever dies. One that comes alone is answered with its run; in a
crowd nobody waits for the server. What can't be kept, or not be understood because the server is
away, is answered with 503. Senders that repeat do so then; GitHub and Docker Hub don't, there a
person delivers again.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import httpx
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prefect.client.orchestration import get_client
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_HOME,
    temporary_settings,
)
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from flows.pushes.answers import REFUSALS, Answer, Problem, answer
from flows.pushes.guard import TOLD, Guard, Limits, Lines, Metrics, plain, settings
from flows.pushes.outbox import Outbox
from flows.pushes.runs import PUSHES, Run, Runs
from flows.pushes.senders import FRESH, SECRETS, SENDERS, Secrets, Sender
from flows.pushes.shared import Shared
from flows.pushes.signatures import Delivery
from tasks.bluegreen.errors import EXIT_CODES, BadInput, NonstopError
from tasks.bluegreen.units import Frozen

HOST, PORT = "127.0.0.1", 4280
IDS = ("x-github-delivery", "idempotency-key", "x-gitlab-webhook-uuid", "webhook-id")
EVENTS = ("x-github-event", "x-gitlab-event")
ONCE = {PREFECT_CLIENT_MAX_RETRIES: 0}  # Prefect's client would try for minutes; senders wait less
SILENT = 30.0  # seconds after which a request to the Prefect server is taken for lost
HEALTHY = 2.0  # seconds in which the Prefect server answers, or is away

LOG = logging.getLogger("nonstop.webhook")


class Health(Frozen):
    """Whether pushes can be handed over."""

    prefect: Literal["answers", "away"]


def create_app(outbox: Outbox, limits: Limits | None = None, fresh: float = FRESH) -> FastAPI:
    """The receiver for the Prefect server that the settings name.

    Args:
        outbox: where pushes are kept; it is closed with the receiver.
        limits: what requests may take.
        fresh: seconds until a changed secret counts.
    """
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with get_client(httpx_settings={"timeout": SILENT}) as client:
            folder = os.environ.get(SECRETS)
            app.state.runs = Runs(client, outbox)
            app.state.healthcheck = Shared(client.api_healthcheck)
            metrics.waiting.set_function(lambda: app.state.runs.waiting)
            app.state.secrets = Secrets(client, Path(folder) if folder else None, fresh)
            yield
            await app.state.runs.close()
        outbox.close()

    app = FastAPI(
        title="nonstop webhooks", docs_url=None, redoc_url=None, lifespan=lifespan, version="1"
    )
    app.add_middleware(Guard, limits=limits or Limits(), metrics=metrics)
    app.add_exception_handler(HTTPException, _told)
    app.add_exception_handler(Exception, _unexpected)
    app.state.metrics = metrics
    for sender in SENDERS:
        app.add_api_route(
            f"/webhooks/{sender.name}",
            _receiver(sender),
            methods=["POST"],
            status_code=202,
            response_model=Answer,
            summary=sender.title,
            description=sender.repeats,
            responses=REFUSALS
            | {202: {"description": "Its runs are on the Prefect server, or follow."}}
            | {200: {"model": Answer, "description": "It asks for no run, and says why."}},
            openapi_extra=_described(sender),
        )
    app.add_api_route(
        f"{PUSHES}/{{push}}",
        _push,
        methods=["GET"],
        status_code=303,
        response_model=Run,
        summary="The run of a push",
        responses=REFUSALS
        | {202: {"model": Run, "description": "It is not on the Prefect server yet."}}
        | {404: {"model": Problem, "description": "No such push is known, or not any more."}},
    )
    app.add_api_route(
        "/health",
        _health,
        response_model=Health,
        responses={503: {"model": Health, "description": "The Prefect server is away."}},
    )
    app.add_api_route("/metrics", _metrics, response_class=Metricses)
    return app


class Metricses(Response):
    """Prometheus's text."""

    media_type = CONTENT_TYPE_LATEST


def _receiver(sender: Sender) -> Callable[[Request], Awaitable[Response]]:
    async def receive(request: Request) -> Response:
        told = request.scope[TOLD]
        headers = request.headers
        told["sender"] = sender.name
        told["delivery"] = next((plain(headers[name]) for name in IDS if name in headers), "")
        told["event"] = next((plain(headers[name]) for name in EVENTS if name in headers), "")
        delivery = Delivery(
            headers=headers,
            body=await request.body(),
            token=request.query_params.get("token", ""),
            received=time.time(),
        )
        told["body"] = delivery.digest[:12]
        given = await answer(sender, delivery, request.app.state.secrets, request.app.state.runs)
        told["outcome"] = given.outcome
        told["runs"] = [str(run.run or run.address) for run in given.runs]
        for run in given.runs:
            request.app.state.metrics.runs.labels(run.app).inc()
        return JSONResponse(
            given.model_dump(mode="json"),
            status_code=202 if given.runs else 200,
            headers={"Location": given.runs[0].address} if given.runs else None,
        )

    return receive


async def _push(request: Request, push: str) -> Response:
    """Leads to the run of a push, which is waited for a moment."""
    run = await request.app.state.runs.of(push)
    if run is None:
        raise HTTPException(404, "No such push is known here, or not any more.")
    return JSONResponse(
        run.model_dump(mode="json"),
        status_code=303 if run.run else 202,
        headers={"Location": run.address} if run.run else {"Retry-After": "1"},
    )


async def _health(request: Request) -> Response:
    """Whether the Prefect server answers, so that pushes can be handed over."""
    try:
        away = await asyncio.wait_for(request.app.state.healthcheck(), HEALTHY)
    except TimeoutError as error:
        away = error
    health = Health(prefect="away" if away else "answers")
    return JSONResponse(health.model_dump(), status_code=503 if away else 200)


async def _metrics(request: Request) -> Response:
    """For Prometheus."""
    return Metricses(generate_latest(request.app.state.metrics.registry))


async def _told(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, HTTPException)
    return JSONResponse({"message": error.detail}, error.status_code, error.headers)


async def _unexpected(request: Request, error: Exception) -> Response:
    LOG.error("unexpected", exc_info=error, extra={"fields": request.scope.get(TOLD, {})})
    return JSONResponse({"message": "It failed here; the receiver's log says why."}, 500)


def _described(sender: Sender) -> dict[str, Any]:
    where = "query" if sender.proof == ("token",) else "header"
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"type": "object"}}},
        },
        "parameters": [
            {"name": name, "in": where, "required": False, "schema": {"type": "string"}}
            for name in sender.proof
        ],
    }


def webhook_server(host: str, port: int) -> uvicorn.Server:
    """The receiver, ready to run; it stops in order when its `should_exit` is set.

    Raises:
        BadInput: the settings name no Prefect server.
        Unavailable: pushes cannot be kept.
    """
    if not PREFECT_API_URL.value():
        raise BadInput(
            "The receiver hands pushes to a Prefect server, and PREFECT_API_URL names none: set it "
            "to where yours is, like http://127.0.0.1:4200/api."
        )
    return uvicorn.Server(
        uvicorn.Config(
            create_app(Outbox(_outbox())),
            host=host,
            port=port,
            **settings(Limits()),
            server_header=False,
            limit_concurrency=1000,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=12,
            h11_max_incomplete_event_size=16 * 1024,
        )
    )


def _outbox() -> Path:
    """Each server has its own, so that none is asked for runs of another's deployments."""
    server = httpx.URL(str(PREFECT_API_URL.value()))
    name = re.sub(r"[^\w.]+", "-", f"{server.host}:{server.port or ''}{server.path}").strip("-")
    return Path(PREFECT_HOME.value()) / f"nonstop-pushes-{name}.db"


def serve_webhooks(host: str = HOST, port: int = PORT) -> None:
    """Receives until SIGTERM or Ctrl-C; what is being answered then is answered first.

    Args:
        host: address to listen on.
        port: port to listen on.

    Raises:
        BadInput: the settings name no Prefect server.
        Unavailable: pushes cannot be kept.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(Lines())
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    server = webhook_server(host, port)
    gc.collect()
    gc.freeze()  # what is imported stays: each look through it for garbage held answers up 0.1 s
    LOG.info("listening on %s:%d", host, port)
    with temporary_settings(ONCE):
        server.run()


def main() -> None:
    """`python -m flows.webhook`."""
    parser = argparse.ArgumentParser(prog="python -m flows.webhook", description="Receive pushes.")
    parser.add_argument("--host", default=HOST, help=f"address to listen on ({HOST})")
    parser.add_argument("--port", default=PORT, type=int, help=f"port to listen on ({PORT})")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn repeats it when it is done
    try:
        serve_webhooks(given.host, given.port)
    except KeyboardInterrupt:
        sys.exit(0)
    except NonstopError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(EXIT_CODES[error.outcome])


if __name__ == "__main__":
    main()
