"""A worker: it runs one trial of a study after the other, until none is left."""

from __future__ import annotations

import time
from collections.abc import Callable

from adapters_pl.inputs.errors import UserError, first_line
from adapters_pl.studies.folder import TrialFolder
from adapters_pl.studies.ledger import COMPLETE, FAILED, PRUNED, RUNNING, Claim, Ledger
from adapters_pl.studies.storage import HEARTBEAT
from adapters_pl.studies.table import described
from adapters_pl.studies.trial import Failed, Look, Pruned

#: Runs a trial's values in its directory and returns its accuracy; see :class:`adapters_pl.studies.trial.Commands`.
RunTrial = Callable[[dict[str, object], TrialFolder, Look], float]
#: Seconds until a worker with nothing to do looks again.
PATIENCE = 5.0


def work(
    ledger: Ledger,
    run_trial: RunTrial,
    show: Callable[[str], None] = print,
    wait: Callable[[], None] = lambda: time.sleep(PATIENCE),
) -> None:
    """Run trials until every one has ended, and take over those of workers that die meanwhile.

    Args:
        ledger: the open study.
        run_trial: runs one.
        show: is given a line for everything that happens.
        wait: is called where all that is left is run by others.
    """
    waiting: list[int] = []
    while True:
        claim = ledger.claim()
        if claim is not None:
            _run(ledger, claim, run_trial, show)
            continue
        others = [slot.number for slot in ledger.slots() if slot.state not in (COMPLETE, PRUNED, FAILED)]
        if not others:
            return
        if others != waiting:
            show(f"waiting for trials that others run: {', '.join(map(str, others))}")
            waiting = others
        wait()


def _run(ledger: Ledger, claim: Claim, run_trial: RunTrial, show: Callable[[str], None]) -> None:
    name = f"trial {claim.number} ({described(claim.values)})"
    show(f"{name}: {RUNNING}")
    try:
        accuracy = run_trial(claim.values, claim.folder, _look(ledger, claim))
    except Pruned:
        ledger.prune(claim)
        said = PRUNED
    except Failed as error:
        ledger.fail(claim, str(error))
        said = f"{FAILED}: {error}"
    except UserError as error:
        ledger.fail(claim, first_line(error))
        said = f"{FAILED}: {first_line(error)}"
    except Exception as error:  # of one trial; the others are none the worse for it
        ledger.fail(claim, f"{type(error).__name__}: {first_line(error)}")
        said = f"{FAILED}: {type(error).__name__}: {first_line(error)}"
    except BaseException:
        ledger.give_back(claim)
        raise
    else:
        ledger.finish(claim, accuracy)
        said = f"{COMPLETE}, {100 * accuracy:.1f} %"
    slots = ledger.slots()
    ended = sum(slot.state in (COMPLETE, PRUNED, FAILED) for slot in slots)
    show(f"{name}: {said}  [{ended} of {len(slots)}]")


def _look(ledger: Ledger, claim: Claim) -> Look:
    """What is done while a trial runs: tell that it lives, and ask the pruner."""
    beaten = time.monotonic()
    reported: set[int] = set()

    def look(measured: list[tuple[int, float]]) -> bool:
        nonlocal beaten
        if time.monotonic() - beaten >= HEARTBEAT:
            ledger.beat(claim)
            beaten = time.monotonic()
        if ledger.asked.pruner is None:
            return False
        for step, value in measured:
            if step not in reported:
                reported.add(step)
                claim.trial.report(value, step)
        return bool(measured) and claim.trial.should_prune()

    return look
