"""The nouns: frozen values and what must hold of them. No I/O, no clock, no wire formats."""
