"""The schedule beside a cache of lists: whatever comes and hangs up, nobody is lost or starves."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polylm_jax.serve.schedule import Begin, Chunk, Job, Pace, Schedule, chunk_of, chunks_of

CONTEXT, PROMPT_TOKENS = 96, 32

prompts = st.builds(
    lambda stem, rest: [1] * stem + rest,
    st.integers(0, 40),
    st.lists(st.integers(0, 2), min_size=1, max_size=40),
)
calls = st.builds(lambda prompt, new, anew: (prompt, new, anew), prompts, st.integers(0, 12),
                  st.booleans())  # fmt: skip
# what happens before a turn: calls that come, and numbers of those that hang up
happenings = st.lists(
    st.tuples(st.lists(calls, max_size=4), st.lists(st.integers(0, 30), max_size=2)), max_size=12
)


class Run:
    """A schedule and what a device would hold: tokens by slots and readers."""

    def __init__(self, slots):
        chunks = chunks_of(32, PROMPT_TOKENS, CONTEXT)
        self.schedule = Schedule(slots, CONTEXT, chunks, PROMPT_TOKENS, (1, 2, 4))
        self.cache = [[] for _ in range(slots)]
        self.staged = [[] for _ in range(self.schedule.readers)]
        self.open, self.ends, self.begun, self.left = {}, [], [], {}

    def submit(self, prompt, new, anew):
        job = Job(len(self.open) + len(self.ends), tuple(prompt), anew)
        self.open[job.number], self.left[job.number] = job, new
        self.schedule.waiting.append(job)

    def end(self, job):
        self.schedule.ended(job)
        del self.open[job.number]
        self.ends.append(job.number)

    def check(self):
        schedule = self.schedule
        places = [*schedule.waiting, *schedule.reading, *schedule.going.values()]
        assert sorted(job.number for job in places) == sorted(self.open)
        slots = [job.slot for job in (*schedule.reading, *schedule.going.values())]
        assert len(set(slots)) == len(slots) <= schedule.slots
        readers = [job.reader for job in schedule.reading]
        assert set(readers) <= set(range(schedule.readers))
        assert len(set(readers)) == len(readers)
        assert schedule.held == self.cache

    def turn(self, steps=3):
        """All that is read, and a burst; how many chunks were read."""
        schedule, spent, own, chunks = self.schedule, 0, {}, 0
        schedule.turn()
        while step := schedule.next():
            job = step.job
            if isinstance(step, Begin):
                self.begun.append(job.number)
                assert job.reused < len(job.prompt)
                assert not (job.anew and job.reused)
                self.staged[job.reader] = self.cache[job.source][: job.reused]
                assert self.staged[job.reader] == list(job.prompt[: job.reused])
                continue
            others_go_on = bool(schedule.going)
            for part in [step, *schedule.beside(step)]:
                job, chunks = part.job, chunks + 1
                assert 0 <= part.begin <= len(self.staged[job.reader])
                assert part.begin + part.length <= CONTEXT
                if others_go_on:
                    spent += part.length
                    own[job.number] = own.get(job.number, 0) + part.length
                    assert spent <= schedule.allowance
                    assert own[job.number] <= PROMPT_TOKENS
                self.staged[job.reader][part.begin :] = job.prompt[part.begin : part.end]
                if part.end == len(job.prompt):
                    self.read(job)
                self.check()
        for slot, job in list(schedule.going.items()):
            wrote = [2] * min(steps, self.left[job.number])
            schedule.wrote(slot, wrote)
            self.cache[slot] = self.cache[slot] + wrote
            self.left[job.number] -= len(wrote)
            if not self.left[job.number]:
                self.end(job)
        self.check()
        return chunks

    def read(self, job):
        assert self.staged[job.reader] == list(job.prompt)
        if not self.left[job.number]:
            return self.end(job)
        self.cache[job.slot] = self.staged[job.reader][:]
        return self.schedule.inserted(job)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([1, 2, 5, 8]), happenings)
def test_each_call_ends_once_and_each_slot_comes_free(slots, happenings):
    run = Run(slots)
    for comes, goes in happenings:
        for call in comes:
            run.submit(*call)
        for number in goes:
            if number in run.open:
                run.end(run.open[number])
        run.check()
        run.turn()
    turns = 0
    while run.open:
        reads = bool(run.schedule.reading)
        assert run.turn() > 0 or not reads
        turns += 1
    # each of those left has at most three chunks and four bursts, one by one at the worst
    assert turns <= 8 * 48
    assert sorted(run.ends) == list(range(len(run.ends)))
    assert run.begun == sorted(run.begun)  # first come, first served
    assert not run.schedule.going
    assert not run.schedule.reading
    assert not run.schedule.waiting


def conversation(schedule, prompt, said):
    """One call from its begin to its end."""
    job = Job(0, prompt)
    schedule.waiting.append(job)
    schedule.turn()
    while step := schedule.next():
        if not isinstance(step, Begin) and step.end == len(prompt):
            schedule.inserted(job)
    schedule.wrote(job.slot, said)
    schedule.ended(job)
    return job


def test_a_talk_goes_on_where_it_is_and_others_talks_stay():
    schedule = Schedule(3, CONTEXT, chunks_of(32, 32, CONTEXT), 32)
    stem = list(range(100, 120))
    first = conversation(schedule, [*stem, 1, 2], [3, 4])
    other = conversation(schedule, [*range(50)], [])
    again = conversation(schedule, [*stem, 1, 2, 3, 4, 5, 6], [7])
    assert (again.slot, again.reused) == (first.slot, 24)
    # what shares the beginning alone takes the slot that is unused for the longest
    branch = conversation(schedule, [*stem[:9], 9, 9], [])
    assert branch.reused == 9
    assert branch.slot not in (first.slot, other.slot)
    # said again, all but one token is there
    assert conversation(schedule, [*stem, 1, 2, 3, 4, 5, 6], []).reused == 25
    assert conversation(schedule, [7] * 7, []).reused == 0


def test_a_text_that_goes_on_lends_its_beginning():
    schedule = Schedule(2, CONTEXT, chunks_of(32, 32, CONTEXT), 32)
    one, two = Job(1, [*range(30)]), Job(2, [*range(20), 5])
    schedule.waiting.append(one)
    while step := schedule.next():
        if not isinstance(step, Begin):
            schedule.inserted(one)
    schedule.waiting.append(two)
    assert schedule.next() == Begin(two)
    assert (two.source, two.reused, two.slot) == (one.slot, 20, 1 - one.slot)


def test_a_prompt_asked_several_times_at_once_is_read_once():
    schedule = Schedule(4, CONTEXT, chunks_of(16, 32, CONTEXT), 32)
    schedule.waiting.extend(Job(number, [*range(60)]) for number in range(4))
    jobs, read = list(schedule.waiting), 0
    while schedule.waiting or schedule.reading:
        schedule.turn()
        while step := schedule.next():
            if not isinstance(step, Begin):
                read += step.end - step.begin
                if step.end == 60:
                    schedule.inserted(step.job)
    assert [job.reused for job in jobs] == [0, 59, 59, 59]
    assert read == 60 + 3 * 1


def test_idle_slots_let_more_be_read_but_of_one_prompt_no_more():
    schedule = Schedule(8, 4096, chunks_of(128, 256, 4096), 256)
    schedule.waiting.append(Job(0, [1]))
    while step := schedule.next():
        if not isinstance(step, Begin):
            schedule.inserted(step.job)
    schedule.waiting.extend(Job(n, [n] * 2000) for n in range(1, 5))
    schedule.turn()
    read = {}
    while step := schedule.next():
        if not isinstance(step, Begin):
            read[step.job.number] = read.get(step.job.number, 0) + step.length
    assert read == {1: 256, 2: 128, 3: 128, 4: 128}  # 3 idle slots: 2.5 times as many
    schedule.waiting.extend(Job(n, [n] * 2000) for n in range(5, 9))
    for slot in {*range(8)} - {job.slot for job in schedule.reading}:  # none is idle any more
        schedule.going.setdefault(slot, Job(100 + slot, [1], slot=slot))
    schedule.turn()
    order = []
    while step := schedule.next():
        order.append((step.job.number, step.length))
    schedule.turn()
    while step := schedule.next():
        order.append((step.job.number, step.length))
    assert order == [(2, 128), (3, 128), (4, 128), (1, 128)]  # in turns


def test_beginnings_are_read_together_as_far_as_they_are_of_one_length_and_there_is_room():
    schedule = Schedule(8, 512, chunks_of(128, 512, 512), 512, (1, 2, 4))
    lengths = [100, 30, 70, 200, 60, 300, 128]
    schedule.waiting.extend(Job(n, [n] * length) for n, length in enumerate(lengths))
    calls = []

    def call():
        while isinstance(step := schedule.next(), Begin):
            pass
        parts = [step, *schedule.beside(step)] if step else []
        for part in parts:
            if part.end == len(part.job.prompt):
                schedule.inserted(part.job)
        calls.append([(part.job.number, part.begin, part.end, part.length) for part in parts])

    # four begin, of which one is too short; three would be one too many, and 70 takes 128 places
    call()
    assert calls.pop() == [(0, 0, 100, 128), (2, 0, 70, 128)]
    schedule.turn(places=256)  # and half as many again, where one slot is idle
    call()
    assert calls.pop() == [(1, 0, 30, 32)]
    call()
    assert calls.pop() == [(3, 0, 128, 128), (4, 0, 60, 128)]
    call()  # of those 384 places 288 are taken
    assert calls == [[]]


def test_chunks_are_the_same_whatever_else_is_read_and_fit_into_the_cache():
    chunks = chunks_of(128, 300, 200)
    assert chunks == [16, 32, 64, 128]
    assert chunks_of(128, 64, 10) == [8]
    job, parts = Job(0, [1] * 190), []
    while job.known < 190:
        chunk = chunk_of(job, chunks, 200)
        parts.append((chunk.begin, chunk.end, chunk.length))
        job.known = chunk.end
    assert parts == [(0, 128, 128), (128, 190, 64)]
    job.known = 187
    assert chunk_of(job, chunks, 200).begin == 184


class Clocked:
    """A schedule with slots that are busy for long, on a device whose times are made up.

    place, token: seconds of a place of a prompt's beginning, and of a token of all texts; wide: so
    many times as long takes a token while a text of more than 512 goes on, and twice a place that
    is no beginning. gaps: from burst to burst, of those in which more than one chunk was read.
    """

    def __init__(self, slots, busy, place, token, burst=8, wide=1.0):
        chunks = chunks_of(128, 512, 4096)
        self.schedule, self.pace = Schedule(slots, 4096, chunks, 512), Pace()
        self.place, self.token, self.burst, self.gaps = place, token, burst, []
        self.wide = wide
        self.schedule.waiting.extend(Job(n, [n]) for n in range(busy))
        self.now, self.bursts, self.first = 0.0, 0, {}
        while len(self.schedule.going) < busy:
            self.turn()
        self.turn()

    def turn(self):
        """As the engine does it."""
        self.schedule.turn(self.pace.places(self.burst))
        places, chunks, reading = 0, 0, 0.0
        while step := self.schedule.next():
            if isinstance(step, Chunk):
                places, chunks = places + step.length, chunks + 1
                reading += step.length * self.place * (2 if step.begin else 1)
                if step.end == len(step.job.prompt):
                    self.first[step.job.number] = self.now + reading, self.bursts
                    self.schedule.inserted(step.job)
        if places:
            self.pace.read(places, reading)
        long = any(len(job.prompt) > 512 for job in self.schedule.going.values())
        burst = self.burst * self.token * (self.wide if long else 1)
        self.pace.added(self.burst, burst)
        self.now += reading + burst
        self.bursts += 1
        if chunks > 1:
            self.gaps.append(reading + burst)


@pytest.mark.parametrize("slots", [2, 8, 32])
@pytest.mark.parametrize("token", [1e-4, 0.004, 0.02])
@pytest.mark.parametrize("place", [1e-5, 2e-4, 5e-3])
def test_a_long_prompt_holds_others_up_for_two_bursts_at_most(slots, token, place):
    """2,000 tokens, at any pace of the device; more than one chunk is read only in that time."""
    run = Clocked(slots, slots - 1, place, token, wide=2.4)
    run.gaps.clear()
    run.schedule.waiting.append(Job(100, [5] * 2000))
    while 100 not in run.first:
        run.turn()
    assert all(gap <= 3 * run.burst * token * 1.001 for gap in run.gaps)


@pytest.mark.parametrize("token", [1e-4, 0.004, 0.02])
@pytest.mark.parametrize("place", [1e-5, 2e-4, 5e-3])
def test_the_last_slot_has_its_first_token_after_its_own_reading(token, place):
    """A prompt of 128 tokens that comes as a burst begins, with all other slots busy."""
    run = Clocked(8, 7, place, token)
    came, bursts = run.now, run.bursts
    run.schedule.turn(run.pace.places(run.burst))  # this burst's reading is over
    assert run.schedule.next() is None
    run.now, run.bursts = run.now + run.burst * token, run.bursts + 1
    run.schedule.waiting.append(Job(100, [5] * 128))
    while 100 not in run.first:
        run.turn()
    told, after = run.first[100]
    assert after - bursts == 1
    assert told - came <= 2 * run.burst * token + 128 * place
