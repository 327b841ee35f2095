"""What each host may start, as an onlooker sees it: by the frames on the wire, not by what the host believes.

It may under a permit (R5), and not what it has given up on in this session: the server may be another host's by then.
"""

from __future__ import annotations

from typing import Final

from fabric.model.session import Beat, BeatAck, Granted, Hello, HostState, Status
from fabric.rpc.session_codec import unpack_from_conductor, unpack_from_host
from tests.sim.network import SimStream

SMALL_BYTES: Final = 512
"""Greetings, beats and statuses are below; what is longer is not looked into."""

START_S: Final = 1.5
"""How long after it was permitted a start may come about on the machine."""

HELLO: Final = 0
"""Stands for the greeting among the numbers of beats, which begin at 1."""


class Permits:
    """When each host sent the newest greeting or beat that it has an answer to."""

    def __init__(self, hosts: frozenset[str]) -> None:
        self._hosts = hosts
        self._sent_s: dict[str, dict[tuple[int, int], float]] = {host: {} for host in hosts}
        self._renewed_s: dict[str, float] = {}
        self._ended_s: dict[str, float] = {}
        self._given_up: dict[str, set[tuple[str, int, int]]] = {host: set() for host in hosts}

    def frame(self, stream: SimStream, frame: bytes, *, has_come: bool, now_s: float) -> None:
        """A frame was sent by, or has come to, this end."""
        host = stream.here
        if host not in self._hosts or len(frame) > SMALL_BYTES:
            return
        if not has_come:
            said = unpack_from_host(frame)
            if isinstance(said, Hello):
                self._given_up[host].clear()
            if isinstance(said, Status) and said.state is HostState.ERROR:
                self._given_up[host].add((said.instance_id, said.placement_epoch, said.generation))
            if isinstance(said, Hello | Beat):
                self._sent_s[host][stream.number, said.seq if isinstance(said, Beat) else HELLO] = now_s
            return
        heard = unpack_from_conductor(frame)
        if isinstance(heard, Granted | BeatAck):
            sent_s = self._sent_s[host].get(
                (stream.number, heard.seq if isinstance(heard, BeatAck) else HELLO)
            )
            if sent_s is not None:
                self._renewed_s[host] = max(sent_s, self._renewed_s.get(host, sent_s))

    def ended(self, host: str, now_s: float) -> None:
        """Its daemon is dead: the next one has no permit yet, and what comes for the old one is heard by nobody."""
        self._sent_s[host].clear()
        self._given_up[host].clear()
        self._ended_s[host] = now_s

    def has_given_up(self, host: str, instance_id: str, placement_epoch: int, generation: int) -> bool:
        """Whether the host has said ERROR of this very order, in this session."""
        return (instance_id, placement_epoch, generation) in self._given_up[host]

    def age_s(self, host: str, now_s: float) -> float:
        """How old the host's permit is; infinite where it has none. What a dead daemon has begun may come about for a while."""
        renewed_s = self._renewed_s.get(host, float("-inf"))
        ended_s = self._ended_s.get(host, float("-inf"))
        is_dead = renewed_s <= ended_s and now_s - ended_s > START_S
        return float("inf") if is_dead else now_s - renewed_s
