"""A fabric in containers: Docker images built here from Debian's packages and this tree, and the engine that runs them.

No image registry is asked for anything. `python -m tools.containers --help` is the way in; docs/operations/containers.md tells of it.
"""
