"""The store: what the fabric knows, in etcd. `base` is the port; `etcd` and `memory` stand behind it, held to the same laws."""
