"""gateway/relay/states.py: the states and close reasons of the contract."""

from gateway.relay.states import CloseReason, State


def test_states_are_the_words_of_the_contract() -> None:
    """The states are those of contract 1.1."""
    assert [str(state) for state in State] == ["connecting", "connected", "recovering", "closed"]


def test_close_reasons_are_the_words_of_the_contract() -> None:
    """The close reasons are those of contract 2."""
    words = (
        "client detached idle expired upstream_rejected upstream_lost upstream_closed limit drained internal"
    )

    assert [str(reason) for reason in CloseReason] == words.split()


def test_retrying_helps_but_where_somebody_decided() -> None:
    """Reasons that a client, OpenAI or a limit caused are not retryable; all others are."""
    final = {reason for reason in CloseReason if not reason.retryable}

    assert final == {CloseReason.CLIENT, CloseReason.UPSTREAM_REJECTED, CloseReason.LIMIT}
