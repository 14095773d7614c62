"""A throw-away stack on one machine: registry, shaped link, supernode, agent, containerd; and `imgdist demo` on top.

Every part is a context manager that undoes what it did. The benchmarks and the integration tests use the same parts.
"""
