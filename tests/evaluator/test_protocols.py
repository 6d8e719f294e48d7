import pytest

from services.evaluator import protocols
from servox.errors import BadSetting
from servox.v1 import evaluator_pb2


@pytest.mark.parametrize("name", list(protocols.PROTOCOLS))
def test_every_protocol_has_a_wire_value_and_comes_back(name: str) -> None:
    assert protocols.from_wire(protocols.to_wire(name)).name == name


def test_what_is_no_protocol_is_said_with_what_there_is() -> None:
    with pytest.raises(BadSetting, match="sound, ser-evals"):
        protocols.to_wire("sounder")
    with pytest.raises(BadSetting, match="PROTOCOL_SOUND"):
        protocols.from_wire(evaluator_pb2.PROTOCOL_UNSPECIFIED)


def test_seeds_go_on_from_the_protocols_first() -> None:
    assert protocols.SER_EVALS.with_seeds(0) == (34,)
    assert protocols.SER_EVALS.with_seeds(2) == (34, 35)
    assert protocols.SOUND.with_seeds(5) == (0, 1, 2, 3, 4)
    with pytest.raises(BadSetting, match="seeds = -1"):
        protocols.SOUND.with_seeds(-1)
