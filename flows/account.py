"""What a run knows of itself by the time it ends, however it ends; its report is made of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from tasks.bluegreen.errors import Failed, NonstopError, Outcome
from tasks.bluegreen.model import Plan, Report
from tasks.bluegreen.units import Frozen
from tasks.step import STEPS, WATCHED


class Account(Frozen):
    """Of one run."""

    app: str = ""
    plan: Plan | None = None
    changes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    report: Report | None = None


ACCOUNT: ContextVar[Account] = ContextVar("ACCOUNT")


def begin(app: str) -> None:
    """A run of this app has begun."""
    STEPS.set([])
    WATCHED.set({})
    ACCOUNT.set(Account(app=app))


def note(*notes: str, **facts: Any) -> None:
    """These facts are known from now on; sentences are added to those before."""
    account = ACCOUNT.get()
    ACCOUNT.set(account.model_copy(update={**facts, "notes": (*account.notes, *notes)}))


def completed(report: Report) -> Report:
    """The report of a run that did what was asked, with what is known of it."""
    account = ACCOUNT.get()
    report = report.model_copy(update={"changes": account.changes, "notes": account.notes})
    note(report=report)
    return report


def failed(failure: BaseException, interrupted: str = "Interrupted.") -> Report:
    """The report of a run that did not; an interrupt is told with these words.

    One that was interrupted when its release was good has succeeded, as far as it came.
    """
    account = ACCOUNT.get()
    if account.report is not None and not isinstance(failure, NonstopError):
        message = sentence(failure, interrupted)
        return completed(account.report.model_copy(update={"message": message}))
    plan = account.plan
    outcome: Outcome = "failed"
    evidence = ""
    if isinstance(failure, NonstopError):
        outcome, evidence = failure.outcome, failure.evidence
    report = Report(
        outcome=outcome,
        app=account.app,
        image=plan.app.image if plan else "",
        blue=plan.blue if plan else None,
        steps=tuple(STEPS.get() or ()),
        verified=(WATCHED.get() or {}).get(plan.green) if plan else None,
        changes=account.changes,
        notes=account.notes,
        message=sentence(failure, interrupted),
        evidence=evidence,
    )
    note(report=report)
    return report


def unexpected(app: str, failure: Exception) -> Failed:
    """A failure that is none of ours, as one of ours."""
    if isinstance(failure, TimeoutError):
        return Failed(f"{app}: a step did not end in its time.")
    words = ": ".join(part for part in (type(failure).__name__, str(failure).rstrip(".")) if part)
    return Failed(f"{app}: {words}.")


def ended() -> Report | None:
    """The report of the run that ended last, if it came to its end, also where Prefect did not."""
    account = ACCOUNT.get(None)
    return account.report if account else None


def sentence(failure: BaseException, interrupted: str = "Interrupted.") -> str:
    """What happened and who serves now."""
    if isinstance(failure, NonstopError):
        return " ".join(part for part in (failure.what, failure.serves) if part)
    return " ".join([interrupted, *_notes(failure)])


def _notes(failure: BaseException | None) -> Iterator[str]:
    """What a run that was interrupted said of who serves."""
    while failure is not None:
        yield from getattr(failure, "__notes__", ())
        failure = failure.__context__
