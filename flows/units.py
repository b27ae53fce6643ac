"""systemd units for what `nonstop up` runs."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from prefect.settings import PREFECT_HOME, get_current_settings

from flows.inventory import variables
from flows.parts import Parts
from tasks.bluegreen.errors import Unavailable

OURS = ("PREFECT_API_URL", "PREFECT_HOME", "PREFECT_SERVER_EPHEMERAL_")
OTHERS = (  # what the parts read beside Prefect's settings
    *("NONSTOP_", "DOCKER_", "FORWARDED_ALLOW_IPS", "SSL_CERT_"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
)
DIRECTORY = Path("/etc/systemd/system")
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parents[1] / "templates"),
    undefined=StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
)


def write_units(parts: Parts, directory: Path = DIRECTORY) -> tuple[Path, ...]:
    """A unit for each part is in that directory; nothing was started.

    Raises:
        Unavailable: they cannot be written there.
    """
    settings = parts.fixed() | {"PREFECT_HOME": str(PREFECT_HOME.value())}
    written = []
    for part in parts.all():
        text = TEMPLATES.get_template(f"{part.name}.service.j2").render(
            part=part,
            command=escape(shlex.join(part.command)).replace("$", "$$"),  # only there it is special
            folder=escape(str(parts.folder)),
            file=parts.file.resolve().name,
            settings=[quoted(f"{name}={escape(value)}") for name, value in settings.items()],
        )
        path = directory / f"nonstop-{part.name}.service"
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise Unavailable(
                f"{path} cannot be written ({error.strerror}): run this as root, or name another "
                "directory with --directory."
            ) from error
        written.append(path)
    return tuple(written)


def next_steps(parts: Parts, units: tuple[Path, ...]) -> str:
    """What a person has to run, and to know, now."""
    made = get_current_settings().to_environment_variables(exclude_unset=True)
    left_out = {name for name in made if not name.startswith(OURS)} | variables(parts.file)
    left_out |= {name for name in os.environ if name.upper().startswith(OTHERS)}
    lines = [
        f"{', '.join(map(str, units))} are written. Start them, now and after every boot, with:",
        "  systemctl daemon-reload",
        f"  systemctl enable --now {' '.join(unit.stem for unit in units)}",
    ]
    if left_out:
        names = ", ".join(sorted(left_out))
        lines.append(f"These settings are yours to put into /etc/nonstop.env: {names}.")
    return "\n".join(lines)


def escape(text: str) -> str:
    """As systemd reads it back."""
    return text.replace("%", "%%")


def quoted(text: str) -> str:
    """One word, whatever is in it."""
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
