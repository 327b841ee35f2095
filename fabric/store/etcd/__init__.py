"""The store over etcd 3.5 and newer, by its own v3 gRPC API (docs/adr/0001 says why by a client of our own)."""

from fabric.store.etcd.client import EtcdStore
from fabric.store.etcd.settings import EtcdSettings

__all__ = ["EtcdSettings", "EtcdStore"]
