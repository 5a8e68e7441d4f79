"""The Realtime protocol of one session, without a transport."""
