"""`decide`: from a snapshot and a time to everything that is to be done next, and why.

Pure: the same snapshot, time and rules give the same decision. Each step books what it chose on the board, so
that the next one counts on it.
"""

from __future__ import annotations

from caudal.domain.decision import Decision
from caudal.domain.snapshot import Snapshot
from caudal.policy.assign import assign
from caudal.policy.board import Board
from caudal.policy.capacity import Buyer, release_nodes
from caudal.policy.desired import desired
from caudal.policy.draining import keep_the_others
from caudal.policy.fencing import stop_strays, stop_unwanted
from caudal.policy.lifecycle import settle_runs, settle_states
from caudal.policy.placement import Placer
from caudal.policy.quarantine import release_strays
from caudal.policy.recovery import settle_gangs, settle_leases
from caudal.policy.rolling import replace_replicas
from caudal.policy.rules import Rules
from caudal.policy.unfit import release_unfit

DEFAULT_RULES = Rules()


def decide(snapshot: Snapshot, now: float, rules: Rules = DEFAULT_RULES) -> Decision:
    """What next. First what is no longer true, then what has to end, then what can begin, then what each
    workload's state is by that."""
    board = Board(snapshot, now, rules)
    settle_leases(board)
    settle_gangs(board)
    over = settle_runs(board)
    wanted = desired(board, over)
    dirty_sites, dirty_leases = stop_strays(board)
    stop_unwanted(board, wanted, over)
    if rules.closing:
        release_nodes(board)
        release_strays(board)
        return Decision(snapshot.version, now, board.ordered(), tuple(board.waiting))
    buyer = Buyer(board)
    buyer.own_machines()
    placer = Placer(board, dirty_sites, dirty_leases)
    homeless = assign(board, wanted, placer, buyer)
    replace_replicas(board, wanted, homeless)
    keep_the_others(board)
    release_unfit(board)
    release_nodes(board)
    release_strays(board)
    settle_states(board, wanted, over)
    return Decision(snapshot.version, now, board.ordered(), tuple(board.waiting))
