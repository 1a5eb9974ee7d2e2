"""The command `certs`: what lies where, who may read it, and that nothing is overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from pipeline.cli import main
from pipeline.peers import tls
from pipeline.serving import certs


@pytest.fixture
def out(tmp_path: Path) -> Path:
    assert main(["certs", "--out", str(tmp_path / "pki"), "ca"]) == 0
    return tmp_path / "pki"


def issue(out: Path, *arguments: str) -> int:
    return main(["certs", "--out", str(out), "issue", *arguments])


def test_keys_are_for_their_owner_alone(out: Path) -> None:
    """The authority's key and every issued one are readable by their owner only, and stand where docs say."""
    assert issue(out, "pi-1", "--host", "pi-1.local", "--host", "192.168.1.20") == 0
    assert sorted(path.name for path in (out / "pi-1").iterdir()) == [tls.CA_FILE, tls.CERT_FILE, tls.KEY_FILE]
    for key in (out / certs.CA_KEY_FILE, out / "pi-1" / tls.KEY_FILE):
        assert key.stat().st_mode & 0o777 == 0o600


def test_a_certificate_says_what_it_is_for(out: Path) -> None:
    """Hosts and role are alternative names; without a host it is no server's; it lives for days, not years."""
    issue(out, "pi-1", "--host", "pi-1.local", "--host", "::1", "--role", "node", "--days", "3")
    issue(out, "someone", "--role", "client")
    server, client = (
        x509.load_pem_x509_certificate((out / name / tls.CERT_FILE).read_bytes()) for name in ("pi-1", "someone")
    )
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["pi-1.local"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["::1"]
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["edge-release://role/node"]
    assert (server.not_valid_after_utc - server.not_valid_before_utc).days == 3
    uses = client.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(uses) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_nothing_is_overwritten_unless_asked(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second authority or certificate of a name needs --force."""
    before = (out / tls.CA_FILE).read_bytes()
    issue(out, "pi-1")
    assert main(["certs", "--out", str(out), "ca"]) == 5
    assert issue(out, "pi-1") == 5
    assert "--force" in capsys.readouterr().err
    assert (out / tls.CA_FILE).read_bytes() == before
    assert issue(out, "pi-1", "--force") == 0


@pytest.mark.parametrize("name", ["../up", "", "a/b", ".hidden"])
def test_a_name_stays_in_its_folder(out: Path, name: str) -> None:
    """A name that would leave the folder is refused."""
    assert issue(out, name) == 2


def test_without_an_authority_there_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Issuing before there is an authority says how to make one."""
    assert issue(tmp_path, "pi-1") == 5
    assert f"edge-release certs --out {tmp_path} ca" in capsys.readouterr().err
