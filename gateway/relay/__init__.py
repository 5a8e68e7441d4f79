"""What the gateway is: sessions, each with one append-only event log and one call upstream.

The relay knows neither HTTP nor WebRTC nor Redis. It defines what it needs of them in `ports`.
"""
