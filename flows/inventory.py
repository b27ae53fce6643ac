"""The inventory: prefect.yaml, whose deployments describe the apps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from prefect.utilities.templating import PlaceholderType, apply_values, find_placeholders

from tasks.bluegreen.app import App, parse
from tasks.bluegreen.environment import FACTS
from tasks.bluegreen.errors import BadInput

FILE = Path("prefect.yaml")
ENTRYPOINT = "flows.deploy.deploy"


def load(name: str, file: Path = FILE) -> App:
    """The app of that name, as its deployment describes it.

    Raises:
        BadInput: no such file or app, or the description is wrong.
    """
    app: App = parameters(name, file)["app"]
    return app


def parameters(name: str, file: Path = FILE) -> dict[str, Any]:
    """What the deployment of the app of that name says of a deploy: `app`, `approve`, ...

    Raises:
        BadInput: no such file or app, or its description is wrong.
    """
    entries = _entries(file)
    if name not in entries:
        known = ", ".join(sorted(entries)) or "none"
        raise BadInput(
            f"{file} has no app named {name} (known: {known}): correct the name, or describe "
            f"the app there in a deployment with the entrypoint {ENTRYPOINT}."
        )
    return entries[name] | {"app": parse(entries[name]["app"])}


def load_all(file: Path = FILE) -> tuple[App, ...]:
    """Every app of the inventory.

    Raises:
        BadInput: no such file, or a description is wrong.
    """
    return tuple(parse(entry["app"]) for entry in _entries(file).values())


def deployments(file: Path = FILE) -> list[dict[str, Any]]:
    """Every deployment of the inventory as it is written, environment variables filled in.

    Raises:
        BadInput: no such file, it is not YAML, or it has no deployments.
    """
    filled: Any = apply_values(_read(file), {}, remove_notset=False)
    return [entry for entry in filled if isinstance(entry, dict)]


def variables(file: Path = FILE) -> set[str]:
    """Names of the environment variables that the inventory's deployments are filled in from.

    Raises:
        BadInput: no such file, it is not YAML, or it has no deployments.
    """
    found = find_placeholders(_read(file))
    return {one.name.removeprefix("$") for one in found if one.type == PlaceholderType.ENV_VAR}


def _read(file: Path) -> list[Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise BadInput(
            f"There is no inventory {file} in {Path.cwd()} ({error.strerror}): go where it is, or "
            "name it with --file."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{file} is not YAML: {' '.join(str(error).split())}.") from error
    found = content.get("deployments") if isinstance(content, dict) else None
    if not isinstance(found, list):
        raise BadInput(f"{file} has no list of `deployments`.")
    return found


def app_of(file: Path, deployment: dict[str, Any]) -> dict[str, Any]:
    """How a deployment of flow deploy describes its app.

    Raises:
        BadInput: it does not.
    """
    parameters = deployment.get("parameters")
    app = parameters.get("app") if isinstance(parameters, dict) else None
    if not isinstance(app, dict):
        raise BadInput(f"{file}: deployment {deployment.get('name')} has no `app`.")
    return app


def _entries(file: Path) -> dict[str, dict[str, Any]]:
    """Parameters of the deployments of flow deploy, by the names of their apps."""
    found = [entry for entry in deployments(file) if entry.get("entrypoint") == ENTRYPOINT]
    return {str(app_of(file, entry).get("name")): entry["parameters"] for entry in found}


def placeholders() -> dict[str, str]:
    """What `prefect deploy` has to put where: our own templates as they are, and this directory.

    It fills every `{{ }}` in prefect.yaml with what the build steps return and takes the unknown
    ones away, so this is a build step that gives each of our variables back as it was written.
    """
    return {name: f"{{{{ {name} }}}}" for name in FACTS} | {"here": str(Path.cwd())}
