"""`edgedm web`: a page that draws with a bundle in the browser."""

import click

from edgedm.cli.common import show_figures, verb
from edgedm.cli.signature import signed_bundles
from edgedm.outcome import Outcome


@click.command(name="web", short_help="one page that draws with a bundle in the browser")
@click.argument("bundle", type=click.Path())
@click.option("-o", "--output", default="page.html", show_default=True, type=click.Path(dir_okay=False))
@click.option("--title", help="The page's title; the bundle's name.")
@verb(show_figures)
@signed_bundles
def command(bundle: str, output: str, title: str | None) -> Outcome:
    """Write one HTML file that draws with BUNDLE, compiled with `--target wasm32+simd128`, in a browser.

    It holds the module and the weights and asks no server for anything: put it on any static server, or open it.
    """
    from edgedm.web import web

    return web(bundle, output, title=title)
