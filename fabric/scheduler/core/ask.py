"""What a placement asks of a host, boiled down from a request: the filters and the weighers look at nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field

from fabric.model.host import Resources
from fabric.model.instance import Request
from fabric.model.traits import boot_traits
from fabric.model.volume import trait_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Everything that a decision depends on but the instance's id: equal asks are placed as one batch.

    `zone` empty is any zone. `cell` not empty restricts the choice to that cell; `tried_cells` are out of the question. `host` not empty
    is the only one that will do, and those of `other_than` will not. `needs_slot`: it is to have an address of its host's own network;
    `needs_tunnel`: it is on tenant networks.
    """

    resources: Resources
    zone: str = ""
    required_traits: frozenset[str] = field(default_factory=frozenset)
    forbidden_traits: frozenset[str] = field(default_factory=frozenset)
    cell: str = ""
    tried_cells: frozenset[str] = field(default_factory=frozenset)
    host: str = ""
    other_than: frozenset[str] = field(default_factory=frozenset)
    needs_slot: bool = True
    needs_tunnel: bool = False


def ask_of(request: Request, *, cell: str = "", tried_cells: tuple[str, ...] = ()) -> Ask:
    """What the request asks of a host.

    Architecture, firmware and shared directories become traits, as hosts name them: `HW_ARCH_X86_64`, `FIRMWARE_UEFI`, `VOLUMES_NFS1`.
    The reference's ImagePropertiesFilter reads the same image properties.
    """
    required = set(request.required_traits)
    required |= boot_traits(request.architecture, request.guest.firmware)
    required |= {trait_of(each.directory) for each in request.guest.volumes if each.directory}
    return Ask(
        resources=request.guest.resources(),
        zone=request.zone,
        required_traits=frozenset(required),
        forbidden_traits=frozenset(request.forbidden_traits),
        cell=cell,
        tried_cells=frozenset(tried_cells),
        needs_slot=bool(request.network_id),
        needs_tunnel=bool(request.guest.tenant_ports),
    )
