"""compare: whether the live release is what is wanted already."""

from __future__ import annotations

from tasks.bluegreen.app import App
from tasks.bluegreen.containers import Engine
from tasks.bluegreen.environment import environment
from tasks.bluegreen.images import resolve
from tasks.bluegreen.model import Observed
from tasks.bluegreen.site import render_site
from tasks.bluegreen.unchanged import differences
from tasks.secret import secret
from tasks.step import say, step


@step("compare", timeout=600, retries=2)
def compare(app: App, seen: Observed) -> tuple[str, ...]:
    """What a deploy would change, none of it secret; empty: the live release is what is wanted.

    The image is looked for last, and not pulled where its registry says what the tag means.

    Raises:
        BadInput: the environment does not render.
        ImageUnavailable: in the registry's words.
    """
    live = seen.release(seen.live.number) if seen.live else None
    if live is None:
        return ("no release serves",)
    with Engine() as engine:
        brought = engine.image_environment(live.pinned)
        found = differences(
            app,
            seen,
            [brought | environment(app, live.origin, r.index, secret) for r in live.replicas],
            [engine.environment(replica.id) for replica in live.replicas],
            render_site(
                app, live.number, tuple(r.address for r in live.replicas), seen.nginx
            ).generation,
        )
        if not found and resolve(engine, app, live.pinned, say) != live.pinned:
            found = (f"image {app.image} is another one now",)
    if found and live.image != app.image:
        found = (f"image: {live.image} -> {app.image}", *found)
    say("differs: " + "; ".join(found[:5]) if found else f"release {live.number} is what is wanted")
    return found
