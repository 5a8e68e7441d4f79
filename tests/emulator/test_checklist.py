"""What an offline Realtime upstream must do, and the test that shows each part of it.

| behaviour of the service | shown by |
|---|---|
| create by multipart, parts with or without types | test_server.test_multipart_parts_need_no_types |
| create by a bare offer | test_call.test_raw_offer_gets_a_default_session |
| create by an ephemeral key, which brings its session | test_server.test_client_secret_opens_calls_with_its_session |
| `?dcid=` | test_call.test_negotiated_channel_is_used_with_dcid |
| 201, headers, relative Location | test_recordings.test_answer_comes_with_the_recorded_headers |
| 400 without an audio section | test_server.test_offer_without_audio_is_refused_in_the_services_words |
| 400 for any other offer that cannot be answered | test_sdp.test_offer_that_cannot_be_answered_is_refused |
| 401 | test_server.test_wrong_key_is_refused_without_repeating_it |
| 404 | test_server.test_hangup_of_an_unknown_call_is_404 |
| the retired beta shape | test_server.test_beta_is_refused |
| CORS | test_server.test_preflight_allows_what_browsers_ask_for |
| the answer, line by line | test_recordings.test_answer_has_the_recorded_lines |
| order of sections, BUNDLE | test_sdp.test_answer_follows_the_order_of_the_offer |
| setup active and passive | test_call.test_text_turn_over_a_real_channel |
| strict ICE-lite consent | test_call.test_session_outlives_consent_only_with_nomination |
| events above the offer's max-message-size are dropped | test_call.test_event_above_the_offered_size_is_dropped_without_a_word |
| session.created at once | test_realtime.test_session_speaks_first |
| strict session.update | test_realtime.test_wrong_update_is_refused_whole |
| the turn, in recorded order, with obfuscation and quirks | test_recordings.* |
| previous_item_id | test_realtime.test_items_stand_where_they_were_put |
| retrieve, delete | test_realtime.test_item_is_given_back_and_forgotten |
| truncate | test_realtime.test_spoken_item_is_truncated |
| phase and interleaving of the newer models | test_realtime.test_newer_model_comments_and_interleaves |
| busy | test_realtime.test_second_response_waits_for_the_first |
| cancel, and nothing to cancel | test_realtime.test_cancelled_response_ends_with_its_done_events |
| out of band, metadata | test_realtime.test_out_of_band_responses_run_beside_and_leave_no_trace |
| `input` of a response | test_realtime.test_response_reads_only_the_input_it_is_given |
| `instructions`, `output_modalities` of a response | test_realtime.test_response_has_its_own_instructions_and_modality |
| max_output_tokens | test_realtime.test_token_limit_makes_a_response_incomplete |
| function calls | test_realtime.test_function_is_called_and_its_output_used |
| usage, cached tokens | test_realtime.test_usage_adds_up_over_a_conversation |
| audio buffers | test_realtime.test_audio_buffer_is_kept_without_listening |
| expires_at, session_expired, then the end | test_call.test_session_ends_with_its_last_words |
| hang-up 200, then 404 | test_call.test_hang_up_ends_a_call_once |
| sideband, without session.created | test_websocket.test_both_connections_hear_the_same |
| sideband: no sound, several, 404, close codes | test_websocket.* |
| WebSocket sessions, sub-protocols, transcription intent | test_websocket.test_standard_constructor_opens_a_session |
| detected speech, transcription, idle timeout | test_listening.* |
| MCP tools: list, call, approval | test_remote.* |
| client secrets, 10 s to 2 h | test_server.test_client_secret_lives_between_ten_seconds_and_two_hours |
| fault: the data channel closes | test_faults.test_channel_closes_in_mid_response |
| fault: ICE is silent | test_faults.test_deaf_far_end_answers_no_check |
| fault: 4xx and 5xx of creates | test_faults.test_signalling_is_refused |
| fault: response.done failed | test_faults.test_response_fails_with_a_given_code |
| fault: response.done incomplete | test_faults.test_response_is_cut_by_a_filter |
| fault: late and bursty deltas | test_faults.test_deltas_come_slowly_and_in_bursts |
| browsers | test_browser.* |
| libwebrtc, libdatachannel | test_node.test_binary_stack_holds_a_turn |
| the official JavaScript client and agents | test_node.test_official_agent_speaks_and_runs_its_tool |
| the official package's models and client | test_openai_package.* |
"""

import ast
import functools
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SHOWN = [line.split("|")[2].strip() for line in (__doc__ or "").splitlines() if line.startswith("| ")][1:]


@functools.cache
def named_in(module: str) -> set[str]:
    """Return the names of a module's tests."""
    [path] = HERE.rglob(f"{module}.py")
    return {
        node.name
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


@pytest.mark.parametrize("name", SHOWN)
def test_row_names_a_test_that_is_there(name: str) -> None:
    """Every row names an existing test."""
    module, wanted = name.split(".")

    assert wanted in named_in(module) or (wanted == "*" and named_in(module))
