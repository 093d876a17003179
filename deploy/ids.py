"""Agent and user ids: what is valid, and the form that Kubernetes names and images take. Pure."""

from __future__ import annotations

import re
import unicodedata

from deploy.errors import InvalidIdError, NotPermittedError

MAX_NORMALISED_LENGTH = 49  # so that trading-agent-<id> fits a label of 63 characters
MAX_ID_LENGTH = 256
NAME_PREFIX = "trading-agent-"

# Cloud Storage's own tools read these as patterns or as the number of a generation, so that an id with one of them
# could name somebody else's objects.
_WILD_CARDS = frozenset("*?[]{}#")
_OUTSIDE = re.compile(r"[^a-z0-9-]")
_RESERVED = re.compile(r"__.*__")  # refused by Firestore as the name of a document


def check_agent_id(agent_id: object) -> str:
    """Return `agent_id` as it was given.

    Raises:
        InvalidIdError: when it is missing, or its normalised form is empty or too long, or it cannot be used in a path.
    """
    if agent_id is None or agent_id == "":
        raise InvalidIdError("agentId is missing: give the id of the agent as a text")
    if not isinstance(agent_id, str):
        raise InvalidIdError(f"agentId: expected a text, not {type(agent_id).__name__}")
    problem = _find_problem(agent_id)
    if problem:
        raise InvalidIdError(f"agentId {_shorten(agent_id)}: {problem}")
    normalised = _normalise(agent_id)
    if not normalised:
        raise InvalidIdError(f"agentId {_shorten(agent_id)}: expected at least one of a-z and 0-9")
    if len(normalised) > MAX_NORMALISED_LENGTH:
        raise InvalidIdError(
            f"agentId {_shorten(agent_id)}: {len(normalised)} characters in Kubernetes names, allowed are"
            f" {MAX_NORMALISED_LENGTH}"
        )
    return agent_id


def normalise_agent_id(agent_id: object) -> str:
    """Return the form of an id that Kubernetes names, labels, the image and `AGENT_ID` use: a-z, 0-9 and -, 1 to 49.

    Raises:
        InvalidIdError: as `check_agent_id`.
    """
    return _normalise(check_agent_id(agent_id))


def deployment_name(normalised: str) -> str:
    """Return the name of the Deployment of an agent with this normalised id."""
    return NAME_PREFIX + normalised


def check_user_id(user_id: str) -> str:
    """Return the id of a caller whose token has been verified, if it can be a folder of the source bucket.

    Raises:
        NotPermittedError: when it cannot.
    """
    problem = "is empty" if not user_id else _find_problem(user_id)
    if problem:
        raise NotPermittedError(f"the account id {_shorten(user_id)} cannot own agents: {problem}")
    return user_id


def label_value(text: str) -> str:
    """Return `text` as the value of a Kubernetes label: at most 63 characters, - for what a label does not allow."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", text)[:63].strip("-_.")


def _normalise(agent_id: str) -> str:
    return _OUTSIDE.sub("-", agent_id.lower()).strip("-")


def _find_problem(text: str) -> str:
    """Say why `text` cannot stand in a path; empty when it can."""
    if len(text) > MAX_ID_LENGTH:
        return f"{len(text)} characters, allowed are {MAX_ID_LENGTH}"
    if "/" in text or "\\" in text:
        return "has a slash"
    if ".." in text or text == ".":
        return "has the form of a path"
    if any(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") for character in text):
        return "has a control character"
    if _WILD_CARDS & set(text):
        return "has one of * ? [ ] { } #, which Cloud Storage's tools read as patterns"
    if _RESERVED.fullmatch(text):
        return "names that begin and end with two underscores are reserved"
    return ""


def _shorten(text: str) -> str:
    shown = ascii(text)
    return shown if len(shown) <= 70 else f"{shown[:60]}…{shown[-1]}"
