"""Self-contained HTML pages: no network, no other files."""

import json
from typing import Any

from markupsafe import Markup


def render(template: str, **values: Any) -> str:
    """The HTML of `templates/TEMPLATE`; all values are escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxdet.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(number=number, interval=interval, for_script=for_script)
    # Our own CSS and scripts, not escaped.
    environment.globals["verbatim"] = lambda name: Markup(
        environment.loader.get_source(environment, name)[0]
    )
    return environment.get_template(template).render(**values)


def number(value: float | None, digits: int = 3, signed: bool = False) -> str:
    """A number for people; a dash for None and NaN."""
    if value is None or value != value:
        return "-"
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def interval(ends: list[float] | None, digits: int = 3, signed: bool = False) -> str:
    """Such as "0.21 to 0.35"; empty for None."""
    return " to ".join(number(end, digits, signed) for end in ends) if ends else ""


def for_script(data: Any) -> Markup:
    """JSON for a script element, escaped so that no text in it can end the element."""
    text = json.dumps(data, separators=(",", ":"))
    return Markup(text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e"))
