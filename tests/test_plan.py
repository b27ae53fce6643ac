"""No plan, whatever Docker and nginx show, touches what is live. Pure."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.bluegreen.app import parse
from tasks.bluegreen.errors import NothingKept, Unavailable
from tasks.bluegreen.model import Live, Observed, Plan, Release, Replica
from tasks.bluegreen.plan import leftovers, plan_deploy, plan_retirement, plan_rollback, role

SUBNET, DYNAMIC = "10.213.0.0/20", "10.213.0.0/22"
STATES = ("running", "exited", "created", "restarting", "dead", "paused")


@st.composite
def releases(draw: st.DrawFn, number: int) -> Release:
    wanted = draw(st.integers(1, 4))
    there = draw(st.integers(1, wanted))
    settings = parse({"name": "shop", "image": f"shop:{number}", "port": 80, "replicas": wanted})
    return Release(
        number=number,
        origin=draw(st.integers(1, number)),
        image=f"shop:{number}",
        pinned=f"sha256:{number}",
        settings=settings,
        replicas=tuple(
            Replica(
                name=f"shop-{number}-{index}",
                id=f"{number}{index}",
                app="shop",
                number=number,
                index=index,
                address=f"10.213.{4 + number % 10}.{index + number}",
                status=draw(st.sampled_from(STATES)),
            )
            for index in range(1, there + 1)
        ),
    )


@st.composite
def worlds(draw: st.DrawFn) -> Observed:
    """Any releases in any state; nginx serves one of them, or one that is gone, or none."""
    numbers = sorted(draw(st.sets(st.integers(1, 60), max_size=6)))
    found = tuple(draw(releases(number)) for number in numbers)
    live = draw(st.none() | st.integers(1, 60) | st.sampled_from([*numbers, 1]))
    site = draw(st.sampled_from([None, "site of generation abc", "site of another"]))
    return Observed(
        app="shop",
        releases=found,
        live=None if live is None else Live(number=live, generation="abc"),
        site=site,
        taken=tuple(r.address for release in found for r in release.replicas),
        subnet=SUBNET,
        dynamic=DYNAMIC,
    )


def check(plan: Plan, seen: Observed) -> None:
    live = seen.live.number if seen.live else 0
    assert plan.green > max([live, *(release.number for release in seen.releases)])
    assert live not in plan.leftovers
    assert all(number > live for number in plan.leftovers)
    assert len(set(plan.addresses)) == plan.app.replicas
    stays = {
        replica.address
        for release in seen.releases
        if release.number not in plan.leftovers
        for replica in release.replicas
    }
    for address in map(IPv4Address, plan.addresses):
        assert address in IPv4Network(SUBNET)
        assert address not in IPv4Network(DYNAMIC)
        assert str(address) not in stays
    if plan.previous_site is not None:
        assert seen.live
        assert seen.live.generation in plan.previous_site


@given(worlds(), st.integers(1, 8))
def test_a_deploy_never_touches_what_is_live(seen: Observed, replicas: int) -> None:
    app = parse({"name": "shop", "image": "shop:9", "port": 80, "replicas": replicas})
    check(plan_deploy(app, seen), seen)


@given(worlds(), st.none() | st.integers(1, 60))
def test_a_rollback_returns_to_a_complete_release_before_the_live_one(
    seen: Observed, to: int | None
) -> None:
    try:
        plan = plan_rollback(seen, to)
    except NothingKept:
        live = seen.live.number if seen.live else 0
        kept = [r for r in seen.releases if r.number < live and r.complete]
        assert not [r for r in kept if to in (None, r.number)]
        return
    check(plan, seen)
    source = seen.release(plan.source or 0)
    assert source
    assert seen.live
    assert source.number < seen.live.number
    assert source.complete
    assert (plan.app, plan.pinned, plan.origin) == (source.settings, source.pinned, source.origin)


@given(worlds(), st.integers(0, 4))
def test_what_is_live_is_never_stopped_or_removed(seen: Observed, keep: int) -> None:
    retirement = plan_retirement(seen, keep)
    touched = {*retirement.stop, *retirement.keep, *retirement.remove}
    live = seen.live.number if seen.live else 0
    assert all(number < live for number in touched)
    assert not {*retirement.keep} & {*retirement.remove}
    assert len(retirement.keep) <= keep
    assert all((release := seen.release(n)) and release.complete for n in retirement.keep)
    older = {release.number for release in seen.releases if release.number < live}
    assert {*retirement.keep} | {*retirement.remove} == older


@given(worlds())
def test_without_a_live_release_nothing_is_abandoned_or_retired(seen: Observed) -> None:
    nobody = seen.model_copy(update={"live": None})
    assert leftovers(nobody) == ()
    assert plan_retirement(nobody, 0).remove == ()


@given(worlds())
def test_exactly_the_live_release_has_the_role_live(seen: Observed) -> None:
    live = seen.live.number if seen.live else None
    assert [r.number for r in seen.releases if role(seen, r) == "live"] == [
        r.number for r in seen.releases if r.number == live
    ]


def test_a_network_that_is_full_is_refused() -> None:
    app = parse({"name": "shop", "image": "shop:9", "port": 80, "replicas": 6})
    seen = Observed(app="shop", releases=(), live=None, subnet="10.9.0.0/29", dynamic="10.9.0.0/30")
    with pytest.raises(Unavailable, match=r"has 3 free addresses and shop needs 6"):
        plan_deploy(app, seen)
