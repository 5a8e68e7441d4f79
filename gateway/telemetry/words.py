"""The words that labels may contain. All other words are counted as `other`. No I/O.

Labels with words chosen by a client or by OpenAI would create time series without limit, and could carry text or keys into
a monitoring system.
"""

from gateway.relay.openai_errors import MEANINGS

OTHER = "other"

CLIENT_EVENTS = frozenset(
    {
        "conversation.item.create",
        "conversation.item.delete",
        "conversation.item.retrieve",
        "conversation.item.truncate",
        "input_audio_buffer.append",
        "input_audio_buffer.clear",
        "input_audio_buffer.commit",
        "output_audio_buffer.clear",
        "response.cancel",
        "response.create",
        "session.close",
        "session.update",
        "transcription_session.update",
    }
)
"""Realtime's client events, as of its API description of August 2026."""

SERVER_EVENTS = frozenset(
    {
        "conversation.created",
        "conversation.item.added",
        "conversation.item.created",
        "conversation.item.deleted",
        "conversation.item.done",
        "conversation.item.input_audio_transcription.completed",
        "conversation.item.input_audio_transcription.delta",
        "conversation.item.input_audio_transcription.failed",
        "conversation.item.input_audio_transcription.segment",
        "conversation.item.retrieved",
        "conversation.item.truncated",
        "error",
        "input_audio_buffer.cleared",
        "input_audio_buffer.committed",
        "input_audio_buffer.dtmf_event_received",
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.timeout_triggered",
        "mcp_list_tools.completed",
        "mcp_list_tools.failed",
        "mcp_list_tools.in_progress",
        "output_audio_buffer.cleared",
        "output_audio_buffer.started",
        "output_audio_buffer.stopped",
        "rate_limits.updated",
        "response.content_part.added",
        "response.content_part.done",
        "response.created",
        "response.done",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.mcp_call.completed",
        "response.mcp_call.failed",
        "response.mcp_call.in_progress",
        "response.mcp_call_arguments.delta",
        "response.mcp_call_arguments.done",
        "response.output_audio.delta",
        "response.output_audio.done",
        "response.output_audio_transcript.delta",
        "response.output_audio_transcript.done",
        "response.output_item.added",
        "response.output_item.done",
        "response.output_text.delta",
        "response.output_text.done",
        "session.created",
        "session.updated",
    }
)

UPSTREAM_CODES = frozenset(
    {
        *MEANINGS,
        # the gateway's own codes, of calls that could not be opened
        "upstream-failed",
        "upstream-rate-limited",
        "upstream-rejected",
        "upstream-timeout",
    }
)

MODELS = frozenset(
    {
        "gpt-realtime",
        "gpt-realtime-2025-08-28",
        "gpt-realtime-1.5",
        "gpt-realtime-2",
        "gpt-realtime-2.1",
        "gpt-realtime-2.1-mini",
        "gpt-realtime-mini",
        "gpt-realtime-mini-2025-10-06",
        "gpt-realtime-mini-2025-12-15",
        # transcription, billed separately
        "gpt-4o-mini-transcribe",
        "gpt-4o-transcribe",
        "gpt-live-transcribe",
        "gpt-realtime-whisper",
        "whisper-1",
    }
)
"""OpenAI's realtime and transcription models of November 2026; the configured one joins them."""

RESPONSE_STATUSES = frozenset({"completed", "cancelled", "incomplete", "failed"})
PHASES = frozenset({"gather", "signalling", "ice", "dtls", "channel", "total"})
FORMATS = frozenset({"sse", "ndjson", "json", "text"})
STREAM_ENDS = frozenset({"client", "rotated", "superseded", "slow", "closed", "error", "shutdown"})
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
GAP_REASONS = frozenset({"overrun", "foreign", "unknown"})
RECOVERY_CAUSES = frozenset(
    {
        "channel_closed",
        "consent_expired",
        "connection_failed",
        "stalled",
        "rotation",
        "restart",
        "node_lost",
        "handover",
    }
)
RECOVERY_OUTCOMES = frozenset({"recovered", "failed", "rejected", "ended"})
NODE_STATES = ("live", "draining", "unsure", "lost")
FORWARD_KINDS = frozenset({"request", "stream"})
FORWARD_OUTCOMES = frozenset({"answered", "moved", "unreachable", "timeout", "client_left"})
TAKEOVER_OUTCOMES = frozenset({"taken", "closed", "unreadable", "lost_race", "failed"})
HANDOVER_OUTCOMES = frozenset({"taken", "refused", "failed"})
REPAIR_KINDS = frozenset({"tail", "emptied"})


def known(word: str, words: frozenset[str]) -> str:
    """Return the word if it is one of `words`, else `other`."""
    return word if word in words else OTHER
