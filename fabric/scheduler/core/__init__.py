"""Where servers go: decisions as functions of values. Nothing here waits, asks the time, or reaches a store."""
