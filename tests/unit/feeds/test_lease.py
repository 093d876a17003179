from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dry_work.clock import ManualClock
from dry_work.errors import ConfigError, LeaseHeldError
from dry_work.feeds.lease import AgentLease, check_agent_id

HOLDER = """
import sys, time
from dry_work.feeds.lease import AgentLease
print(AgentLease(sys.argv[1], "a1").acquire().nonce, flush=True)
time.sleep(60)
"""


def test_the_nonce_is_the_same_after_a_restart(tmp_path: Path) -> None:
    with AgentLease(tmp_path, "a1") as first:
        nonce = first.nonce
    assert re.fullmatch(r"[0-9a-f]{32}", nonce)
    with AgentLease(tmp_path, "a1") as second:
        assert second.nonce == nonce
    with AgentLease(tmp_path, "a2") as other:
        assert other.nonce != nonce


def test_a_second_lease_names_the_holder(tmp_path: Path) -> None:
    with AgentLease(tmp_path, "a1", clock=ManualClock(1_700_000_000_000_000_000)):
        with pytest.raises(LeaseHeldError) as caught:
            AgentLease(tmp_path, "a1").acquire()
        text = str(caught.value)
        for fact in ("'a1'", str(os.getpid()), socket.gethostname(), "2023-11-14T22:13:20Z", str(tmp_path)):
            assert fact in text
        with AgentLease(tmp_path, "a2"):
            pass
    with AgentLease(tmp_path, "a1"):
        pass


def test_acquire_and_release_may_be_repeated(tmp_path: Path) -> None:
    lease = AgentLease(tmp_path, "a1")
    assert lease.acquire() is lease.acquire()
    lease.release()
    lease.release()
    lease.acquire()
    lease.release()


def test_a_killed_process_leaves_the_lease_free_and_its_nonce_known(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        nonce = holder.stdout.readline().strip()
        with pytest.raises(LeaseHeldError, match=f"process {holder.pid} on "):
            AgentLease(tmp_path, "a1").acquire()
        holder.send_signal(signal.SIGKILL)
        holder.wait(60)
        with AgentLease(tmp_path, "a1") as lease:
            assert lease.nonce == nonce
    finally:
        holder.kill()
        holder.communicate()


PARENT = """
import subprocess, sys
from dry_work.feeds.lease import AgentLease
AgentLease(sys.argv[1], "a1").acquire()
child = subprocess.Popen([sys.executable, "-c", "print(1, flush=True); input()"], stdin=0, close_fds=False)
child.wait()
"""


def test_a_child_process_does_not_keep_the_lease_of_a_killed_parent(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "1\n"  # the child runs
        parent.kill()
        parent.wait(60)
        with AgentLease(tmp_path, "a1"):
            pass
    finally:
        parent.kill()
        parent.communicate("\n")


@pytest.mark.parametrize("text", ["", "not a nonce", "é" * 32])
def test_a_damaged_nonce_is_made_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / "agent-a1.owner").write_text(text, encoding="utf-8")
    with AgentLease(tmp_path, "a1") as lease:
        nonce = lease.nonce
    with AgentLease(tmp_path, "a1") as lease:
        assert lease.nonce == nonce


def test_a_lock_without_readable_facts_is_still_refused(tmp_path: Path) -> None:
    with AgentLease(tmp_path, "a1"):
        (tmp_path / "agent-a1.lock").write_text("[]")
        with pytest.raises(LeaseHeldError, match="by another process"):
            AgentLease(tmp_path, "a1").acquire()


def test_a_state_directory_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(ConfigError, match=r"state directory .*state cannot be used .*--state-dir"):
        AgentLease(tmp_path / "state", "a1").acquire()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_state_directory_without_the_right_to_write_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ConfigError, match=r"cannot be used .*ermission"):
            AgentLease(tmp_path, "a1").acquire()
    finally:
        tmp_path.chmod(0o700)


def test_a_state_directory_that_cannot_be_made_is_an_error() -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        AgentLease("/proc/nowhere/state", "a1").acquire()


@pytest.mark.parametrize("agent_id", ["", "a/b", "../a", "-a", "a" * 64, "a b", "ä"])
def test_an_agent_id_that_cannot_name_a_file_is_refused(agent_id: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"AGENT_ID .* cannot be used; allowed are 1 to 63 letters"):
        AgentLease(tmp_path, agent_id)


def test_usual_agent_ids_are_allowed() -> None:
    assert [check_agent_id(name) for name in ("a", "sma-cross-1", "Team_7.b")] == ["a", "sma-cross-1", "Team_7.b"]
