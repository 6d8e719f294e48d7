from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from servox.errors import BadSetting
from servox.settings import ServiceSettings, home
from servox.telemetry import Metrics


class Settings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="SERVOX_SAMPLE_", extra="forbid")

    grpc_port: int = Field(50099, ge=0, le=65535)
    depth: int = Field(3, ge=1, le=9, description="how deep")


def _file(folder: Path, text: str) -> Path:
    path = folder / "settings.toml"
    path.write_text(text)
    return path


def test_a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Settings.load().depth == 3
    file = _file(tmp_path, "depth = 4\ngrpc_port = 1")
    assert Settings.load(file=file).depth == 4
    monkeypatch.setenv("SERVOX_SAMPLE_DEPTH", "5")
    loaded = Settings.load(file=file)
    assert (loaded.depth, loaded.grpc_port) == (5, 1)
    assert Settings.load({"depth": 6}, file=file).depth == 6
    assert Settings.load({"depth": None}, file=file).depth == 5, "a flag that was not given is none"


@given(depth=st.integers(-100, 100))
def test_what_is_out_of_range_is_refused_and_the_rest_is_not(depth: int) -> None:
    if 1 <= depth <= 9:
        assert Settings.load({"depth": depth}).depth == depth
    else:
        with pytest.raises(BadSetting, match=f"depth = {depth} "):
            Settings.load({"depth": depth})


def test_the_message_names_field_value_and_origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadSetting, match=r"depth = 12 \(from flag\)"):
        Settings.load({"depth": 12})
    with pytest.raises(BadSetting, match=r"depth = 12 \(from file\)"):
        Settings.load(file=_file(tmp_path, "depth = 12"))
    monkeypatch.setenv("SERVOX_SAMPLE_DEPTH", "many")
    with pytest.raises(BadSetting, match=r"depth = 'many' \(from environment variable SERVOX_SAMPLE_DEPTH\)"):
        Settings.load()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"tls_certificate": "c.pem"}, "tls_certificate and tls_key go together"),
        ({"tls_client_ca": "ca.pem"}, "tls_client_ca needs"),
        ({"unknown": 1}, "unknown"),
        ({"log_level": "loud"}, "log_level"),
    ],
)
def test_combinations_that_cannot_work_are_refused(flags: dict[str, object], says: str) -> None:
    with pytest.raises(BadSetting, match=says):
        Settings.load(flags)


@pytest.mark.parametrize("text", ["depth = ", "\x00", "[[["])
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadSetting, match=r"settings\.toml"):
        Settings.load(file=_file(tmp_path, text))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"none\.toml"):
        Settings.load(file=tmp_path / "none.toml")


def test_an_unknown_key_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"dpeth.*from file"):
        Settings.load(file=_file(tmp_path, "dpeth = 4"))


def test_the_address_is_a_socket_where_one_is_given(tmp_path: Path) -> None:
    assert Settings.load().address == "127.0.0.1:50099"
    assert Settings.load({"grpc_host": "127.0.0.2", "grpc_port": "7"}).address == "127.0.0.2:7"
    assert Settings.load({"grpc_socket": tmp_path / "s"}).address == f"unix:{tmp_path / 's'}"


def test_tls_is_whole_or_absent(tmp_path: Path) -> None:
    assert Settings.load().tls is None
    tls = Settings.load({"tls_certificate": tmp_path / "c", "tls_key": tmp_path / "k"}).tls
    assert tls is not None
    assert tls.ca is None
    with pytest.raises(BadSetting, match="TLS file"):
        tls.server()


def test_home_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVOX_HOME", str(tmp_path))
    assert home() == tmp_path
    monkeypatch.delenv("SERVOX_HOME")
    monkeypatch.chdir(tmp_path)
    assert home() == tmp_path / ".servox"


# ---- who may call --------------------------------------------------------------------------------------------------

PEMS = {"tls_certificate": "c", "tls_key": "k"}
TOKENS = {"jwt_jwks": "https://issuer/jwks", "jwt_issuer": "https://issuer", "jwt_audience": "servox"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org", "", "::ffff:192.0.2.7"])
def test_an_interface_that_others_reach_needs_callers_who_are_known(host: str) -> None:
    with pytest.raises(BadSetting, match="servox keys create") as refused:
        Settings.load({"grpc_host": host})
    assert f"grpc_host = {host}" in str(refused.value)
    for how in ({"keys": "keys.json"}, TOKENS, {**PEMS, "tls_client_ca": "ca"}):
        assert Settings.load({"grpc_host": host, **how}).grpc_host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"])
def test_on_loopback_and_sockets_nobody_has_to_say_who_they_are(host: str, tmp_path: Path) -> None:
    assert not Settings.load({"grpc_host": host}).door(Metrics()).closed
    assert Settings.load({"grpc_host": "0.0.0.0", "grpc_socket": tmp_path / "s"}).grpc_socket


def test_certificates_of_the_server_alone_say_nothing_of_callers() -> None:
    with pytest.raises(BadSetting, match="tls_client_ca"):
        Settings.load({"grpc_host": "0.0.0.0", **PEMS})
    with pytest.raises(BadSetting, match="keys"):
        Settings.load({"grpc_host": "0.0.0.0", **PEMS, "tls_client_ca": "ca", "tls_client_scopes": ""})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"tls_client_scopes": "recognise"}, "'recognise' is no scope"),
        ({"jwt_jwks": "f", "jwt_issuer": "i"}, "needs jwt_issuer and jwt_audience"),
        ({**TOKENS, "jwt_algorithms": "RS256,HS256"}, "'HS256' cannot be used"),
        ({**TOKENS, "jwt_algorithms": "none"}, "'none' cannot be used"),
    ],
)
def test_a_door_that_makes_no_sense_is_not_built(given: dict[str, str], says: str) -> None:
    with pytest.raises(BadSetting, match=says):
        Settings.load(given)


def test_a_file_of_keys_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"none\.json"):
        Settings.load({"keys": tmp_path / "none.json"}).door(Metrics())
