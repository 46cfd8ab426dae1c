"""The launcher, whose config.train.minutes take a dozen steps of a small model: `python -m tests.studies.few_steps`."""

import sys

from slmjax.studies import minutes_run, time_plan

STEPS = 12


def limit():
    """(object, attribute, value) of what makes runs of some minutes short."""
    steps_in = minutes_run.steps_in
    yield minutes_run, "steps_in", lambda *arguments: min(STEPS, steps_in(*arguments))
    yield minutes_run, "TIMED_SECONDS", 0.0
    # Two sizes are the fewest that there is a choice between. They hardly differ, so that one of
    # them is compiled.
    yield time_plan, "APART", 1.2
    yield time_plan, "LARGEST", 1.2 * time_plan.SMALLEST


if __name__ == "__main__":
    from slmjax.launch import main

    for place, name, value in list(limit()):
        setattr(place, name, value)
    sys.exit(main())
