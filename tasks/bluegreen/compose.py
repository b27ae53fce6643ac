"""An App's Compose fields as the engine's API takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from docker.types import Ulimit

from tasks.bluegreen.app import App

NANOSECONDS = 1_000_000_000


def container_config(
    api: Any,
    app: App,
    image_id: str,
    environment: Mapping[str, str],
    labels: dict[str, str],
    end: Any,
) -> dict[str, Any]:
    """The body of a request that creates a container.

    Args:
        api: the client, for its version.
        app: whose fields.
        image_id: of the pinned image.
        environment: variables, rendered.
        labels: ours and the App's.
        end: the place on the proxy's network.
    """
    host = api.create_host_config(
        binds=list(app.volumes),
        network_mode=app.proxy.network,
        restart_policy=restart_policy(app),
        init=app.init,
        read_only=app.read_only,
        tmpfs={path: options for path, _, options in (t.partition(":") for t in app.tmpfs)},
        cap_add=list(app.cap_add),
        cap_drop=list(app.cap_drop),
        security_opt=list(app.security_opt),
        ulimits=[_ulimit(kind, limit) for kind, limit in app.ulimits.items()],
        extra_hosts=list(app.extra_hosts),
        mem_limit=app.mem_limit,
        nano_cpus=int(app.cpus * NANOSECONDS) if app.cpus else None,
    )
    config: dict[str, Any] = api.create_container_config(
        image_id,
        command=_argv(app.command),
        entrypoint=_argv(app.entrypoint),
        environment=dict(environment),
        user=app.user,
        working_dir=app.working_dir,
        labels=labels,
        stop_signal=app.stop_signal,
        healthcheck=_healthcheck(app),
        host_config=host,
        networking_config=api.create_networking_config({app.proxy.network: end}),
    )
    return config


def restart_policy(app: App) -> dict[str, Any]:
    """What Docker does when a replica ends by itself."""
    name, _, retries = app.restart.partition(":")
    return {"Name": name, "MaximumRetryCount": int(retries or 0)}


def _argv(command: tuple[str, ...] | str | None) -> list[str] | str | None:
    return list(command) if isinstance(command, tuple) else command


def _ulimit(kind: str, limit: Any) -> Any:
    soft, hard = (limit, limit) if isinstance(limit, int) else (limit.soft, limit.hard)
    return Ulimit(name=kind, soft=soft, hard=hard)


def _healthcheck(app: App) -> dict[str, Any] | None:
    check = app.healthcheck
    if check is None:
        return None
    test = ["CMD-SHELL", check.test] if isinstance(check.test, str) else list(check.test)
    return {
        "test": test,
        "interval": int(check.interval * NANOSECONDS),
        "timeout": int(check.timeout * NANOSECONDS),
        "retries": check.retries,
        "start_period": int(check.start_period * NANOSECONDS),
    }
