"""The life of a deployed agent on this machine, command by command: `python -m dry_work.cli.deploy_demo`.

Deploys the bundled SMA crossover to the local target, lets it trade on the simulated exchange, deploys a change, rolls
it back and stops it, in a folder of its own that is removed at the end.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DEADLINE_S = 180.0
SYMBOLS = "SPY\nBAC\nBTC/USD\n"


class Demo:
    """Runs commands and prints them as one would type them.

    Args:
        folder: where the local target of the demonstration is.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        symbols = folder / "symbols.txt"
        symbols.write_text(SYMBOLS, encoding="utf-8")
        found = importlib.util.find_spec("agents")
        assert found is not None
        assert found.submodule_search_locations
        self._agent = str(Path(next(iter(found.submodule_search_locations))) / "sma_cross.py")
        self._symbols = ("--symbols", str(symbols))
        # A service or a state directory of the user's has no part in this.
        ours = ("ALPACA", "DRY_WORK_", "AGENT_ID", "PUBSUB", "GOOGLE_CLOUD")
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}

    def run(self) -> None:
        """Run it; raises when a command fails."""
        deploy = ("deploy", self._agent, "--target", "local", *self._symbols)
        self._say("Deploy: the same zip, service and HTTP call as for a cluster")
        self._call(*deploy, "--speed", "600", "-p", "fast_period=5", "-p", "slow_period=12")
        self._say("It trades on the simulated exchange")
        self._wait_for_fills(3)
        self._call("status", "sma-cross")
        self._say("Deploy a change: what it would do, then do it. Journal, positions and account stay")
        change = (*deploy, "-p", "fast_period=4", "-p", "slow_period=12")
        self._call(*change, "--plan")
        self._call(*change)
        self._call("status", "sma-cross")
        self._say("Roll it back")
        self._call("rollback", "sma-cross")
        self._call("logs", "sma-cross", "--limit", "5")
        self._say("Stop it")
        self._call("stop", "sma-cross")
        self._call("status", "sma-cross", "--no-venue")

    def close(self) -> None:
        """End all that runs."""
        self._say("End the local service, its exchange and all that it has kept")
        self._call("stop", "--service", "--delete-state")

    def _wait_for_fills(self, count: int) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            done = self._run("status", "sma-cross", "--json", "--no-venue")
            found = json.loads(done.stdout or "{}")
            if len(found.get("last_fills") or ()) >= count:
                return
            time.sleep(0.5)
        raise TimeoutError("the agent has not traded")

    def _call(self, *words: str) -> None:
        shown = [word for word in words if word not in self._symbols]
        sys.stdout.write(f"$ dry-work {shlex.join(shown).replace(self._agent, 'agents/sma_cross.py')}\n")
        done = self._run(*words)
        sys.stdout.write("".join(f"  {line}\n" for line in (done.stdout + done.stderr).splitlines()) + "\n")
        sys.stdout.flush()
        if done.returncode != 0:
            raise RuntimeError(f"dry-work {words[0]} ended with {done.returncode}")

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # noqa: S603 - words of this file
            [sys.executable, "-P", "-m", "dry_work", *words, "--dir", str(self._folder / "deploy")],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    @staticmethod
    def _say(text: str) -> None:
        sys.stdout.write(f"── {text}\n\n")
        sys.stdout.flush()


def main() -> None:
    """Run the demonstration."""
    with tempfile.TemporaryDirectory(prefix="dry-work-demo-") as folder:
        demo = Demo(Path(folder))
        try:
            demo.run()
        finally:
            demo.close()


if __name__ == "__main__":
    main()
