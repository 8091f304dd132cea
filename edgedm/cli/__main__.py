"""`python -m edgedm.cli`: the command line, in the form that launchers of many processes start."""

from edgedm.cli import main

main(prog_name="edgedm")
