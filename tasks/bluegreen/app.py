"""What an operator describes: an App, in Compose's own field names where Compose has one."""

from __future__ import annotations

import re
import shlex
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic.config import JsonDict

from tasks.bluegreen.errors import BadInput
from tasks.bluegreen.gates import Drain, Health, Verify
from tasks.bluegreen.units import (
    Bytes,
    Frozen,
    Pairs,
    Quoted,
    Seconds,
    Several,
    Whole,
    entries,
    several,
)
from tasks.bluegreen.window import Window

NAME = r"^[a-z][a-z0-9-]{0,38}[a-z0-9]$"
HOST = re.compile(r"^(\*\.)?[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9-]+)*$")
IMAGE = re.compile(
    r"(localhost(:\d+)?/|[A-Za-z0-9-]+((\.[A-Za-z0-9-]+)+(:\d+)?|:\d+)/)?"  # registry
    r"[a-z0-9]+((\.|__?|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|__?|-+)[a-z0-9]+)*)*"  # repository
    r"(:\w[\w.-]{0,127})?(@sha256:[0-9a-f]{64})?",  # tag, digest
    re.ASCII,
)
# What a form can refuse at once: most of what IMAGE refuses, short enough to be read.
IMAGE_IN_FORMS: JsonDict = {"pattern": r"^(([\w.:-]+/)*[a-z0-9._-]+(:[\w.-]+)?(@sha256:\w{64})?)?$"}
MOUNT = re.compile(r"^(/[^:]*|[A-Za-z0-9][A-Za-z0-9_.-]*):/[^:]*(:[a-zA-Z,]+)?$")
HOST_ENTRY = re.compile(r"^[A-Za-z0-9._-]+[:=]([0-9A-Fa-f.:]+|host-gateway)$")
VARIABLE = re.compile(r"^[A-Za-z_][A-Za-z0-9_.-]*$")
# Texts that a form refuses by their pattern; in words of our own they are refused below.
Host = Annotated[str, Field(json_schema_extra={"pattern": HOST.pattern})]
HostEntry = Annotated[str, Field(json_schema_extra={"pattern": HOST_ENTRY.pattern})]
Hosts = Annotated[
    tuple[Host, ...], BeforeValidator(several, json_schema_input_type=tuple[Host, ...] | Host)
]
HostEntries = Annotated[
    tuple[HostEntry, ...],
    BeforeValidator(entries, json_schema_input_type=tuple[HostEntry, ...] | dict[str, str]),
]
Mount = Annotated[str, Field(json_schema_extra={"pattern": MOUNT.pattern})]


def parse(data: Any) -> App:
    """An App from a mapping, as in prefect.yaml.

    Raises:
        BadInput: every field that is wrong, where, and why, in one sentence.
    """
    try:
        return App.model_validate(data)
    except ValidationError as error:
        name = data.get("name", "app") if isinstance(data, dict) else "app"
        raise BadInput(f"{name}: {complaints(error)}.") from None


def with_image(app: App, image: str | None) -> App:
    """The same App with another image; with its own when there is no other.

    Raises:
        BadInput: that is no image reference.
    """
    return parse(app.model_dump() | {"image": image}) if image else app


def complaints(error: ValidationError, *inside: str) -> str:
    """What pydantic found, as `field: what is wrong (what was given)`, without secrets."""
    found = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in (*inside, *item["loc"]))
        said = item["msg"].removeprefix("Value error, ").replace("valid tuple", "valid list")
        said = "there is no such field" if item["type"] == "extra_forbidden" else said
        said = (
            said[:1].lower() + said[1:] if said.startswith(("Input", "String", "Field")) else said
        )
        given = item["input"]
        shown = f" (given: {given!r})" if isinstance(given, int | float | str) else ""
        found.append(f"{where}: {said}{shown if repr(given) not in said else ''}".lstrip(": "))
    return "; ".join(found)


class Healthcheck(Frozen):
    """Docker's own health check of a container, as in Compose."""

    test: tuple[str, ...] | str = Field(
        description='Command; a text runs in a shell, a list starts with "CMD", "CMD-SHELL" or, '
        'for none, "NONE".'
    )
    interval: Seconds = Field(default=5.0, gt=0, description="Seconds between two checks.")
    timeout: Seconds = Field(default=5.0, gt=0, description="Seconds one check may take.")
    retries: Whole = Field(default=3, ge=1, description="Failures in a row that mean unhealthy.")
    start_period: Seconds = Field(
        default=0.0, ge=0, description="Seconds after the start in which failures don't count."
    )


class Ulimit(Frozen):
    """A soft and a hard limit."""

    soft: Whole = Field(ge=-1, description="Soft limit, in the limit's own unit; -1 is none.")
    hard: Whole = Field(ge=-1, description="Hard limit, in the limit's own unit; -1 is none.")


class Proxy(Frozen):
    """The nginx container in front: an existing one, or one that nonstop creates."""

    container: str = Field(
        default="nonstop-proxy",
        pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]+$",
        description="Name of the nginx container.",
    )
    image: str | None = Field(
        default=None,
        description="Image to create the proxy from when no container has that name; "
        "without it the container must exist.",
    )
    publish: tuple[Annotated[str, Field(pattern=r"^([0-9.]+:)?\d{1,5}:\d{1,5}$")], ...] = Field(
        default=("80:80",),
        description="Ports of a proxy that nonstop creates, as `[ADDRESS:]HOST:CONTAINER`.",
    )
    listen: Whole = Field(
        default=80, ge=1, le=65535, description="Port the site listens on inside the container."
    )
    directory: str | None = Field(
        default=None,
        pattern=r"^(/[A-Za-z0-9._-]+)+$",
        description="Directory whose *.conf files the proxy's http block includes; the site goes "
        "there. Default: /etc/nginx/conf.d, or our own in a proxy that nonstop created.",
    )
    network: str = Field(
        default="nonstop",
        pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]+$",
        description="Docker network between proxy and replicas; created when it is missing.",
    )
    template: str | None = Field(
        default=None,
        description="Path of your own site template instead of site.conf.j2; it must include "
        "proof.conf.j2 in its server block.",
    )
    url: str | None = Field(
        default=None,
        pattern=r"^https?://[A-Za-z0-9.:\[\]-]+$",
        description="Front door as visitors reach it, like https://shop.example.com; "
        "default: the proxy's published port.",
    )


class App(Frozen):
    """One application: what runs, how it is reached, and when it is good."""

    name: str = Field(
        pattern=NAME, description="Name of the app: small letters, digits and dashes."
    )
    image: str = Field(
        description="Image that is deployed, with tag or digest.", json_schema_extra=IMAGE_IN_FORMS
    )
    pull_policy: Literal["always", "missing", "never"] = Field(
        default="always",
        description="Whether the registry is asked for the image. `missing` and `never` take the "
        "image that is on the host.",
    )
    deploy_on_push: str | None = Field(
        default=None,
        min_length=1,
        description="Pattern of tags, like 1.* or main: a push of the image under such a tag, told "
        "by a webhook, deploys it; none: no push does.",
    )
    hosts: Hosts = Field(
        default=(),
        description="Host names of the site, like shop.example.com or *.example.com; "
        "none: every name that no other site has.",
    )
    port: Whole = Field(
        ge=1, le=65535, description="Port that the app listens on, in its container."
    )
    replicas: Whole = Field(default=2, ge=1, le=64, description="Number of containers.")
    parallelism: Whole = Field(
        default=4, ge=1, le=64, description="Containers that are started at the same time."
    )
    keep: Whole = Field(default=1, ge=0, le=50, description="Stopped releases kept for a rollback.")

    command: tuple[str, ...] | str | None = Field(default=None, description="As in Compose.")
    entrypoint: tuple[str, ...] | str | None = Field(default=None, description="As in Compose.")
    environment: Pairs = Field(
        default={},
        description="Environment variables. Values may be templates over app, release, replica, "
        'image and tag. Name a secret, never the secret itself: {{ secret("block-name") }} or '
        '{{ file("/path") }}.',
    )
    env_file: Several = Field(
        default=(), description="Files with KEY=value lines; their values are taken as secrets."
    )
    volumes: tuple[Mount, ...] = Field(
        default=(), description="`NAME_OR_ABSOLUTE_PATH:/in/container[:ro]`, as in Compose."
    )
    networks: tuple[str, ...] = Field(
        default=(), description="More Docker networks to join, say the database's."
    )
    user: str | None = Field(default=None, description="As in Compose.")
    working_dir: str | None = Field(default=None, description="As in Compose.")
    labels: Pairs = Field(default={}, description="Labels of the containers.")
    init: bool | None = Field(default=None, description="Run an init as process 1.")
    read_only: bool = Field(default=False, description="Mount the root file system read-only.")
    tmpfs: Several = Field(default=(), description="`/path[:options]` on tmpfs.")
    cap_add: tuple[str, ...] = Field(default=(), description="Capabilities to add.")
    cap_drop: tuple[str, ...] = Field(default=(), description="Capabilities to drop.")
    security_opt: tuple[str, ...] = Field(default=(), description="As in Compose.")
    ulimits: dict[str, Whole | Ulimit] = Field(default={}, description="As in Compose.")
    extra_hosts: HostEntries = Field(default=(), description="`name:address` or `name=address`.")
    mem_limit: Bytes | None = Field(
        default=None, ge=6 * 1024**2, description="Memory limit, bytes or like 512m."
    )
    cpus: Annotated[float | None, Quoted()] = Field(
        default=None, gt=0, description="CPUs it may use, like 1.5."
    )
    restart: str = Field(
        default="unless-stopped",
        pattern=r"^(no|always|unless-stopped|on-failure(:\d+)?)$",
        description="Restart policy while it serves: no, on-failure[:N], always, unless-stopped.",
    )
    stop_signal: str | None = Field(
        default=None, pattern=r"^(SIG[A-Z0-9+-]+|\d+)$", description="Signal that stops it."
    )
    stop_grace_period: Seconds = Field(
        default=10.0, ge=0, le=600, description="Seconds between the stop signal and SIGKILL."
    )
    healthcheck: Healthcheck | None = Field(
        default=None,
        title="Healthcheck",
        description="Docker's health check, instead of the image's own.",
    )
    health: Health = Field(
        default=Health(), description="When the new release (green) may receive visitors."
    )
    verify: Verify = Field(
        default=Verify(), description="How the new release (green) is watched once it serves."
    )
    drain: Drain = Field(
        default=Drain(), description="How the last requests of the release before (blue) end."
    )
    proxy: Proxy = Field(default=Proxy(), description="The nginx in front.")
    window: tuple[Window, ...] = Field(
        default=(), description="Release windows: when it may be deployed; none: always."
    )

    @model_validator(mode="before")
    @classmethod
    def _publishes_no_port(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("ports"):
            raise ValueError(
                "ports: a published host port can belong to one container only, so blue and green "
                "could not run side by side; remove `ports` and set `port` to the port inside the "
                "container, the proxy publishes the app"
            )
        if isinstance(data, dict):
            return {key: value for key, value in data.items() if key != "ports"}
        return data

    @field_validator("environment", mode="before")
    @classmethod
    def _has_values(cls, value: Any) -> Any:
        named = value.items() if isinstance(value, dict) else ()
        bare = [key for key, item in named if item is None]
        if isinstance(value, list | tuple):
            bare = [item for item in value if "=" not in str(item)]
        if bare:
            raise ValueError(
                f"{bare[0]} has no value: Compose would take the one of your shell, which a run "
                f"does not have; write `{bare[0]}=` for an empty one"
            )
        return value

    @field_validator("command", "entrypoint")
    @classmethod
    def _splits(cls, value: tuple[str, ...] | str | None) -> tuple[str, ...] | str | None:
        if isinstance(value, str):
            try:
                shlex.split(value)
            except ValueError as error:
                raise ValueError(f"{value!r} is no command ({error}); or write a list") from error
        return value

    @field_validator("extra_hosts")
    @classmethod
    def _host_entries(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            if not HOST_ENTRY.fullmatch(entry):
                raise ValueError(f"{entry!r} is not like name:address")
        return tuple(re.sub("[:=]", ":", entry, count=1) for entry in value)

    @field_validator("image")
    @classmethod
    def _is_an_image(cls, value: str) -> str:
        if not IMAGE.fullmatch(value):
            raise ValueError(
                f"{value!r} is not an image: small letters, like shop:1.2 or "
                "registry.example.com/team/shop:1.2, or with @sha256: and a digest"
            )
        return value

    @field_validator("hosts")
    @classmethod
    def _host_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if len(host) > 253 or not HOST.fullmatch(host):
                raise ValueError(
                    f"{host!r} is not a host name: letters, digits, dashes and dots, "
                    "like shop.example.com or *.example.com"
                )
        return tuple(host.lower() for host in value)

    @field_validator("environment")
    @classmethod
    def _variable_names(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r} is not the name of an environment variable")
        return value

    @field_validator("volumes")
    @classmethod
    def _volume_entries(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            if not MOUNT.fullmatch(entry):
                raise ValueError(
                    f"{entry!r} is not like name:/in/container or /absolute/path:/in/container:ro"
                )
        return value

    @field_validator("labels")
    @classmethod
    def _foreign_labels(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if name.startswith("nonstop."):
                raise ValueError(f"label {name!r}: names that start with nonstop. are ours")
        return value

    @property
    def server_name(self) -> str:
        """A host name that the site answers to."""
        return self.hosts[0].replace("*", "nonstop") if self.hosts else "localhost"

    @property
    def unlikely_name(self) -> str:
        """A host name that the site answers to and that, but for exact `hosts`, nobody else has."""
        first = self.hosts[0] if self.hosts else "*.localhost"
        return first.replace("*", f"nonstop-{self.name}")
