"""What makes CPUs and GPUs fast. Models use it through `nn`, which reads like flax.

Each operation equals the plain one in value and gradient, and JAXDET_PLAIN=1 (see `switch`) turns
all of them off. `docs/benchmarks.md` says what each is worth.
"""
