"""A config that cannot mislead: its fields known, of their type, in their range, and the run's."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxdet import ConfigError, InputError, models
from jaxdet.runs import workdir
from jaxdet.runs.fields import Fields, check_value, to_config


def flatten(config: ConfigDict | Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("data.name", value), ... of all fields; lists, as JSON has them, as tuples."""
    for name, value in config.items():
        if isinstance(value, ConfigDict | dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, tuple(value) if isinstance(value, list) else value


def check(config: ConfigDict, fields: Fields) -> None:
    """Check a config against the fields that there are (`configs/retina.py`).

    Raises:
        InputError: naming the first field that is unknown, missing, of another type, or has a value
            that it may not have.
    """
    ours = dict(flatten(config))
    for name in ours:
        if name not in fields:
            section = name.rpartition(".")[0]
            there = ", ".join(sorted(n for n in fields if n.rpartition(".")[0] == section))
            raise ConfigError(name, f"no such field; there are {there}")
    for name, field in fields.items():
        if name not in ours:
            raise ConfigError(name, "missing")
        check_value(name, ours[name], field)
        if field.check:
            try:
                field.check(ours[name])
            except InputError as error:
                raise ConfigError(name, str(error)) from error
    # The network says what it cannot follow.
    models.abstract(models.as_if_planned(config.model), config.loss, 1, config.data.image_size)
    for scale in ours["inference.tta.scales"]:
        if not 32 <= scale * config.data.image_size <= 8192:
            problem = f"{scale} makes no image of 32 to 8192 pixels"
            raise ConfigError("inference.tta.scales", problem)


def of_run(folder: Path, fields: Fields) -> ConfigDict:
    """The config of the run in `folder`; fields younger than the run say what was done then.

    Raises:
        InputError: if its `config.json` is missing or broken, lacks a field that has always been
            there, or has one that nobody knows any more.
    """
    config = to_config(fields)
    for name, value in _saved(folder, fields)[0].items():
        set_field(config, name, value)
    return config


def as_run(config: ConfigDict, fields: Fields, folder: Path) -> ConfigDict:
    """The config with what was planned for the run in `folder`, if it is that run's.

    Raises:
        InputError: as `of_run`, and naming the first field in which the two differ, but for those
            that may.
    """
    saved, run = _saved(folder, fields)
    config = config.copy_and_resolve_references()
    for name, value in flatten(config):
        theirs, may = saved[name], fields[name].changes
        if value is None and name in run.planned:
            set_field(config, name, theirs)
        elif value != theirs and may != "freely" and not (may == "grows" and value > theirs):
            raise ConfigError(
                name,
                f"{value!r}, but the run in {folder} has {theirs!r}; give that, or another "
                "--workdir",
            )
    return config


def _saved(folder: Path, fields: Fields) -> tuple[dict[str, Any], workdir.Run]:
    """Every field of the run in `folder`, and what the run is of."""
    sections, run = workdir.read_config(folder)
    there, path = dict(flatten(sections)), folder / "config.json"
    for name in there:
        if name not in fields:
            raise InputError(
                f"{path}: has {name}, which no field is called: it is of another version"
            )
    saved = {}
    for name, field in fields.items():
        if name in there:
            saved[name] = there[name]
        elif field.before is not ...:
            saved[name] = field.before
        elif field.changes == "freely":  # no part of what the run is
            saved[name] = field.default
        else:
            raise InputError(f"{path}: lacks {name}: it is of another version")
    return saved, run


def set_field(config: ConfigDict, name: str, value: Any) -> None:
    """Set the field "section.field", whatever type it had."""
    *sections, last = name.split(".")
    for part in sections:
        config = config[part]
    with config.ignore_type():
        config[last] = value
