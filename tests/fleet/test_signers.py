"""Keys with a passphrase, in a token, in a key service, at another desk; and what is said when one cannot sign."""

import os
import shutil
import subprocess
from pathlib import Path

import boto3
import pytest
from botocore.stub import Stubber
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.adapters.tuf_client import TufClient
from agent.core.errors import InputError, TransferError
from fleet import signers
from fleet.keyring import Keyring
from fleet.repository import Repository, listed_bytes
from fleet.signers import key_at_uri
from fleet.stores import DeskFolder
from provisioning.keys import init_keys, name_key, new_key
from tests.fleet.desk import NOW

MODULES = ("softhsm", "x86_64-linux-gnu/softhsm", "aarch64-linux-gnu/softhsm")
SOFTHSM = next((path for name in MODULES if (path := Path("/usr/lib", name, "libsofthsm2.so")).exists()), None)


@pytest.fixture(autouse=True)
def no_secrets(monkeypatch):
    """No secret in the environment, nobody at the terminal."""
    for name in (*signers.VARIABLES.values(), "PYKCS11LIB", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115, PTH123


def test_keys_that_sign_at_a_desk_have_the_passphrase(tmp_path, monkeypatch):
    """The two that sign unattended have none; with the right one each key signs, and it is never on the disk."""
    keyring = init_keys(tmp_path, "correct horse")
    open_files = {path.name for path in tmp_path.rglob("*.pem") if b"ENCRYPTED" not in path.read_bytes()}
    assert open_files == {"snapshot-1.pem", "timestamp-1.pem"}
    monkeypatch.setenv("EDGE_KEY_PASSPHRASE", "correct horse")
    signature = keyring.signers("root")[0].sign(b"x")
    keyring.signers("root")[0].public_key.verify_signature(signature, b"x")
    assert not any(b"correct horse" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_wrong_or_missing_passphrase_is_one_line(tmp_path, monkeypatch):
    """It names the file; where nobody can be asked, also the variable."""
    keyring = init_keys(tmp_path, "correct horse")
    with pytest.raises(InputError, match=r"root-1\.pem: needs its passphrase; set EDGE_KEY_PASSPHRASE"):
        keyring.signers("root")
    monkeypatch.setenv("EDGE_KEY_PASSPHRASE", "battery")
    with pytest.raises(InputError, match=r"root-1\.pem: wrong passphrase$"):
        keyring.signers("root")


def test_a_passphrase_is_asked_for_once_for_each_file(tmp_path, monkeypatch):
    """Different holders have different ones; signing 257 files is no reason to ask 257 times."""
    signers.typed.cache_clear()
    asked = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr(signers, "getpass", lambda prompt: asked.append(prompt) or "correct horse")
    keyring = init_keys(tmp_path, "correct horse")
    for _ in range(2):
        keyring.signers("targets")
        Keyring(tmp_path).signers("targets")
    assert [prompt.split("/")[-1] for prompt in asked] == [f"targets-{n}.pem: " for n in (1, 2, 3)]
    signers.typed.cache_clear()


def test_a_key_of_another_desk_is_named_and_does_not_sign(tmp_path):
    """Its public half makes it one of the role's keys; it is not mistaken for one of ours."""
    mine, theirs = init_keys(tmp_path / "mine"), init_keys(tmp_path / "theirs")
    (key,) = theirs.keys("releases").values()
    public = tmp_path / "theirs.pub"
    subprocess.run(["openssl", "pkey", "-pubout", "-in", theirs.files("releases")[0], "-out", public], check=True)
    assert name_key(mine, "releases", public=public).keyid == key.keyid
    assert key.keyid in mine.keys("releases")
    assert [one.public_key.keyid for one in mine.signers("releases")] != [key.keyid]
    assert len(mine.signers("releases")) == 1
    with pytest.raises(InputError, match="names it already"):
        name_key(mine, "deployments", public=public)


def test_roles_with_names_alike_keep_their_own_keys(tmp_path):
    """`operators` has not the keys of `operators-critical`; the tenth key is found, too."""
    keyring = init_keys(tmp_path)
    for _ in range(9):
        new_key(keyring, "operators")
    assert len(keyring.keys("operators")) == 10
    assert keyring.files("operators")[-1].name == "operators-10.pem"
    assert len(keyring.keys("operators-critical")) == 2


@pytest.mark.parametrize(
    ("file", "content", "answer"),
    [
        ("releases-2.pem", "garbage", r"releases-2\.pem: not a private key"),
        ("releases-2.json", "{}", r"releases-2\.json: Object missing required field"),
        ("releases-2.json", '{"uri": "hsm:", "keyid": "a", "key": {}}', r"releases-2\.json: no public key"),
        ("releases-2.json", "{", r"releases-2\.json: this is not valid JSON"),
    ],
)
def test_a_damaged_key_file_is_named(tmp_path, file, content, answer):
    """The message says which file to bring again."""
    keyring = init_keys(tmp_path)
    (tmp_path / "roles" / file).write_text(content)
    with pytest.raises(InputError, match=answer):
        keyring.signers("releases")


# --- tokens ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def token(tmp_path, monkeypatch):
    """A PKCS #11 token with one P-256 key, in software."""
    pkcs11 = pytest.importorskip("pkcs11", reason="python-pkcs11 is absent (extra hsm)")
    if SOFTHSM is None or not shutil.which("softhsm2-util"):
        pytest.skip("SoftHSM is absent (apt install softhsm2)")
    (tmp_path / "tokens").mkdir()
    (tmp_path / "softhsm2.conf").write_text(f"directories.tokendir = {tmp_path}/tokens\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(tmp_path / "softhsm2.conf"))
    monkeypatch.setenv("PYKCS11LIB", str(SOFTHSM))
    words = ["softhsm2-util", "--init-token", "--free", "--label", "release desk", "--pin", "1234", "--so-pin", "5678"]
    subprocess.run(words, check=True, capture_output=True)
    library = pkcs11.lib(str(SOFTHSM))
    library.reinitialize()
    with library.get_token(token_label="release desk").open(rw=True, user_pin="1234") as session:
        curve = pkcs11.util.ec.encode_named_curve_parameters("secp256r1")
        made = session.create_domain_parameters(pkcs11.KeyType.EC, {pkcs11.Attribute.EC_PARAMS: curve}, local=True)
        made.generate_keypair(id=b"\x07", label="releases", store=True)
    yield "hsm:7?label=release+desk"
    library.finalize()


def test_a_token_signs_releases(tmp_path, token, monkeypatch):
    """The key never leaves the token; devices believe what it signs; a wrong PIN, key or token is one line."""
    monkeypatch.setenv("EDGE_KEY_PIN", "1234")
    keyring = init_keys(tmp_path / "keys")
    keyring.files("releases")[0].unlink()
    named = name_key(keyring, "releases", uri=token)
    store = DeskFolder(tmp_path / "store")
    repository = Repository.start(store, keyring, NOW)
    repository.add(listed_bytes("releases/a_b_c_20250101.sealed", b"x"), b"x")
    repository.publish(NOW)
    device = TufClient(tmp_path / "device", store, keyring.root(), check=lambda _: None)
    assert device.refresh(NOW).find("releases/a_b_c_20250101.sealed") is not None
    (signer,) = keyring.signers("releases")
    signature = signer.sign(b"payload")
    signer.public_key.verify_signature(signature, b"payload")
    assert signature.keyid == named.keyid
    monkeypatch.setenv("EDGE_KEY_PIN", "9999")
    with pytest.raises(InputError, match=r"releases-1\.json: PinIncorrect; look at PYKCS11LIB"):
        signer.sign(b"payload")
    monkeypatch.delenv("EDGE_KEY_PIN")
    with pytest.raises(InputError, match=r"releases-1\.json: needs its pin; set EDGE_KEY_PIN"):
        signer.sign(b"payload")
    for uri in ("hsm:8?label=release+desk", "hsm:7?label=another"):
        monkeypatch.setenv("EDGE_KEY_PIN", "1234")
        with pytest.raises(InputError, match="look at PYKCS11LIB"):
            key_at_uri(uri)


def test_without_a_module_a_token_cannot_be_had(monkeypatch):
    """The sentence names the variable."""
    pytest.importorskip("pkcs11", reason="python-pkcs11 is absent (extra hsm)")
    with pytest.raises(InputError, match="PYKCS11LIB environment variable must be set"):
        key_at_uri("hsm:2")


@pytest.mark.parametrize("uri", ["", "root-1.pem", "hsm:x", "awskms:", "gcpkms:projects/p", "file:/etc/passwd"])
def test_what_leads_to_no_key_is_told(uri):
    """With the two forms that do."""
    with pytest.raises(InputError, match=r"write hsm:ID\?label=TOKEN .* or awskms:KEY"):
        key_at_uri(uri)


# --- AWS KMS: as far as it goes without an account ---------------------------------------------------------------


@pytest.fixture
def kms(monkeypatch):
    """A client whose answers are made here, with a key of ours behind them; and the answers that are due."""
    client = boto3.client("kms", region_name="eu-central-1", aws_access_key_id="x", aws_secret_access_key="x")
    monkeypatch.setattr("boto3.client", lambda *_, **__: client)
    with Stubber(client) as stub:
        yield stub


def test_a_key_service_signs(tmp_path, kms):
    """The public key is fetched once and kept; the service gets a digest and answers with a signature that counts."""
    private = ec.generate_private_key(ec.SECP256R1())
    public = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    kms.add_response("get_public_key", {"PublicKey": public, "SigningAlgorithms": ["ECDSA_SHA_256"]})
    keyring = init_keys(tmp_path)
    keyring.files("snapshot")[0].unlink()
    name_key(keyring, "snapshot", uri="awskms:alias/snapshot")
    digest = hashes.Hash(hashes.SHA256())
    digest.update(b"payload")
    asked = {"KeyId": "alias/snapshot", "MessageType": "DIGEST", "SigningAlgorithm": "ECDSA_SHA_256"}
    asked["Message"] = digest.finalize()
    made = private.sign(asked["Message"], ec.ECDSA(Prehashed(hashes.SHA256())))
    kms.add_response("sign", {"Signature": made}, asked)
    (signer,) = keyring.signers("snapshot")
    signer.public_key.verify_signature(signer.sign(b"payload"), b"payload")


def test_a_key_service_that_refuses_is_told(tmp_path, kms):
    """It may be another time: exit 1, and where to look."""
    kms.add_client_error("get_public_key", "AccessDeniedException", "not yours")
    with pytest.raises(TransferError, match=r"awskms:alias/x: .*not yours; look at the region, the credentials"):
        key_at_uri("awskms:alias/x")


def test_a_key_service_that_is_away_is_told(monkeypatch):
    """A wrong endpoint: the address stands in the sentence, and it may be another time."""
    settings = {
        "REGION": "eu-central-1",
        "DEFAULT_REGION": "eu-central-1",
        "ACCESS_KEY_ID": "x",
        "SECRET_ACCESS_KEY": "x",
    }
    for name, value in {**settings, "ENDPOINT_URL_KMS": "http://127.0.0.1:9", "MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with pytest.raises(TransferError, match=r'Could not connect to the endpoint URL: "http://127\.0\.0\.1:9/"'):
        key_at_uri("awskms:alias/x")


def test_a_key_service_without_a_region_is_told():
    """The most frequent mistake."""
    with pytest.raises(InputError, match=r"You must specify a region\. Set AWS_DEFAULT_REGION"):
        key_at_uri("awskms:alias/x")
