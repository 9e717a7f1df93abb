"""What holds for every load: who is never chosen, where prefixes stay, how many second requests there are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from caudal.policy.affinity import prefer, seed_of
from caudal.policy.breaker import BACK_OFF_MAX_S, BACK_OFF_S, Breaker
from caudal.policy.hedging import MIN_SAMPLES, Hedger, HedgeRules
from caudal.policy.routing import Ask, Pool, ReplicaLoad, choose, choose_replica
from caudal.policy.speeds import Speed

NOW = 100.0


@st.composite
def replica_loads(draw: st.DrawFn) -> ReplicaLoad:
    made = ReplicaLoad(
        draw(st.text("abcdef", min_size=1, max_size=3)),
        draw(st.sampled_from(["north", "south"])),
        draw(st.integers(1, 2)),
        draw(st.sampled_from([0, 1, 4])),
    )
    made.requests = draw(st.integers(0, 6))
    made.tokens = draw(st.integers(0, 5000))
    made.others_tokens = float(draw(st.integers(0, 2000)))
    made.others_at = NOW - draw(st.floats(0, 20))
    made.tokens_per_s = draw(st.sampled_from([0.0, 20.0, 500.0]))
    made.draining = draw(st.integers(0, 5)) == 0
    for at in draw(st.lists(st.floats(90, NOW), max_size=3)):
        made.breaker.failed(at, made.breaker.begin(at), hard=draw(st.booleans()))
    if draw(st.booleans()):
        made.breaker.begin(NOW)
    return made


asks = st.builds(
    Ask,
    tokens=st.integers(1, 5000),
    prompt_tokens=st.integers(0, 5000),
    prefix=st.none() | st.integers(0, 2**32 - 1),
    share=st.floats(0, 1, exclude_max=True),
    salt=st.integers(0, 1000),
)
fleets = st.lists(replica_loads(), max_size=8, unique_by=lambda r: r.gang)


@given(fleets, asks)
def test_only_one_that_may_be_asked_is_chosen_and_one_is_where_there_is_one(
    replicas: list[ReplicaLoad], ask: Ask
) -> None:
    allowed = {
        r.gang
        for r in replicas
        if not r.draining
        and r.requests < r.bound
        and r.breaker.admits(NOW)
        and r.breaker.state(NOW) != "open"
    }
    plain = choose_replica(replicas, ask, site="north", now=NOW)
    weighted = choose(Pool.of(replicas, [(1, 0.5), (2, 0.5)]), ask, site="north", now=NOW)
    for route in (plain, weighted):
        assert (route.gang in allowed) if allowed else route.gang is None
    assert choose_replica(replicas[::-1], ask, site="north", now=NOW).gang == plain.gang


@given(st.sets(st.text("abcdef0123", min_size=1, max_size=8), min_size=2, max_size=12), st.data())
def test_when_a_replica_leaves_only_its_own_prefixes_move(gangs: set[str], data: st.DataObject) -> None:
    names = sorted(gangs)
    lost = data.draw(st.sampled_from(names))
    left = [n for n in names if n != lost]
    for key in range(300):
        before = names[prefer(key, [seed_of(n) for n in names])]
        after = left[prefer(key, [seed_of(n) for n in left])]
        assert before in (after, lost)


def test_prefixes_are_spread_evenly() -> None:
    seeds = [seed_of(f"assistant.replica.m.{i}-1") for i in range(8)]
    got = [prefer(key * 7919, seeds) for key in range(8000)]
    assert all(800 <= got.count(i) <= 1200 for i in range(8))


@given(st.integers(2, 6), st.integers(0, 2**32 - 1), st.integers(300, 4000))
def test_one_hot_prefix_loads_no_replica_without_end(replicas: int, prefix: int, prompt: int) -> None:
    """Its own replica takes more than the others by what is saved there, and by no more."""
    loads = [ReplicaLoad(f"r{i}", "north") for i in range(replicas)]
    tokens = prompt + 100
    for number in range(20 * replicas):
        chosen = choose_replica(loads, Ask(tokens, prompt, prefix, salt=number), site="north", now=NOW)
        assert chosen.replica is not None
        chosen.replica.tokens += tokens
        chosen.replica.requests += 1
    least, most = min(r.tokens for r in loads), max(r.tokens for r in loads)
    saved_tokens = prompt / 1000.0 * 100.0  # at the speeds that are assumed
    assert most - least <= saved_tokens + 2 * tokens


@given(st.lists(st.tuples(st.floats(0.0, 5.0), st.sampled_from(["ok", "hard", "soft", "left"])), max_size=80))
def test_breaker_lets_one_trial_through_and_backs_off_within_bounds(events: list[tuple[float, str]]) -> None:
    breaker, now = Breaker(), 0.0
    for pause, what in events:
        now += pause
        if not breaker.admits(now):
            assert breaker.state(now) == "open"
            continue
        half_open = breaker.state(now) == "half_open"
        trial = breaker.begin(now)
        assert trial == half_open and breaker.admits(now) != half_open
        if what == "ok":
            breaker.answered(trial)
            assert breaker.state(now) == "closed"
        elif what == "left":
            if trial:
                breaker.gave_up()
            assert breaker.admits(now)
        else:
            breaker.failed(now, trial, hard=what == "hard")
            if what == "hard" or trial:
                assert (
                    BACK_OFF_S - 1e-6 <= breaker.until - now <= BACK_OFF_MAX_S + 1e-6
                    and not breaker.admits(now)
                )


def test_breaker_waits_twice_as_long_each_time_and_forgets_when_it_is_well() -> None:
    breaker, now, pauses = Breaker(), 0.0, []
    for _ in range(7):
        trial = breaker.begin(now)
        breaker.failed(now, trial, hard=True)
        pauses.append(breaker.until - now)
        breaker.failed(now + 0.1, False, hard=True)  # sent before it opened
        assert breaker.until - now == pauses[-1]
        now = breaker.until
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    breaker.answered(breaker.begin(now))
    breaker.failed(now, False, hard=True)
    assert breaker.until - now == 1.0


def test_breaker_opens_on_a_row_or_a_rate_of_soft_failures() -> None:
    row = Breaker()
    for _ in range(3):
        assert row.state(NOW) == "closed"
        row.failed(NOW, False, hard=False)
    assert row.state(NOW) == "open"
    rate = Breaker()
    for _ in range(40):
        rate.failed(NOW, False, hard=False)
        rate.failed(NOW, False, hard=False)
        rate.answered(False)
    assert rate.state(NOW) == "open"


@given(st.lists(st.tuples(st.floats(0.001, 10), st.booleans()), min_size=30, max_size=300))
def test_second_requests_are_few(requests: list[tuple[float, bool]]) -> None:
    rules = HedgeRules(share=0.05)
    hedger, hedged = Hedger(rules), 0
    for first_token_s, slow in requests:
        hedger.asked()
        hedged += hedger.hedge_now(99.0 if slow else first_token_s)
        hedger.first_token(first_token_s)
    assert hedged <= 0.05 * len(requests) + rules.burst
    off = Hedger(HedgeRules())
    for _ in range(100):
        off.asked()
        off.first_token(0.1)
        assert off.wait_s() is None and not off.hedge_now(99.0)


def test_slow_is_what_few_first_tokens_were() -> None:
    hedger = Hedger(HedgeRules(share=0.05))
    for n in range(100):
        hedger.asked()
        assert (hedger.wait_s() is None) == (n < MIN_SAMPLES)
        hedger.first_token(0.1 if n % 10 else 1.0)
    assert hedger.wait_s() == 1.0
    assert not hedger.hedge_now(0.9) and hedger.hedge_now(1.0)
    hedger.did_not()
    assert [hedger.hedge_now(1.0) for _ in range(3)] == [True, True, False]


@given(st.integers(1, 8), st.floats(50, 2000))
def test_speed_of_a_full_replica_is_found(slots: int, tokens_per_s: float) -> None:
    """Requests of 200 tokens that share a replica's speed evenly, for two minutes."""
    speed, now = Speed(), 0.0
    took_s = 200 * slots / tokens_per_s
    while now < 120 + 10 * took_s:
        for _ in range(slots):
            now += took_s / slots
            speed.passed(now, slots, 200 * slots, 0.0)
            speed.served(200, slots)
    assert abs(speed.tokens_per_s / tokens_per_s - 1) < 0.15


def test_an_idle_replica_is_not_taken_for_a_slow_one_and_a_shared_one_is_seen_whole() -> None:
    speed = Speed()

    def serve(
        seconds: int, tokens_per_s: int, requests: int, others: float = 0.0, start: float = 0.0
    ) -> None:
        for second in range(seconds):
            speed.passed(start + second + 1.0, requests, 200.0, others)
            speed.served(tokens_per_s, 8)

    speed.passed(0.0, 0, 0, 0.0)
    serve(60, 400, 8)
    assert abs(speed.tokens_per_s - 400) < 1
    serve(10, 100, 1, start=60.0)
    assert speed.tokens_per_s > 350
    serve(200, 100, 8, start=70.0)
    assert speed.tokens_per_s < 110
    serve(200, 100, 8, others=600.0, start=270.0)  # three quarters of what is there belongs to others
    assert speed.tokens_per_s > 350


@given(
    st.integers(0, 20_000),
    st.integers(0, 20_000),
    st.floats(10, 2000),
    st.floats(10, 2000),
    st.none() | st.floats(0.0001, 2.0),
)
def test_another_site_is_taken_exactly_when_the_own_queue_costs_more_than_the_way(
    here_tokens: int, there_tokens: int, here_speed: float, there_speed: float, round_trip_s: float | None
) -> None:
    here, there = ReplicaLoad("a", "north"), ReplicaLoad("b", "south")
    here.tokens, here.tokens_per_s = here_tokens, here_speed
    there.tokens, there.tokens_per_s, there.round_trip_s = there_tokens, there_speed, round_trip_s
    way_s = 0.1 if round_trip_s is None else max(0.02, 2 * round_trip_s)
    more_s = (here_tokens + 100) / here_speed - (there_tokens + 100) / there_speed
    route = choose_replica([here, there], Ask(100), site="north", now=NOW)
    if abs(more_s - way_s) > 1e-6:
        assert route.reason == ("remote" if more_s > way_s else "local")
