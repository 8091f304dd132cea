"""The option of every verb that runs a bundle: which of its variants."""

import click

variant_option = click.option(
    "--variant", help="Run these kernels of a bundle that has several; EDGEDM_FEATURES, or the best that run, without."
)
