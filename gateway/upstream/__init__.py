"""The OpenAI side: a call is opened by an HTTP request and uses a WebRTC data channel.

Only this package imports aiortc and aioice, and it hides them: `webrtc.WebRTCDialer` is the relay's
`Dialer`, an open call is its `Upstream`, and every failure is an `UpstreamError`. `signalling` holds the HTTP request
(the meaning of refusals is in `relay.openai_errors`), `sdp` the text of offer and answer. `tuning` lists every use of the two
libraries beyond their public interface; `ice`, `dtls`, `sctp` and `inbound` implement it.
"""
