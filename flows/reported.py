"""How a run begins and ends in Prefect: parameters that are right, and a state that tells."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, cast

from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed
from pydantic import TypeAdapter, ValidationError

from tasks.bluegreen.app import complaints
from tasks.bluegreen.errors import BadInput, NonstopError, Outcome
from tasks.bluegreen.model import Report
from tasks.step import STEPS

P = ParamSpec("P")

NAMES: dict[Outcome, str] = {"failed": "Failed", "refused": "Refused", "unknown": "Unknown"}


def reported(story: Callable[P, Report]) -> Callable[P, Report]:
    """A flow's function whose end is a state: `Completed`, `Unchanged`, `Refused`, `Failed`, ...

    Whoever calls the flow gets the report, or has the failure raised, all the same. Parameters are
    looked at here, so that the state says in a sentence what is wrong with them.
    """
    signature = inspect.signature(story, eval_str=True)
    kinds = {name: TypeAdapter(of.annotation) for name, of in signature.parameters.items()}

    @functools.wraps(story)
    def run(*args: P.args, **kwargs: P.kwargs) -> State[Any]:
        STEPS.set([])
        try:
            given = signature.bind(*args, **kwargs)
            given.arguments.update(understood(kinds, given.arguments))
            report = story(*given.args, **given.kwargs)
        except NonstopError as failure:
            return ended(failure)
        name = "Completed" if report.changed else "Unchanged"
        return Completed(name=name, message=report.message, data=report)

    run.__signature__ = signature  # type: ignore[attr-defined]  # of types, not of their names
    return cast("Callable[P, Report]", run)


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


def ended(failure: NonstopError) -> State[Any]:
    """The state of a run that did not do what was asked; its evidence is in the log."""
    log = get_run_logger()
    log.error("%s", failure)
    message = " ".join(part for part in (failure.what, failure.serves) if part)
    return Failed(name=NAMES[failure.outcome], message=message, data=failure)
