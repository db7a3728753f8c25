"""jaxdet: a pure-JAX detection codebase for chest X-rays."""


class InputError(Exception):
    """What the user can mend: a flag, a config field, a file, a row.

    The message is one line that names the thing and says what to do; the command line prints it
    without a traceback and exits with code 2.
    """
