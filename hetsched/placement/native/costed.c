/* The inner loops of planning costed graphs, as machine code: the search of search/walk.py and the list scheduling of costed/draft.py.

   Statement for statement the same as these, so that both give the same plans to the last bit: compile without contraction of a * b + c
   (-ffp-contract=off). Python's integers are wide enough here as int64_t, the random state as uint32_t. What each array holds is told there. */
#include "gaps.h"

#define IMPOSSIBLE 1e300
#define FAR 24
#define DRAW(dice) ((dice) ^= (dice) << 13, (dice) ^= (dice) >> 17, (dice) ^= (dice) << 5)

typedef struct {
    int64_t tasks, devices, nodes, lane_count;
    const double *seconds, *tail;
    const int64_t *starts, *preds;
    const double *nbytes;
    const int64_t *succ_starts, *succs, *node, *lanes;
    const double *latency, *per_byte;
    const int64_t *able_starts, *able;
    const double *draws;
} Facts;

typedef struct {
    int64_t *order, *place, *device, *lane;
    double *start, *finish;
    int64_t *why, *old_lane;
    double *old_finish;
    int64_t *old_why;
    double *rest;
    int64_t *path, *along, *along_was, *best_order, *best_device, *window, *mark;
    double *free;
    int64_t *last, *count;
    double *spans;
} State;

double hs_evaluate(const Facts *f, State *s, int64_t first, int64_t settled, double limit, int64_t *done) {
    const int64_t n = f->tasks, devices = f->devices, nodes = f->nodes;
    const double allowed = limit * (1 + 1e-12);
    double top = 0.0;
    for (int64_t i = 0; i < f->lane_count; i++) {
        s->free[i] = 0.0;
        s->last[i] = -1;
    }
    for (int64_t i = 0; i < first; i++) {
        const int64_t task = s->order[i], here = s->lane[task];
        const double over = s->finish[task];
        s->free[here] = over;
        s->last[here] = task;
        if (over > top) top = over;
    }
    for (int64_t i = first; i < n; i++) {
        const int64_t task = s->order[i], on = s->device[task], to = f->node[on];
        double at = 0.0;
        int64_t reason = -1;
        for (int64_t k = f->starts[task]; k < f->starts[task + 1]; k++) {
            const int64_t before = f->preds[k], src = f->node[s->device[before]];
            double arrives = s->finish[before];
            if (src != to) arrives = arrives + f->latency[src * nodes + to] + f->nbytes[k] * f->per_byte[src * nodes + to];
            if (arrives > at) {
                at = arrives;
                reason = before;
            }
        }
        int64_t chosen = f->lanes[on];
        double since = s->free[chosen];
        for (int64_t k = chosen + 1; k < f->lanes[on + 1]; k++) {
            const double other = s->free[k];
            if ((other > since && other <= at) || (other < since && since > at)) {
                chosen = k;
                since = other;
            }
        }
        if (since > at) {
            at = since;
            reason = s->last[chosen];
        }
        const double over = at + f->seconds[task * devices + on];
        if (over + (i > settled ? s->rest[task] : f->tail[task]) > allowed) {
            *done = i;
            return IMPOSSIBLE;
        }
        s->start[task] = at;
        s->finish[task] = over;
        s->lane[task] = chosen;
        s->why[task] = reason;
        s->free[chosen] = over;
        s->last[chosen] = task;
        if (over > top) top = over;
    }
    *done = n;
    return top;
}

void hs_look_back(const Facts *f, State *s) {
    const int64_t n = f->tasks, devices = f->devices, nodes = f->nodes;
    for (int64_t i = 0; i < n; i++) s->rest[i] = 0.0;
    for (int64_t i = 0; i < f->lane_count; i++) s->last[i] = -1;
    for (int64_t i = n - 1; i >= 0; i--) {
        const int64_t task = s->order[i], on = s->device[task], to = f->node[on], chosen = f->lanes[on];
        if (chosen + 1 == f->lanes[on + 1]) {
            const int64_t after = s->last[chosen];
            if (after >= 0) {
                const double behind = f->seconds[after * devices + on] + s->rest[after];
                if (behind > s->rest[task]) s->rest[task] = behind;
            }
            s->last[chosen] = task;
        }
        const double whole = f->seconds[task * devices + on] + s->rest[task];
        for (int64_t k = f->starts[task]; k < f->starts[task + 1]; k++) {
            const int64_t before = f->preds[k], src = f->node[s->device[before]];
            double behind = whole;
            if (src != to) behind = whole + (f->latency[src * nodes + to] + f->nbytes[k] * f->per_byte[src * nodes + to]);
            if (behind > s->rest[before]) s->rest[before] = behind;
        }
    }
}

void hs_trace(const Facts *f, State *s) {
    int64_t task = 0, count = 0;
    for (int64_t t = 0; t < f->tasks; t++)
        if (s->finish[t] > s->finish[task]) task = t;
    while (task >= 0) {
        s->path[count++] = task;
        task = s->why[task];
    }
    s->count[1] = count;
}

static void shift(int64_t *order, int64_t *place, int64_t src, int64_t dst) {
    const int64_t task = order[src], step = dst > src ? 1 : -1;
    for (int64_t i = src; i != dst; i += step) {
        const int64_t other = order[i + step];
        order[i] = other;
        place[other] = i;
    }
    order[dst] = task;
    place[task] = dst;
}

static void drag(const Facts *f, State *s, int64_t src, int64_t dst) {
    int64_t *order = s->order, *place = s->place, *mark = s->mark, *window = s->window;
    const int64_t task = order[src], step = dst > src ? 1 : -1;
    const int64_t *starts = step > 0 ? f->starts : f->succ_starts, *near = step > 0 ? f->preds : f->succs;
    mark[task] = 1;
    int64_t count = 1;
    window[src] = task;
    for (int64_t i = src + step; i != dst + step; i += step) {
        const int64_t t = order[i];
        window[i] = t;
        for (int64_t k = starts[t]; k < starts[t + 1]; k++)
            if (mark[near[k]]) {
                mark[t] = 1;
                count++;
                break;
            }
    }
    int64_t ahead = dst, behind = dst - step * count;
    for (int64_t i = dst; i != src - step; i -= step) {
        const int64_t t = window[i];
        if (mark[t]) {
            mark[t] = 0;
            order[ahead] = t;
            place[t] = ahead;
            ahead -= step;
        } else {
            order[behind] = t;
            place[t] = behind;
            behind -= step;
        }
    }
}

void hs_walk(const Facts *f, State *s, int64_t steps, int64_t done, int64_t length, double hot) {
    const int64_t n = f->tasks, devices = f->devices;
    int64_t *order = s->order, *place = s->place, *device = s->device, *lane = s->lane, *why = s->why;
    double now = s->spans[0], best = s->spans[1];
    uint32_t dice = (uint32_t)s->count[0];
    int64_t on_path = s->count[1];
    for (int64_t step = done; step < done + steps; step++) {
        DRAW(dice);
        int64_t task = (dice & 15) < 13 ? s->path[(dice >> 8) % on_path] : (int64_t)((dice >> 8) % n);
        DRAW(dice);
        if (why[task] >= 0 && (dice & 3) == 0) task = why[task];
        const int64_t reason = why[task], how = (dice >> 4) & 7, src = place[task], was = device[task];
        int64_t low = 0, high = n - 1;
        for (int64_t k = f->starts[task]; k < f->starts[task + 1]; k++)
            if (place[f->preds[k]] + 1 > low) low = place[f->preds[k]] + 1;
        for (int64_t k = f->succ_starts[task]; k < f->succ_starts[task + 1]; k++)
            if (place[f->succs[k]] - 1 < high) high = place[f->succs[k]] - 1;
        DRAW(dice);
        int64_t to = was, dst = src;
        const int64_t options = f->able_starts[task + 1] - f->able_starts[task];
        if (how < 5 && options > 1) {
            if (how == 0 && reason >= 0 && f->seconds[task * devices + device[reason]] < IMPOSSIBLE)
                to = device[reason];
            else
                to = f->able[f->able_starts[task] + (dice >> 12) % options];
        }
        int far = 0;
        if (to == was || (how & 1)) {
            if (reason >= 0 && lane[reason] == lane[task] && (dice & 1)) {
                dst = place[reason];
                far = dst < low;
            } else if ((dice & 6) == 0) {
                dst = src - FAR + (dice >> 3) % (2 * FAR + 1);
                dst = dst < 0 ? 0 : dst >= n ? n - 1 : dst;
                far = dst < low || dst > high;
            } else
                dst = low + (dice >> 3) % (high - low + 1);
        }
        if (dst == src && to == was) continue;
        DRAW(dice);
        const double limit = now + hot * (double)(length - step) / (double)length * f->draws[(dice >> 5) & 4095];
        if (far) drag(f, s, src, dst);
        else shift(order, place, src, dst);
        device[task] = to;
        int64_t first = src < dst ? src : dst, settled = src < dst ? dst : src, count = 0;
        if (to != was && ((dice >> 17) & 1)) {
            DRAW(dice);
            if (dice & 3) {
                for (int64_t tries = (int64_t)1 << ((dice >> 2) & 3); tries > 0; tries--) {
                    DRAW(dice);
                    const int64_t at = (dice >> 3) % (count + 1), member = at == count ? task : s->along[at];
                    const int64_t before = f->starts[member + 1] - f->starts[member], after = f->succ_starts[member + 1] - f->succ_starts[member];
                    if (before + after > 0) {
                        const int64_t pick = (dice >> 8) % (before + after);
                        const int64_t mate = pick < before ? f->preds[f->starts[member] + pick] : f->succs[f->succ_starts[member] + pick - before];
                        if (device[mate] != to && f->seconds[mate * devices + to] < IMPOSSIBLE) {
                            s->along[count] = mate;
                            s->along_was[count++] = device[mate];
                            device[mate] = to;
                        }
                    }
                }
            } else {
                const int64_t mate = order[(dice >> 4) % n];
                if (mate != task && device[mate] == to && f->seconds[mate * devices + was] < IMPOSSIBLE) {
                    s->along[0] = mate;
                    s->along_was[0] = to;
                    count = 1;
                    device[mate] = was;
                }
            }
            for (int64_t i = 0; i < count; i++) {
                if (place[s->along[i]] < first) first = place[s->along[i]];
                if (place[s->along[i]] > settled) settled = place[s->along[i]];
            }
        }
        int64_t reached;
        const double found = hs_evaluate(f, s, first, settled, limit, &reached);
        if (found <= limit) {
            for (int64_t i = first; i < n; i++) {
                const int64_t t = order[i];
                s->old_finish[t] = s->finish[t];
                s->old_lane[t] = lane[t];
                s->old_why[t] = why[t];
            }
            now = found;
            if (found < best) {
                best = found;
                memcpy(s->best_order, order, n * sizeof *order);
                memcpy(s->best_device, device, n * sizeof *device);
            }
            hs_trace(f, s);
            hs_look_back(f, s);
            on_path = s->count[1];
        } else {
            for (int64_t i = first; i < reached; i++) {
                const int64_t t = order[i];
                s->finish[t] = s->old_finish[t];
                lane[t] = s->old_lane[t];
                why[t] = s->old_why[t];
            }
            if (far) {
                const int64_t from = src < dst ? src : dst, until = src < dst ? dst : src;
                for (int64_t i = from; i <= until; i++) {
                    order[i] = s->window[i];
                    place[order[i]] = i;
                }
            } else
                shift(order, place, dst, src);
            device[task] = was;
            for (int64_t i = 0; i < count; i++) device[s->along[i]] = s->along_was[i];
        }
    }
    s->count[0] = dice;
    s->spans[0] = now;
    s->spans[1] = best;
}

/* Lists of tasks ------------------------------------------------------------------------------------------------------------------- */

static int fill(Gaps *g, double start, double finish, double shortest) {
    int64_t i = start >= g->starts[g->count - 1] ? g->count - 1 : first_after(g->starts, g->count, start) - 1;
    const double gap_start = g->starts[i], gap_end = g->ends[i];
    const int before = start > gap_start && start - gap_start >= shortest, after = finish < gap_end && gap_end - finish >= shortest;
    return carve(g, i, start, finish, before, after);
}

/* Books the tasks of `order`, each where finish + behind[task][device] is least, or on wanted[task] where that is no -1; `behind` and `wanted` may be
   0. Returns how many were booked: all, or those before the first that no device can run; -1 where there is no memory; -2 at the first finish + tail above `limit`, where tails are given. */
int64_t hs_book(const Facts *f, const double *shortest, const int64_t *order, const double *behind, const int64_t *wanted, double limit,
                int64_t *choice_of, double *start_of, double *finish_of, int64_t *lane_of) {
    const int64_t n = f->tasks, devices = f->devices, nodes = f->nodes;
    Gaps *gaps = calloc(f->lane_count, sizeof(Gaps));
    double *ready = malloc(nodes * sizeof(double));
    int64_t i = 0;
    int sound = gaps && ready, hopeless = 0;
    for (int64_t k = 0; sound && k < f->lane_count; k++) sound = open_gaps(gaps + k);
    for (; sound && i < n; i++) {
        const int64_t task = order[i];
        for (int64_t m = 0; m < nodes; m++) ready[m] = 0.0;
        for (int64_t k = f->starts[task]; k < f->starts[task + 1]; k++) {
            const int64_t p = f->preds[k], from = f->node[choice_of[p]] * nodes;
            const double done = finish_of[p], nbytes = f->nbytes[k];
            for (int64_t m = 0; m < nodes; m++) {
                const double arrives = done + f->latency[from + m] + nbytes * f->per_byte[from + m];
                if (!(ready[m] > arrives)) ready[m] = arrives;
            }
        }
        int64_t best = -1, number = 0;
        double least = INFINITY, begin = 0.0;
        const int64_t only = wanted ? wanted[task] : -1;
        for (int64_t c = only >= 0 ? only : 0; c < (only >= 0 ? only + 1 : devices); c++) {
            const double duration = f->seconds[task * devices + c], at = ready[f->node[c]];
            const double extra = behind && only < 0 ? behind[task * devices + c] : 0.0;
            const double soonest = at + duration;
            if (soonest + extra >= least) continue;
            for (int64_t k = f->lanes[c]; k < f->lanes[c + 1]; k++) {
                const Gaps *g = gaps + k;
                double start = g->starts[g->count - 1];
                if (at >= start) start = at;
                else if (g->count > 1) {
                    int64_t j = first_from(g->ends, g->count, soonest);
                    for (;; j++) {
                        start = g->starts[j];
                        if (start < at) start = at;
                        if (start + duration <= g->ends[j]) break;
                    }
                }
                const double finish = start + duration + extra;
                if (finish < least) {
                    best = c;
                    least = finish;
                    begin = start;
                    number = k;
                    if (start == at) break;
                }
            }
        }
        if (best < 0) break;
        choice_of[task] = best;
        start_of[task] = begin;
        finish_of[task] = begin + f->seconds[task * devices + best];
        lane_of[task] = number - f->lanes[best];
        sound = fill(gaps + number, begin, finish_of[task], shortest[best]);
        if (f->tail && finish_of[task] + f->tail[task] > limit) {
            hopeless = 1;
            break;
        }
    }
    for (int64_t k = 0; gaps && k < f->lane_count; k++) {
        free(gaps[k].starts);
        free(gaps[k].ends);
    }
    free(gaps);
    free(ready);
    return !sound ? -1 : hopeless ? -2 : i;
}

/* The longest path from each task to the end, through `weights` of tasks and `copies` of edges; `rank` starts at 0. */
void hs_upward(int64_t n, const int64_t *order, const int64_t *starts, const int64_t *preds, const double *weights, const double *copies, double *rank) {
    for (int64_t i = n - 1; i >= 0; i--) {
        const int64_t task = order[i];
        const double here = rank[task] = rank[task] + weights[task];
        for (int64_t k = starts[task]; k < starts[task + 1]; k++)
            if (here + copies[k] > rank[preds[k]]) rank[preds[k]] = here + copies[k];
    }
}

/* The earliest conceivable finish of each task on each node, as `bounds.paths.earliest_finishes`: finish[task][node]. `start_at`: when what it reads of the
   graph's inputs is there; `fastest`: its seconds; `nbytes`: of the largest value on each edge, below 0 where nothing is copied. */
void hs_earliest(int64_t n, int64_t nodes, const int64_t *order, const int64_t *starts, const int64_t *preds, const double *nbytes, const double *latency,
                 const double *per_byte, const double *start_at, const double *fastest, double *finish) {
    for (int64_t i = 0; i < n; i++) {
        const int64_t task = order[i];
        for (int64_t m = 0; m < nodes; m++) {
            double ready = start_at[task * nodes + m];
            for (int64_t k = starts[task]; k < starts[task + 1]; k++) {
                const double *from = finish + preds[k] * nodes, size = nbytes[k];
                double arrives = INFINITY;
                for (int64_t s = 0; s < nodes; s++) {
                    const double at = size < 0 ? from[s] : from[s] + (latency[s * nodes + m] + size * per_byte[s * nodes + m]);
                    if (at < arrives) arrives = at;
                }
                if (arrives > ready) ready = arrives;
            }
            finish[task * nodes + m] = ready + fastest[task * nodes + m];
        }
    }
}

/* Lengths of the longest path to each task (`head`) and from it (`tail`), its own weight not counted; both start at 0. */
void hs_paths(int64_t n, const int64_t *order, const int64_t *starts, const int64_t *preds, const double *weights, double *head, double *tail) {
    for (int64_t i = 0; i < n; i++) {
        const int64_t task = order[i];
        for (int64_t k = starts[task]; k < starts[task + 1]; k++) {
            const double path = head[preds[k]] + weights[preds[k]];
            if (path > head[task]) head[task] = path;
        }
    }
    for (int64_t i = n - 1; i >= 0; i--) {
        const int64_t task = order[i];
        const double here = tail[task] + weights[task];
        for (int64_t k = starts[task]; k < starts[task + 1]; k++)
            if (here > tail[preds[k]]) tail[preds[k]] = here;
    }
}

/* The optimistic cost table of PEFT, backwards through `order`: table[task][device], which starts at 0. `through`: scratch, a number a node. */
void hs_optimistic(const Facts *f, const int64_t *order, const double *copies, double *table, double *through) {
    const int64_t n = f->tasks, devices = f->devices, nodes = f->nodes;
    for (int64_t i = n - 1; i >= 0; i--) {
        const int64_t task = order[i];
        double least = INFINITY;
        for (int64_t m = 0; m < nodes; m++) through[m] = INFINITY;
        for (int64_t c = 0; c < devices; c++) {
            const double here = table[task * devices + c] + f->seconds[task * devices + c];
            if (here < least) least = here;
            if (here < through[f->node[c]]) through[f->node[c]] = here;
        }
        for (int64_t k = f->starts[task]; k < f->starts[task + 1]; k++) {
            double *row = table + f->preds[k] * devices;
            const double away = least + copies[k];
            for (int64_t c = 0; c < devices; c++) {
                const double behind = through[f->node[c]] < away ? through[f->node[c]] : away;
                if (behind > row[c]) row[c] = behind;
            }
        }
    }
}

/* Lists as tasks become ready ---------------------------------------------------------------------------------------------------------- */

static int sooner(const double *rank, int64_t a, int64_t b) { return rank[a] > rank[b] || (rank[a] == rank[b] && a < b); }

static void push(int64_t *heap, int64_t size, const double *rank, int64_t task) {
    int64_t hole = size;
    for (; hole && sooner(rank, task, heap[(hole - 1) / 2]); hole = (hole - 1) / 2) heap[hole] = heap[(hole - 1) / 2];
    heap[hole] = task;
}

static int64_t pop(int64_t *heap, int64_t size, const double *rank) { /* `size`: before */
    const int64_t task = heap[0], moved = heap[--size];
    int64_t hole = 0;
    for (int64_t child; (child = 2 * hole + 1) < size; hole = child) {
        if (child + 1 < size && sooner(rank, heap[child + 1], heap[child])) child++;
        if (!sooner(rank, heap[child], moved)) break;
        heap[hole] = heap[child];
    }
    heap[hole] = moved;
    return task;
}

/* Of the tasks whose predecessors have been taken the one of highest rank, of equals the lowest number. `waiting`: predecessors not yet taken of
   each; `heap`: scratch, n. */
void hs_ready(int64_t n, const int64_t *succ_starts, const int64_t *succs, int64_t *waiting, const double *rank, int64_t *heap, int64_t *order) {
    int64_t size = 0, done = 0;
    for (int64_t t = 0; t < n; t++)
        if (!waiting[t]) push(heap, size++, rank, t);
    while (size) {
        const int64_t task = order[done++] = pop(heap, size--, rank);
        for (int64_t k = succ_starts[task]; k < succ_starts[task + 1]; k++)
            if (!--waiting[succs[k]]) push(heap, size++, rank, succs[k]);
    }
}

/* Periods of loops ------------------------------------------------------------------------------------------------------------------ */

/* Raises `start` to the least starts that keep every arc at `period`, as `periods.modulo.relax` does. Arcs of op u: `arc_starts[u]` to
   `arc_starts[u + 1]`, to the op `arc_to`, `arc_turns` turns later, after `work` of the arc, or after `seconds` of u where there is none; then, where
   `next` is given, one to next[u] (-1: none) `step[u]` turns later. A pass goes by `order`, or by the number of the ops. Returns how many ops are on
   the cycle that makes it impossible, 0 where there is none, -1 without memory. The cycle: its ops in the order of the arcs, and of the arc by which
   each is reached its number (count of all arcs and more: that of `next`) and its turns. */
int64_t hs_circle(int64_t count, const int64_t *order, const int64_t *seconds, const int64_t *arc_starts, const int64_t *arc_to, const int64_t *arc_turns,
                  const int64_t *work, const int64_t *next, const int64_t *step, int64_t period, int64_t *start, int64_t *cycle, int64_t *through,
                  int64_t *turns) {
    int64_t *parent = malloc(3 * count * sizeof(int64_t));
    if (!parent) return -1;
    int64_t *by = parent + count, *seen = by + count, found = 0;
    char *dirty = malloc(count);
    if (!dirty) {
        free(parent);
        return -1;
    }
    memset(dirty, 1, count);
    for (int64_t u = 0; u < count; u++) parent[u] = -1;
    for (int64_t passes = 0; !found; passes++) {
        int moved = 0;
        for (int64_t i = 0; i < count; i++) {
            const int64_t u = order ? order[i] : i;
            if (!dirty[u]) continue;
            dirty[u] = 0;
            const int64_t begin = start[u], stop = arc_starts[u + 1], more = next && next[u] >= 0;
            for (int64_t k = arc_starts[u]; k < stop + more; k++) {
                const int64_t v = k < stop ? arc_to[k] : next[u], later = k < stop ? arc_turns[k] : step[u];
                const int64_t at = begin + (work ? work[k] : seconds[u]) - later * period;
                if (at > start[v]) {
                    start[v] = at;
                    parent[v] = u;
                    by[v] = k < stop ? k : arc_starts[count] + u;
                    dirty[v] = 1;
                    moved = 1;
                }
            }
        }
        if (!moved) break;
        if (passes < 1) continue;
        for (int64_t u = 0; u < count; u++) seen[u] = 0;
        for (int64_t s = 0; s < count && !found; s++) {
            int64_t x = s;
            while (x >= 0 && !seen[x]) {
                seen[x] = s + 1;
                x = parent[x];
            }
            if (x < 0 || seen[x] != s + 1) continue;
            int64_t y = x;
            do {
                found++;
                y = parent[y];
            } while (y != x);
            for (int64_t i = found - 1; i >= 0; i--) {
                const int64_t arc = by[y];
                cycle[i] = y;
                through[i] = arc;
                turns[i] = arc < arc_starts[count] ? arc_turns[arc] : step[arc - arc_starts[count]];
                y = parent[y];
            }
        }
    }
    free(dirty);
    free(parent);
    return found;
}
