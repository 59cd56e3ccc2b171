"""Pages: the answers of some routes as people look at them, for whoever asks for `text/html`.

JSON is the default, and a request for it costs one look at its header. A page holds no script and
no style of its own: both are files of ours (`adap.api.pages.static`), and what a script asks for
is the API that everybody else has.

Names, classes, groups and reasons come from strangers. Jinja escapes them, scripts make text of
them; should both fail, the page's policy runs nothing that stands in the page and reaches nobody
but this service.
"""

import json
import math
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any

from fastapi import Request, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from adap.api.accept import choose
from adap.core.figures.gate import got_text
from adap.store.tables import JobKind, JobStatus

FORMS = ("application/json", "text/html")
PAGE: dict[int | str, dict[str, Any]] = {  # OpenAPI `responses=` of a route that has a page
    200: {
        "description": "JSON, or a page for people",
        "content": {"text/html": {"schema": {"type": "string"}}},
    }
}
NAVIGATION = (  # on every page: where it leads, its words
    ("/", "Home"),
    ("/datasets", "Data sets"),
    ("/models", "Models"),
    ("/jobs", "Jobs"),
    ("/sweeps", "Sweeps"),
)
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data: blob:",
    "connect-src": "'self'",
    "form-action": "'self'",
    "base-uri": "'none'",
    "frame-ancestors": "'none'",
}
NORMS = {"linf": "L-inf", "l2": "L2", "l1": "L1"}  # those that people write otherwise
WORDS = {"lr": "learning rate", "fpr": "false positive rate", "std": "deviation"}
OF_MACHINES = frozenset({"worker", "images_per_s", "eta_s"})  # figures of events
OF_PIXELS = frozenset({"epsilon", "epsilons", "step_size"})
_JSON = frozenset({"", "*/*", "application/json"})  # what nearly every program sends


def wants_page(request: Request, response: Response) -> bool:
    """Whether the caller wants a page; the answer in JSON is told to depend on that.

    Raises ApiError (406) where neither is wanted.
    """
    response.headers["Vary"] = "Accept"
    accept = request.headers.get("accept", "")
    return accept not in _JSON and choose(accept, FORMS) == "text/html"


def page(template: str, **shown: Any) -> Response:
    """The page that this template makes of these values."""
    environment, headers = _prepared()
    text = environment.get_template(f"{template}.html.j2").render(**shown)
    return Response(text, media_type="text/html", headers=headers)


@cache
def _prepared() -> tuple[Environment, Mapping[str, str]]:
    """The templates and the headers of every page, made when the first one is asked for."""
    environment = Environment(
        loader=PackageLoader("adap.api.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "navigation": NAVIGATION,
        "job_kinds": {
            kind.value: kind.about.title for kind in JobKind if kind != JobKind.AUDIT_SHARD
        },
        "job_statuses": [status.value for status in JobStatus],
    }
    environment.filters |= {
        "ap": "{:.3f}".format,
        "brief": brief,
        "got": got_text,
        "told": _told,
        "lasting": _lasting,
        "share": _share,
        "when": _when,
    }
    return environment, {
        "Cache-Control": "no-store",
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in POLICY.items()),
        "Referrer-Policy": "same-origin",  # or its forms would come from the origin `null`
        "Vary": "Accept",
        "X-Content-Type-Options": "nosniff",
    }


def _when(at: datetime) -> Markup:
    shown = f"{at.day} {at:%b %Y, %H:%M:%S} UTC"
    return Markup('<time datetime="{}">{}</time>').format(at.isoformat(), shown)


def _lasting(seconds: float) -> str:
    """A time in the two largest units that it fills: `48 s`, `3 min 20 s`, `2 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"


def _told(values: Mapping[str, Any]) -> dict[str, Any]:
    """What an event tells people: its sentence, else its figures but for those of the machine."""
    if isinstance(values.get("message"), str):
        return {"name": values["message"]}
    return {name: value for name, value in values.items() if name not in OF_MACHINES}


def asked(request: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a job was asked for, beside the things it is of: each setting and its value in words."""
    return [
        (name.replace("_", " ").capitalize(), brief(value) or "as usual")
        if isinstance(value, Mapping)
        else (name.replace("_", " ").capitalize(), _figure(name, value))
        for name, value in request.items()
        if value not in (None, []) and not name.endswith("_id")
    ]


def brief(values: Mapping[str, Any]) -> str:
    """Values in one line, figures to four digits, absent ones left out: `pgd, steps 10`."""
    return ", ".join(
        _figure(name, value)
        if name == "name"
        else f"{WORDS.get(name, name).replace('_', ' ')} {_figure(name, value)}"
        for name, value in values.items()
        if value is not None and value != {}
    )


def _figure(name: str, value: Any) -> str:
    """A value of that name; of pixels as levels, 8/255, where it is so many."""
    if isinstance(value, str):
        return NORMS.get(value, value) if name == "norm" else value
    if isinstance(value, Mapping):
        return f"({brief(value)})"
    if isinstance(value, list):
        return ", ".join(_figure(name, one) for one in value)
    if not isinstance(value, float):
        return json.dumps(value, ensure_ascii=False)
    levels = value * 255
    if name in OF_PIXELS and 0 < value < 1 and math.isclose(levels, round(levels)):
        return f"{round(levels)}/255"
    return f"{value:.4g}"
