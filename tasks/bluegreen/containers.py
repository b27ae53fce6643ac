"""The Docker engine: releases as labels on containers; start, stop, logs, exec."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import docker
import requests
from docker.constants import DEFAULT_DOCKER_API_VERSION
from docker.errors import APIError, DockerException, NotFound
from docker.types import EndpointConfig
from docker.utils import kwargs_from_env

from tasks.bluegreen.app import App, Proxy
from tasks.bluegreen.commands import Output, Session
from tasks.bluegreen.compose import container_config, restart_policy
from tasks.bluegreen.environment import masked
from tasks.bluegreen.errors import (
    BadInput,
    EngineHiccup,
    Failed,
    LockLost,
    Refused,
    ReplicaCrashed,
    Unavailable,
)
from tasks.bluegreen.labels import (
    config,
    joined,
    labels_of,
    read_release,
    read_replica,
    read_settings,
)
from tasks.bluegreen.model import Plan, Release, Replica

CALL = 60.0  # seconds that one call to the engine may take; DOCKER_CLIENT_TIMEOUT changes it
QUICK = 15.0
# What an error of requests says in the end, after the names of the classes that it went through.
CAUSE = re.compile(r"(?:\[Errno -?\d+\] |Error\(\d+, ['\"])([^'\")]+)|(Read timed out)")


@contextmanager
def engine_words(what: str) -> Iterator[None]:
    """Turns the engine's errors within into one sentence about `what`.

    Raises:
        EngineHiccup: with the engine's own words.
    """
    try:
        yield
    except APIError as error:
        raise EngineHiccup(f"The Docker engine could not {what}: {words(error)}.") from error
    except (DockerException, requests.RequestException, OSError) as error:
        raise EngineHiccup(f"The Docker engine did not {what}: {words(error)}.") from error


def words(error: Exception) -> str:
    """The engine's own explanation, or why it was not reached, in one line without a full stop."""
    text = str(getattr(error, "explanation", None) or error)
    if not isinstance(error, APIError) and (cause := CAUSE.search(text)):
        text = cause[1] or cause[2]
    return " ".join(text.split()).rstrip(".")


class Engine:
    """A connection to the engine that DOCKER_HOST or the default socket names.

    Raises:
        BadInput: DOCKER_CLIENT_TIMEOUT is no number.
        Unavailable: no engine answers.
    """

    def __init__(self) -> None:
        given = os.environ.get("DOCKER_CLIENT_TIMEOUT", "")
        if not re.fullmatch(r"\d*(\.\d+)?", given):
            raise BadInput(f"DOCKER_CLIENT_TIMEOUT is {given!r}: write seconds, or unset it.")
        timeout = float(given or CALL)
        try:
            self.api: Any = docker.APIClient(
                version=DEFAULT_DOCKER_API_VERSION, timeout=timeout, **kwargs_from_env()
            )
            self.api.trust_env = False  # REQUESTS_CA_BUNDLE would win over the engine's own
            ping = self.api.get(f"{self.api.base_url}/_ping", timeout=timeout)
            ping.raise_for_status()
            # "auto" would ask for all versions, for which the engine starts programs: 8 ms a time.
            self.api._version = ping.headers["Api-Version"]
        except (DockerException, requests.RequestException, OSError, KeyError) as error:
            raise Unavailable(
                f"No Docker engine answers at {os.environ.get('DOCKER_HOST', 'its socket')} "
                f"({words(error)}): start it, or name it in DOCKER_HOST."
            ) from error

    @property
    def host(self) -> str:
        """Where ports are that the engine publishes on every address."""
        return urlsplit(os.environ.get("DOCKER_HOST", "")).hostname or "127.0.0.1"

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.api.close()

    # what is there

    def inspect(self, container: str) -> dict[str, Any] | None:
        """A container's whole description; None when there is no such container."""
        with engine_words(f"describe container {container}"):
            try:
                found: dict[str, Any] = self.api.inspect_container(container)
            except NotFound:
                return None
            return found

    def runs(self, container: str) -> bool:
        """Whether there is such a container, and it runs."""
        seen = self.inspect(container)
        return seen is not None and seen["State"]["Status"] == "running"

    def network(self, name: str) -> dict[str, Any] | None:
        """A network's whole description; None when there is no such network."""
        with engine_words(f"describe network {name}"):
            try:
                found: dict[str, Any] = self.api.inspect_network(name)
            except NotFound:
                return None
            return found

    def replica(self, container: str) -> Replica | None:
        """A container of ours, with its address on the proxy's network; None when it is gone."""
        seen = self.inspect(container)
        return None if seen is None else read_replica(seen)

    def releases(self, app: str, *, before: int | None = None) -> tuple[Release, ...]:
        """Every release of `app` that has a container, ascending by number.

        Args:
            app: its name.
            before: of these alone, whose number is smaller.
        """
        with engine_words("list containers"):
            listed = self.api.containers(all=True, filters={"label": f"nonstop.app={app}"})
        found: dict[int, list[tuple[Replica, dict[str, str]]]] = {}
        for entry in listed:
            if before is not None and int(entry["Labels"]["nonstop.release"]) >= before:
                continue
            seen = self.inspect(entry["Id"])
            if seen is not None:  # else it was removed since the list was made
                replica = read_replica(seen)
                found.setdefault(replica.number, []).append((replica, config(seen, "Labels")))
        return tuple(read_release(number, found[number]) for number in sorted(found))

    def apps(self) -> tuple[str, ...]:
        """Names of all apps that have a container."""
        with engine_words("list containers"):
            listed = self.api.containers(all=True, filters={"label": "nonstop.app"})
        return tuple(sorted({entry["Labels"]["nonstop.app"] for entry in listed}))

    def proxies(self, app: str) -> tuple[Proxy, ...]:
        """The proxies that releases of `app` are behind."""
        with engine_words("list containers"):
            listed = self.api.containers(all=True, filters={"label": f"nonstop.app={app}"})
        found = {entry["Names"][0]: entry["Labels"] for entry in listed}
        settings = {labels["nonstop.release"]: (name, labels) for name, labels in found.items()}
        return tuple(read_settings(*one).proxy for one in settings.values())

    def strangers(self, app: str) -> tuple[str, ...]:
        """Names like those of `app`'s replicas, of containers that are not."""
        with engine_words("list containers"):
            listed = self.api.containers(all=True, filters={"name": f"^/{app}-[0-9]+-[0-9]+$"})
        return tuple(
            entry["Names"][0].lstrip("/")
            for entry in listed
            if (entry.get("Labels") or {}).get("nonstop.app") != app
        )

    def addresses(self, network: str) -> tuple[str, ...]:
        """Addresses on `network` that containers have or, stopped, will have again."""
        with engine_words("list containers"):
            listed = self.api.containers(all=True)
        ends = (joined(entry).get(network) for entry in listed)
        found = {
            address
            for end in ends
            if end
            for address in ((end.get("IPAMConfig") or {}).get("IPv4Address"), end.get("IPAddress"))
        }
        return tuple(sorted(str(address) for address in found if address))

    # a replica's life

    def create(
        self,
        plan: Plan,
        index: int,
        *,
        image_id: str,
        environment: Mapping[str, str],
        pulled: bool = False,
    ) -> str:
        """A container of green, not yet started; one of a dead try with its name goes first.

        Returns:
            The container's id.

        Raises:
            Refused: the name belongs to somebody else.
            LockLost: it belongs to another run, which may have made it live.
            Failed: the engine refuses what the App wants, in its words.
            EngineHiccup: it does not do it.
        """
        app = plan.app
        name = f"{app.name}-{plan.green}-{index}"
        labels = app.labels | labels_of(plan, index, pulled=pulled)
        end = EndpointConfig(self.api.api_version, ipv4_address=plan.addresses[index - 1])
        body = container_config(self.api, app, image_id, environment, labels, end)
        with engine_words(f"create {name}"):
            try:
                made = self.api.create_container_from_config(body, name)
            except APIError as error:
                if error.status_code == 400:  # the same the next time
                    raise Failed(f"The engine refuses to create {name}: {words(error)}.") from error
                if error.status_code != 409:
                    raise
                self._remove_our_own(name, plan)
                made = self.api.create_container_from_config(body, name)
            for network in app.networks:
                self.api.connect_container_to_network(made["Id"], network)
            return str(made["Id"])

    def _remove_our_own(self, name: str, plan: Plan) -> None:
        there = self.inspect(name)
        if there is None:
            return
        labels = config(there, "Labels") or {}
        if labels.get("nonstop.app") != plan.app.name:
            raise Refused(
                f"A container named {name} exists and is not ours: rename or remove "
                "it, then deploy again."
            )
        if labels.get("nonstop.run") != plan.run:
            raise LockLost(
                f"{plan.app.name}: another run made {name} meanwhile, so this one must not go on: "
                f"look at `nonstop status {plan.app.name}`."
            )
        self.remove(there["Id"])

    def start(self, container: str) -> None:
        """Starts a created container.

        Raises:
            ReplicaCrashed: its command cannot be run.
            EngineHiccup: the engine refuses.
        """
        try:
            with engine_words(f"start {container[:12]}"):
                self.api.start(container)
        except EngineHiccup as error:
            cause = error.__cause__
            if isinstance(cause, APIError) and cause.status_code == 400:
                raise ReplicaCrashed(f"A replica could not start: {words(cause)}.") from error
            raise

    def revive(self, replica: Replica, app: App) -> None:
        """A stopped container runs again, as it did before it was retired."""
        with engine_words(f"start {replica.name}"):
            if app.restart not in ("no", "unless-stopped"):
                self.api.update_container(replica.id, restart_policy=restart_policy(app))
            self.api.start(replica.id)

    def retire(self, replica: Replica, app: App, longest: float = math.inf) -> None:
        """Stopped with its own signal and grace, and not started again by a reboot.

        Args:
            replica: which.
            app: as it was deployed.
            longest: seconds that the grace may have at most.
        """
        with engine_words(f"stop {replica.name}"):
            try:
                if app.restart not in ("no", "unless-stopped"):  # those stay stopped by themselves
                    self.api.update_container(replica.id, restart_policy={"Name": "no"})
                self.api.stop(replica.id, timeout=int(min(app.stop_grace_period, longest) + 0.5))
            except NotFound:
                return

    def remove(self, container: str) -> None:
        """Removes a container and its anonymous volumes, whatever its state."""
        with engine_words(f"remove {container[:12]}"):
            try:
                self.api.remove_container(container, force=True, v=True)
            except NotFound:
                return
            except APIError as error:
                if error.status_code != 409:  # somebody is removing it already
                    raise

    def environment(self, container: str) -> dict[str, str]:
        """The environment that a container has, the image's own part included."""
        seen = self.inspect(container)
        return _variables(config(seen, "Env")) if seen else {}

    def image_environment(self, image: str) -> dict[str, str]:
        """The environment that an image brings along; empty when it is gone."""
        with engine_words(f"describe image {image[:19]}"):
            try:
                return _variables(config(self.api.inspect_image(image), "Env"))
            except NotFound:
                return {}

    def last_words(self, replica: Replica, app: App, lines: int = 20) -> str:
        """The replica's last log lines, secrets masked; empty when it has none."""
        with engine_words(f"read the log of {replica.name}"):
            try:
                log = self.api.logs(replica.id, tail=lines).decode(errors="replace")
            except NotFound:
                return ""
        return self.masked(replica, app, log).strip()

    def masked(self, replica: Replica, app: App, text: str) -> str:
        """The text without the secrets that the replica knows."""
        image = self.image_environment(replica.image_id)
        return masked(app, self.environment(replica.id), image, text)

    # commands in containers

    def exec(
        self,
        container: str,
        command: list[str],
        *,
        environment: dict[str, str] | None = None,
        user: str = "",
        timeout: float = QUICK,
    ) -> Output:
        """Runs a command in a container and waits for its end.

        Args:
            container: name or id.
            command: the argument vector.
            environment: variables for this command.
            user: user name or id; empty: the container's own.
            timeout: seconds for the whole of it.

        Raises:
            EngineHiccup: it could not be started, or did not end in time.
        """
        what = f"run {command[0]} in {container}"
        with (
            engine_words(what),
            self.session(container, command, environment=environment, user=user) as session,
        ):
            text = session.hear(timeout)
            code = session.code
        if code is None:
            raise EngineHiccup(f"The Docker engine lost the command {what}.")
        return Output(code, text)

    def session(
        self,
        container: str,
        command: list[str],
        *,
        environment: dict[str, str] | None = None,
        user: str = "",
    ) -> Session:
        """Starts a command that ends when this process does.

        Raises:
            EngineHiccup: it could not be started.
        """
        with engine_words(f"run {command[0]} in {container}"):
            return Session(self.api, container, command, environment=environment, user=user)

    def processes(self, container: str) -> list[tuple[int, str]]:
        """Process ids (of the host) and titles in a running container."""
        with engine_words(f"list the processes of {container}"):
            top = self.api.top(container, ps_args="-o pid,args")
        return [(int(row[0]), row[1]) for row in top["Processes"]]

    def log_since(self, container: str, since: float) -> str:
        """What a container wrote to standard error after a time (Unix, seconds).

        Without a limit of lines: the engine counts those of standard output, too.
        """
        with engine_words(f"read the log of {container}"):
            log: bytes = self.api.logs(container, stdout=False, since=since)
            return log.decode(errors="replace")


def _variables(entries: list[str] | None) -> dict[str, str]:
    return dict(entry.partition("=")[::2] for entry in entries or [])
