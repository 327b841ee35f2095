"""Builds the guest image of `make demo` and the tests, from Debian packages, without root, mounts or installing anything.

Standard library only: it runs with the system's python3, before the project's environment exists.
"""
