"""health-check: all replicas were healthy at the same time, long enough."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from tasks.bluegreen.app import App
from tasks.bluegreen.containers import Engine
from tasks.bluegreen.environment import render_text
from tasks.bluegreen.errors import ReplicaCrashed, Unhealthy
from tasks.bluegreen.model import Plan, Replica
from tasks.bluegreen.nginx import Nginx
from tasks.bluegreen.probe import Answer, Probe, nearest, unlike
from tasks.step import say, step

TELL = 5.0  # seconds between two lines of progress
SOON = 0.03  # seconds from the first round to the next, if the app is not up yet


@step("health-check", timeout=1800, retries=1)
def health_check(plan: Plan, replicas: tuple[Replica, ...]) -> None:
    """Every replica was right in `health.checks` rounds in a row, then warmed up.

    Right is: its process runs and was never restarted, Docker's own health check says healthy where
    there is one, and its answer has the status, body and headers that the App asks for.

    Raises:
        ReplicaCrashed: at once, with the last lines of its log.
        Unhealthy: `health.deadline` passed; with what each replica said last.
    """
    with Engine() as engine:
        until_healthy(engine, Nginx(engine, plan.app.proxy), plan, replicas)


def until_healthy(engine: Engine, nginx: Nginx, plan: Plan, replicas: tuple[Replica, ...]) -> None:
    """The same, for whoever has an engine and the proxy at hand."""
    app, health = plan.app, plan.app.health
    pool = ThreadPoolExecutor(len(replicas))
    try:
        probe = nearest(engine, nginx)
        began = told = time.monotonic()
        rounds = 0
        while True:
            said = list(pool.map(lambda r: complaint(engine, probe, plan, r), replicas))
            wrong = [text for text in said if text]
            rounds = 0 if wrong else rounds + 1
            if rounds == health.checks:
                break
            now = time.monotonic()
            if now - began > health.deadline:
                raise Unhealthy(
                    f"Release {plan.green} of {app.name} did not become healthy in "
                    f"{health.deadline:g} s: {'; '.join(wrong) or 'its checks flap'}.",
                    "\n".join(engine.last_words(replica, app) for replica in replicas[:2]),
                )
            if wrong and now - told >= TELL:
                told = now
                say(
                    f"{len(wrong)} of {len(replicas)} replicas not healthy after "
                    f"{now - began:.0f} s of at most {health.deadline:g} s: {wrong[0]}"
                )
            soon = SOON + (now - began) / 4  # most apps are up long before an interval has passed
            time.sleep(min(health.interval, soon) if wrong else health.interval)
        list(pool.map(lambda replica: _warm_up(engine, probe, app, replica), replicas))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # the way back waits for no slow answer
    say(
        f"{len(replicas)} of {len(replicas)} replicas healthy in {rounds} rounds, "
        f"{time.monotonic() - began:.1f} s after the start"
    )


def complaint(engine: Engine, probe: Probe, plan: Plan, replica: Replica) -> str:
    """Why a replica is not healthy at this moment; empty when it is.

    Raises:
        ReplicaCrashed: its process ended, or Docker had to start it again.
    """
    seen = ensure_alive(engine, plan, replica)
    if seen.health not in ("", "healthy"):
        return f"{replica.name}: Docker's health check says {seen.health}"
    app = plan.app
    answer = probe.get(
        f"http://{replica.address}:{app.port}", app.health.path, app.server_name, app.health.timeout
    )
    why = _wrong(plan, replica, answer)
    return f"{replica.name}: {why}" if why else ""


def ensure_alive(engine: Engine, plan: Plan, replica: Replica) -> Replica:
    """The replica as it is now: running since the start that we know, at its own address.

    Raises:
        ReplicaCrashed: otherwise, with exit code and the last lines of its log.
    """
    seen = engine.replica(replica.id)
    if seen is None:
        raise ReplicaCrashed(f"{replica.name} was removed by somebody.")
    if seen.running and seen.started == replica.started and seen.address == replica.address:
        return seen
    why = "ran out of memory" if seen.out_of_memory else f"ended with exit code {seen.exit_code}"
    if seen.running:
        why = "ended and was started again"
    raise ReplicaCrashed(f"{replica.name} {why}.", engine.last_words(replica, plan.app))


def _wrong(plan: Plan, replica: Replica, answer: Answer) -> str:
    health = plan.app.health
    if why := unlike(health, answer):
        return why
    for name, template in health.headers.items():
        wanted = render_text(plan.app, "health.headers", template, plan.origin, replica.index)
        if answer.headers.get(name.lower()) != wanted:
            return (
                f"{health.path} was answered by somebody else: {name} is "
                f"{answer.headers.get(name.lower())!r}, not {wanted!r}"
            )
    return ""


def _warm_up(engine: Engine, probe: Probe, app: App, replica: Replica) -> None:
    for path in app.health.warm_up:
        answer = probe.get(f"http://{replica.address}:{app.port}", path, app.server_name, 60)
        if not 0 < answer.status < 500:
            raise Unhealthy(
                f"{replica.name}: warm-up of {path} answers {answer}.",
                engine.last_words(replica, app),
            )
