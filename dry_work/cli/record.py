"""`dry-work record`: record market data from Pub/Sub into a log and a catalog."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dry_work.errors import ConfigError

if TYPE_CHECKING:
    from dry_work.recording.session import RecordSettings

DEFAULT_OUT = "recordings"


@click.command("record")
@click.option(
    "--symbols", type=click.Path(), metavar="FILE", help="Symbols to record, one a line. Default: ./symbols.txt."
)
@click.option(
    "--out",
    metavar="DIR|gs://…",
    help=f"The catalog: Parquet files by symbol and day. Default: ./{DEFAULT_OUT}.",
)
@click.option("--for", "duration", metavar="TIME", help="Stop after this time, for example 90s, 30m, 1h, 1d.")
@click.option("--state-dir", type=click.Path(), metavar="DIR", help="Where log and lease are. Default: ./.dry-work.")
@click.option("--take-over", is_flag=True, help="Take a subscription that another state directory left behind.")
@click.option("--plain", is_flag=True, help="Print lines instead of the live view that a terminal gets.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
def command(as_json: bool, plain: bool, **options: Any) -> int:
    """Record market data from Pub/Sub, without trading.

    Each message is written as it was received, with venue and receive time, to a log with checksums in the state
    directory. When the recorder stops, and when it is started again after it was killed, the bars in it become a
    catalog that `--data` reads. Topics and project come from the same variables as for `dry-work run`; no account is
    needed.

    \b
    Examples:
      dry-work record
      dry-work record --symbols symbols.txt --out gs://my-bucket/market --for 1d
      dry-work data recordings
    """
    from dry_work.cli.signals import stop_signals

    # Before there is anything to stop in order, and after it, a signal ends the program with its exit code.
    with stop_signals(sys.exit):
        return _record(options, as_json=as_json, plain=plain)


def _record(options: Mapping[str, Any], *, as_json: bool, plain: bool) -> int:
    from dry_work.settings import read_environment, read_toml

    folder = Path.cwd()
    environment = read_environment(folder)
    settings = build_settings(options, read_toml(folder / "dry-work.toml"), environment)

    from dry_work.cli.record_view import RecordView
    from dry_work.cli.signals import EXIT_DONE, EXIT_FAILED, stop_signals
    from dry_work.observability.logging import set_up_logging
    from dry_work.recording.session import RecordingSession

    set_up_logging(environment.get("LOG_LEVEL"))
    codes: list[int] = []
    view: RecordView | None = None
    if plain or not RecordView.can_draw(sys.stdout):
        session = RecordingSession(settings, tell=click.echo)
    else:
        view = RecordView(sys.stdout)
        session = RecordingSession(settings, tell=view.tell, show=view.show, show_s=1.0)

    def on_stop(code: int) -> None:
        if codes:
            raise KeyboardInterrupt  # the second word does not wait; the log is whole, the next start goes on
        codes.append(code)
        session.stop()

    with stop_signals(on_stop), view or contextlib.nullcontext():
        result = session.run()
    if codes:
        click.echo("stopped" + ("" if codes[0] == EXIT_DONE else " by Ctrl-C"))
    place = "" if result.folder is None else f" in {result.folder}"
    click.echo(f"{result.messages:,} messages recorded{place}")
    for sentence in [] if result.compaction is None else result.compaction.describe()[1:]:
        click.echo(sentence)
    if result.failure:
        click.echo(f"dry-work: {result.failure}", err=True)
    if as_json:
        click.echo(json.dumps(result.to_json(), allow_nan=False))
    if result.failure:
        return EXIT_FAILED
    return codes[0] if codes else EXIT_DONE


def build_settings(
    options: Mapping[str, Any], toml: Mapping[str, Any], environment: Mapping[str, str]
) -> RecordSettings:
    """Return the settings of a recorder. An option wins over the environment, the environment over `dry-work.toml`.

    Raises:
        ConfigError: naming the setting, its value and what is allowed.
    """
    from dry_work import settings as s
    from dry_work.market.symbols import read_symbols
    from dry_work.recording.session import RecordSettings

    project = s.read_variable(environment, "GOOGLE_CLOUD_PROJECT")
    if not project:
        raise ConfigError("no Google Cloud project: set GOOGLE_CLOUD_PROJECT")
    agent_id = s.read_variable(environment, "AGENT_ID") or str(toml.get("agent_id", ""))
    state_dir, _ = s.choose_state_dir(options.get("state_dir") or toml.get("state_dir"), agent_id=agent_id)
    duration = options.get("duration")
    return RecordSettings(
        symbols=tuple(read_symbols(Path(options.get("symbols") or toml.get("symbols") or s.DEFAULT_SYMBOLS))),
        project=project,
        market_topic=s.read_variable(environment, "MARKET_DATA_TOPIC") or s.MARKET_TOPIC,
        crypto_topic=s.read_variable(environment, "CRYPTO_DATA_TOPIC") or s.CRYPTO_TOPIC,
        endpoint=s.read_variable(environment, "PUBSUB_EMULATOR_HOST") or None,
        state_dir=state_dir,
        out=str(options.get("out") or DEFAULT_OUT),
        agent_id=s.parse_agent_id(agent_id) if agent_id else "",
        take_over=bool(options.get("take_over")),
        duration_ns=None if duration is None else s.parse_timeframe(duration, option="--for").length_ns,
    )
