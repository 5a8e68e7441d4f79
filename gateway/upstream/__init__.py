"""The OpenAI side: a call is opened by an HTTP request and lived over a WebRTC data channel.

The only room that knows aiortc and aioice. Above it nothing is seen of them: `webrtc.WebRTCDialer` is the relay's
`Dialer`, an open call is its `Upstream`, and every failure is an `UpstreamError`. `signalling` holds the HTTP request
(what a refusal of it means stands in `relay.refusals`), `sdp` the text of offer and answer, and `tuning` lists whatever reaches into the
two libraries further than their public interface does; `ice`, `dtls`, `sctp` and `inbound` are what it reaches with.
"""
