"""Who signs in the vectors, which types of documents, and when."""

from tests.vectors.primitives import Signer

KIND = "application/vnd.edge-model-agent.{}+json"
ROLLOUT, WAVE, COMMAND, GRANT, WITHDRAWN = (
    KIND.format(name) for name in ("rollout", "wave", "command", "grant", "withdrawn")
)
OPERATORS, CONTROLLER, GRANTS = [Signer("operator 1"), Signer("operator 2")], Signer("controller"), Signer("grants")
CRITICAL = [Signer("critical 1"), Signer("critical 2"), Signer("critical 3")]
STRANGER = Signer("stranger")
NOW, SOON, LONG_AGO, LATER = (
    "2026-11-01T12:00:00Z",
    "2026-11-01T12:10:00Z",
    "2026-10-01T12:00:00Z",
    "2026-11-03T12:00:00Z",
)


def role(threshold, *signers):
    return {"threshold": threshold, "ed25519": [key.public for key in signers]}


def roles(threshold=1):
    """Who may sign, as the vectors' readers need it."""
    return {
        "operators": role(threshold, *OPERATORS),
        "controller": role(1, CONTROLLER),
        "grants": role(1, GRANTS),
    }
