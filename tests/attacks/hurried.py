"""The agent with less patience: a slow store is noticed within a test, not within minutes. Nothing else differs.

python -m tests.attacks.hurried run --config agent.yaml
"""

from agent.adapters import fetch, tuf_client
from agent.daemon import cli

PATIENCE_S = 3.0

if __name__ == "__main__":
    fetch.SLOW_S = tuf_client.DOCUMENT_S = PATIENCE_S
    cli.main()
