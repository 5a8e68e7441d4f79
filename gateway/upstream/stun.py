"""The STUN messages of connectivity and consent checks (RFC 8445 7), as bytes. No I/O.

aioice's codec handles any STUN message. It builds each message three times and takes ten calls for an address: 60 to 100 µs
for a check. A far end with several addresses sends a dozen of them while a call is set up, and one every two seconds
afterwards. The functions here handle only the form that nearly all of them have. The caller passes the others to aioice.
"""

import hmac
from binascii import crc32
from ipaddress import IPv6Address
from struct import Struct

BINDING_REQUEST = 0x0001
BINDING_RESPONSE = 0x0101

_COOKIE = 0x2112A442
_COOKIE_BYTES = _COOKIE.to_bytes(4, "big")
_HEADER_BYTES = 20
_INTEGRITY_BYTES = 24  # the attribute with its header
_FINGERPRINT_BYTES = 8  # likewise
_FINGERPRINT_XOR = 0x5354554E

_USERNAME = 0x0006
_MESSAGE_INTEGRITY = 0x0008
_XOR_MAPPED_ADDRESS = 0x0020
_PRIORITY = 0x0024
_USE_CANDIDATE = 0x0025
_FINGERPRINT = 0x8028
_ICE_CONTROLLING = 0x802A

_HEADER = Struct("!HHI12s")
_ATTRIBUTE = Struct("!HH")
_PRIORITY_AND_ROLE = Struct("!HHIHHQ")
_ADDRESS = Struct("!HHHH")
_LENGTH = Struct("!H")
_CRC = Struct("!HHI")


def request(
    transaction: bytes, user: bytes, priority: int, tie_breaker: int, key: bytes, *, nominate: bool
) -> bytes:
    """Return a Binding request of a controlling agent."""
    body = _ATTRIBUTE.pack(_USERNAME, len(user)) + user + bytes(-len(user) % 4)
    body += _PRIORITY_AND_ROLE.pack(_PRIORITY, 4, priority, _ICE_CONTROLLING, 8, tie_breaker)
    if nominate:
        body += _ATTRIBUTE.pack(_USE_CANDIDATE, 0)
    return _sealed(BINDING_REQUEST, transaction, body, key)


def response(transaction: bytes, address: tuple[str, int], key: bytes) -> bytes:
    """Return the success response to a request that came from `address`."""
    host, port = address
    if ":" in host:
        family, packed = 2, IPv6Address(host.partition("%")[0]).packed
    else:
        family, packed = 1, bytes(map(int, host.split(".")))
    pad = (_COOKIE_BYTES + transaction)[: len(packed)]
    hidden = (int.from_bytes(packed) ^ int.from_bytes(pad)).to_bytes(len(packed))
    header = _ADDRESS.pack(_XOR_MAPPED_ADDRESS, 4 + len(packed), family, port ^ _COOKIE >> 16)
    return _sealed(BINDING_RESPONSE, transaction, header + hidden, key)


def read_request(datagram: bytes, key: bytes) -> tuple[bytes, str, int] | None:
    """Return the transaction ID, user name and priority of a controlled agent's Binding request signed with this key.

    None for any other message.
    """
    found = _read(datagram)
    if found is None:
        return None
    attributes, signed = found
    kind, _, _, transaction = _HEADER.unpack_from(datagram)
    user, priority = attributes.get(_USERNAME), attributes.get(_PRIORITY, b"")
    if (
        kind != BINDING_REQUEST
        or user is None
        or not user.isascii()
        or len(priority) != 4
        or _ICE_CONTROLLING in attributes
        or not hmac.compare_digest(
            attributes[_MESSAGE_INTEGRITY], hmac.digest(key, _with_length(datagram, signed), "sha1")
        )
    ):
        return None
    return transaction, user.decode(), int.from_bytes(priority)


def signed_part(datagram: bytes) -> tuple[bytes, bytes] | None:
    """Return what a response's MESSAGE-INTEGRITY covers and its value; None for a message of another form."""
    found = _read(datagram)
    if found is None:
        return None
    attributes, signed = found
    return datagram[:signed], attributes[_MESSAGE_INTEGRITY]


def _read(datagram: bytes) -> tuple[dict[int, bytes], int] | None:
    """Return the attributes and the position of MESSAGE-INTEGRITY, or None for a message of an unusual form.

    Usual is one with MESSAGE-INTEGRITY, after it at most a FINGERPRINT (RFC 8489 14.5), and no attribute twice.
    """
    end = len(datagram)
    if end < _HEADER_BYTES:
        return None
    _, length, cookie, _ = _HEADER.unpack_from(datagram)
    if cookie != _COOKIE or length != end - _HEADER_BYTES or length % 4:
        return None
    attributes: dict[int, bytes] = {}
    signed = 0
    position = _HEADER_BYTES
    while position < end:
        kind, size = _ATTRIBUTE.unpack_from(datagram, position)
        value = datagram[position + 4 : position + 4 + size]
        if len(value) != size or kind in attributes or (signed and kind != _FINGERPRINT):
            return None
        if kind == _MESSAGE_INTEGRITY:
            signed = position
        elif kind == _FINGERPRINT and (
            position + _FINGERPRINT_BYTES != end
            or value != (crc32(datagram[:position]) ^ _FINGERPRINT_XOR).to_bytes(4)
        ):
            return None
        attributes[kind] = value
        position += 4 + size + -size % 4
    return (attributes, signed) if signed else None


def _sealed(kind: int, transaction: bytes, body: bytes, key: bytes) -> bytes:
    """Return the message with MESSAGE-INTEGRITY and FINGERPRINT, each computed over a length that includes itself."""
    length = len(body) + _INTEGRITY_BYTES
    message = _HEADER.pack(kind, length, _COOKIE, transaction) + body
    message += _ATTRIBUTE.pack(_MESSAGE_INTEGRITY, 20) + hmac.digest(key, message, "sha1")
    message = message[:2] + _LENGTH.pack(length + _FINGERPRINT_BYTES) + message[4:]
    return message + _CRC.pack(_FINGERPRINT, 4, crc32(message) ^ _FINGERPRINT_XOR)


def _with_length(datagram: bytes, signed: int) -> bytes:
    length = signed - _HEADER_BYTES + _INTEGRITY_BYTES
    return datagram[:2] + _LENGTH.pack(length) + datagram[4:signed]
