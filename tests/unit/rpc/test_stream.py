from __future__ import annotations

import asyncio

import pytest

from fabric.rpc.stream import MAX_MESSAGE_BYTES, StreamClosed, memory_pair


async def test_messages_arrive_in_order_and_in_both_directions() -> None:
    left, right = memory_pair()

    for number in range(3):
        await left.send(bytes([number]))
    await right.send(b"back")

    assert [await right.receive() for _ in range(3)] == [b"\0", b"\1", b"\2"]
    assert await left.receive() == b"back"


async def test_what_was_sent_before_the_close_still_arrives_then_the_end() -> None:
    left, right = memory_pair()
    await left.send(b"goodbye")

    await left.close()

    assert await right.receive() == b"goodbye"
    with pytest.raises(StreamClosed):
        await right.receive()
    with pytest.raises(StreamClosed):
        await right.send(b"too late")


async def test_the_end_that_closed_receives_nothing_more() -> None:
    left, right = memory_pair()
    await right.send(b"unread")

    await left.close()
    await left.close()

    with pytest.raises(StreamClosed):
        await left.receive()


async def test_a_sender_waits_for_a_slow_receiver() -> None:
    left, right = memory_pair(limit=1)
    await left.send(b"first")
    second = asyncio.ensure_future(left.send(b"second"))
    await asyncio.sleep(0)

    waited = not second.done()
    await right.receive()
    await second

    assert waited
    assert await right.receive() == b"second"


async def test_a_close_frees_whoever_waits() -> None:
    left, right = memory_pair(limit=1)
    await left.send(b"full")
    sending = asyncio.ensure_future(left.send(b"stuck"))
    receiving = asyncio.ensure_future(left.receive())
    await asyncio.sleep(0)

    await right.close()

    with pytest.raises(StreamClosed):
        await sending
    with pytest.raises(StreamClosed):
        await receiving


async def test_a_message_over_the_limit_ends_the_stream() -> None:
    left, right = memory_pair()

    with pytest.raises(StreamClosed):
        await left.send(bytes(MAX_MESSAGE_BYTES + 1))

    with pytest.raises(StreamClosed):
        await right.receive()
