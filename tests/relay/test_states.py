"""gateway/relay/states.py: the words of the contract."""

from gateway.relay.states import CloseReason, State


def test_states_are_the_words_of_the_contract() -> None:
    """Contract 1.1 lists the states."""
    assert [str(state) for state in State] == ["connecting", "connected", "recovering", "closed"]


def test_close_reasons_are_the_words_of_the_contract() -> None:
    """Contract 2 lists the close reasons."""
    words = (
        "client detached idle expired upstream_rejected upstream_lost upstream_closed limit drained internal"
    )

    assert [str(reason) for reason in CloseReason] == words.split()


def test_retrying_helps_but_where_somebody_decided() -> None:
    """Reasons that a client, OpenAI or a limit decided are not retryable; all others are."""
    final = {reason for reason in CloseReason if not reason.retryable}

    assert final == {CloseReason.CLIENT, CloseReason.UPSTREAM_REJECTED, CloseReason.LIMIT}
