"""Carrying out: one serial queue per instance, and the journal that makes a crash harmless."""
