"""The way back: after any failure before the point of no return blue serves as before."""

from __future__ import annotations

from types import TracebackType

from prefect.exceptions import Abort, Pause
from prefect.logging import get_run_logger

from flows.account import unexpected
from flows.interrupts import Interrupts
from tasks.bluegreen.errors import Failed, NonstopError, Refused, StateUnknown
from tasks.bluegreen.model import Drained, Plan, Report, Step, Verified
from tasks.roll_back import roll_back
from tasks.step import STEPS
from tasks.teardown_blue import teardown_blue

PENDING = "Cleanup is pending, the next run or `nonstop recover` finishes it"


class WayBack:
    """Within, a failure or a signal leads back to blue, and is raised with who serves.

    Args:
        plan: of the run.
        interrupts: which the way back must not hear.

    `touched` says whether anything was started, so that the failure is no refusal any more.
    """

    def __init__(self, plan: Plan, interrupts: Interrupts, *, touched: bool = False) -> None:
        self.plan, self.interrupts, self.touched = plan, interrupts, touched

    def __enter__(self) -> WayBack:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,  # a cancelled run raises no Exception
        trace: TracebackType | None,
    ) -> None:
        # Somebody between may have made another failure of the signal, or none.
        failure = self.interrupts.raised or failure
        if failure is None or isinstance(failure, Abort | Pause):
            return
        self.interrupts.ignored = True
        serves = self._roll_back(str(failure) or type(failure).__name__)
        get_run_logger().warning(serves)
        if not isinstance(failure, Exception):
            failure.add_note(serves)
            raise failure
        raise told(self.plan, failure, serves, touched=self.touched) from failure

    def _roll_back(self, why: str) -> str:
        try:
            return roll_back(self.plan, why)
        except (NonstopError, Abort, Pause):
            raise
        except Exception as error:  # its own time-out, or a bug: nobody knows who serves
            app = self.plan.app.name
            raise StateUnknown(
                f"{app}: after a failure ({why.splitlines()[0]}) the way back did not end: "
                f"{unexpected(app, error).what} A person has to look: `nonstop status {app}`. "
                f"`nonstop recover {app}` puts it right.",
            ) from error


def told(plan: Plan, failure: Exception, serves: str, *, touched: bool) -> NonstopError:
    """The failure as one of ours, with who serves; `Refused` only if nothing was touched."""
    if isinstance(failure, NonstopError) and not (touched and isinstance(failure, Refused)):
        error = failure
    elif isinstance(failure, NonstopError):
        error = Failed(failure.what, failure.evidence)
    else:
        error = unexpected(plan.app.name, failure)
    error.serves = serves
    return error


def retire(plan: Plan, verified: Verified) -> Report:
    """Blue is drained and stopped; green serves and is good, so that a failure undoes nothing."""
    try:
        return succeeded(plan, verified, teardown_blue(plan))
    except (Abort, Pause, StateUnknown):
        raise
    except BaseException as failure:
        if not isinstance(failure, Exception):
            failure.add_note(f"Release {plan.green} serves. {PENDING}.")
            raise
        pending = f"{PENDING} ({failure})."
        get_run_logger().warning(pending)
        return succeeded(plan, verified, pending=pending)


def succeeded(
    plan: Plan, verified: Verified, drained: Drained | None = None, pending: str = ""
) -> Report:
    """The report of a run whose green serves and is good; `pending` tells what is left of blue."""
    steps: list[Step] = STEPS.get() or []
    return Report(
        outcome="succeeded",
        app=plan.app.name,
        release=plan.green,
        image=plan.app.image,
        blue=plan.blue,
        steps=tuple(steps),
        verified=verified,
        drained=drained,
        cleanup="pending" if pending else "done",
        message=f"Release {plan.green} of {plan.app.name} serves. {pending}".strip(),
    )
