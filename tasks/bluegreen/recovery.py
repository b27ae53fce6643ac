"""What a dead run left, and what becomes of it. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from tasks.bluegreen.errors import StateUnknown
from tasks.bluegreen.model import PREVIEW, STANDING, Live, Observed, Plan, Recovery, Release
from tasks.bluegreen.plan import plan_retirement

BAKE = 5.0  # seconds at most that a release which serves already is watched again


def plan_recovery(seen: Observed) -> Recovery:
    """Finish or undo what can be seen of a run that died; nothing, when nothing is to be seen.

    What is live is never stopped, removed or renumbered: a release goes only when it is newer than
    the live one, so that it never became live.
    """
    live = seen.release(seen.live.number) if seen.live else None
    if live is None or (not live.running and _robbed(seen)):
        return _nobody_serves(seen)
    retired = plan_retirement(seen, live.settings.keep)
    start = _standing(live)
    return Recovery(
        app=seen.app,
        live=live.number,
        site="is loaded" if seen.loaded and not seen.previewing else "put back",
        connect=_apart(seen, live),
        start=start,
        remove=_newer(seen, live.number),
        finish=bool(start or retired.stop or retired.remove),
        blue=_way_back(seen, live.number),
    )


def _nobody_serves(seen: Observed) -> Recovery:
    named = Live.named_in(seen.site)
    green = seen.release(named.number) if named and named != seen.live else None
    written = green is not None and green.complete  # it was healthy before its site was written
    serve = green if written else _robbed(seen)
    if serve is not None:
        return Recovery(
            app=seen.app,
            live=serve.number,
            site="load" if written else "restore",
            connect=_apart(seen, serve),
            start=_standing(serve),
            remove=_newer(seen, serve.number),
            finish=True,
            blue=_way_back(seen, serve.number),
        )
    if seen.live is not None:  # all containers of what nginx serves are gone
        number = seen.live.number
        blue = _way_back(seen, number)
        apart = _apart(seen, seen.release(blue or 0))
        return Recovery(app=seen.app, live=number, connect=apart, finish=True, blue=blue)
    return Recovery(
        app=seen.app,
        live=None,
        site="remove" if seen.site is not None else "is loaded",
        remove=_never_served(seen),
    )


def _robbed(seen: Observed) -> Release | None:
    """The release that served until somebody took its site away, or put an older one's there.

    It runs, and nothing that nginx serves does. That it had served is known by what was retired for
    it: what an older site leads to, or an older release that stands still.
    """
    number = seen.live.number if seen.live else 0
    newer = [r for r in seen.behind if r.number > number and r.number not in seen.others]
    served = [r for r in newer if r.whole and not seen.died(r)]
    newest = max(served, key=lambda release: release.number, default=None)
    if newest is None or seen.live:
        return newest
    older = (r for r in seen.behind if r.number < newest.number)
    return newest if any(r.complete and r.standing for r in older) else None


def _never_served(seen: Observed) -> tuple[int, ...]:
    """The green of a first deploy, or of the first behind a proxy that the app was to move to.

    Where there was another release it may have served, and somebody took its site away.
    """
    if len(seen.behind) != 1 or not seen.proxy_since:
        return ()
    (green,) = seen.behind
    if not seen.died(green):
        return ()
    first = green.number == 1 and len(seen.releases) == 1 and not seen.others
    older = bool(seen.others) and max(seen.others) < green.number
    moving = older and green is seen.releases[-1]
    newer = all(replica.created > seen.proxy_since for replica in green.replicas)
    return (green.number,) if newer and (first or moving) else ()


def _apart(seen: Observed, release: Release | None) -> str:
    """The release's network, when the proxy is not on it: somebody made its container anew."""
    network = release.settings.proxy.network if release else ""
    return "" if seen.networks is None or network in seen.networks else network


def _standing(release: Release) -> tuple[str, ...]:
    return tuple(replica.id for replica in release.replicas if replica.status in STANDING)


def _newer(seen: Observed, number: int) -> tuple[int, ...]:
    newer = (release.number for release in seen.behind if release.number > number)
    return tuple(newest for newest in newer if newest not in seen.others)


def _way_back(seen: Observed, number: int) -> int | None:
    """The release to return to: the newest complete one before, a warm one first."""
    older = [r for r in seen.behind if r.number < number and r.complete]
    best = max(older, key=lambda r: (r.running == len(r.replicas), r.number), default=None)
    return best.number if best else None


def plan_resumed(seen: Observed, recovery: Recovery, holder: str) -> Plan:
    """The rest of a deploy that got as far as its cutover.

    Args:
        seen: what Docker and nginx show now.
        recovery: what is done about a dead run.
        holder: the run that does it, as the holder of the app's lock.

    Raises:
        StateUnknown: nothing is left of what nginx serves, nor anything to go back to.
    """
    live, blue = seen.release(recovery.live or 0), seen.release(recovery.blue or 0)
    some = live or blue
    if some is None:
        raise StateUnknown(
            f"{seen.app}: nginx serves release {recovery.live}, whose containers are gone, and no "
            f"other release is kept: `nonstop deploy {seen.app}`."
        )
    app = seen.settings(some)
    verify = app.verify.model_copy(update={"bake_time": min(app.verify.bake_time, BAKE)})
    before = None if PREVIEW in (seen.before or "") else Live.named_in(seen.before)
    known = before if before and before.number == recovery.blue else None
    return Plan(
        app=app.model_copy(update={"verify": verify}),
        green=recovery.live or 0,
        blue=recovery.blue,
        blue_generation=known.generation if known else None,
        origin=some.origin,
        addresses=tuple(replica.address for replica in live.replicas) if live else (),
        nginx=seen.nginx,
        run=live.replicas[0].run if live else "",
        holder=holder,
        previous_site=seen.before if known else None,
    )


def recovery_lines(recovery: Recovery) -> Iterator[str]:
    """What a recovery does, for people."""
    live = f"release {recovery.live}"
    if recovery.site == "put back":
        yield f"put back the site of {live}, which serves: a run that died had changed it"
    if recovery.site == "load":
        yield f"load the site of {live}, which was written and not loaded"
    if recovery.site == "restore":
        yield f"give {live} its site again: it runs, and what nginx has instead serves nobody"
    if recovery.site == "remove":
        yield "remove a site that was written and not loaded, and whose release is gone"
    if recovery.connect:
        yield f"connect the proxy to network {recovery.connect}, which it is not on any more"
    if recovery.start:
        yield f"start {len(recovery.start)} replicas of {live} that stand still"
    for number in recovery.remove:
        yield f"remove release {number}, which never became live"
    if recovery.finish:
        back = f"go back to release {recovery.blue}" if recovery.blue else "ask for a person"
        yield f"verify {live}; retire what was before it, or {back}"
