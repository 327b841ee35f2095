from __future__ import annotations

import re

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from fabric.errors import InvalidRequest
from fabric.observability.logging import _SECRET_NAMES
from fabric.pb.common.v1 import options_pb2
from fabric.pb.compute.v1 import flavor_service_pb2, host_service_pb2, instance_service_pb2
from fabric.pb.host.v1 import host_session_service_pb2
from fabric.pb.identity.v1 import user_service_pb2
from fabric.pb.image.v1 import blob_service_pb2, image_service_pb2
from fabric.rpc.validate import secret_fields, validate
from tests.unit.rpc.test_authorization import METHODS

FLAVOR = flavor_service_pb2.Flavor(name="m1", vcpus=1, ram_mib=512)


def _field_of(request: Message) -> str:
    with pytest.raises(InvalidRequest) as raised:
        validate(request)
    assert raised.value.field in raised.value.message
    return raised.value.field


def test_a_good_request_passes() -> None:
    validate(flavor_service_pb2.CreateFlavorRequest(request_id="r", flavor=FLAVOR))


def test_a_nested_field_is_named_by_its_path() -> None:
    spec = host_service_pb2.HostSpec(availability_zone="z", vcpus=0, ram_mib=64, disk_gib=1, guest_cidr="x")
    host = host_service_pb2.Host(name="h", cell="c", spec=spec)

    assert _field_of(host_service_pb2.CreateHostRequest(request_id="r", host=host)) == "host.spec.vcpus"


def test_an_item_of_a_list_is_named_by_its_number() -> None:
    spec = host_service_pb2.HostSpec(
        availability_zone="z",
        vcpus=1,
        ram_mib=64,
        disk_gib=1,
        guest_cidr="x",
        traits=["GPU", "T" * 256],
    )
    host = host_service_pb2.Host(name="h", cell="c", spec=spec)

    assert _field_of(host_service_pb2.CreateHostRequest(request_id="r", host=host)) == "host.spec.traits[1]"


def test_too_many_items_and_too_long_values_of_a_map_are_refused() -> None:
    many = instance_service_pb2.CreateInstanceRequest(
        request_id="r", name="n", flavor="f", image="i", metadata={str(n): "" for n in range(129)}
    )
    long = instance_service_pb2.CreateInstanceRequest(
        request_id="r", name="n", flavor="f", image="i", metadata={"k": "v" * 256}
    )

    assert _field_of(many) == "metadata"
    assert _field_of(long) == "metadata[k]"


def test_what_only_the_server_sets_is_refused() -> None:
    flavor = flavor_service_pb2.Flavor(name="m1", vcpus=1, ram_mib=512, id="mine")
    image = image_service_pb2.Image(name="i", format=image_service_pb2.IMAGE_FORMAT_RAW, size_bytes=7)

    assert _field_of(flavor_service_pb2.CreateFlavorRequest(request_id="r", flavor=flavor)) == "flavor.id"
    assert _field_of(image_service_pb2.ImageHeader(request_id="r", image=image)) == "image.size_bytes"


def test_a_number_that_no_enum_has_is_refused() -> None:
    image = image_service_pb2.Image(name="i")
    image.format = 99  # type: ignore[assignment]  # no such format

    assert _field_of(image_service_pb2.ImageHeader(request_id="r", image=image)) == "image.format"


def test_a_pattern_must_match_the_whole_value() -> None:
    for digest in ("0" * 63, "0" * 64 + "\n", "G" * 64):
        assert _field_of(blob_service_pb2.ReadBlobRequest(sha256=digest)) == "sha256"
    validate(blob_service_pb2.ReadBlobRequest(sha256="0" * 64))


def test_an_id_must_be_one() -> None:
    for text in ("x", "11111111-1111-4111-8111-11111111111", "AAAAAAAA-1111-4111-8111-111111111111"):
        assert _field_of(host_session_service_pb2.FetchImageRequest(image_id=text)) == "image_id"


@given(st.text(max_size=70))
def test_a_request_id_is_printable_ascii_of_1_to_64_characters_and_nothing_else(text: str) -> None:
    request = flavor_service_pb2.CreateFlavorRequest(request_id=text, flavor=FLAVOR)
    is_good = re.fullmatch(r"[!-~]{1,64}", text) is not None

    if is_good:
        validate(request)
    else:
        assert _field_of(request) == "request_id"


def test_a_secret_is_never_repeated_in_the_error_about_it() -> None:
    request = user_service_pb2.CreateUserRequest(
        request_id="r", user=user_service_pb2.User(name="u"), password="hunter2"
    )

    with pytest.raises(InvalidRequest) as raised:
        validate(request)

    assert raised.value.field == "password"
    assert "hunter2" not in raised.value.message


def test_the_log_knows_every_field_that_is_declared_secret() -> None:
    secret = {name.rpartition(".")[2] for method in METHODS for name in secret_fields(method.request)}

    assert secret
    assert secret <= _SECRET_NAMES


def test_every_pattern_is_linear_enough() -> None:
    """No group that repeats may be repeated itself: that is where matching explodes."""
    patterns = {
        field.GetOptions().Extensions[options_pb2.rules].pattern
        for method in METHODS
        for field in method.request.DESCRIPTOR.fields
    }

    assert [each for each in patterns if re.search(r"[*+]\)[*+{]", each)] == []
