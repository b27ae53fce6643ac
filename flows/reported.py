"""How a run begins and ends in Prefect: parameters that are right, and a state that tells."""

from __future__ import annotations

import functools
import inspect
from asyncio import CancelledError
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, ParamSpec, cast
from uuid import UUID

import httpx
from prefect import states
from prefect.client.schemas.objects import State
from prefect.exceptions import Abort, Pause, TerminationSignal
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from pydantic import TypeAdapter, ValidationError

from flows.account import begin, completed, failed, unexpected
from flows.artifact import publish
from flows.names import POSTPONED, REFUSED, UNCHANGED, UNKNOWN, app_name, command
from flows.server import briefly, once_free
from tasks.bluegreen.app import complaints
from tasks.bluegreen.errors import (
    BadInput,
    NonstopError,
    Outcome,
    Postponed,
    Superseded,
)
from tasks.bluegreen.model import Report
from tasks.bluegreen.shell import SHELLS
from tasks.overtaken import SUPERSEDED

P = ParamSpec("P")

NAMES: dict[Outcome, str] = {"failed": "Failed", "refused": REFUSED, "unknown": UNKNOWN}


def reported(story: Callable[P, Report]) -> Callable[P, Report]:
    """A flow's function whose end is a state: `Completed`, `Unchanged`, `Refused`, `Failed`, ...

    Whoever calls the flow gets the report, or has the failure raised, all the same. Parameters are
    looked at here, so that the state says in a sentence what is wrong with them.
    """
    signature = inspect.signature(story, eval_str=True)
    kinds = {name: TypeAdapter(of.annotation) for name, of in signature.parameters.items()}

    @functools.wraps(story)
    def run(*args: P.args, **kwargs: P.kwargs) -> State[Any]:
        given = signature.bind(*args, **kwargs)
        app = app_name(given.arguments.get("app"))
        begin(app)
        if app:
            tag(app)
        state: State[Any]
        try:
            with in_words(functools.partial(_nothing_deployed, app)):
                given.arguments.update(understood(kinds, given.arguments))
                report = completed(story(*given.args, **given.kwargs))
        except Postponed as answer:
            report = failed(answer)
            state = states.Completed(name=POSTPONED, message=report.message, data=report)
        except Superseded as answer:
            report = failed(answer)
            state = states.Cancelled(name=SUPERSEDED, message=report.message, data=report)
        except NonstopError as failure:
            get_run_logger().error("%s", failure)
            report = failed(failure)
            state = states.Failed(name=NAMES[failure.outcome], message=report.message, data=failure)
        except (Abort, Pause):
            raise
        except (KeyboardInterrupt, CancelledError, TerminationSignal) as interrupt:
            if not is_cancelled():
                publish(failed(interrupt), "interrupted", command())
                raise
            report = failed(interrupt, "Cancelled.")
            state = states.Cancelled(message=report.message)
        else:
            name = "Completed" if report.changed else UNCHANGED
            state = states.Completed(name=name, message=report.message, data=report)
        finally:
            SHELLS.close()
        outcome = "succeeded" if state.name == "Completed" else str(state.name).lower()
        publish(report, outcome, command())
        return state

    run.__signature__ = signature  # type: ignore[attr-defined]  # of types, not of their names
    return cast("Callable[P, Report]", run)


@contextmanager
def in_words(told: Callable[[Exception], NonstopError]) -> Iterator[None]:
    """What fails within by a time-out or a bug is one of our failures, too, as `told`."""
    try:
        yield
    except (NonstopError, Abort, Pause):
        raise
    except Exception as error:
        if not isinstance(error, TimeoutError):
            get_run_logger().exception("A bug, or something that nobody expected")
        raise told(error) from error


def _nothing_deployed(app: str, error: Exception) -> NonstopError:
    """Before anything was started; from then on the way back sees to it, as it knows who serves."""
    failure = unexpected(app, error)
    failure.serves = "Nothing was deployed."
    return failure


def is_cancelled() -> bool:
    """Whether the server was asked to cancel this run; not, when it does not answer.

    While signals are ours (`Interrupts`), Prefect takes a cancel for a crash.
    """
    with suppress(httpx.HTTPError), briefly() as client:
        state = client.read_flow_run(UUID(str(flow_run.id))).state
        return state is not None and state.is_cancelling()
    return False


def ensure_not_cancelled() -> None:
    """Nobody cancelled this run; one of the command, or that outlived its runner, gets no signal.

    Raises:
        KeyboardInterrupt: somebody did.
    """
    if is_cancelled():
        raise KeyboardInterrupt


def understood(kinds: dict[str, TypeAdapter[Any]], given: dict[str, Any]) -> dict[str, Any]:
    """The parameters as values of their types.

    Raises:
        BadInput: every one that is wrong, and why, in one sentence.
    """
    values, wrong = {}, []
    for name, value in given.items():
        try:
            values[name] = kinds[name].validate_python(value)
        except ValidationError as error:
            wrong.append(complaints(error, name))
    if wrong:
        raise BadInput(f"{'; '.join(wrong)}. Nothing was touched.")
    return values


def tag(app: str) -> None:
    """The run can be found by its app, however it was started."""
    tags = {*flow_run.tags, f"app:{app}"}
    with suppress(httpx.HTTPError), briefly() as client:
        once_free(functools.partial(client.update_flow_run, UUID(str(flow_run.id)), tags=tags))
