"""verify-traffic: green serves well, say our own requests and the visitors' results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial

from tasks.bluegreen.app import App
from tasks.bluegreen.containers import Engine
from tasks.bluegreen.errors import BadTraffic
from tasks.bluegreen.gates import Verify
from tasks.bluegreen.model import Plan, Release, Replica, Verified
from tasks.bluegreen.nginx import Nginx
from tasks.bluegreen.probe import Answer, FrontDoor, unlike
from tasks.bluegreen.visits import Attempts, Side, Visits
from tasks.health_check import ensure_alive
from tasks.step import say, step, watched

LOOK = 1.0  # seconds between two looks at the containers and the visitors' results
FLUSH = 1.2  # seconds until nginx has written what it logged
TELL = 10.0


@step("verify-traffic", timeout=1800)
def verify_traffic(
    plan: Plan, replicas: tuple[Replica, ...], blue: Release | None, host: str = ""
) -> Verified:
    """For the bake time every replica ran, and requests were answered by green and were right.

    Ours go through the front door as a visitor's do; visitors' own results are read from the access
    log and compared with blue's before the cutover. One blip is no reason to go back.

    Args:
        plan: of the run.
        replicas: green's, as they were found healthy.
        blue: the release that served before; None: there was none.
        host: the name by which the site is asked; empty: it is found out.

    Raises:
        BadTraffic: with the failing requests.
        ReplicaCrashed: with the last lines of its log.
    """
    app, verify = plan.app, plan.app.verify
    with Engine() as engine, Engine() as follower:
        nginx = Nginx(engine, app.proxy)
        door = FrontDoor(engine, nginx, app, host)
        # Of the last to start: a replica that stood still until a recovery failed nobody since.
        since = _last(replica.started for replica in replicas)
        green = Side(frozenset(f"{replica.address}:{app.port}" for replica in replicas), since)
        # An earlier green that failed may have had this number and these addresses.
        since = _last(replica.created for replica in blue.replicas) if blue else 0
        before = Side(blue.servers if blue else frozenset(), since)
        ours, in_a_row = Attempts(0, 0), 0
        with (
            Visits(follower, nginx, app.name, green, before) as visits,
            watched(plan, lambda: _verified(ours, visits)),
        ):
            failing = partial(_failing, engine, visits, replicas[0], app)
            began = looked = told = time.monotonic()
            while True:
                answer = door.get(verify.path, verify.timeout)
                why = _wrong(plan, answer)
                ours += Attempts(1, bool(why))
                in_a_row = in_a_row + 1 if why else 0
                if why and (in_a_row >= verify.failures or is_worse(verify, ours, visits.blue)):
                    ensure_all_alive(engine, plan, replicas)  # a crash says more than bad answers
                    raise BadTraffic(
                        f"Release {plan.green} of {app.name} failed {ours.failed} of {ours.total} "
                        f"requests of ours through {door.base}: {why}.",
                        "\n".join(engine.last_words(replica, app) for replica in replicas[:2]),
                    )
                now = time.monotonic()
                if now - looked >= LOOK:
                    looked = now
                    ensure_all_alive(engine, plan, replicas)
                    judge(plan, visits.green, visits.blue, failing)
                if now - began >= verify.bake_time and not in_a_row:
                    break
                if now - told >= TELL:
                    told = now
                    say(
                        f"watched release {plan.green} for {now - began:.0f} of "
                        f"{verify.bake_time:g} s: {told_of(ours, visits.green)}"
                    )
                time.sleep(verify.interval)
            if verify.bake_time:
                time.sleep(FLUSH)
                visits.up_to_now()
            ensure_all_alive(engine, plan, replicas)
            judge(plan, visits.green, visits.blue, failing)
            verified = _verified(ours, visits)
    if verified.deaf:
        say(f"visitors were not watched to the end: {verified.deaf}")
    say(
        f"release {plan.green} is good: {told_of(ours, visits.green)} (blue before: "
        f"{visits.blue.failed} of {visits.blue.total})"
    )
    return verified


def ensure_all_alive(engine: Engine, plan: Plan, replicas: tuple[Replica, ...]) -> None:
    """Every replica runs as it was found healthy.

    Raises:
        ReplicaCrashed: one does not, with exit code and the last lines of its log.
    """
    for replica in replicas:
        ensure_alive(engine, plan, replica)


def _last(moments: Iterable[str]) -> float:
    """The latest of the engine's times, as Unix time in seconds."""
    return max(datetime.fromisoformat(moment).timestamp() for moment in moments)


def _verified(ours: Attempts, visits: Visits) -> Verified:
    return Verified(
        requests=ours.total,
        failed=ours.failed,
        visitors=visits.green.total,
        visitors_failed=visits.green.failed,
        deaf=visits.deaf,
    )


def _failing(engine: Engine, visits: Visits, replica: Replica, app: App) -> str:
    return engine.masked(replica, app, "\n".join(visits.failing))


def judge(plan: Plan, green: Attempts, blue: Attempts, failing: Callable[[], str]) -> None:
    """Visitors fare no worse with green than they did with blue.

    Args:
        plan: of the run.
        green: how often visitors asked it, and how often that went wrong.
        blue: the same before.
        failing: tells some of the requests in which green failed, one a line.

    Raises:
        BadTraffic: green fails more of them.
    """
    verify = plan.app.verify
    if is_worse(verify, green, blue):
        raise BadTraffic(
            f"Release {plan.green} of {plan.app.name} fails its visitors: {green.failed} of "
            f"{green.total} requests ({green.share:.1%}; blue {blue.share:.1%}, tolerance "
            f"{verify.tolerance:.1%}).",
            failing(),
        )


def is_worse(verify: Verify, green: Attempts, blue: Attempts) -> bool:
    """Whether green failed `failures` requests, and a share beyond blue's and the tolerance."""
    return green.failed >= verify.failures and green.share > blue.share + verify.tolerance


def told_of(ours: Attempts, visitors: Attempts) -> str:
    """How green did, in words."""
    return (
        f"{ours.total} requests of ours, {ours.failed} failed; {visitors.total} of visitors, "
        f"{visitors.failed} failed"
    )


def _wrong(plan: Plan, answer: Answer) -> str:
    if why := unlike(plan.app.verify, answer):
        return why
    if answer.release != str(plan.green):
        return f"answered by release {answer.release or 'unknown'}"
    return ""
