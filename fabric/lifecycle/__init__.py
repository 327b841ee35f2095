"""The lifecycle of an instance: one table, and the few functions that interpret it. Nothing else decides what may happen."""
