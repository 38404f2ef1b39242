"""What `edge-agent status`, `why`, `bench` and `doctor` print, in 80 columns or more."""

from collections.abc import Iterable
from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from agent.core.candidate import Evidence, Failure
from agent.daemon.state import Measured, SlotState, State

STALE_S = 10.0  # the daemon writes its state every second
WHAT = 18  # characters: the longest thing that the doctor looks at
GOOD, BAD, DIM = "green", "red", "dim"


def status(state: State, now: datetime) -> RenderableType:
    """The device and its slots."""
    age = (now - state.at).total_seconds()
    lines = [headline(state, age)]
    lines += [Text(f"! {what}", style=BAD) for what in troubles(state)]
    if not state.slots:
        return Group(*lines, Text("no slot is deployed yet", style=DIM))
    return Group(*lines, slots(state))


def headline(state: State, age: float) -> Text:
    """Who it is, and whether the agent lives."""
    text = Text(f"{state.device} (group {state.group}), agent {state.agent}", style="bold")
    if age > STALE_S:
        text.append(f"  not running: this is what it said {ago(age)} ago", style=BAD)
    synced = state.store.last_sync
    store = f"synced {ago((state.at - synced).total_seconds())} ago" if synced else "never synced"
    broker = "connected" if state.broker.connected else "not connected" if state.broker.configured else "none"
    runner = f"pid {state.runner.pid}" if state.runner.connected else "not connected"
    text.append(
        f"\nstore {store} · broker {broker} · runner {runner} · disk {state.disk_free_mb / 1000:.1f} GB free", style=DIM
    )
    return text


def troubles(state: State) -> Iterable[str]:
    """What somebody should look at."""
    if state.store.error:
        seen = f"not seen whole since {at:%Y-%m-%d %H:%M} UTC" if (at := state.store.last_sync) else "never seen whole"
        yield f"store: {state.store.error} ({seen})"
    yield from state.store.expiring
    if state.broker.configured and not state.broker.connected and state.broker.error:
        yield f"broker: {state.broker.error}"
    if not state.runner.connected and state.runner.error:
        yield f"runner: {state.runner.error}"
    if state.ledger:
        yield f"ledger: {state.ledger}"
    if state.refused:
        yield f"refused: {state.refused}"


def slots(state: State) -> Table:
    """Two rows for each slot: what serves, and how."""
    table = Table(box=None, pad_edge=False, header_style=DIM)
    for name in ("slot", "serves", "on", "state"):
        table.add_column(name, overflow="fold")
    for slot in state.slots.values():
        name = slot.serving.removeprefix(f"{slot.slot}_")  # begins with its task, which is the slot
        word = Text("confirmed", style=GOOD) if slot.confirmed else Text("soaking", style="yellow")
        serves = (name, slot.candidate, word) if name else (Text("nothing", style=BAD),)
        table.add_row(slot.slot, *serves)
        table.add_row("", Text(figures(slot), style=DIM))
        table.add_row("", Text(doing(slot), style=DIM))
    return table


def figures(slot: SlotState) -> str:
    """How it serves."""
    counters, latency = slot.counters, slot.counters.latency_ms
    parts = [f"{counters.requests} requests", f"{counters.errors} errors", f"{counters.offered_fps:.1f} FPS now"]
    if counters.busy_s:
        parts.append(f"capacity {counters.requests / counters.busy_s:.0f} FPS")
    if latency is not None:
        parts.append(f"p50 {latency.p50:.1f} ms, p99 {latency.p99:.1f} ms")
    return ", ".join(parts)


def doing(slot: SlotState) -> str:
    """What the slot works on, and what hinders it."""
    settled = slot.step == "settled" and slot.record.override_verb
    step = f"{slot.record.override_verb} holds" if settled else slot.step
    progress = f" {slot.fetched / slot.fetch_size:.0%} of {slot.fetch_size / 1e6:.1f} MB" if slot.fetch_size else ""
    reason = f": {slot.reason}" if slot.reason else ""
    return f"{step}{progress}{reason}"


def is_wanted(slot: SlotState) -> bool:
    """Whether what serves is what is wanted."""
    desired = slot.record.desired
    return desired is None or (desired.name, desired.digest) == (slot.serving, slot.digest)


def has_ended(slot: SlotState) -> bool:
    """Whether what is wanted serves, or was rejected."""
    return is_wanted(slot) or any(one.ref == slot.record.desired for one in slot.rejections)


def why(state: State, names: Iterable[str]) -> RenderableType:
    """The evidence behind what serves, what was rejected and why, and the newest events."""
    parts: list[RenderableType] = [Text(f"! {what}", style=BAD) for what in troubles(state)]
    for name in names:
        slot = state.slots[name]
        parts += [Text(reason_of(slot)), evidence_tables(slot), Text(proof_of(slot), style=DIM)]
        parts += [
            Text(f"rejected {one.ref.name} ({one.failure.kind}): {one.failure.reason}", style=BAD)
            for one in slot.rejections
        ]
    events = Table.grid(padding=(0, 1))
    for one in [one for one in state.events if one.slot in {*names, ""}][-12:]:
        words = " ".join(filter(None, (one.release, one.candidate, one.outcome, one.reason)))
        events.add_row(f"{one.at:%H:%M:%S}", one.kind, Text(words, overflow="fold"), style=DIM)
    return Group(*parts, events)


def reason_of(slot: SlotState) -> str:
    """Why the slot serves what it serves, in a sentence or two."""
    record = slot.record
    by = f"by {record.override_verb} (command {record.override_by})" if record.override_verb else "by deployment"
    wanted = record.desired.name if record.desired else "nothing"
    serves = f"serves {slot.serving} on {slot.candidate}" if slot.serving else "serves nothing"
    held = "confirmed" if slot.confirmed else "in its soak"
    also = f"; last good is {record.last_good.ref.name}" if record.last_good and not slot.confirmed else ""
    return (
        f"{slot.slot} {serves}{f', {held}' if slot.serving else ''}{also}. Wanted: {wanted}, {by}. Now: {doing(slot)}"
    )


def proof_of(slot: SlotState) -> str:
    """When and how what serves was measured, and what it was held against."""
    trials = [one for one in slot.trials if one.place.ref.digest == slot.digest]
    evidence = next((one.evidence for one in trials if str(one.place.candidate) == slot.candidate), None)
    if evidence is None:
        return "no evidence of what serves is kept here" if slot.serving else ""
    off = ", ".join(f"{one.output} {one.max_abs:.2g}" for one in evidence.deviations)
    conditions = {
        key: value if isinstance(value, str) else f"{value:.4g}" for key, value in evidence.conditions.items()
    }
    state = ", ".join(f"{key} {value}" for key, value in sorted(conditions.items()))
    return (
        f"what serves was measured at {evidence.taken} on {', '.join(evidence.providers)}; "
        f"loaded in {evidence.load_s:.2f} s; off its golden samples by {off}; {state}"
        + "".join(f"; {one.place.candidate} was {one.beside}" for one in trials if one.beside is not None)
    )


def evidence_tables(slot: SlotState) -> RenderableType:
    """What was measured of each candidate, release by release."""
    tables: dict[str, Table] = {}
    for one in sorted(slot.trials, key=lambda one: (one.place.ref.name, -speed_of(one.evidence))):
        serves = (one.place.ref.digest, str(one.place.candidate)) == (slot.digest, slot.candidate)
        table = tables.setdefault(one.place.ref.name, figures_table())
        add_figures(table, f"{'>' if serves else ' '} {one.place.candidate}", one.evidence, one.failure)
    return Group(*(part for name, table in tables.items() for part in (Text(name), table)))


def speed_of(evidence: Evidence | None) -> float:
    """FPS that was measured, 0 when none was."""
    return evidence.fps if evidence is not None else 0.0


def bench(where: str, measured: Iterable[Measured]) -> RenderableType:
    """The release, and a row for each candidate, fastest first."""
    table, rows = figures_table(), sorted(measured, key=lambda one: -speed_of(one.evidence))
    for one in rows:
        add_figures(table, f"  {one.candidate}", one.evidence, one.failure)
    return Group(Text(f"{rows[0].release if rows else 'nothing'} on {where}"), table)


def figures_table() -> Table:
    """The columns of measured figures."""
    table = Table(box=None, pad_edge=False, header_style=DIM)
    table.add_column("candidate", overflow="fold")
    for name in ("FPS", "p50", "p99 ms", "MB"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold", ratio=1)
    return table


def add_figures(table: Table, name: str, evidence: Evidence | None, failure: Failure | None) -> None:
    """One row of measured figures."""
    verdict = Text(f"{failure.kind}: {failure.reason}", style=BAD) if failure else Text("passed", style=GOOD)
    latency = evidence.latency_ms if evidence is not None else None
    if evidence is None or latency is None:
        table.add_row(name, "", "", "", "", verdict)
        return
    if failure is None:
        worst = max((one.max_abs for one in evidence.deviations), default=0.0)
        verdict.append(f", {worst:.2g} off golden", style=DIM)
    figures = (evidence.fps, latency.p50, latency.p99, evidence.memory_mb)
    table.add_row(name, *(f"{figure:.1f}" for figure in figures), verdict)


def finding(mark: str, what: str, says: str) -> Table:
    """One line of the doctor's; what does not fit goes on below its beginning."""
    table = Table.grid(padding=(0, 1))
    table.add_column(width=1)
    table.add_column(width=WHAT)
    table.add_row(mark, what, Text(says, overflow="fold"))
    return table


def ago(seconds: float) -> str:
    """A time span for people."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
