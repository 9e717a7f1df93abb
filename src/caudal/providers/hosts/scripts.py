"""What is run on a host, as POSIX shell, and how its answers are read. Pure.

Everything lies below `~/.caudal` of the user that we log in as: `claim.json` (whose the machine is), and for what was
started there `nodes/MARK/` with `bootstrap.sh`, `log`, `state` (the exit code; 0 also once the node is ready) and `failed`
(why). The mark is in the environment of all that we start, so that nothing else is ever signalled: a pid in a file
would be a stranger's after a reboot. Linux only (/proc). Nothing of a claim is on a command line.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from caudal.domain.errors import Failed

MAX_TEXT = 400
MARK_LETTERS = 16


@dataclass(frozen=True, slots=True)
class Claim:
    """Whose a host is. `mark` is made from the lease; `boots`: a bootstrap runs before it is a node."""

    fleet: str
    lease: str
    token: str
    host: str
    site: str
    mark: str
    boots: bool = False

    def line(self) -> str:
        """The claim as its file holds it."""
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a host said: its claim, and how far the bootstrap is. `code` None: it runs, or never began."""

    claim: Claim | None
    code: int | None = None
    why: str = ""


def mark_of(fleet: str, host: str, lease: str) -> str:
    """What marks the processes of a lease on a host."""
    return hashlib.sha256(f"{fleet}\n{host}\n{lease}".encode()).hexdigest()[:MARK_LETTERS]


LOOK = r"""
d="$HOME/.caudal"
if [ -e "$d/claim.json" ]; then printf 'claim '; head -c 4096 "$d/claim.json" || exit 8; echo; fi
for s in "$d"/nodes/*/state; do
  [ -f "$s" ] || continue
  n=$(dirname "$s")
  w=""
  [ "$(cat "$s")" = 0 ] || w=$(tail -n 1 "$n/failed" 2>/dev/null || tail -n 1 "$n/log" 2>/dev/null)
  printf 'state %s %s %s\n' "$(basename "$n")" "$(cat "$s")" "$(printf %s "$w" | head -c 300)"
done
echo end
"""
"""Read-only. The `end` tells a whole answer from one that was cut off."""

TAKE = r"""
set -eu
umask 077
d="$HOME/.caudal"
IFS= read -r claim
IFS= read -r last
[ "$last" = end ] || { echo "the claim was cut off" >&2; exit 9; }
mkdir -p "$d"
t="$d/claim.$$.new"
trap 'rm -f "$t"' EXIT
printf '%s\n' "$claim" > "$t"
ln "$t" "$d/claim.json" 2>/dev/null || [ -e "$d/claim.json" ]
printf 'claim '; head -c 4096 "$d/claim.json"; echo; echo end
"""
"""Create if absent: a hard link is made whole or not at all, and fails where the name is there. Claim on stdin."""


def boot(mark: str) -> str:
    """Start the bootstrap that comes on stdin, once: not where it has ended or still runs."""
    return rf"""
set -eu
umask 077
n="$HOME/.caudal/nodes/{mark}"
mkdir -p "$n"
cat > "$n/given"
[ "$(tail -n 1 "$n/given")" = "# end" ] || {{ echo "the bootstrap was cut off" >&2; exit 9; }}
if [ -e "$n/state" ] || grep -lzxs "CAUDAL_NODE={mark}" /proc/[0-9]*/environ >/dev/null 2>&1; then echo end; exit 0; fi
mv "$n/given" "$n/bootstrap.sh"
export CAUDAL_NODE={mark} CAUDAL_NODE_DIR="$n"
setsid sh -c 'sh "$CAUDAL_NODE_DIR/bootstrap.sh" > "$CAUDAL_NODE_DIR/log" 2>&1; c=$?
echo $c > "$CAUDAL_NODE_DIR/state.new"; mv "$CAUDAL_NODE_DIR/state.new" "$CAUDAL_NODE_DIR/state"' \
  < /dev/null > /dev/null 2>&1 &
echo end
"""


def leave(mark: str, grace_s: int) -> str:
    """End everything with the mark, then take the claim off if it is still this lease's. Repeating it is fine."""
    return rf"""
set -u
d="$HOME/.caudal"
ours() {{ grep -lzxs "CAUDAL_NODE={mark}" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3; }}
p=$(ours)
[ -z "$p" ] || kill -TERM $p 2>/dev/null
i=0
while p=$(ours); [ -n "$p" ]; do
  i=$((i + 1))
  [ $i -le {grace_s * 5} ] || kill -KILL $p 2>/dev/null
  [ $i -le {grace_s * 5 + 25} ] || {{ echo "these do not end: $p" >&2; exit 7; }}
  sleep 0.2
done
rm -rf "$d/nodes/{mark}"
if grep -qsF '"mark": "{mark}"' "$d/claim.json"; then rm -f "$d/claim.json" || exit 8; fi
echo end
"""


HEALTH = r"""
echo "now $(date +%s)"
echo "cpus $(nproc)"
echo "load $(cut -d' ' -f1 /proc/loadavg)"
echo "memory $(awk '/MemTotal/ {t=$2} /MemAvailable/ {a=$2} END {print t*1024, a*1024}' /proc/meminfo)"
echo "disk $(df -Pk "$HOME" | awk 'NR==2 {print $2*1024, $4*1024}')"
if command -v nvidia-smi >/dev/null 2>&1; then
  timeout 8 nvidia-smi --query-gpu=name,memory.total --format=csv,noheader,nounits 2>&1 | sed 's/^/gpu /'
fi
if command -v neuron-ls >/dev/null 2>&1; then
  printf 'neuron '; timeout 8 neuron-ls --json-output 2>/dev/null | tr -d '\n'; echo
fi
echo end
"""


@dataclass(frozen=True, slots=True)
class Health:
    """A host at one moment. Bytes; `at` is its own clock; `gpus` and `neuron_cores` None: no tool says."""

    at: float
    cpus: int
    load: float
    memory_bytes: int
    memory_free_bytes: int
    disk_bytes: int
    disk_free_bytes: int
    gpus: tuple[str, ...] | None = None
    neuron_cores: int | None = None


def lines_of(answer: str, where: str) -> list[str]:
    """The lines of a whole answer. Raises Failed where it was cut off."""
    lines = answer.splitlines()
    if not lines or lines[-1] != "end":
        raise Failed("a host's answer is cut off", where=where, why=answer[-MAX_TEXT:])
    return lines[:-1]


def read_seen(answer: str, where: str) -> Seen:
    """What LOOK or TAKE said. Raises Failed where it cannot be read."""
    claim: Claim | None = None
    states: dict[str, tuple[int, str]] = {}
    for line in lines_of(answer, where):
        word, _, rest = line.partition(" ")
        if word == "claim":
            claim = read_claim(rest, where)
        elif word == "state":
            mark, ended, why = (*rest.split(" ", 2), "", "")[:3]
            states[mark] = (int(ended) if ended.isdigit() else 1, why.strip()[:MAX_TEXT])
    if claim is None or claim.mark not in states:
        return Seen(claim)
    return Seen(claim, *states[claim.mark])


def read_claim(text: str, where: str) -> Claim:
    """A claim from its file. Raises Failed where it is none: then nobody knows whose the machine is."""
    try:
        row = json.loads(text)
        names = ("fleet", "lease", "token", "host", "site", "mark")
        if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in names):
            raise ValueError("it does not say whose")
        fleet, lease, token, host, site, mark = (row[name][:MAX_TEXT] for name in names)
        return Claim(fleet, lease, token, host, site, mark, row.get("boots") is True)
    except ValueError as error:
        raise Failed(
            "a claim cannot be read",
            where=f"{where}:~/.caudal/claim.json",
            why=str(error),
            remedy="see what runs there; where nothing of Caudal does, delete the file",
        ) from error


def read_health(answer: str, where: str) -> Health:
    """What HEALTH said. Raises Failed where it cannot be read."""
    said: dict[str, list[str]] = {}
    for line in lines_of(answer, where):
        word, _, rest = line.partition(" ")
        said.setdefault(word, []).append(rest.strip())
    try:
        memory, memory_free = (int(float(x)) for x in said["memory"][0].split())
        disk, disk_free = (int(float(x)) for x in said["disk"][0].split())
        return Health(
            float(said["now"][0]),
            int(said["cpus"][0]),
            float(said["load"][0]),
            memory,
            memory_free,
            disk,
            disk_free,
            gpus=tuple(said["gpu"]) if "gpu" in said else None,
            neuron_cores=_neuron_cores(said["neuron"][0]) if "neuron" in said else None,
        )
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise Failed("a host's health cannot be read", where=where, why=repr(error)) from error


def _neuron_cores(text: str) -> int | None:
    """The sum of `nc_count` of neuron-ls's rows (AWS Neuron documentation, neuron-ls, read 2026-11)."""
    try:
        return sum(int(row["nc_count"]) for row in json.loads(text))
    except (ValueError, KeyError, TypeError):
        return None
