"""Changes to aiortc's DTLS transport and certificate, one class per change.

`tuning` gives these classes to a transport before it starts. This file knows nothing of SCTP's contents, SDP or the
service.
"""

# ruff: noqa: SLF001 - what is private in pyOpenSSL is used here, in one class that is switched by its version

from collections.abc import Callable
from hashlib import sha256, sha384, sha512
from typing import Any

from aiortc import RTCCertificate, RTCDtlsParameters, RTCDtlsTransport
from aiortc.rtcdtlstransport import RTCDtlsFingerprint, State, certificate_digest
from OpenSSL import SSL, crypto

from gateway.upstream.ice import DirectDatagrams

# SSL_MODE_RELEASE_BUFFERS of OpenSSL's ssl.h: an idle connection frees its record buffers, 12 KiB.
_RELEASE_BUFFERS = 0x10
# One DTLS record (RFC 6347 4.1): a peer behind a large MTU may fill more than the 1500 aiortc reads.
_RECORD_BYTES = 16384
_APPLICATION_DATA = 23
# The digests that aiortc knows (RFC 8122 5).
_DIGESTS = {"sha-256": sha256, "sha-384": sha384, "sha-512": sha512}

# Any: pyOpenSSL's bindings to OpenSSL have no types.
_lib: Any = getattr(SSL, "_lib", None)
_ffi: Any = getattr(SSL, "_ffi", None)
_BUFFER_BYTES = _RECORD_BYTES + 256  # a record's header, nonce and tag come on top
_buffer: Any = _ffi.new("char[]", _BUFFER_BYTES) if _ffi is not None else None


class SharedCertificate(RTCCertificate):
    """One certificate and one OpenSSL context for every call of a process.

    One fingerprint for all calls tells the service no more than the API key does. A key pair, a
    certificate and a context for each call cost 0.3 ms.
    """

    _context: SSL.Context | None = None
    _fingerprints: list[RTCDtlsFingerprint] | None = None

    def _create_ssl_context(self, srtp_profiles: Any) -> SSL.Context:  # Any: aiortc does not export the type
        if self._context is None:
            # pyOpenSSL refuses to change a context that has had a connection, so all is set now.
            self._context = super()._create_ssl_context(srtp_profiles)
            self._context.set_mode(_RELEASE_BUFFERS)
        return self._context

    def getFingerprints(self) -> list[RTCDtlsFingerprint]:  # noqa: N802 - WebRTC's name
        """Return SHA-256 only: the offer contains no other, see `sdp`."""
        if self._fingerprints is None:
            digest = certificate_digest(self._cert, "sha-256")
            self._fingerprints = [RTCDtlsFingerprint(algorithm="sha-256", value=digest)]
        return self._fingerprints


class WithoutSrtp(RTCDtlsTransport):
    """DTLS for data alone, without SRTP keys: there is no media, and two libsrtp sessions cost 10 KiB a call.

    Incoming RTP is dropped unread, and a peer that negotiates no SRTP profile is accepted.
    """

    def _setup_srtp(self) -> None:
        return None

    def _validate_peer_identity(self, remote: RTCDtlsParameters) -> None:
        """Override: check the fingerprints without converting the certificate. Each known one must match (RFC 8122 5.1)."""
        assert self._ssl is not None
        certificate = self._ssl.get_peer_certificate()
        encoded = b"" if certificate is None else crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)
        known = [each for each in remote.fingerprints if each.algorithm.lower() in _DIGESTS]
        if not known or any(
            each.value.replace(":", "").lower() != _DIGESTS[each.algorithm.lower()](encoded).hexdigest()
            for each in known
        ):
            self._set_state(State.FAILED)


class DirectRecords(RTCDtlsTransport):
    """DTLS whose application data is sent and received in plain calls.

    Stock aiortc wakes a task for each datagram and goes through six coroutines that never wait. All other
    records still use aiortc's code, which keeps its handling of close_notify and of a lost connection.
    """

    connection: DirectDatagrams | None = None
    packet: Callable[[bytes], None] | None = None
    failed: BaseException | None = None

    def go_direct(self, connection: DirectDatagrams, packet: Callable[[bytes], None]) -> None:
        """Hand application data to `packet` from now on; to be called once connected."""
        self.connection = connection
        self.packet = packet
        connection.direct = self._take

    def put(self, data: bytes) -> None:
        """Encrypt and send; raises ConnectionError when not connected."""
        if self._state != State.CONNECTED or self._ssl is None or self.connection is None:
            raise ConnectionError("Cannot send encrypted data, not connected")
        try:
            record = self._encrypt(self._ssl, data)
        except SSL.Error as error:
            raise ConnectionError("Cannot send encrypted data") from error
        self.connection.put(record)

    def _encrypt(self, ssl: SSL.Connection, data: bytes) -> bytes:
        ssl.send(data)
        return ssl.bio_read(_RECORD_BYTES)

    def _decrypt(self, ssl: SSL.Connection, datagram: bytes) -> bytes:
        ssl.bio_write(datagram)
        return ssl.recv(_RECORD_BYTES)

    def _take(self, datagram: bytes) -> None:
        assert self._ssl is not None
        assert self.packet is not None
        assert self.connection is not None
        if datagram[0] != _APPLICATION_DATA or self._state != State.CONNECTED:
            self.connection.data_received(datagram, 1)
            return
        try:
            self.packet(self._decrypt(self._ssl, datagram))
            # A datagram may hold several records (RFC 6347 4.1.1).
            if _more_records(datagram):
                self._take_rest()
        except SSL.Error:
            return  # forged, replayed or of another epoch: RFC 6347 4.1.2.7 has it dropped
        except ConnectionError:
            return  # it closed while answering
        except Exception as error:  # noqa: BLE001 - as aiortc's own read loop: whatever it is, the connection is over
            self._break(error)

    def _break(self, error: BaseException) -> None:
        assert self.connection is not None
        self.failed = error
        self.connection.end()

    def _take_rest(self) -> None:
        assert self._ssl is not None
        assert self.packet is not None
        while True:
            try:
                plain = self._ssl.recv(_RECORD_BYTES)
            except SSL.WantReadError:
                return
            self.packet(plain)


class RawRecords(DirectRecords):
    """The same with OpenSSL's own functions on one buffer.

    pyOpenSSL allocates a buffer for each call and looks for errors of callbacks that are not in use: 2.3 µs to take a record
    and 2.5 to make one, 0.8 and 0.9 here (measured in one run). The loop is one thread, so one buffer serves all.
    """

    def _take(self, datagram: bytes) -> None:
        # Fast path for nearly all datagrams; the others use the method above.
        ssl, packet = self._ssl, self.packet
        if (
            datagram[0] != _APPLICATION_DATA
            or self._state is not State.CONNECTED
            or ssl is None
            or packet is None
        ):
            super()._take(datagram)
            return
        _lib.BIO_write(ssl._into_ssl, datagram, len(datagram))
        size = _lib.SSL_read(ssl._ssl, _buffer, _BUFFER_BYTES)
        try:
            if size <= 0:
                ssl._raise_ssl_error(ssl._ssl, size)
            packet(_ffi.buffer(_buffer, size)[:])
            if len(datagram) > 13 + (datagram[11] << 8 | datagram[12]):
                self._take_rest()
        except (SSL.Error, ConnectionError):
            return  # as above
        except Exception as error:  # noqa: BLE001 - as above
            self._break(error)

    def _encrypt(self, ssl: SSL.Connection, data: bytes) -> bytes:
        result = _lib.SSL_write(ssl._ssl, data, len(data))
        if result <= 0:
            ssl._raise_ssl_error(ssl._ssl, result)
        return bytes(_ffi.buffer(_buffer, _lib.BIO_read(ssl._from_ssl, _buffer, _BUFFER_BYTES))[:])

    def _decrypt(self, ssl: SSL.Connection, datagram: bytes) -> bytes:
        _lib.BIO_write(ssl._into_ssl, datagram, len(datagram))
        result = _lib.SSL_read(ssl._ssl, _buffer, _BUFFER_BYTES)
        if result <= 0:
            ssl._raise_ssl_error(ssl._ssl, result)
        return bytes(_ffi.buffer(_buffer, result)[:])


def _more_records(datagram: bytes) -> bool:
    return len(datagram) > 13 + int.from_bytes(datagram[11:13], "big")


def step(coroutine: Any) -> None:  # Any: a coroutine that returns nothing
    """Run a coroutine that never waits; raises RuntimeError if it waits."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()
    raise RuntimeError("a step that must not wait did")
