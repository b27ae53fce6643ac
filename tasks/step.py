"""What every step is: a Prefect task, bounded, timed, and tried again where that can help."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging import get_run_logger
from prefect.tasks import exponential_backoff

from tasks.bluegreen.errors import NonstopError
from tasks.bluegreen.model import Plan, Step, Verified

P = ParamSpec("P")
R = TypeVar("R")

STEPS: ContextVar[list[Step] | None] = ContextVar("STEPS", default=None)
WATCHED: ContextVar[dict[int, Verified] | None] = ContextVar("WATCHED", default=None)


def step(name: str, *, timeout: float, retries: int = 0) -> Callable[[Callable[P, R]], Task[P, R]]:
    """A Prefect task by this name, whose seconds are noted in STEPS.

    Args:
        name: as shown in the Prefect UI.
        timeout: seconds, the outermost bound; waits inside have shorter ones of their own.
        retries: further tries after a failure that may pass by itself, like a hiccup of the engine.
            A crash or a rejection never does, so these are not tried again.
    """

    def decorate(function: Callable[P, R]) -> Task[P, R]:
        @functools.wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            began = time.monotonic()
            try:
                return function(*args, **kwargs)
            finally:
                steps = STEPS.get()
                if steps is not None:
                    steps.append(Step(name=name, seconds=round(time.monotonic() - began, 3)))

        return task(
            name=name,
            task_run_name=functools.partial(_run_name, name),
            timeout_seconds=timeout,
            retries=retries,
            retry_delay_seconds=exponential_backoff(1),
            retry_jitter_factor=0.5,
            retry_condition_fn=_may_pass,
            cache_policy=NO_CACHE,
            persist_result=False,
        )(timed)

    return decorate


def _run_name(name: str, parameters: dict[str, Any]) -> str:
    """Like `start-green shop-43`, or with the app alone before there is a release."""
    plan = parameters.get("plan")
    if isinstance(plan, Plan):
        return f"{name} {plan.app.name}-{plan.green}"
    app = parameters.get("app") or getattr(parameters.get("recovery"), "app", "")
    return f"{name} {getattr(app, 'name', app)}".rstrip()


def _may_pass(_task: Any, _run: TaskRun, state: State[Any]) -> bool:
    failure = state.result(raise_on_failure=False)
    return isinstance(failure, NonstopError) and failure.may_pass


@contextmanager
def watched(plan: Plan, seen: Callable[[], Verified]) -> Iterator[None]:
    """Within, green serves: what was seen of that is noted in WATCHED, however it ends."""
    try:
        yield
    finally:
        noted = WATCHED.get()
        if noted is not None:
            noted[plan.green] = seen()


def say(text: str) -> None:
    """One short sentence in the run's log."""
    get_run_logger().info(text)
