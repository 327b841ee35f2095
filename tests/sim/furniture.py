"""What is in a simulated world from the beginning, and what its machines hold at the end."""

from __future__ import annotations

import hashlib

from fabric.ids import Ids
from fabric.model.flavor import Flavor
from fabric.model.image import Image, ImageFormat, ImageState, Visibility
from fabric.model.network import Network
from fabric.store import keys
from hostd.driver.fake import FakeMachine
from tests.history.settled import HostHoldings
from tests.sim.parts import IMAGE_BYTES


def catalogue(ids: Ids, *, owner: str) -> dict[str, object]:
    """Flavors, an image of the owner's that everybody may use, and the hosts' own network, by key."""
    put: dict[str, object] = {}
    for flavor in (
        Flavor(id=ids.new_id(), name="small", vcpus=1, ram_mib=512, disk_gib=1),
        Flavor(id=ids.new_id(), name="large", vcpus=2, ram_mib=1024, disk_gib=2),
    ):
        put[keys.FLAVOR.at(flavor.id)] = flavor
    image = Image(
        id=ids.new_id(),
        name="tiny",
        project_id=owner,
        format=ImageFormat.RAW,
        state=ImageState.ACTIVE,
        visibility=Visibility.PUBLIC,
        size_bytes=len(IMAGE_BYTES),
        virtual_size_bytes=len(IMAGE_BYTES),
        sha256=hashlib.sha256(IMAGE_BYTES).hexdigest(),
    )
    put[keys.IMAGE.at(image.id)] = image
    network = Network(id=ids.new_id(), name="default")
    put[keys.NETWORK.at(network.id)] = network
    put[keys.NETWORK_NAME.at(network.name)] = network.id
    return put


def holdings_of(machine: FakeMachine) -> HostHoldings:
    """What a machine really has."""
    return HostHoldings(
        host=machine.name,
        running=frozenset(machine.running()),
        domains=frozenset((each, domain.spec.placement_epoch) for each, domain in machine.domains.items()),
        files=frozenset((held.instance_id, held.placement_epoch) for held in machine.folders),
        wires=frozenset((each, epoch) for each, (epoch, _) in machine.wires.items()),
        volumes=frozenset(machine.volumes),
        shared=frozenset(each for shelf in machine.shelves.values() for each in shelf.sizes),
    )
