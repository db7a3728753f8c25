"""jaxdet: a pure-JAX detection codebase for chest X-rays."""


class InputError(Exception):
    """What the user can mend: a flag, a config field, a file, a row.

    The message is one line that names the thing and says what to do; the command line prints it
    without a traceback and exits with code 2.
    """


class ConfigError(InputError):
    """A field of the config with a value that it cannot have.

    Whoever builds a network from a config raises it; any other exception there is a defect, and
    keeps its traceback.
    """

    def __init__(self, field: str, problem: str):
        super().__init__(f"config.{field}: {problem}")
