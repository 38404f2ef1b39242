"""The agent with less patience: a trial that hangs is noticed within a test, not within minutes. Nothing else differs.

python -m tests.faults.impatient run --config agent.yaml
"""

from functools import partial

from agent.core import messages
from agent.daemon import cli

TRIAL_S, RUNS = 3.0, 2  # with rests a run of 0.15 s takes four times as long

if __name__ == "__main__":
    messages.Trial = partial(messages.Trial, deadline_s=TRIAL_S, runs=RUNS)
    cli.main()
