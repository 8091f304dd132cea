"""`edgedm sign`: say who made a bundle."""

import click

from edgedm.cli.common import show_figures, verb
from edgedm.outcome import Outcome


@click.command(name="sign", short_help="sign a bundle with a key (OpenSSF model-signing)")
@click.argument("bundle", type=click.Path())
@click.option("--key", required=True, type=click.Path(dir_okay=False), help="Private key (PEM, elliptic curve).")
@verb(show_figures)
def command(bundle: str, key: str) -> Outcome:
    """Sign every file of BUNDLE: writes `model.sig` into it, which `--require-signature` of other verbs demands.

    \b
    openssl ecparam -name prime256v1 -genkey -noout -out key.pem
    openssl ec -in key.pem -pubout -out key.pub
    edgedm sign model.bundle --key key.pem
    edgedm sample model.bundle --require-signature key.pub
    """
    from edgedm.bundle import sign

    return sign(bundle, key)
