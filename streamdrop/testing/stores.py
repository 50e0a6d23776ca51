"""A conformance kit for feature stores: what the engine relies on, for users' own stores too.

``check_store(make_store)`` runs every check of ``CHECKS`` on a store of its own: ``make_store()`` returns an empty one,
at cut 0 and version ''. A store may also have ``thaw``, as ``MemoryStore`` does: then it is checked.
"""

from __future__ import annotations

from collections.abc import Callable

from streamdrop.store.protocol import FeatureStore
from streamdrop.testing import store_checks, store_cut_checks
from streamdrop.testing.store_samples import assert_holds as assert_holds
from streamdrop.testing.store_samples import assert_streams as assert_streams
from streamdrop.testing.store_samples import doubled as doubled
from streamdrop.testing.store_samples import name as name
from streamdrop.testing.store_samples import raises as raises
from streamdrop.testing.store_samples import sample as sample
from streamdrop.testing.store_samples import samples as samples

MakeStore = Callable[[], FeatureStore]

CHECKS: tuple[Callable[[FeatureStore], None], ...] = (*store_checks.CHECKS, *store_cut_checks.CHECKS)


def check_store(make_store: MakeStore) -> None:
    """Assert every law of a FeatureStore; AssertionError says which one is broken."""
    for check in CHECKS:
        with make_store() as store:
            check(store)
