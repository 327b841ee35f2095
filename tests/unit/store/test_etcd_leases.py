"""What is remembered of leases, on values: no etcd is asked."""

from __future__ import annotations

from fabric.clock import SystemClock
from fabric.store.base import Lease
from fabric.store.etcd.endpoints import Endpoints
from fabric.store.etcd.lease import CROWDED, Leases
from fabric.store.etcd.settings import EtcdSettings


class Hands(SystemClock):
    now_s = 0.0

    def boot_s(self) -> float:
        return self.now_s


def test_leases_that_nobody_keeps_are_forgotten_when_their_time_is_over() -> None:
    clock, settings = Hands(), EtcdSettings(endpoints=("127.0.0.1:1",))
    leases = Leases(Endpoints(settings, "test"), settings, clock)

    for number in range(20 * CROWDED):
        clock.now_s = number * 1.0
        leases.granted(Lease(id=number, ttl_s=60.0), asked_at_s=clock.now_s)

    assert leases.remembered <= CROWDED
