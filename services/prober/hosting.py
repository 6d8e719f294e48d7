"""Heads in memory: what a name means is asked of the registry on every call, so new versions need no restart.

A version never changes while it is there; one that was deleted and came back as something else has another stamp.
"""

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from .heads import Head
from .registry import Registry

if TYPE_CHECKING:
    from .posterior import Stage

Key = tuple[str, str, tuple[int, int]]


class Hosted:
    """The heads that were used last; safe to use from several threads.

    Args:
        registry: where they lie.
        capacity: most heads in memory.
    """

    def __init__(self, registry: Registry, capacity: int) -> None:
        self._registry, self._capacity = registry, capacity
        self._heads: OrderedDict[Key, Head] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str) -> Head:
        """The head that `name` means now; see `Registry.get`.

        Raises:
            NotFound: no such head, or none any more.
            BadInput: its entry is damaged.
        """
        bare, version = self._registry.resolve(name)
        key = (bare, version, self._registry.stamp(bare, version))
        with self._lock:
            if key in self._heads:
                self._heads.move_to_end(key)
                return self._heads[key]
        head = self._registry.get(name)
        if head.card.tag == f"{bare}:{version}":  # else the name's meaning changed on the way
            self._keep(key, head)
        return head

    def stage(self, head: Head, *, canary: str = "") -> "Stage":
        """What a head is to its name, where `canary` is the version that some callers meet."""
        card = head.card
        if card.version == self._registry.production(card.name):
            return "production"
        return "canary" if card.version == canary else "candidate"

    def _keep(self, key: Key, head: Head) -> None:
        with self._lock:
            self._heads[key] = head
            while len(self._heads) > self._capacity:
                self._heads.popitem(last=False)
