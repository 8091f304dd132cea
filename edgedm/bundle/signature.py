"""Who made a bundle: signatures of the whole folder by OpenSSF's `model-signing`, with a key, offline.

`sign` puts `model.sig` into the bundle: a Sigstore bundle whose in-toto statement lists every file with its SHA-256,
so that the package's own `model_signing verify key` reads it too. Where `require_signature`, or a verb's
`--require-signature`, or EDGEDM_REQUIRE_SIGNATURE names a public key, every bundle that is loaded must be signed.

Keys are PEM files of elliptic curves (P-256, P-384, P-521):
    openssl ecparam -name prime256v1 -genkey -noout -out key.pem
    openssl ec -in key.pem -pubout -out key.pub
"""

import contextlib
import importlib
import os
import sys
import tempfile
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from edgedm.atomic import sync_folder, write_scratch
from edgedm.errors import InvalidModelError, ToolchainError
from edgedm.files import check_holes, check_regular

SIGNATURE = "model.sig"
VARIABLE = "EDGEDM_REQUIRE_SIGNATURE"
MOST_SIGNATURE_BYTES = 16 << 20
_MOST_KEY_BYTES = 1 << 16

_required: ContextVar[Path | None] = ContextVar("required", default=None)


@contextlib.contextmanager
def require_signature(public_key: str | os.PathLike[str] | None) -> Iterator[None]:
    """While it lasts, refuse every bundle that isn't signed with `public_key`'s private half; None: as before."""
    token = _required.set(_required.get() if public_key is None else Path(public_key))
    try:
        yield
    finally:
        _required.reset(token)


def required_key() -> Path | None:
    """Return the public key that bundles must be signed with now; None where none must."""
    named = os.environ.get(VARIABLE)
    return _required.get() or (Path(named) if named else None)


def write_signature(folder: Path, private_key: str | os.PathLike[str]) -> Path:
    """Sign all files of `folder` and write `model.sig` there, whole or not at all; returns its path.

    Raises InvalidModelError for a file that is no private key, ToolchainError without the package.
    """
    signing = _package("signing")
    _check_key(private_key)
    config = signing.Config().set_hashing_config(_hashing())
    try:
        config.use_elliptic_key_signer(private_key=Path(private_key))
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidModelError(f"{private_key}: no open private key of an elliptic curve: {_fault(error)}") from error
    with tempfile.TemporaryDirectory(prefix="edgedm-") as outside:  # inside it would be among what is signed
        made = Path(outside) / SIGNATURE
        config.sign(folder, made)
        data = made.read_bytes()
    # beside the bundle, because a file that a killed writer left in it would be an additional one
    scratch = write_scratch(folder.absolute().with_name(f"{folder.absolute().name}.{SIGNATURE}"), data)
    try:
        os.replace(scratch, folder / SIGNATURE)
        sync_folder(folder)
    finally:
        scratch.unlink(missing_ok=True)
    return folder / SIGNATURE


def check_signature(folder: Path, public_key: str | os.PathLike[str]) -> None:
    """Raise InvalidModelError unless `folder` holds exactly the files that were signed with `public_key`'s other half.

    ToolchainError without the package.
    """
    verifying = _package("verifying")
    _check_key(public_key)
    path = folder / SIGNATURE
    try:
        size = check_regular(path, folder)
    except FileNotFoundError as error:
        raise InvalidModelError(
            f"{path}: no such file: the bundle is not signed, which {public_key} demands"
        ) from error
    if size > MOST_SIGNATURE_BYTES:
        raise InvalidModelError(f"{path}: {size} bytes; a signature has at most {MOST_SIGNATURE_BYTES}")
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=Path(public_key))
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidModelError(f"{public_key}: no public key of an elliptic curve: {_fault(error)}") from error
    from cryptography.exceptions import InvalidSignature

    for file in folder.rglob("*"):
        if file.is_file():
            check_holes(file, file.stat().st_size)  # all of them are hashed, whatever the manifest says
    config.set_hashing_config(_hashing())
    try:
        with contextlib.redirect_stdout(sys.stderr):  # its warnings are no output of a verb
            config.verify(folder, path)
    except (InvalidSignature, ValueError, LookupError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise InvalidModelError(
            f"{path}: the bundle is not what was signed with {public_key}: {_reason(error)}"
        ) from error


def _fault(error: Exception) -> str:
    """What the package's exceptions at a key mean."""
    return "a key of another kind" if isinstance(error, AttributeError) else str(error)


def _reason(error: Exception) -> str:
    """What the package's exceptions at a signature mean."""
    if isinstance(error, (LookupError, TypeError, AttributeError)):
        return "it is no signature that `edgedm sign` writes"
    return str(error) or "it was made with another key, or altered"


def _hashing() -> Any:
    """All files but the signature: nothing else may be left out, not even what git keeps."""
    config = _package("hashing").Config().use_file_serialization(hashing_algorithm="sha256")
    return config.set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


def _check_key(path: str | os.PathLike[str]) -> None:
    try:
        size = check_regular(path)
    except FileNotFoundError as error:
        raise InvalidModelError(f"{path}: no such key") from error
    if size > _MOST_KEY_BYTES:
        raise InvalidModelError(f"{path}: {size} bytes; a key has at most {_MOST_KEY_BYTES}")


def _package(module: str) -> Any:
    try:
        return importlib.import_module(f"model_signing.{module}")
    except ModuleNotFoundError as error:
        raise ToolchainError(f"signatures need the package `{error.name}`: pip install 'edgedm[sign]'") from error
