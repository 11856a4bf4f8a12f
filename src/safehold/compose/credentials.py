"""Passphrases, kits, identities and writer credentials, from wherever the user keeps them. Never from the command
line itself.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from safehold.app.opening import Credentials
from safehold.model.errors import UsageError, VaultKeyError
from safehold.model.shown import in_words
from safehold.vault.kit import looks_like_kit, parse_kit
from safehold.vault.slots import Identity, Passphrase, Recipient
from safehold.vault.writers import WriterKey

__all__ = ["find_credentials", "find_passphrase", "load_recipient", "read_secret_file"]


def read_secret_file(path: Path) -> str:
    """The text of a file that holds a secret. VaultKeyError where it cannot be read."""
    try:
        return path.expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = in_words(error) if isinstance(error, OSError) else "it is no text"
        raise VaultKeyError(
            f"secret cannot be read ({why})", on=str(path), remedy="check the path and the permissions"
        ) from error


def find_passphrase(environment: Mapping[str, str], prefix: str, ask: Callable[[], str]) -> str:
    """From `<prefix>`, `<prefix>_FILE` or `<prefix>_COMMAND` in the environment, else from `ask`. VaultKeyError
    where it is empty.
    """
    if prefix in environment:
        secret = environment[prefix]
    elif f"{prefix}_FILE" in environment:
        secret = read_secret_file(Path(environment[f"{prefix}_FILE"])).rstrip("\r\n")
    elif f"{prefix}_COMMAND" in environment:
        secret = _from_command(environment[f"{prefix}_COMMAND"], f"{prefix}_COMMAND")
    else:
        secret = ask()
    if not secret:
        raise VaultKeyError(
            "the passphrase is empty", remedy=f"set {prefix}, {prefix}_FILE or {prefix}_COMMAND, or type it"
        )
    return secret


def _from_command(command: str, variable: str) -> str:
    done = subprocess.run(command, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise VaultKeyError(
            f"the passphrase command failed with exit code {done.returncode}", on=variable, remedy="run it by hand"
        )
    return done.stdout.decode(errors="replace").rstrip("\r\n")


def find_credentials(
    environment: Mapping[str, str], kit: Path | None, identity: Path | None, writer: Path | None, ask: Callable[[], str]
) -> Credentials:
    """The credential that the options or the environment name: a writer file, a kit, an identity, else a passphrase.

    A kit's secrets are also taken where a passphrase is expected. UsageError where two are given.
    """
    given = {
        "--kit": kit or _path(environment, "SAFEHOLD_KIT"),
        "--identity": identity or _path(environment, "SAFEHOLD_IDENTITY"),
        "--writer": writer or _path(environment, "SAFEHOLD_WRITER"),
    }
    chosen = [name for name, path in given.items() if path]
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} exclude each other", remedy="give one of them")
    if given["--writer"]:
        path = given["--writer"]
        return Credentials(writer=WriterKey.load(read_secret_file(path).encode(), on=str(path)))
    if given["--kit"]:
        return Credentials(kit=parse_kit(read_secret_file(given["--kit"])))
    if given["--identity"]:
        return Credentials(unlocker=Identity(_load_identity(given["--identity"])))
    passphrase = find_passphrase(environment, "SAFEHOLD_PASSPHRASE", ask)
    if looks_like_kit(passphrase):
        return Credentials(kit=parse_kit(passphrase))
    return Credentials(unlocker=Passphrase(passphrase))


def _path(environment: Mapping[str, str], variable: str) -> Path | None:
    value = environment.get(variable)
    return Path(value) if value else None


def _load_identity(path: Path) -> X25519PrivateKey:
    try:
        key = load_pem_private_key(read_secret_file(path).encode(), None)
    except (ValueError, TypeError) as error:
        raise VaultKeyError(
            "not a private key", on=str(path), remedy="make one: openssl genpkey -algorithm x25519 -out FILE"
        ) from error
    if not isinstance(key, X25519PrivateKey):
        raise VaultKeyError(
            "not an X25519 private key", on=str(path), remedy="make one: openssl genpkey -algorithm x25519 -out FILE"
        )
    return key


def load_recipient(path: Path) -> Recipient:
    """The holder of an X25519 public key in PEM. VaultKeyError for anything else."""
    remedy = "make one: openssl pkey -in PRIVATE -pubout -out FILE"
    try:
        key = load_pem_public_key(read_secret_file(path).encode())
    except ValueError as error:
        raise VaultKeyError("not a public key", on=str(path), remedy=remedy) from error
    if not isinstance(key, X25519PublicKey):
        raise VaultKeyError("not an X25519 public key", on=str(path), remedy=remedy)
    return Recipient(key.public_bytes_raw())
