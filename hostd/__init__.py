"""The host daemon: makes on one host what its cell's conductor says must be true, and reports what is."""
