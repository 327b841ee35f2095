"""What the API decides: from a checked request and what was read, to the one transaction that makes it true. Nothing here waits."""
