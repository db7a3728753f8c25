"""The words of a command line: read, or one line that says which does not fit."""

import os
import re
import sys
from collections.abc import Mapping
from keyword import iskeyword
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict

from jaxdet import InputError

FLAGS = flags.FLAGS


def check_environment() -> None:
    """Raise InputError for a setting of JAX in the environment that it cannot read.

    To be called first: it says so where it is imported, whoever does that.
    """
    try:
        import jax  # noqa: F401
    except ValueError as error:
        told = [
            name
            for name in os.environ
            if name.startswith("JAX_") and name.lower() in str(error).lower()
        ]
        if not told:
            raise
        raise InputError(
            f"{told[0]}={os.environ[told[0]]}: JAX knows no such value ({error}): unset it"
        ) from error


def parse(argv: list[str], of_workdir: Path, modes: Mapping[str, set[str]]) -> None:
    """Read the flags, and the config with what is set of it.

    Args:
        argv: the words, the program's name first.
        of_workdir: the config file that reads the run in a workdir, taken where none is given.
        modes: the flags that each --mode uses.

    Raises:
        InputError: for what is no flag or field, or has a value that it cannot have, or is of
            another mode.
    """
    if {"-h", "-help", "--help"} & set(argv):
        app.usage(writeto_stdout=True, exitcode=0)
    # A run has its config: it is read where none is given. None is no number to absl.
    workdir, config = _value("workdir", argv), _value("config", argv)
    if workdir and config is None and (Path(os.path.expanduser(workdir)) / "config.json").exists():
        argv = [argv[0], f"--config={of_workdir}:{workdir}", *argv[1:]]
    file = (config or "").partition(":")[0]
    if config is not None and not Path(file).is_file():
        what = "a folder" if Path(file).is_dir() and file else "no such file"
        raise InputError(
            f"--config={_on_one_line(config)}: {what}: give a file such as configs/phantom.py"
        )
    nulls = [m[1] for word in argv if (m := re.fullmatch(r"--?config\.([\w.]+)=None", word))]
    argv = [word for word in argv if not re.fullmatch(r"--?config\.[\w.]+=None", word)]
    for word in argv:  # ml_collections would take what is no name for Python, and fail
        if (found := re.match(r"--?config\.([^=]*)", word)) and not _is_path(found[1]):
            raise InputError(f"{_on_one_line(word)}: no such config field")
    sys.argv = argv  # where ml_collections looks for overrides
    try:
        rest = FLAGS(argv)
        list(FLAGS.config or ())  # a file that cannot be loaded says so only now
        if FLAGS.config is not None and not isinstance(FLAGS.config, ConfigDict):
            raise InputError(f"--config={config}: its get_config gives no ConfigDict")
    except AttributeError as error:
        if "get_config" in str(error):
            raise InputError(f"--config={config}: {file} has no function get_config") from error
        # ml_collections: an override of a field that is not there
        field = re.search(r"\w+", str(error))[0]
        unknown = [word for word in argv if word.startswith("--config.") and field in word]
        raise InputError(
            f"{' '.join(map(_on_one_line, unknown)) or field}: no such config field"
        ) from error
    except (flags.Error, OSError, ImportError, SyntaxError, TypeError) as error:
        if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
            where = f"{error.filename} line {error.lineno}"
            raise InputError(f"--config={config}: {where}: {error.msg}") from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # A config that raises comes as a whole traceback: its last line says why.
        one_line = f"{lines[0]} {lines[-1]}" if len(lines) > 1 else lines[0]
        if config and isinstance(error, ImportError):
            one_line = f"--config={config}: {one_line}"
        one_line = re.sub("^Configuration is not .* to load: ", f"--config={config}: ", one_line)
        raise InputError(one_line) from error
    if rest[1:]:
        raise InputError(f"{_on_one_line(rest[1])}: not a flag")
    for name in sorted(set().union(*modes.values()) - modes[FLAGS.mode]):
        if FLAGS[name].present:
            raise InputError(f"--{name}: --mode={FLAGS.mode} does not use it")
    for name in nulls:
        set_null(FLAGS.config, name)


def _value(flag: str, argv: list[str]) -> str | None:
    """What a flag is given, in either way of writing it; None if it is not there."""
    found = re.search(rf"(?:^|\0)--?{flag}(?:[=\0]([^\0]*)|$)", "\0".join(argv))
    return found and (found[1] or "")


def _is_path(name: str) -> bool:
    return all(part.isidentifier() and not iskeyword(part) for part in name.split("."))


def _on_one_line(word: str) -> str:
    return word if word and word.isprintable() else repr(word)


def set_null(config: ConfigDict | None, name: str) -> None:
    """Set the field "section.field" to None, which its type does not matter for."""
    *sections, field = name.split(".")
    for section in sections:
        config = config[section] if isinstance(config, ConfigDict) and section in config else None
    if config is None or field not in config:
        raise InputError(f"--config.{name}=None: no such config field")
    with config.ignore_type():
        config[field] = None
