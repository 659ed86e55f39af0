"""Snakemake logger with one live line in a terminal, or a line every half minute elsewhere.

Details of the jobs are in Snakemake's own log, which this logger does not change. Errors, warnings and dry runs are
printed as Snakemake prints them, and the failed jobs with their logs once more at the end. Only the message about a
file of `--configfile` that cannot be read is replaced by one that names the file and the line.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from logging import INFO, WARNING, LogRecord

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from snakemake.logging import DefaultFilter, DefaultFormatter
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from snakemake_logger_plugin_live.configfiles import explain
from snakemake_logger_plugin_live.estimate import Jobs

# Seconds between two lines outside a terminal.
INTERVAL = 30
# Messages about the normal course of a run, which have no event.
USUAL = (
    "Assuming unrestricted shared filesystem",
    "Building DAG of jobs",
    "Conda environments: ignored",
    "Execute ",
    "Provided cores",
    "Removing temporary output ",
    "Rules claiming more threads",
    "Select jobs to execute",
    "Using shell",
    "Using workflow specific profile",
    "host: ",
)


class LogHandler(LogHandlerBase):
    """Handler of Snakemake's log records."""

    writes_to_stream = True
    writes_to_file = False
    has_filter = True
    has_formatter = True
    needs_rulegraph = False

    def __post_init__(self) -> None:
        """Create the console, without output."""
        common = self.common_settings
        self._console = Console(stderr=not common.stdout, no_color=common.nocolor or None, highlight=False)
        self.addFilter(
            DefaultFilter(common.quiet, common.debug_dag, common.verbose, common.dryrun, common.printshellcmds)
        )
        self.setFormatter(DefaultFormatter(common.quiet, common.show_failed_logs))
        self._jobs = Jobs()
        self._logs: dict[int, str] = {}
        self._failed: dict[int, str] = {}
        self._live: Live | None = None
        self._ended = threading.Event()

    def emit(self, record: LogRecord) -> None:
        """Count a job, or print a message."""
        try:
            event = getattr(record, "event", None)
            if self.common_settings.dryrun or not self._count(event, record):
                self._print(event, record)
        except Exception:  # noqa: BLE001 - as in the handlers of the standard library
            self.handleError(record)

    def _count(self, event: str | None, record: LogRecord) -> bool:
        """Return whether the record is of the normal course of a run, which the view shows."""
        now = time.monotonic()
        if event == LogEvent.RUN_INFO:
            self._jobs.totals = Counter({rule: count for rule, count in record.stats.items() if rule != "total"})
            self._jobs.began = now
            self._begin()
        elif event == LogEvent.JOB_INFO:
            self._jobs.start(record.jobid, record.rule_name, now)
            self._logs[record.jobid] = f"{record.rule_name}: {' '.join(map(str, record.log)) or 'no log'}"
        elif event == LogEvent.JOB_FINISHED:
            self._jobs.finish(record.job_id, now)
            self._failed.pop(record.job_id, None)
        elif event == LogEvent.JOB_ERROR:
            self._jobs.drop(record.jobid)
            self._failed[record.jobid] = self._logs.get(record.jobid, record.getMessage())
            return False
        elif event is None:
            return record.levelno <= INFO and record.getMessage().startswith(USUAL)
        return record.levelno < WARNING and event != LogEvent.ERROR

    def _print(self, event: str | None, record: LogRecord) -> None:
        text = self.format(record)
        if event == LogEvent.ERROR:
            text = explain(text) or text
        if text and text != "None":
            style = "red" if record.levelno > WARNING else "yellow" if record.levelno == WARNING else ""
            self._console.print(Text(text, style=style), soft_wrap=True)

    def _begin(self) -> None:
        if self._live is not None or self._ended.is_set():
            return
        self._live = Live(get_renderable=self._view, console=self._console, refresh_per_second=2, transient=True)
        if self._console.is_terminal:
            self._live.start()
        else:
            threading.Thread(target=self._report, daemon=True).start()

    def _report(self) -> None:
        while not self._ended.wait(INTERVAL):
            self._console.print(Text("  ".join(self._parts())), soft_wrap=True)

    def _parts(self) -> tuple[str, str, str, str]:
        """Return the number of jobs, the elapsed time, the estimate, and the running rules."""
        jobs, now = self._jobs, time.monotonic()
        left = jobs.seconds_left(now)
        # A copy, because another thread changes it.
        rules = Counter(rule for rule, _ in list(jobs.running.values()))
        return (
            f"{jobs.done} of {jobs.totals.total()} jobs",
            f"{_clock(now - jobs.began)} elapsed",
            "" if left is None else f"about {_clock(left)} left",
            ", ".join(f"{count} {rule}" if count > 1 else rule for rule, count in rules.items()),
        )

    def _view(self) -> Table:
        count, elapsed, left, running = self._parts()
        view = Table.grid(padding=(0, 2))
        for _ in range(4):
            view.add_column(no_wrap=True)
        view.add_column(no_wrap=True, overflow="ellipsis")
        bar = ProgressBar(max(1, self._jobs.totals.total()), self._jobs.done, width=24)
        view.add_row(count, bar, elapsed, left, running)
        return view

    def close(self) -> None:
        """End the view and list the failed jobs; Snakemake calls it more than once."""
        if self._live is not None and not self._ended.is_set():
            self._ended.set()
            self._live.stop()
            count, elapsed, *_ = self._parts()
            self._console.print(f"{count}, {elapsed}", markup=False)
            for failed in self._failed.values():
                self._console.print(Text(f"failed: {failed}", style="red"), soft_wrap=True)
        super().close()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
