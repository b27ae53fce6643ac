"""A replica's environment: templates filled in, secrets read late and never shown."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from dotenv import dotenv_values
from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tasks.bluegreen.app import App
from tasks.bluegreen.errors import BadInput, NonstopError

EXPRESSION = re.compile(r"\{\{.*?\}\}", re.DOTALL)
SECRET = re.compile(r"\b(secret|file)\s*\(")
MASK = "*****"
SHORTEST_MASK = 4  # masking every `1` of an env file would make a log unreadable


FACTS = ("app", "release", "replica", "image", "tag")


def facts(app: App, number: int, replica: int) -> dict[str, str | int]:
    """What templates may speak of."""
    return dict(zip(FACTS, (app.name, number, replica, app.image, tag(app.image)), strict=True))


def tag(image: str) -> str:
    """The tag of an image reference, or the start of its digest."""
    name, _, digest = image.partition("@")
    last = name.rsplit("/", 1)[-1]
    if ":" in last:
        return last.rsplit(":", 1)[1]
    return digest.removeprefix("sha256:")[:12] or "latest"


def environment(
    app: App, number: int, replica: int, secret: Callable[[str], str]
) -> dict[str, str]:
    """The environment of one replica: env_file first, then environment, as in Compose.

    Args:
        app: whose environment.
        number: of the release.
        replica: 1 for the first.
        secret: gives the value of a named Secret block.

    Raises:
        BadInput: a file is missing, a template does not render, a secret is not to be had.
    """
    values: dict[str, str] = {}
    for name in app.env_file:
        values |= _env_file(app, name)
    templates = _templates()
    templates.globals.update(secret=secret, file=lambda path: _secret_file(app, path))
    for name, value in app.environment.items():
        values[name] = _render(
            templates, app, f"environment {name}", value, facts(app, number, replica)
        )
    return values


def render_text(app: App, what: str, text: str, number: int, replica: int) -> str:
    """One of an App's other templated values; these have no secrets.

    Raises:
        BadInput: the template does not render.
    """
    templates = _templates()
    return _render(templates, app, what, text, facts(app, number, replica))


def _templates() -> ImmutableSandboxedEnvironment:
    return ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)


def _render(
    templates: ImmutableSandboxedEnvironment,
    app: App,
    what: str,
    text: str,
    values: Mapping[str, str | int],
) -> str:
    if "{" not in text:  # Jinja would change its line ends
        return text
    try:
        return templates.from_string(text).render(values)
    except NonstopError:
        raise
    except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
        functions = [f"{name}(...)" for name in ("secret", "file") if name in templates.globals]
        raise BadInput(
            f"{app.name}: {what} does not render ({error}); it may use "
            f"{', '.join([*values, *functions])}."
        ) from error


def _env_file(app: App, name: str) -> dict[str, str]:
    path = Path(name)
    if not path.is_file():
        raise BadInput(
            f"{app.name}: env_file {name} does not exist (looked in {Path.cwd()}); "
            "create it or remove it from env_file."
        )
    try:
        return {key: value or "" for key, value in dotenv_values(path, interpolate=False).items()}
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{app.name}: env_file {name} cannot be read: {error}.") from error


def _secret_file(app: App, name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{app.name}: environment names the file {name}, which cannot be read: {error}."
        ) from error


def masked(app: App, values: Mapping[str, str], image: Mapping[str, str], text: str) -> str:
    """`text` without the secrets of a replica whose environment is `values`.

    Secrets are found again by laying the App's templates over what the container really has, so
    this needs neither the secret's source nor a list of secrets kept anywhere.

    Args:
        app: whose templates.
        values: the container's environment.
        image: the part of it that the image brought along, which is not secret.
        text: what is going to be shown.
    """
    for secret in sorted(_secrets(app, values, image), key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text


def _secrets(app: App, values: Mapping[str, str], image: Mapping[str, str]) -> set[str]:
    found: set[str] = set()
    for name, value in values.items():
        template = app.environment.get(name)
        if template is None:
            if app.env_file and image.get(name) != value:
                found.add(value)
        elif SECRET.search(template):
            found |= _parts(template, value)
    lines = {line.strip() for secret in found for line in secret.splitlines()}
    return {secret for secret in found | lines if len(secret) >= SHORTEST_MASK}


def _parts(template: str, value: str) -> set[str]:
    expressions = EXPRESSION.findall(template)
    literals = EXPRESSION.split(template)
    if "{%" in template or not expressions:
        return {value}
    pattern = re.escape(literals[0]) + "".join(
        "(.*?)" + re.escape(literal) for literal in literals[1:]
    )
    match = re.fullmatch(pattern, value, re.DOTALL)
    if match is None:
        return {value}
    secrets = {
        group
        for group, expression in zip(match.groups(), expressions, strict=True)
        if SECRET.search(expression)
    }
    return secrets | {value}
