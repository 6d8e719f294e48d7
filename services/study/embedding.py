"""From a checkpoint to stored embeddings: one bundle a policy, whole depth, every layer.

Layer k of a bundle of all blocks is what a bundle cut at block k gives, so one pass over the speech serves every depth.
"""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from services.embedder import bundle as bundles
from services.embedder.bundle import Bundle
from services.embedder.contexts import Context
from services.evaluator import protocols
from services.evaluator.dataset import Corpus
from services.evaluator.embedding import embed_missing
from services.evaluator.events import Events
from services.evaluator.metrics import EvaluatorMetrics
from services.evaluator.peers import Peers
from services.evaluator.settings import Settings
from services.house import running
from servox.arrays import EmbeddingStore
from servox.errors import BadSetting, BundleError
from servox.telemetry import Metrics

Tell = Callable[[str, float], None]


def bundle_of(source: str, policy: Context, *, folder: Path, precision: str, data: Path | None, tell: Tell) -> Bundle:
    """The whole-depth bundle of a policy below `folder`; exported if it is not there.

    Raises:
        BundleError: a bundle of something else is there.
        ServoxError: what `export` says.
    """
    place = folder / slug(policy)
    if not place.is_dir():
        from services.embedder.export import export  # torch and transformers, which a second run does without

        return export(
            source, place, context=str(policy), blocks="all", precision=precision, data_root=data, progress=tell
        )
    found = bundles.load(place)
    if (found.context, found.precision, found.blocks) != (policy, precision, found.source_blocks):
        raise BundleError(
            f"{place} holds a bundle of {found.context}, {found.blocks} blocks, {found.precision}, not of {policy}, "
            f"all blocks, {precision}: give another --out, or remove it"
        )
    return found


def slug(policy: Context) -> str:
    """A policy as part of a path."""
    return str(policy).replace(":", "-").replace("+", "-")


def source_of(text: str) -> str:
    """The checkpoint that `text` names: itself, or what the bundle in that folder was made from.

    Raises:
        BadSetting: a bundle whose checkpoint was a folder, which it does not record.
    """
    if not (Path(text) / bundles.MANIFEST).is_file():
        return text
    source = bundles.load(text).source
    if "/" not in source and source != "logmel" and not Path(source).is_dir():
        raise BadSetting(f"--source {text}: this bundle was made from a folder named {source!r}; give that folder")
    return source


async def embed(bundle: Bundle, corpora: Sequence[Corpus], *, settings: Settings, events: Events) -> list[Corpus]:
    """Embeds what the store lacks, and returns the corpora less the clips that cannot be embedded.

    Raises:
        BadCorpus: a corpus has no clip left.
        BadSetting: a clip is too short for the encoder's window, or the bundle cannot be served here.
    """
    known = EmbeddingStore(settings.store).keys(bundle=bundle.digest, pooling=protocols.SOUND.pooling_name)
    if all(sample.key in known for corpus in corpora for sample in corpus.samples):
        return list(corpora)
    async with running(bundle=bundle.folder, prober=False) as house:
        peers = Peers(settings.model_copy(update={"embedder": house.embedder}))
        try:
            return await _embedded(bundle, corpora, peers, settings, events)
        finally:
            await peers.close()


async def _embedded(
    bundle: Bundle, corpora: Sequence[Corpus], peers: Peers, settings: Settings, events: Events
) -> list[Corpus]:
    described = await peers.describe()
    return await embed_missing(
        corpora,
        peers=peers,
        store=EmbeddingStore(settings.store),
        bundle=described,
        protocol=protocols.SOUND,
        in_flight=settings.embed_in_flight,
        truncate_ms=min(settings.truncate_ms, bundle.max_duration_ms),
        events=events,
        clips=EvaluatorMetrics(Metrics()).clips,
    )


def embed_here(bundle: Bundle, corpora: Sequence[Corpus], *, settings: Settings, events: Events) -> list[Corpus]:
    """`embed` for a caller without an event loop."""
    return asyncio.run(embed(bundle, corpora, settings=settings, events=events))
