"""The launcher, which asks again after a fiftieth of the usual waits: a drill then takes what it computes, not what chance lets it wait."""

from slmjax import cli
from slmjax.launch import main
from slmjax.synthesize import produce

if __name__ == "__main__":
    produce.FIRST_WAIT, produce.LONGEST_WAIT = produce.FIRST_WAIT / 50, produce.LONGEST_WAIT / 50
    cli.script(main)
