"""A bundle that must be signed is refused unless every file is the one that was signed, by the demanded key."""

import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from edgedm.bundle import load, require_signature, sign
from edgedm.bundle.signature import MOST_SIGNATURE_BYTES, VARIABLE
from edgedm.cli import main
from edgedm.errors import InvalidModelError


def keys(folder: Path, name: str, curve: ec.EllipticCurve | None = None) -> tuple[Path, Path]:
    """A private key and its public half, as PEM files."""
    private = ec.generate_private_key(curve) if curve else ed25519.Ed25519PrivateKey.generate()
    secret, public = folder / f"{name}.pem", folder / f"{name}.pub"
    plain = serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    secret.write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    public.write_bytes(private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return secret, public


@pytest.fixture(scope="module")
def signed(tiny_bundle, tmp_path_factory):
    """A signed bundle and the keys that signed it."""
    folder = tmp_path_factory.mktemp("signed")
    secret, public = keys(folder, "ours", ec.SECP256R1())
    bundle = shutil.copytree(tiny_bundle, folder / "b")
    outcome = sign(bundle, secret)
    assert outcome.details["written"] == [str(bundle / "model.sig")]
    return bundle, secret, public


@pytest.fixture
def copy(signed, tmp_path):
    return shutil.copytree(signed[0], tmp_path / "b")


def test_a_signed_bundle_loads_with_its_key_and_without_any(signed):
    assert load(signed[0]).manifest == load(signed[0], signed_by=signed[2]).manifest


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_larger_curves_serve_and_a_bundle_can_be_signed_anew(copy, tmp_path, curve):
    secret, public = keys(tmp_path, "larger", curve)
    sign(copy, secret)
    load(copy, signed_by=public)


def test_the_packages_own_verifier_takes_the_signature(signed):
    from model_signing import verifying

    verifying.Config().use_elliptic_key_verifier(public_key=signed[2]).verify(signed[0], signed[0] / "model.sig")


def _flip(bundle):
    data = bytearray((bundle / "weights.bin").read_bytes())
    data[0] ^= 1
    (bundle / "weights.bin").write_bytes(data)


def _consistently_alter(bundle):
    """What a thief would do: change a file and its hash in the manifest."""
    import hashlib

    _flip(bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["weights.bin"]["sha256"] = hashlib.sha256((bundle / "weights.bin").read_bytes()).hexdigest()
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def _edit_payload(bundle):
    import base64

    values = json.loads((bundle / "model.sig").read_text())
    payload = base64.b64decode(values["dsseEnvelope"]["payload"]).replace(b"weights.bin", b"heights.bin")
    values["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    (bundle / "model.sig").write_text(json.dumps(values))


ATTACKS = {
    "a flipped bit": _flip,
    "an altered file and manifest": _consistently_alter,
    "an extra file": lambda bundle: (bundle / "extra").write_text("x"),
    "a file that git would ignore": lambda bundle: (bundle / ".gitignore").write_text("x"),
    "a lost file": lambda bundle: (bundle / "src/model.c").unlink(),
    "no signature": lambda bundle: (bundle / "model.sig").unlink(),
    "an altered statement": _edit_payload,
    "an empty signature": lambda bundle: (bundle / "model.sig").write_text(""),
    "a signature of nothing": lambda bundle: (bundle / "model.sig").write_text("{}"),
    "a list": lambda bundle: (bundle / "model.sig").write_text("[]"),
    "deep brackets": lambda bundle: (bundle / "model.sig").write_text("[" * 100_000),
    "a huge signature": lambda bundle: (bundle / "model.sig").write_bytes(bytes(MOST_SIGNATURE_BYTES + 1)),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_what_is_not_as_signed_is_refused(copy, signed, attack):
    attack(copy)
    with pytest.raises(InvalidModelError, match=r"model\.sig"):
        load(copy, signed_by=signed[2])


@pytest.mark.parametrize("name", ["a signature of nothing", "a list"])
def test_json_that_is_no_signature_is_called_so(copy, signed, name):
    ATTACKS[name](copy)
    with pytest.raises(InvalidModelError, match="it is no signature that `edgedm sign` writes"):
        load(copy, signed_by=signed[2])


def test_a_link_is_no_signature(copy, signed):
    (copy / "model.sig").unlink()
    (copy / "model.sig").symlink_to(signed[0] / "model.sig")
    with pytest.raises(InvalidModelError, match="link"):
        load(copy, signed_by=signed[2])


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "folder"])
def test_what_stands_in_the_signatures_place_and_is_no_file_is_refused(copy, signed, kind):
    place, elsewhere = copy / "model.sig", copy.parent / "precious"
    place.unlink()
    elsewhere.write_text("kept")
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        place.symlink_to(elsewhere if kind == "link" else copy.parent / "none")
    for use in (lambda: sign(copy, signed[1]), lambda: load(copy)):
        with pytest.raises(InvalidModelError, match=r"model\.sig"):
            use()
    assert elsewhere.read_text() == "kept"


def test_another_key_is_refused(signed, tmp_path):
    _, stranger = keys(tmp_path, "stranger", ec.SECP256R1())
    with pytest.raises(InvalidModelError, match=r"not what was signed with .*stranger"):
        load(signed[0], signed_by=stranger)


def test_what_is_no_key_is_refused_by_name(copy, signed, tmp_path):
    odd_secret, odd_public = keys(tmp_path, "odd")
    (tmp_path / "empty").touch()
    for bad in (odd_secret, tmp_path / "empty", tmp_path / "none", signed[2]):
        with pytest.raises(InvalidModelError, match=bad.name):
            sign(copy, bad)
    for bad in (odd_public, tmp_path / "empty", tmp_path / "none", signed[1]):
        with pytest.raises(InvalidModelError, match=bad.name):
            load(copy, signed_by=bad)


def test_a_key_of_another_kind_is_called_so(copy, tmp_path):
    secret, public = keys(tmp_path, "odd")
    for use in (lambda: sign(copy, secret), lambda: load(copy, signed_by=public)):
        with pytest.raises(InvalidModelError, match="of an elliptic curve: a key of another kind"):
            use()


def test_an_altered_bundle_is_not_signed(copy, signed):
    _flip(copy)
    with pytest.raises(InvalidModelError, match="SHA-256 differs"):
        sign(copy, signed[1])


def test_a_demand_holds_for_every_load_while_it_lasts(signed, tiny_bundle, monkeypatch):
    with require_signature(signed[2]):
        load(signed[0])
        with pytest.raises(InvalidModelError, match="is not signed"):
            load(tiny_bundle)
    load(tiny_bundle)
    monkeypatch.setenv(VARIABLE, str(signed[2]))
    with pytest.raises(InvalidModelError, match="is not signed"):
        load(tiny_bundle)


@pytest.mark.parametrize(
    "verb",
    [
        ["sample", "-n", "1", "--steps", "1", "-o", "x.npy"],
        ["inspect"],
        ["bench", "--against", "none"],
        ["run-on", "ssh", "nowhere"],
        ["package", "-o", "x.aar"],
        ["web", "-o", "site"],
        ["verify", "--against", "zoo:digits-fp32"],
    ],
    ids=lambda verb: verb[0],
)
def test_every_verb_that_takes_a_bundle_refuses_an_unsigned_one(tiny_bundle, signed, verb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, [*verb, str(tiny_bundle), "--require-signature", str(signed[2])])
    assert done.exit_code == 2 and "is not signed" in done.output, done.output
    assert list(tmp_path.iterdir()) == []


def test_the_verb_signs_and_a_signed_bundle_draws(signed, tiny_bundle, tmp_path):
    bundle = shutil.copytree(tiny_bundle, tmp_path / "b")
    assert CliRunner().invoke(main, ["sign", str(bundle), "--key", str(signed[1])]).exit_code == 0
    options = ["-n", "1", "--steps", "1", "-o", str(tmp_path / "x.npy"), "--require-signature", str(signed[2])]
    done = CliRunner().invoke(main, ["sample", str(bundle), *options])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("name", ["weights.bin", "one-more"])
def test_a_file_of_holes_is_refused_before_it_is_hashed(copy, signed, name):
    with (copy / name).open("ab") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(InvalidModelError, match=rf"{name}: .* of its 1099511627776 bytes were written"):
        load(copy, signed_by=signed[2])
