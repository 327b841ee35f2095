"""Cellfabric: a compute fabric of cells. The public entry points are `fabric.client` and the commands."""
