"""`edgedm package`: bundles for Android -> an AAR."""

import click

from edgedm.cli.common import show_figures, verb
from edgedm.cli.signature import signed_bundles
from edgedm.outcome import Outcome


@click.command(name="package", short_help="bundles for Android -> an AAR for apps")
@click.argument("bundles", nargs=-1, required=True)
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False), help="The AAR to write.")
@verb(show_figures)
@signed_bundles
def command(bundles: tuple[str, ...], output: str) -> Outcome:
    """Put BUNDLES, compiled for android-arm64 and the like, into an AAR: Java classes, libraries, weights.

    The model is called as the AAR is; several models in one are given as NAME=BUNDLE. Bundles of one name are the same
    model for several ABIs.
    """
    from edgedm.android.aar import package

    return package(bundles, output)
