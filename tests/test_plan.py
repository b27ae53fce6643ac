"""No plan, whatever Docker and nginx show, touches what is live. Pure."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.bluegreen.app import parse
from tasks.bluegreen.errors import NothingKept, Refused, StateUnknown, Unavailable
from tasks.bluegreen.model import PREVIEW, STANDING, Live, Observed, Plan, Release, Replica
from tasks.bluegreen.plan import plan_deploy, plan_retirement, plan_rollback, role
from tasks.bluegreen.recovery import plan_recovery, plan_resumed, recovery_lines

SUBNET, DYNAMIC = "10.213.0.0/20", "10.213.0.0/22"
PROXIES = ("nginx", "nginx", "nginx", "another")  # an app may have moved
TIMES = ("2026-11-25T01:00:00Z", "2026-11-25T02:00:00Z")
RUNS = ("", "run 1", "run 2")
STATES = ("running", "exited", "created", "restarting", "dead", "paused", "removing")


@st.composite
def releases(draw: st.DrawFn, number: int) -> Release:
    wanted = draw(st.integers(1, 4))
    there = draw(st.integers(1, wanted))
    settings = parse(
        {
            "name": "shop",
            "image": f"shop:{number}",
            "port": 80,
            "replicas": wanted,
            "proxy": {"container": draw(st.sampled_from(PROXIES))},
        }
    )
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
                created=draw(st.sampled_from(TIMES)),
                run=draw(st.sampled_from(RUNS)),
            )
            for index in range(1, there + 1)
        ),
    )


def sites(numbers: list[int], likely: int | None) -> st.SearchStrategy[str | None]:
    """A site on disk: none, somebody's own text, or one of ours of any release, or a preview."""
    number = (
        st.sampled_from([likely or 1] * 3) | st.sampled_from([*numbers, 1]) | st.integers(1, 60)
    )
    ours = st.builds(
        lambda n, generation, preview: f'return 200 "shop {n} {generation}\\n";{preview}',
        number,
        st.sampled_from(["a" * 16, "b" * 16]),
        st.sampled_from(["", "", PREVIEW]),
    )
    return st.none() | st.just("a site of somebody's own") | ours


@st.composite
def worlds(draw: st.DrawFn) -> Observed:
    """Any releases in any state; nginx serves one of them, or one that is gone, or none."""
    numbers = sorted(draw(st.sets(st.integers(1, 60), max_size=6)))
    found = tuple(draw(releases(number)) for number in numbers)
    live = draw(st.none() | st.integers(1, 60) | st.sampled_from([*numbers, 1]))
    generation = st.sampled_from(["a" * 16, "b" * 16])
    highest = max([live or 0, *numbers])  # somebody else may have taken the next one's names
    strangers = [f"shop-{n}-{index}" for n in (highest + 1, highest + 2) for index in (1, 4, 9)]
    return Observed(
        app="shop",
        proxy=draw(st.sampled_from(PROXIES)),
        releases=found,
        live=None if live is None else Live(number=live, generation=draw(generation)),
        site=draw(sites(numbers, live)),
        before=draw(sites(numbers, draw(st.sampled_from([live, *numbers])))),
        proxy_since=draw(st.sampled_from(["", *TIMES])),
        left=draw(st.sampled_from([(), ("run 1 on a host",), RUNS[1:]])),
        others=tuple(
            draw(st.sets(st.integers(1, 60) | st.sampled_from([*numbers, 1]), max_size=2))
        ),
        strangers=tuple(draw(st.sets(st.sampled_from(strangers), max_size=2))),
        taken=tuple(r.address for release in found for r in release.replicas),
        gone=draw(st.sampled_from([(), ("another",), ("nginx",)])),
        networks=draw(st.sampled_from([None, ("bridge",), ("bridge", "nonstop")])),
        subnet=SUBNET,
        dynamic=DYNAMIC,
    )


def check(plan: Plan, seen: Observed) -> None:
    live = seen.live.number if seen.live else 0
    assert plan.green > max([live, *(release.number for release in seen.releases)])
    assert len(set(plan.addresses)) == plan.app.replicas
    assert not green_names(seen, plan.app.replicas) & set(seen.strangers)
    stays = {replica.address for release in seen.releases for replica in release.replicas}
    for address in map(IPv4Address, plan.addresses):
        assert address in IPv4Network(SUBNET)
        assert address not in IPv4Network(DYNAMIC)
        assert str(address) not in stays
    if plan.previous_site is not None:
        assert seen.live
        assert Live.named_in(plan.previous_site) == seen.live
        assert PREVIEW not in plan.previous_site


def green_names(seen: Observed, replicas: int) -> set[str]:
    """What the containers of the next release are going to be called."""
    highest = max([seen.live.number if seen.live else 0, *(r.number for r in seen.releases)])
    return {f"shop-{highest + 1}-{index}" for index in range(1, replicas + 1)}


@given(worlds(), st.integers(1, 8))
def test_a_deploy_never_touches_what_is_live(seen: Observed, replicas: int) -> None:
    app = parse({"name": "shop", "image": "shop:9", "port": 80, "replicas": replicas})
    if clash := sorted(green_names(seen, replicas) & set(seen.strangers)):
        with pytest.raises(Refused, match=f"named {clash[0]} exists and is not ours"):
            plan_deploy(app, seen)
    else:
        check(plan_deploy(app, seen), seen)


@given(worlds(), st.none() | st.integers(1, 60))
def test_a_rollback_returns_to_a_complete_release_before_the_live_one(
    seen: Observed, to: int | None
) -> None:
    try:
        plan = plan_rollback(seen, to)
    except NothingKept:
        live = seen.live.number if seen.live else 0
        kept = [r for r in seen.behind if r.number < live and r.complete]
        assert not [r for r in kept if to in (None, r.number)]
        return
    except Refused:
        assert green_names(seen, 4) & set(seen.strangers)
        return
    check(plan, seen)
    source = seen.release(plan.source or 0)
    assert source
    assert seen.live
    assert source.number < seen.live.number
    assert source.complete
    assert (plan.pinned, plan.origin) == (source.pinned, source.origin)
    assert plan.app in (source.settings, seen.settings(source))
    assert plan.app.proxy.container not in {*seen.gone} - {seen.proxy}


@given(worlds(), st.integers(0, 4))
def test_what_is_live_is_never_stopped_or_removed(seen: Observed, keep: int) -> None:
    retirement = plan_retirement(seen, keep)
    touched = {*retirement.stop, *retirement.keep, *retirement.remove}
    live = seen.live.number if seen.live else 0
    assert all(number < live for number in touched)
    assert not {*retirement.keep} & {*retirement.remove}
    assert len(retirement.keep) <= keep
    assert all((release := seen.release(n)) and release.complete for n in retirement.keep)
    older = {release.number for release in seen.behind if release.number < live}
    older -= set(seen.others)
    assert {*retirement.keep} | {*retirement.remove} == older


@given(worlds())
def test_without_a_live_release_nothing_is_retired(seen: Observed) -> None:
    assert plan_retirement(seen.model_copy(update={"live": None}), 0).remove == ()


@given(worlds())
def test_a_recovery_never_removes_what_serves_or_may_have_served(seen: Observed) -> None:
    recovery = plan_recovery(seen)
    live = seen.release(seen.live.number) if seen.live else None
    if live is None or not live.running:  # who runs then may be all that there is
        for number in recovery.remove:
            release = seen.release(number)
            assert release
            assert not release.whole or seen.died(release) or number < (recovery.live or 0)
    if recovery.site == "restore":
        served = seen.release(recovery.live or 0)
        assert served
        assert served.whole
        assert not seen.died(served)
        assert not (live and live.running)
        assert all(number > served.number for number in recovery.remove)
    elif live is not None:
        assert recovery.live == live.number
        assert recovery.site == ("is loaded" if seen.loaded and not seen.previewing else "put back")
        assert all(number > live.number for number in recovery.remove)
    elif recovery.live is not None and recovery.site == "load":
        assert all(number > recovery.live for number in recovery.remove)
    elif recovery.remove:
        (only,) = seen.behind
        assert recovery.remove == (only.number,)
        assert all(replica.created > seen.proxy_since for replica in only.replicas)
    behind = {release.number for release in seen.behind}
    assert set(recovery.remove) <= behind - set(seen.others)
    assert recovery.blue is None or recovery.blue in behind - {*recovery.remove, recovery.live}
    still = {r.id: r.status for release in seen.releases for r in release.replicas}
    assert all(still[started] in STANDING for started in recovery.start)


@given(worlds())
def test_where_no_recovery_is_needed_nothing_is_left_over(seen: Observed) -> None:
    live = seen.release(seen.live.number) if seen.live else None
    if live is None or plan_recovery(seen).needed:
        return
    retired = plan_retirement(seen, live.settings.keep)
    assert (retired.stop, retired.remove) == ((), ())
    assert seen.loaded
    assert not seen.previewing
    newer = [r for r in seen.behind if r.number > live.number]
    assert all(r.number in seen.others for r in newer)
    assert not [r for r in live.replicas if r.status in STANDING]
    assert seen.networks is None or live.settings.proxy.network in seen.networks


def test_a_run_that_died_while_it_tidied_up_is_finished() -> None:
    """Everything is stopped as it should be, but the release before the kept one is still there."""
    three = [every(of(number), "running" if number == 3 else "exited") for number in (1, 2, 3)]
    seen = Observed(
        app="shop",
        releases=tuple(three),
        live=Live(number=3, generation="a" * 16),
        site=f'return 200 "shop 3 {"a" * 16}\\n";',
    )
    assert plan_recovery(seen).finish
    assert not plan_recovery(seen.model_copy(update={"releases": tuple(three[1:])})).needed


def of(number: int) -> Release:
    """A complete release of one replica."""
    replica = Replica(
        name=f"shop-{number}-1",
        id=f"{number}",
        app="shop",
        number=number,
        index=1,
        address=f"10.213.4.{number}",
        status="running",
        created=TIMES[0],
        run=f"run of {number}",
    )
    return Release(
        number=number,
        origin=number,
        image="shop:1",
        pinned="sha256:1",
        settings=parse({"name": "shop", "image": "shop:1", "port": 80, "replicas": 1}),
        replicas=(replica,),
    )


@given(worlds())
def test_a_recovery_ends_in_a_state_that_needs_none(seen: Observed) -> None:
    recovery = plan_recovery(seen)
    live = seen.release(recovery.live or 0)
    if not recovery.needed or live is None:
        return
    serves = Live(number=live.number, generation="a" * 16)
    then = seen.model_copy(update={"live": serves})  # what is behind a gone proxy depends on it
    keep = plan_retirement(then, live.settings.keep).keep
    after = seen.model_copy(
        update={
            "live": serves,
            "networks": (recovery.connect,) if recovery.connect else seen.networks,
            "site": f'return 200 "shop {live.number} {serves.generation}\\n";',
            "releases": tuple(
                every(release, "running" if release is live else "exited")
                for release in seen.releases
                if release is live or release.number in keep or release not in then.behind
            ),
        }
    )
    assert not plan_recovery(after).needed


def every(release: Release, status: str) -> Release:
    replicas = tuple(r.model_copy(update={"status": status}) for r in release.replicas)
    return release.model_copy(update={"replicas": replicas})


@given(worlds())
def test_the_rest_of_a_deploy_leads_back_to_what_there_is(seen: Observed) -> None:
    recovery = plan_recovery(seen)
    if not recovery.finish:
        return
    assert list(recovery_lines(recovery))
    try:
        plan = plan_resumed(seen, recovery, "me")
    except StateUnknown:
        assert seen.release(recovery.live or 0) is None
        assert recovery.blue is None
        return
    assert plan.green == recovery.live
    assert plan.blue != plan.green
    if plan.blue is not None:
        blue = seen.release(plan.blue)
        assert blue
        assert blue.complete
    if plan.previous_site is not None:
        assert PREVIEW not in plan.previous_site
        named = Live.named_in(plan.previous_site)
        assert named == Live(number=plan.blue or 0, generation=plan.blue_generation or "")


def test_a_release_whose_site_was_taken_away_is_served_again() -> None:
    kept, live = every(of(1), "exited"), of(2)
    gone = Observed(app="shop", releases=(kept, live))
    older = {
        "live": Live(number=1, generation="a" * 16),
        "site": f'return 200 "shop 1 {"a" * 16}\n";',
    }
    for seen in (
        gone,
        gone.model_copy(update=older),
        gone.model_copy(update=older | {"releases": (live,)}),
    ):
        recovery = plan_recovery(seen)
        assert (recovery.live, recovery.site, recovery.remove) == (2, "restore", ())
        assert recovery.finish
    died = plan_recovery(gone.model_copy(update=older | {"left": ("run of 2",)}))
    assert (died.live, died.remove, died.start) == (1, (2,), ("1",))
    only = gone.model_copy(update={"releases": (of(1),), "proxy_since": "0"})
    assert not plan_recovery(only).needed  # it may have served
    assert plan_recovery(only.model_copy(update={"left": ("run of 1",)})).remove == (1,)


def test_a_site_with_a_preview_is_never_what_is_gone_back_to() -> None:
    before = f'return 200 "shop 1 {"a" * 16}\\n";'
    seen = Observed(
        app="shop",
        releases=(of(1), of(2)),
        live=Live(number=2, generation="b" * 16),
        site=f'return 200 "shop 2 {"b" * 16}\\n";',
        before=before,
    )
    assert plan_resumed(seen, plan_recovery(seen), "me").previous_site == before
    seen = seen.model_copy(update={"before": before + PREVIEW})
    assert plan_resumed(seen, plan_recovery(seen), "me").previous_site is None


@given(worlds())
def test_exactly_the_live_release_has_the_role_live(seen: Observed) -> None:
    live = seen.live.number if seen.live else None
    assert [r.number for r in seen.releases if role(seen, r) == "live"] == [
        r.number for r in seen.releases if r.number == live and live not in seen.others
    ]


def test_a_network_that_is_full_is_refused() -> None:
    app = parse({"name": "shop", "image": "shop:9", "port": 80, "replicas": 6})
    seen = Observed(app="shop", releases=(), live=None, subnet="10.9.0.0/29", dynamic="10.9.0.0/30")
    with pytest.raises(Unavailable, match=r"has 3 free addresses and shop needs 6"):
        plan_deploy(app, seen)
