"""A site as text: templates filled in, and the digest that names its generation."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from jinja2 import (
    ChoiceLoader,
    Environment,
    FileSystemLoader,
    StrictUndefined,
    TemplateError,
)

from tasks.bluegreen.app import App
from tasks.bluegreen.errors import BadInput
from tasks.bluegreen.model import PREVIEW, Preview, Site
from tasks.bluegreen.nginx import STATUS_PORT
from tasks.bluegreen.probe import PREVIEW_HEADER, RELEASE_HEADER

TEMPLATES = Path(__file__).parents[2] / "templates"


def render_site(
    app: App,
    number: int,
    addresses: tuple[str, ...],
    nginx: tuple[int, ...],
    preview: Preview | None = None,
) -> Site:
    """The text of an app's site for one release.

    Args:
        app: its settings; `proxy.template` may name a template of the user's.
        number: of the release that is to be served.
        addresses: IPv4 address of each replica.
        nginx: version of the proxy's nginx.
        preview: who meets green meanwhile.

    Raises:
        BadInput: the template is missing, does not render or does not include proof.conf.j2.
    """
    own = Path(app.proxy.template) if app.proxy.template else None
    if own is not None and not own.is_file():
        raise BadInput(f"{app.name}: proxy.template {own} does not exist (looked in {Path.cwd()}).")
    environment = _environment(own.parent.resolve(), TEMPLATES) if own else _environment(TEMPLATES)
    upstream = "nonstop_" + app.name.replace("-", "_")
    values = {
        "app": app,
        "number": number,
        "upstream": upstream,
        "pool": f"${upstream}_pool" if preview else upstream,
        "answers": f"${upstream}_release" if preview else number,
        "preview": preview,
        "preview_header": PREVIEW_HEADER.lower().replace("-", "_"),
        "mark": PREVIEW,
        "servers": [f"{address}:{app.port}" for address in addresses],
        "listen": app.proxy.listen,
        "nginx": nginx,
        "release_header": RELEASE_HEADER,
        "status_port": STATUS_PORT,
    }
    try:
        proof = environment.get_template("proof.conf.j2").render(values).strip()
        body = environment.get_template(own.name if own else "site.conf.j2").render(values)
        head = environment.get_template("generation.conf.j2")
        digest = hashlib.sha256((head.render(values, generation="") + body).encode())
        generation = digest.hexdigest()[:16]
        text = head.render(values, generation=generation) + body
    except (TemplateError, TypeError, ValueError, OSError) as error:
        line = getattr(error, "lineno", None)
        where = f", line {line}" if line else ""
        raise BadInput(
            f"{app.name}: template {own or 'site.conf.j2'}{where} does not render: {error}."
        ) from error
    if proof not in body:
        raise BadInput(
            f"{app.name}: template {own} has no line "
            "`{% include 'proof.conf.j2' %}` in its server block, so a cutover could "
            "not be proven: add it."
        )
    previews = preview is not None and f"${upstream}_pool" in body
    return Site(app=app.name, number=number, generation=generation, text=text, previews=previews)


def render_main(sites: str, listen: int) -> str:
    """The main configuration of a proxy that nonstop creates."""
    template = _environment(TEMPLATES).get_template("nginx.conf.j2")
    return template.render(sites=sites, listen=listen)


@functools.cache
def _environment(*folders: Path) -> Environment:
    """Kept, with its compiled templates: they take 10 ms, and are read again when they change."""
    return Environment(
        loader=ChoiceLoader([FileSystemLoader(folder) for folder in folders]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
