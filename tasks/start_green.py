"""start-green: every replica of green runs beside blue, from a pinned image."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tasks.bluegreen.containers import Engine
from tasks.bluegreen.environment import environment
from tasks.bluegreen.errors import NothingKept, ReplicaCrashed
from tasks.bluegreen.images import pin, was_pulled
from tasks.bluegreen.model import Plan, Replica
from tasks.secret import secret
from tasks.step import say, step


@step("start-green", timeout=1200, retries=2)
def start_green(plan: Plan) -> tuple[Replica, ...]:
    """Every replica of green was started; a bounded number at a time.

    Raises:
        ImageUnavailable: in the registry's words; nothing was started.
        ReplicaCrashed: a command that cannot be run.
    """
    app = plan.app
    with Engine() as engine:
        image = plan.pinned or pin(engine, app, say)
        pulled = was_pulled(engine, app, image)
        variables = _environments(engine, plan)

        def start(index: int) -> Replica:
            made = engine.create(
                plan, index, image_id=image, environment=variables[index - 1], pulled=pulled
            )
            engine.start(made)
            replica = engine.replica(made)
            if replica is None:
                raise ReplicaCrashed(f"{app.name}-{plan.green}-{index} was removed by somebody.")
            return replica

        with ThreadPoolExecutor(min(app.parallelism, app.replicas)) as pool:
            replicas = tuple(pool.map(start, range(1, app.replicas + 1)))
    say(
        f"release {plan.green} started: {', '.join(replica.name for replica in replicas)} "
        f"from {app.image} ({image[:19]})"
    )
    return replicas


def _environments(engine: Engine, plan: Plan) -> list[dict[str, str]]:
    indexes = range(1, plan.app.replicas + 1)
    if plan.source is None:
        return [environment(plan.app, plan.green, index, secret) for index in indexes]
    source = next(
        (release for release in engine.releases(plan.app.name) if release.number == plan.source),
        None,
    )
    if source is None or not source.complete:
        raise NothingKept(f"Release {plan.source} of {plan.app.name} is no longer complete.")
    return [engine.environment(replica.id) for replica in source.replicas]
