"""Which version of records and snapshots the nodes write while they are not all of the same version. No I/O."""

from collections.abc import Collection, Sequence


def common_version(own: Sequence[int], others: Collection[Collection[int]]) -> int:
    """Return the highest version that this node and all others read. `own` and `others` are the versions that each of them
    reads. Without one in common, return the one that most nodes read: the others cannot take those sessions over."""
    return max(own, key=lambda version: (sum(version in reads for reads in others), version))
