"""The inner loop of the search for costed graphs: annealing over a list of tasks with a device each.

A state is a topological order of the tasks and a device for each. It stands for the plan in which every task, in this order, starts as soon as its
inputs are there and a lane of its device is free. Every plan without needless waiting is such a state, and its makespan costs one pass over the
edges: no gap is searched. A step moves one task, mostly of the critical path, to another place in the order, to another device, or both. Where
tasks that it waits for stand in the way of a place, they come along (`drag`): a chain of loading and decoding is put before another as a whole.

The functions are plain code on plain sequences, so that they run as they are on lists. `native/costed.c` is the same in C, statement for statement;
where no compiler is there but numba is, that compiles them for arrays (`search/compiled.py`). Random numbers come from integers and the logarithms of
the acceptance rule (Metropolis et al., J. Chem. Phys. 21, 1953) from a table, so all ways give the same plans. Hot path: 0.3 us a step at 25 tasks,
1 us at 110, compiled; 60 times that as Python.
"""

from __future__ import annotations

from typing import Any, NamedTuple

# Random numbers are those of Marsaglia, Xorshift RNGs (J. Statistical Software 8(14), 2003): 13, 17, 5 on 32 bits.
DRAWS = 4096
IMPOSSIBLE = 1e300
# Places that a task goes at most, at random, where others must come along.
FAR = 24


class Facts(NamedTuple):
    """A costed graph of n tasks, D devices, M memory nodes: lists for Python, arrays for numba.

    seconds: [n][D], inf: cannot. tail: [n], seconds that at least lie behind a task. starts, preds, nbytes and succ_starts, succs: CSR of the edges
    from and to each task. node: [D]. lanes: number of the first lane of each device, and of all. latency, per_byte: [M][M]. able_starts, able: CSR of
    the devices that can run each task. draws: DRAWS values of -ln(u), u in (0, 1).
    """

    seconds: Any
    tail: Any
    starts: Any
    preds: Any
    nbytes: Any
    succ_starts: Any
    succs: Any
    node: Any
    lanes: Any
    latency: Any
    per_byte: Any
    able_starts: Any
    able: Any
    draws: Any


class State(NamedTuple):
    """Where a search stands.

    order, place (its inverse), device, lane, start, finish, why (the task that this one waits for, -1: none): [n], the present plan; `start` is right
    only after a whole evaluation. old_lane, old_finish, old_why: [n], as they were after the last step that was taken. rest: [n], see `look_back`.
    path: [n], the tasks of a critical path. along, along_was: [n], scratch: what moves together with a task, and from where. best_order,
    best_device: [n]. window, mark: [n], scratch of `drag`: the order as it was; 0 between steps.
    free, last: [lanes], scratch. count: [random state, tasks on the path]. spans: [present makespan, best makespan].
    """

    order: Any
    place: Any
    device: Any
    lane: Any
    start: Any
    finish: Any
    why: Any
    old_lane: Any
    old_finish: Any
    old_why: Any
    rest: Any
    path: Any
    along: Any
    along_was: Any
    best_order: Any
    best_device: Any
    window: Any
    mark: Any
    free: Any
    last: Any
    count: Any
    spans: Any


def evaluate(facts: Facts, state: State, first: int, settled: int, limit: float) -> tuple[float, int]:
    """(makespan, positions done) of a state that has changed between the positions `first` and `settled` only.

    Ends early, with the makespan IMPOSSIBLE, where it is certain to exceed `limit`.
    """
    seconds, tail, starts, preds, nbytes = facts.seconds, facts.tail, facts.starts, facts.preds, facts.nbytes
    node, lanes, latency, per_byte = facts.node, facts.lanes, facts.latency, facts.per_byte
    order, device, lane, start, finish, why = state.order, state.device, state.lane, state.start, state.finish, state.why
    free, last, rest = state.free, state.last, state.rest
    # What is behind a task was added up in another order: rounding must not refuse a step that changes nothing.
    allowed = limit * (1 + 1e-12)
    n = len(order)
    top = 0.0
    for i in range(len(free)):
        free[i] = 0.0
        last[i] = -1
    for i in range(first):
        task = order[i]
        here = lane[task]
        over = finish[task]
        free[here] = over
        last[here] = task
        if over > top:
            top = over
    for i in range(first, n):
        task = order[i]
        on = device[task]
        to = node[on]
        at = 0.0
        reason = -1
        for k in range(starts[task], starts[task + 1]):
            before = preds[k]
            arrives = finish[before]
            src = node[device[before]]
            if src != to:
                arrives = arrives + latency[src][to] + nbytes[k] * per_byte[src][to]
            if arrives > at:
                at = arrives
                reason = before
        # The lane that has been free for the shortest time, or the one that is free first.
        chosen = lanes[on]
        since = free[chosen]
        for k in range(chosen + 1, lanes[on + 1]):
            other = free[k]
            if (other > since and other <= at) or (other < since and since > at):
                chosen = k
                since = other
        if since > at:
            at = since
            reason = last[chosen]
        over = at + seconds[task][on]
        if over + (rest[task] if i > settled else tail[task]) > allowed:
            return IMPOSSIBLE, i
        start[task] = at
        finish[task] = over
        lane[task] = chosen
        why[task] = reason
        free[chosen] = over
        last[chosen] = task
        if over > top:
            top = over
    return top, n


def look_back(facts: Facts, state: State) -> None:
    """How long the present plan goes on behind each task, over edges and lanes that stay as they are whatever moves before."""
    seconds, starts, preds, nbytes = facts.seconds, facts.starts, facts.preds, facts.nbytes
    node, lanes, latency, per_byte = facts.node, facts.lanes, facts.latency, facts.per_byte
    order, device, rest, last = state.order, state.device, state.rest, state.last
    n = len(order)
    for i in range(n):
        rest[i] = 0.0
    for i in range(len(last)):
        last[i] = -1
    for i in range(n - 1, -1, -1):
        task = order[i]
        on = device[task]
        to = node[on]
        chosen = lanes[on]
        if chosen + 1 == lanes[on + 1]:
            after = last[chosen]
            if after >= 0:
                behind = seconds[after][on] + rest[after]
                if behind > rest[task]:
                    rest[task] = behind
            last[chosen] = task
        whole = seconds[task][on] + rest[task]
        for k in range(starts[task], starts[task + 1]):
            before = preds[k]
            src = node[device[before]]
            behind = whole
            if src != to:
                behind = whole + (latency[src][to] + nbytes[k] * per_byte[src][to])
            if behind > rest[before]:
                rest[before] = behind


def trace(state: State) -> None:
    """Put one critical path of the present plan into `path`, from its end."""
    finish, why, path = state.finish, state.why, state.path
    task = 0
    for t in range(len(finish)):
        if finish[t] > finish[task]:
            task = t
    count = 0
    while task >= 0:
        path[count] = task
        count += 1
        task = why[task]
    state.count[1] = count


def shift(order: Any, place: Any, src: int, dst: int) -> None:
    """Move what is at `src` to `dst`; what lies between moves up by one."""
    task = order[src]
    if dst > src:
        for i in range(src, dst):
            other = order[i + 1]
            order[i] = other
            place[other] = i
    else:
        for i in range(src, dst, -1):
            other = order[i - 1]
            order[i] = other
            place[other] = i
    order[dst] = task
    place[task] = dst


def drag(facts: Facts, state: State, src: int, dst: int) -> None:
    """Move what is at `src` to `dst`, and with it what lies between and must stay before it (after it, where it moves back).

    Both those that move and those that make way keep their order. `window` then holds the order as it was.
    """
    order, place, mark, window = state.order, state.place, state.mark, state.window
    step = 1 if dst > src else -1
    begins = facts.starts if step > 0 else facts.succ_starts
    near = facts.preds if step > 0 else facts.succs
    task = order[src]
    mark[task] = 1
    window[src] = task
    count = 1
    for i in range(src + step, dst + step, step):
        t = order[i]
        window[i] = t
        for k in range(begins[t], begins[t + 1]):
            if mark[near[k]] != 0:
                mark[t] = 1
                count += 1
                break
    ahead, behind = dst, dst - step * count
    for i in range(dst, src - step, -step):
        t = window[i]
        if mark[t] != 0:
            mark[t] = 0
            order[ahead] = t
            place[t] = ahead
            ahead -= step
        else:
            order[behind] = t
            place[t] = behind
            behind -= step


def walk(facts: Facts, state: State, steps: int, done: int, length: int, hot: float) -> None:
    """`steps` steps of a cycle of `length`, of which `done` are done. The temperature falls along a line from `hot`, in seconds, to 0."""
    starts, preds, succ_starts, succs = facts.starts, facts.preds, facts.succ_starts, facts.succs
    seconds, able_starts, able, draws = facts.seconds, facts.able_starts, facts.able, facts.draws
    order, place, device, lane, finish, why = state.order, state.place, state.device, state.lane, state.finish, state.why
    old_lane, old_finish, old_why, path = state.old_lane, state.old_finish, state.old_why, state.path
    along, along_was, window = state.along, state.along_was, state.window
    n = len(order)
    now, best = state.spans[0], state.spans[1]
    dice, on_path = state.count[0], state.count[1]
    for step in range(done, done + steps):
        dice ^= (dice << 13) & 0xFFFFFFFF
        dice ^= dice >> 17
        dice ^= (dice << 5) & 0xFFFFFFFF
        task = path[(dice >> 8) % on_path] if (dice & 15) < 13 else (dice >> 8) % n
        dice ^= (dice << 13) & 0xFFFFFFFF
        dice ^= dice >> 17
        dice ^= (dice << 5) & 0xFFFFFFFF
        # At times not the task that waits is moved, but the one it waits for.
        if why[task] >= 0 and (dice & 3) == 0:
            task = why[task]
        reason = why[task]
        how = (dice >> 4) & 7
        src, was = place[task], device[task]
        low, high = 0, n - 1
        for k in range(starts[task], starts[task + 1]):
            low = max(low, place[preds[k]] + 1)
        for k in range(succ_starts[task], succ_starts[task + 1]):
            high = min(high, place[succs[k]] - 1)
        dice ^= (dice << 13) & 0xFFFFFFFF
        dice ^= dice >> 17
        dice ^= (dice << 5) & 0xFFFFFFFF
        to, dst = was, src
        options = able_starts[task + 1] - able_starts[task]
        if how < 5 and options > 1:
            if how == 0 and reason >= 0 and seconds[task][device[reason]] < IMPOSSIBLE:
                to = device[reason]
            else:
                to = able[able_starts[task] + (dice >> 12) % options]
        far = False
        if to == was or (how & 1):
            if reason >= 0 and lane[reason] == lane[task] and (dice & 1):
                dst = place[reason]
                far = dst < low
            elif (dice & 6) == 0:
                dst = max(0, min(n - 1, src - FAR + (dice >> 3) % (2 * FAR + 1)))
                far = dst < low or dst > high
            else:
                dst = low + (dice >> 3) % (high - low + 1)
        if dst == src and to == was:
            continue
        dice ^= (dice << 13) & 0xFFFFFFFF
        dice ^= dice >> 17
        dice ^= (dice << 5) & 0xFFFFFFFF
        limit = now + hot * (length - step) / length * draws[(dice >> 5) & 4095]
        if far:
            drag(facts, state, src, dst)
        else:
            shift(order, place, src, dst)
        device[task] = to
        first, settled = min(src, dst), max(src, dst)
        count = 0
        if to != was and (dice >> 17) & 1:
            dice ^= (dice << 13) & 0xFFFFFFFF
            dice ^= dice >> 17
            dice ^= (dice << 5) & 0xFFFFFFFF
            if dice & 3:
                # Neighbours move along, and theirs: one to eight of them are asked.
                for _ in range(1 << ((dice >> 2) & 3)):
                    dice ^= (dice << 13) & 0xFFFFFFFF
                    dice ^= dice >> 17
                    dice ^= (dice << 5) & 0xFFFFFFFF
                    at = (dice >> 3) % (count + 1)
                    member = task if at == count else along[at]
                    before = starts[member + 1] - starts[member]
                    after = succ_starts[member + 1] - succ_starts[member]
                    if before + after > 0:
                        pick = (dice >> 8) % (before + after)
                        mate = preds[starts[member] + pick] if pick < before else succs[succ_starts[member] + pick - before]
                        if device[mate] != to and seconds[mate][to] < IMPOSSIBLE:
                            along[count] = mate
                            along_was[count] = device[mate]
                            count += 1
                            device[mate] = to
            else:
                # One that is there changes places with it.
                mate = order[(dice >> 4) % n]
                if mate != task and device[mate] == to and seconds[mate][was] < IMPOSSIBLE:
                    along[0] = mate
                    along_was[0] = to
                    count = 1
                    device[mate] = was
            for i in range(count):
                first, settled = min(first, place[along[i]]), max(settled, place[along[i]])
        found, reached = evaluate(facts, state, first, settled, limit)
        if found <= limit:
            for i in range(first, n):
                t = order[i]
                old_finish[t] = finish[t]
                old_lane[t] = lane[t]
                old_why[t] = why[t]
            now = found
            if found < best:
                best = found
                for i in range(n):
                    state.best_order[i] = order[i]
                    state.best_device[i] = device[i]
            trace(state)
            look_back(facts, state)
            on_path = state.count[1]
        else:
            for i in range(first, reached):
                t = order[i]
                finish[t] = old_finish[t]
                lane[t] = old_lane[t]
                why[t] = old_why[t]
            if far:
                for i in range(min(src, dst), max(src, dst) + 1):
                    order[i] = window[i]
                    place[order[i]] = i
            else:
                shift(order, place, dst, src)
            device[task] = was
            for i in range(count):
                device[along[i]] = along_was[i]
    state.count[0] = dice
    state.spans[0], state.spans[1] = now, best
