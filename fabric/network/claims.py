"""Whether a host takes a guest: one rule for whoever claims, asked of the very records that the claim compares.

Three claim: the scheduler for a create and for a move, and the conductor for the next alternate of a create that failed.
"""

from __future__ import annotations

from fabric.model.host import Host, Resources, Session, SessionState, Use
from fabric.model.instance import Request
from fabric.network.addresses import slot_for

NO_MORE = Resources()


def slot_on(
    host: Host | None, session: Session | None, use: Use, request: Request, *, more: Resources = NO_MORE
) -> int | None:
    """The address slot that a claim on top of `use` takes there, or `NO_SLOT`; `more` is what it needs besides the guest itself.

    None where the host does not take the guest: it is gone, closed, not UP, full (volumes count), or cannot attach it.
    """
    if host is None or not host.enabled or session is None or session.state is not SessionState.UP:
        return None
    if not host.capacity.covers(use.taken + request.guest.resources() + more):
        return None
    return slot_for(host, use, request)
