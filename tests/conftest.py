"""Every annotated shape and type of jaxdet is checked while the tests run."""

from jaxtyping import install_import_hook

install_import_hook("jaxdet", "beartype.beartype").__enter__()
