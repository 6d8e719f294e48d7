"""A checkpoint by its hub id, through the hub's own cache; only what an export reads is fetched.

Offline, huggingface_hub tries each file six times over half a minute. So the hub is asked once whether it is there at
all: where it is not, what the cache holds is used, and what it does not hold is an error within seconds.
"""

import functools
import ssl
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from servox.errors import NotFound

REACH_S = 5.0


def download(
    hub_id: str, *, config: str, optional: Iterable[str], weights: str, index: str, shards: Callable[[Path], list[str]]
) -> Path:
    """The folder in the cache that holds a model's config, the `optional` files it has, and its weights if it has any.

    Args:
        hub_id: such as `openai/whisper-base`.
        config: name of the file that every model has.
        optional: names of files that some have.
        weights: name of the one file of weights.
        index: name of the file that names several, where there is not one.
        shards: reads those names.

    Raises:
        NotFound: when the hub has no such model, does not show it, or cannot be reached and the cache lacks it.
        BadInput: when `shards` finds none.
    """
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HFValidationError, RepositoryNotFoundError

    offline = not _reachable()
    fetch = functools.partial(_cached if offline else _fetched, hub_id)
    try:
        first = fetch(config)
        for name in optional:
            fetch(name)
        if first and fetch(weights) is None and (listing := fetch(index)) is not None:
            for name in shards(listing):
                fetch(name)
    except GatedRepoError as error:
        raise NotFound(f"model {hub_id!r} is gated: accept its terms on the hub, then `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise NotFound(
            f"source {hub_id!r} is neither a folder nor a model of the hub: check the name; for a private model, "
            "`hf auth login`"
        ) from error
    except HFValidationError as error:
        raise NotFound(f"source {hub_id!r} is neither a folder nor the form of a hub id (owner/name)") from error
    except (EntryNotFoundError, OSError) as error:
        raise NotFound(
            f"model {hub_id!r} of the hub could not be fetched ({type(error).__name__}): check the network, or "
            "download the checkpoint and give its folder"
        ) from error
    if first is None:
        raise NotFound(f"model {hub_id!r} of the hub has no {config}: it is no checkpoint of transformers")
    return first.parent


def _fetched(hub_id: str, name: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(hub_id, name))
    except LocalEntryNotFoundError:
        raise  # the connection broke: that says nothing of what the model has
    except EntryNotFoundError:
        return None


def _cached(hub_id: str, name: str) -> Path | None:
    """What the cache knows of a file: where it is, or that the model has none."""
    from huggingface_hub import try_to_load_from_cache

    known = try_to_load_from_cache(hub_id, name)
    if known is None:
        raise NotFound(
            f"source {hub_id!r} is no folder, the hub cannot be reached, and its cache does not hold {name}: check "
            "the network, or fetch the checkpoint elsewhere and give its folder"
        )
    return Path(known) if isinstance(known, str) else None


def _reachable() -> bool:
    """Whether the hub answers at all, whatever it says; proxies of the environment are used."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or not constants.ENDPOINT.startswith(("http://", "https://")):
        return False
    try:
        with urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=REACH_S):  # noqa: S310 - http or https
            return True
    except HTTPError:
        return True
    except URLError as error:
        # A certificate that Python's own store does not know may be known to the hub's client.
        return isinstance(error.reason, ssl.SSLError)
    except OSError:
        return False
