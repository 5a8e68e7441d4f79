"""The packed STUN messages, compared with aioice's general codec."""

import pytest
from aioice import stun as aioice_stun
from hypothesis import given
from hypothesis import strategies as st

from gateway.upstream import stun

KEY = b"password0123456789012345"
TRANSACTION = bytes(range(12))

addresses = st.tuples(st.ip_addresses().map(str), st.integers(1, 65535))
transactions = st.binary(min_size=12, max_size=12)


def _check(
    role: str = "ICE-CONTROLLED", key: bytes = KEY, user: str = "ours:theirs", without: str = ""
) -> bytes:
    message = aioice_stun.Message(aioice_stun.Method.BINDING, aioice_stun.Class.REQUEST, TRANSACTION)
    message.attributes.update({"USERNAME": user, "PRIORITY": 1, role: 7})
    message.attributes.pop(without, None)
    message.add_message_integrity(key)
    return bytes(message)


@given(transactions, st.text("ab+/09", min_size=1, max_size=40), st.integers(0, 2**32 - 1), st.booleans())
def test_request_is_what_aioice_writes(transaction: bytes, user: str, priority: int, nominate: bool) -> None:
    """The bytes are aioice's for any length of the user name and its padding."""
    expected = aioice_stun.Message(aioice_stun.Method.BINDING, aioice_stun.Class.REQUEST, transaction)
    expected.attributes.update({"USERNAME": user, "PRIORITY": priority, "ICE-CONTROLLING": 2**64 - 1})
    if nominate:
        expected.attributes["USE-CANDIDATE"] = None
    expected.add_message_integrity(KEY)

    made = stun.request(transaction, user.encode(), priority, 2**64 - 1, KEY, nominate=nominate)

    assert made == bytes(expected)


@given(transactions, addresses)
def test_response_is_what_aioice_writes(transaction: bytes, address: tuple[str, int]) -> None:
    """The bytes are aioice's for both address families."""
    expected = aioice_stun.Message(aioice_stun.Method.BINDING, aioice_stun.Class.RESPONSE, transaction)
    expected.attributes["XOR-MAPPED-ADDRESS"] = address
    expected.add_message_integrity(KEY)

    assert stun.response(transaction, address, KEY) == bytes(expected)


def test_check_of_the_far_end_is_recognised() -> None:
    """For a Binding request with our password, everything that its answer needs is read."""
    assert stun.read_request(_check(), KEY) == (TRANSACTION, "ours:theirs", 1)


def test_signed_part_is_what_aioice_finds() -> None:
    """A response is verified over the same bytes as in aioice."""
    response = stun.response(TRANSACTION, ("192.0.2.1", 9), KEY)
    parsed = aioice_stun.parse_message(response)

    assert stun.signed_part(response) == (parsed._integrity_data, parsed.attributes["MESSAGE-INTEGRITY"])


def _with_twice(datagram: bytes) -> bytes:
    user = datagram[20:36]
    return datagram[:2] + (len(datagram) - 20 + len(user)).to_bytes(2) + datagram[4:20] + user + datagram[20:]


def _without_integrity() -> bytes:
    message = aioice_stun.Message(aioice_stun.Method.BINDING, aioice_stun.Class.REQUEST, TRANSACTION)
    message.attributes["USERNAME"] = "ours:theirs"
    message.add_fingerprint()
    return bytes(message)


@pytest.mark.parametrize(
    "datagram",
    [
        _check(key=b"another"),
        _check(user="ours:thëirs"),
        _check(without="USERNAME"),
        _check(without="PRIORITY"),
        _check(role="ICE-CONTROLLING"),
        _check()[:-1],
        _check()[:19],
        _check()[:4] + b"\0\0\0\0" + _check()[8:],
        _check()[:-1] + bytes([_check()[-1] ^ 1]),
        _check()[:2] + (len(_check()) - 16).to_bytes(2) + _check()[4:] + b"\0\0\0\0",
        _check()[:2] + (len(_check()) - 16).to_bytes(2) + _check()[4:] + b"\0\1\0\x09",
        b"\0\3" + _check()[2:],
        stun.response(TRANSACTION, ("192.0.2.1", 9), KEY),
        _with_twice(_check()),
        _without_integrity(),
    ],
    ids=str,
)
def test_request_of_any_other_form_is_left_to_aioice(datagram: bytes) -> None:
    """Wrong credentials, another role, another method, damage, and attributes after the signature are left to
    aioice."""
    assert stun.read_request(datagram, KEY) is None


def test_response_without_a_signature_is_left_to_aioice() -> None:
    """A response without a signature, such as a STUN server's, is left to aioice."""
    assert stun.signed_part(_without_integrity()) is None


@given(st.binary(max_size=80), st.integers(0, 100))
def test_damaged_message_is_never_taken(noise: bytes, at: int) -> None:
    """Whatever bytes of a check are replaced, nothing is raised and only the intact check is accepted."""
    intact = _check()
    damaged = intact[:at] + noise + intact[at + len(noise) :]

    taken = stun.read_request(damaged, KEY)

    assert taken is None or damaged == intact
