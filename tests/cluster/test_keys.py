"""Names of keys and ids of entries."""

import pytest

from gateway.cluster.keys import EntryId, Keys


def test_entry_ids_are_spelt_as_redis_spells_them() -> None:
    """Parsing returns what was written; IDs compare by fence first."""
    assert EntryId.parse(str(EntryId(3, 14)).encode()) == EntryId(3, 14)
    assert EntryId(2, 0) > EntryId(1, 99)
    with pytest.raises(ValueError, match="int"):
        EntryId.parse(b"no-id")


def test_keys_of_a_session_share_a_slot() -> None:
    """The session's id is the hash tag of all its keys, so one script may use all three; every key has the prefix."""
    keys = Keys("rg:")

    assert keys.session("gws_1") == ("rg:{gws_1}:j", "rg:{gws_1}:m", "rg:{gws_1}:s")
    assert (keys.nodes, keys.owned("n_1"), keys.principal("one")) == ("rg:{nodes}", "rg:n:n_1", "rg:k:one")
    assert keys.live("one") == "rg:l:one"
    assert (keys.bucket("one", "events"), keys.spent("one", 20_000)) == ("rg:b:one:events", "rg:t:one:20000")
    assert keys.promise("one", "secret key").startswith("rg:i:one:")
    assert "secret" not in keys.promise("one", "secret key")
