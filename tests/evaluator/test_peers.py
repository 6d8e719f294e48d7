"""The evaluator's way to its peers: the key that it shows them."""
# ruff: noqa: ANN401, ARG002, N802 -- gRPC names methods and arguments, and its stubs have no types

from pathlib import Path
from typing import Any

import pytest

from services.evaluator.peers import Peers
from services.evaluator.settings import Settings
from servox.doors import Door
from servox.errors import BadSetting, Unauthenticated
from servox.keys import Key, Keys, document_of, minted
from servox.rpc import Server
from servox.v1 import embedder_pb2, embedder_pb2_grpc


class Embedder(embedder_pb2_grpc.EmbedderServicer):
    async def Describe(self, request: Any, context: Any) -> embedder_pb2.DescribeResponse:
        return embedder_pb2.DescribeResponse(dims=7)


async def test_it_shows_its_key_and_is_told_where_it_has_none(tmp_path: Path) -> None:
    text, name, digest = minted()
    key = Key(id=name, name="evaluator", sha256=digest, scopes=("embed",))
    (keys := tmp_path / "keys.json").write_text(document_of([key]))
    (own := tmp_path / "own").write_text(text)
    address = f"unix:{tmp_path}/e"
    server = Server(address=address, services=[], max_message_bytes=1 << 20, door=Door(keys=Keys(keys)))
    embedder_pb2_grpc.add_EmbedderServicer_to_server(Embedder(), server.grpc)  # type: ignore[no-untyped-call]
    await server.start()
    known = Peers(Settings.load({"embedder": address, "peer_api_key": own}))
    stranger = Peers(Settings.load({"embedder": address}))
    try:
        assert (await known.describe()).dims == 7
        with pytest.raises(Unauthenticated, match="nothing says who calls"):
            await stranger.describe()
    finally:
        await known.close()
        await stranger.close()
        await server.stop()


def test_a_key_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="servox keys create"):
        Peers(Settings.load({"peer_api_key": tmp_path / "none"}))
