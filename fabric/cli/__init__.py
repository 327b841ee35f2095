"""The command line `fabric`: nouns and verbs as `openstack` has them, over the public API only.

One module for each noun. What is imported at the top of a module is paid for at every start; gRPC and the generated code come in with the
first call, cryptography with the first key.
"""
