"""Ids: form, alphabet, no repetition."""

import re

from gateway.emulator.protocol.ids import IdSource, session_of


def test_ids_have_the_recorded_form_and_never_repeat() -> None:
    """Prefix, length and alphabet of each kind are as recorded; ten thousand of them are all different."""
    ids = IdSource()
    forms = {
        ids.event: r"event_\w{21}",
        ids.item: r"item_\w{21}",
        ids.response: r"resp_\w{21}",
        ids.conversation: r"conv_\w{21}",
        ids.function_call: r"call_\w{16}",
        ids.call: r"rtc_u1_\w{21}",
        ids.secret: r"ek_\w{32}",
        ids.audio_buffer_event: r"event_[0-9a-f]{16}",
    }
    for make, form in forms.items():
        made = make()
        assert re.fullmatch(form, made, re.ASCII)
        assert "_" not in made.split("_")[-1]

    assert len({ids.event() for _ in range(10_000)}) == 10_000
    assert session_of("rtc_u1_ABC") == "sess_u1_ABC"
