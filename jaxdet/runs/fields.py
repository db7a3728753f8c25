"""What a field of a config may be: declared once, beside its default, in `configs/retina.py`."""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, get_args

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from jaxdet import ConfigError


class Field(NamedTuple):
    """A field: its default, what it means, and which values it may have.

    Attributes:
        default: of `configs/retina.py`.
        meaning: for people, with the unit.
        kind: the type of the values, such as tuple[int, ...]; that of the default if left out.
        above, least, most: the range of a number, or of each of several.
        choices: the values there are.
        check: raises InputError for a value that cannot be, such as `fusion.parse`.
        nullable: whether None has a meaning.
        changes: whether a run that there is may get another value: "never"; "grows", to a larger
            one; or "freely", as what the run is does not depend on it.
        before: what was done before there was this field: the value of a run that lacks it. A field
            without one has been there from the start.
    """

    default: Any
    meaning: str
    kind: type | None = None
    above: float | None = None
    least: float | None = None
    most: float | None = None
    choices: Collection[str] | None = None
    check: Callable[[Any], object] | None = None
    nullable: bool = False
    changes: str = "never"
    before: Any = ...


Fields = Mapping[str, Field]  # by name, such as "data.image_size"


def to_config(fields: Fields) -> ConfigDict:
    """A config of the defaults."""
    config = ConfigDict()
    for name, field in fields.items():
        *sections, last = name.split(".")
        section = config
        for part in sections:
            if part not in section:
                section[part] = ConfigDict()
            section = section[part]
        empty = field.default is None
        section[last] = placeholder(_type(field)) if empty else field.default
    return config


def _type(field: Field) -> type:
    """Of the values: tuple for tuple[int, ...]."""
    kind = field.kind or type(field.default)
    return getattr(kind, "__origin__", kind)


def check_value(name: str, value: Any, field: Field) -> None:
    """Raise ConfigError unless the field may have the value."""
    if value is None:
        if not field.nullable:
            raise ConfigError(name, "None has no meaning here")
        return
    _check_type(name, value, field)
    if value == () and field.nullable:  # None says that
        raise ConfigError(name, "empty")
    for x in value if isinstance(value, tuple) else (value,):
        if field.choices is not None and x not in field.choices:
            known = ", ".join(map(repr, field.choices))
            raise ConfigError(name, f"{x!r} is not one of {known}")
        if isinstance(x, str):
            continue
        if isinstance(x, float) and not math.isfinite(x):
            raise ConfigError(name, f"{x} is not finite")
        if field.above is not None and not x > field.above:
            raise ConfigError(name, f"{value} is not above {field.above:g}")
        if _is_span(field):
            if not field.least <= x <= field.most:
                raise ConfigError(
                    name, f"{value} is not between {field.least:g} and {field.most:g}"
                )
        elif field.least is not None and not x >= field.least:
            raise ConfigError(name, f"{value} is not {field.least:g} or more")
        if field.most is not None and x > field.most:
            raise ConfigError(name, f"{x} is above {field.most}")


def _check_type(name: str, value: Any, field: Field) -> None:
    kind = _type(field)
    if kind is tuple:
        of = (get_args(field.kind) or (float,))[0]
        accepted = (int, float) if of is float else of
        if not isinstance(value, tuple):
            such = "names, such as ('a','b')" if of is str else "numbers, such as (1,2)"
            raise ConfigError(name, f"{value!r} is not several {such}")
        if any(not isinstance(x, accepted) or isinstance(x, bool) for x in value):
            what = "no name" if of is str else "not a number, or not whole"
            raise ConfigError(name, f"{value!r} has what is {what}")
        return
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or isinstance(value, bool) != (kind is bool):
        raise ConfigError(name, f"{value!r} is not of type {kind.__name__}")


def _is_span(field: Field) -> bool:
    """Whether the range has two ends that a person minds; others only keep gigabytes away."""
    return field.least is not None and field.most is not None and field.most < 1000


def values_of(field: Field) -> str:
    """Which values a field may have, for people."""
    said = []
    if field.choices is not None:
        said.append(", ".join(field.choices))
    elif _is_span(field):
        said.append(f"{field.least:g} to {field.most:g}")
    elif field.above is not None:
        said.append(f"above {field.above:g}")
    elif field.least is not None:
        said.append(f"{field.least:g} or more")
    if field.nullable:
        said.append("None")
    return "; ".join(said)
