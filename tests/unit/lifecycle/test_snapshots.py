"""A snapshot is done when its image is in, whatever its host says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fabric.lifecycle.core import begin, settle
from fabric.model.faults import FaultCode
from fabric.model.image import ImageFormat
from fabric.model.instance import ImageRef, Instance
from fabric.model.session import HostState
from fabric.model.states import Action, TaskState, VmState, Want
from tests.unit.lifecycle.records import instance, said

IMAGE = ImageRef(id="i", name="n", format=ImageFormat.QCOW2, sha256="", size_bytes=1, virtual_size_bytes=1)


def asked(action: Action = Action.CREATE_IMAGE) -> Instance:
    return begin(instance(), action, now_ms=1, op_id="asked", image_id="i")


@pytest.mark.parametrize("action", [Action.CREATE_IMAGE, Action.CREATE_BACKUP])
def test_a_snapshot_whose_image_is_in_leaves_the_server_as_it_was(action: Action) -> None:
    now = replace(asked(action), uploaded=IMAGE)

    after = settle(now, said(now, HostState.ACTIVE, action_seq=1), now_ms=2, op_id="o")

    assert isinstance(after, Instance)
    assert (after.vm_state, after.task, after.fault) == (VmState.ACTIVE, TaskState.NONE, None)


@pytest.mark.parametrize("uploaded", [None, replace(IMAGE, id="an-earlier-one")])
def test_a_host_that_hands_nothing_in_has_not_done_it(uploaded: ImageRef | None) -> None:
    now = replace(asked(), uploaded=uploaded)

    after = settle(now, said(now, HostState.ACTIVE, action_seq=1), now_ms=2, op_id="o")

    assert isinstance(after, Instance)
    assert (after.vm_state, after.task, after.want) == (VmState.ACTIVE, TaskState.NONE, Want.RUN)
    assert after.fault is not None
    assert after.fault.code == FaultCode.IMAGE_UPLOAD_FAILED


def test_a_new_snapshot_has_no_image_yet() -> None:
    before = replace(instance(), uploaded=IMAGE)

    assert begin(before, Action.CREATE_IMAGE, now_ms=1, op_id="o", image_id="j").uploaded is None
