/* The inner loop of planning graphs on machines, as machine code: `GraphDraft.place_all` of draft.py, with the copies that queue on links, resources
   that run out, lanes that hand work over, and the copies of outputs to the host at the end.

   Operation for operation the same as there and in gaps.py, so that both give the same plans to the last bit. */
#include "gaps.h"

typedef struct {
    int64_t tasks, values, choices, nodes, pools, resources, outputs, host, given; /* values below `given` are on the host from the start */
    const double *seconds;                      /* [tasks][choices] */
    const int64_t *read_starts, *reads;         /* CSR: the values that each task reads, each once */
    const int64_t *write_starts, *producer;     /* task t writes values write_starts[t] to write_starts[t + 1] - 1 */
    const double *nbytes;                       /* [values] */
    const int64_t *after_starts, *after;        /* CSR: tasks to wait for that give nothing */
    const int64_t *node, *pool, *width, *device; /* [choices] */
    const int64_t *lane_starts, *pool_device;   /* [pools + 1], [pools] */
    const double *crossing;                     /* [pools] */
    const double *latency, *per_byte;           /* [nodes][nodes] */
    const int64_t *engine_starts;               /* [nodes * nodes + 1] */
    const double *uses, *capacity;              /* [choices][resources], [resources] */
    const int64_t *group;                       /* [tasks], -1: none */
    const int64_t *results;                     /* [outputs]: what goes to the host in the end */
} Graph;

typedef struct {
    int64_t value, src, dst;
    double start, finish;
    int64_t engine, turn;
} Copied;

typedef struct { /* what `take` did: `pieces` gaps stand where one was */
    Gaps *gaps;
    int64_t at, pieces;
    double start, end;
} Undo;

typedef struct {
    int64_t count, room;
    double capacity, *times, *levels;
} Usage;

typedef struct {
    double key;
    int64_t place, value;
} Missing;

typedef struct {
    const Graph *g;
    int64_t *choice_of, *lane_of;
    double *start_of, *finish_of;
    Gaps *lanes, *engines;
    Usage *usage;
    double *there_at; /* [values][nodes]: when it is there, in the order in which it came to `there_node`; `there`: how many */
    int32_t *there_node, *there;
    Copied *copies;
    int64_t copied, turn;
    Missing *missing;
    Undo *undo;
    int64_t *hand_pool, *hand_lane, handed; /* lanes of predecessors, and when what they made reaches others */
    double *hand_at;
    int sound;
} Draft;

/* Gaps --------------------------------------------------------------------------------------------------------------------------------- */

static double find(const Gaps *g, double ready, double seconds, int64_t *gap) {
    const int64_t last = g->count - 1;
    *gap = last;
    if (ready >= g->starts[last]) return ready;
    for (int64_t i = first_from(g->ends, g->count, ready + seconds); i <= last; i++) {
        const double start = ready > g->starts[i] ? ready : g->starts[i];
        if (start + seconds <= g->ends[i]) {
            *gap = i;
            return start;
        }
    }
    return g->starts[last];
}

static int take(Gaps *g, double start, double finish, Undo *undo) {
    int64_t i = first_after(g->starts, g->count, start) - 1;
    if (i < 0) i = 0;
    const double gap_start = g->starts[i], gap_end = g->ends[i];
    const int before = start > gap_start, after = finish < gap_end;
    *undo = (Undo){g, i, before + after, gap_start, gap_end};
    return carve(g, i, start, finish, before, after);
}

static void take_back(const Undo *undo) { /* in the reverse order of taking; the room is there still */
    Gaps *g = undo->gaps;
    const int64_t i = undo->at, behind = g->count - i - undo->pieces;
    if (undo->pieces != 1) {
        memmove(g->starts + i + 1, g->starts + i + undo->pieces, behind * sizeof(double));
        memmove(g->ends + i + 1, g->ends + i + undo->pieces, behind * sizeof(double));
    }
    g->starts[i] = undo->start;
    g->ends[i] = undo->end;
    g->count += 1 - undo->pieces;
}

static double find_common(const Gaps *lanes, int64_t count, double ready, double seconds) {
    double start = ready;
    int64_t settled = 0, gap;
    while (settled < count) {
        settled = 0;
        for (int64_t i = 0; i < count; i++) {
            const double found = find(lanes + i, start, seconds, &gap);
            if (found > start) {
                start = found;
                settled = 1;
            } else settled++;
        }
    }
    return start;
}

/* Resources ---------------------------------------------------------------------------------------------------------------------------- */

static double find_room(const Usage *u, double ready, double seconds, double amount) {
    const double room = u->capacity - (u->capacity < amount ? u->capacity : amount) + 1e-9 * u->capacity;
    double start = ready;
    int64_t i = first_after(u->times, u->count, ready) - 1;
    for (i = i < 0 ? 0 : i; i < u->count && u->times[i] < start + seconds; i++)
        if (u->levels[i] > room) start = u->times[i + 1];
    return start;
}

static int64_t cut(Usage *u, double at) { /* -1: no memory */
    const int64_t i = first_from(u->times, u->count, at);
    if (i < u->count && u->times[i] == at) return i;
    if (u->count == u->room) {
        const int64_t room = u->room ? 2 * u->room : 16;
        double *times = realloc(u->times, room * sizeof(double));
        if (!times) return -1;
        u->times = times;
        double *levels = realloc(u->levels, room * sizeof(double));
        if (!levels) return -1;
        u->levels = levels;
        u->room = room;
    }
    memmove(u->times + i + 1, u->times + i, (u->count - i) * sizeof(double));
    memmove(u->levels + i + 1, u->levels + i, (u->count - i) * sizeof(double));
    u->times[i] = at;
    u->levels[i] = i ? u->levels[i - 1] : 0.0;
    u->count++;
    return i;
}

static int use(Usage *u, double start, double finish, double amount) {
    if (finish <= start || amount == 0) return 1;
    if (u->capacity < amount) amount = u->capacity;
    const int64_t first = cut(u, start), last = cut(u, finish);
    for (int64_t i = first; i < last; i++) u->levels[i] += amount;
    return first >= 0 && last >= 0;
}

/* Copies ------------------------------------------------------------------------------------------------------------------------------- */

static const double *arrived(const Draft *d, int64_t value, int64_t node) {
    const int64_t row = value * d->g->nodes;
    for (int32_t k = 0; k < d->there[value]; k++)
        if (d->there_node[row + k] == node) return d->there_at + row + k;
    return 0;
}

static double first_there(const Draft *d, int64_t value) {
    const double *at = d->there_at + value * d->g->nodes;
    double least = d->there[value] ? at[0] : INFINITY;
    for (int32_t k = 1; k < d->there[value]; k++)
        if (at[k] < least) least = at[k];
    return least;
}

static void put(Draft *d, int64_t value, int64_t node, double at) {
    const int64_t k = value * d->g->nodes + d->there[value]++;
    d->there_node[k] = (int32_t)node;
    d->there_at[k] = at;
}

static Copied best_copy(const Draft *d, int64_t value, int64_t node) {
    const Graph *g = d->g;
    Copied best = {-1, 0, 0, 0.0, 0.0, 0, 0};
    for (int32_t k = 0; k < d->there[value]; k++) {
        const int64_t src = d->there_node[value * g->nodes + k], link = src * g->nodes + node;
        const double at = d->there_at[value * g->nodes + k], seconds = g->latency[link] + g->nbytes[value] * g->per_byte[link];
        double start = at;
        int64_t engine = 0, gap;
        for (int64_t e = g->engine_starts[link]; e < g->engine_starts[link + 1]; e++) {
            const double found = find(d->engines + e, at, seconds, &gap);
            if (e == g->engine_starts[link] || found < start) {
                start = found;
                engine = e - g->engine_starts[link];
            }
        }
        if (best.value < 0 || start + seconds < best.finish) best = (Copied){value, src, node, start, start + seconds, engine, d->turn};
    }
    return best;
}

/* Books the copy; `undo->gaps` is 0 where its link has no queue. Returns when it is there. */
static double copy(Draft *d, int64_t value, int64_t node, Undo *undo) {
    const Copied made = best_copy(d, value, node);
    const int64_t first = d->g->engine_starts[made.src * d->g->nodes + node];
    d->copies[d->copied++] = made;
    put(d, value, node, made.finish);
    undo->gaps = 0;
    if (first < d->g->engine_starts[made.src * d->g->nodes + node + 1]) d->sound &= take(d->engines + first + made.engine, made.start, made.finish, undo);
    return made.finish;
}

static int by_key(const void *a, const void *b) {
    const Missing *x = a, *y = b;
    if (x->key != y->key) return x->key < y->key ? -1 : 1;
    return x->place < y->place ? -1 : x->place > y->place;
}

static void sort_missing(Missing *rows, int64_t count) { /* by key, equals as they are */
    if (count > 16) {
        qsort(rows, count, sizeof *rows, by_key);
        return;
    }
    for (int64_t i = 1; i < count; i++) {
        const Missing row = rows[i];
        int64_t hole = i;
        for (; hole && row.key < rows[hole - 1].key; hole--) rows[hole] = rows[hole - 1];
        rows[hole] = row;
    }
}

/* When everything that `task` waits for is in `node`; with `keep` the copies stay booked. */
static double fetch(Draft *d, int64_t task, int64_t node, int keep) {
    const Graph *g = d->g;
    double ready = 0.0;
    int64_t count = 0;
    for (int64_t k = g->after_starts[task]; k < g->after_starts[task + 1]; k++)
        if (d->finish_of[g->after[k]] > ready) ready = d->finish_of[g->after[k]];
    for (int64_t k = g->read_starts[task]; k < g->read_starts[task + 1]; k++) {
        const double *at = arrived(d, g->reads[k], node);
        if (!at) {
            d->missing[count] = (Missing){first_there(d, g->reads[k]), count, g->reads[k]};
            count++;
        } else if (*at > ready) ready = *at;
    }
    if (count == 1 && !keep) {
        const double finish = best_copy(d, d->missing[0].value, node).finish;
        return finish > ready ? finish : ready;
    }
    sort_missing(d->missing, count);
    for (int64_t i = 0; i < count; i++) {
        const double finish = copy(d, d->missing[i].value, node, d->undo + i);
        if (finish > ready) ready = finish;
    }
    for (int64_t i = keep ? -1 : count - 1; i >= 0; i--) {
        d->there[d->missing[i].value]--;
        d->copied--;
        if (d->undo[i].gaps) take_back(d->undo + i);
    }
    return ready;
}

/* Places ------------------------------------------------------------------------------------------------------------------------------- */

/* Lanes of the device of `pool` on which predecessors ran, and when what they made there reaches its other lanes. */
static void look_apart(Draft *d, int64_t task, int64_t pool) {
    const Graph *g = d->g;
    const double crossing = g->crossing[pool];
    d->handed = 0;
    if (crossing == 0.0) return;
    for (int64_t k = g->read_starts[task]; k < g->read_starts[task + 1]; k++) {
        const int64_t p = g->producer[g->reads[k]];
        const int64_t of = p >= 0 ? g->pool[d->choice_of[p]] : -1;
        if (of < 0 || g->pool_device[of] != g->pool_device[pool]) continue;
        const double at = d->finish_of[p] + crossing;
        int64_t i = 0;
        while (i < d->handed && (d->hand_pool[i] != of || d->hand_lane[i] != d->lane_of[p])) i++;
        if (i == d->handed) {
            d->hand_pool[i] = of;
            d->hand_lane[i] = d->lane_of[p];
            d->hand_at[i] = at > 0.0 ? at : 0.0;
            d->handed++;
        } else if (at > d->hand_at[i]) d->hand_at[i] = at;
    }
}

/* The start on the lane that is free first; of equals the one that leaves the least idle time. */
static double find_lane(const Draft *d, int64_t pool, double ready, double seconds, int64_t *lane) {
    const Graph *g = d->g;
    const Gaps *lanes = d->lanes + g->lane_starts[pool];
    const int64_t count = g->lane_starts[pool + 1] - g->lane_starts[pool];
    int64_t own = -1;
    double at_own = ready, elsewhere = ready, best = INFINITY, best_from = -1.0;
    for (int64_t i = 0; i < d->handed; i++) {
        if (d->hand_at[i] > elsewhere) {
            own = d->hand_pool[i] == pool ? d->hand_lane[i] : -1;
            at_own = elsewhere;
            elsewhere = d->hand_at[i];
        } else if (d->hand_at[i] > at_own) at_own = d->hand_at[i];
    }
    *lane = 0;
    for (int64_t i = 0; i < count; i++) {
        const double here = i == own ? at_own : elsewhere;
        int64_t gap = lanes[i].count - 1;
        double start = here;
        if (here < lanes[i].starts[gap]) start = find(lanes + i, here, seconds, &gap);
        const double since = lanes[i].starts[gap];
        if (start < best || (start == best && since > best_from)) {
            best = start;
            best_from = since;
            *lane = i;
        }
    }
    return best;
}

static double slot(Draft *d, int64_t task, int64_t choice, double ready, int64_t *lane) {
    const Graph *g = d->g;
    const int64_t pool = g->pool[choice], first = g->lane_starts[pool], count = g->lane_starts[pool + 1] - first;
    const double seconds = g->seconds[task * g->choices + choice], *amounts = g->uses + choice * g->resources;
    const int wide = g->width[choice] > 1;
    if (wide) d->handed = 0;
    else look_apart(d, task, pool);
    *lane = 0;
    for (double at = ready;;) {
        const double start = wide ? find_common(d->lanes + first, count, at, seconds) : find_lane(d, pool, at, seconds, lane);
        double later = start;
        if (seconds > 0)
            for (int64_t r = 0; r < g->resources; r++)
                if (amounts[r] != 0) {
                    const double found = find_room(d->usage + r, later, seconds, amounts[r]);
                    if (found > later) later = found;
                }
        if (later == start) return start;
        at = later;
    }
}

static int can_start(const Draft *d, int64_t task) {
    const Graph *g = d->g;
    for (int64_t k = g->read_starts[task]; k < g->read_starts[task + 1]; k++)
        if (g->producer[g->reads[k]] >= 0 && d->choice_of[g->producer[g->reads[k]]] < 0) return 0;
    for (int64_t k = g->after_starts[task]; k < g->after_starts[task + 1]; k++)
        if (d->choice_of[g->after[k]] < 0) return 0;
    return 1;
}

static void book(Draft *d, int64_t task, int64_t choice, double start, int64_t lane) {
    const Graph *g = d->g;
    const int64_t pool = g->pool[choice], first = g->lane_starts[pool], wide = g->width[choice] > 1;
    const double finish = start + g->seconds[task * g->choices + choice];
    Undo undo;
    fetch(d, task, g->node[choice], 1);
    for (int64_t i = wide ? first : first + lane; i < (wide ? g->lane_starts[pool + 1] : first + lane + 1); i++)
        d->sound &= take(d->lanes + i, start, finish, &undo);
    for (int64_t r = 0; r < g->resources; r++) d->sound &= use(d->usage + r, start, finish, g->uses[choice * g->resources + r]);
    d->choice_of[task] = choice;
    d->lane_of[task] = lane;
    d->start_of[task] = start;
    d->finish_of[task] = finish;
    d->turn++;
    for (int64_t v = g->write_starts[task]; v < g->write_starts[task + 1]; v++) put(d, v, g->node[choice], finish);
}

static int open_draft(Draft *d) {
    const Graph *g = d->g;
    const int64_t lanes = g->lane_starts[g->pools], engines = g->engine_starts[g->nodes * g->nodes];
    int64_t most = g->outputs;
    for (int64_t t = 0; t < g->tasks; t++)
        if (g->read_starts[t + 1] - g->read_starts[t] > most) most = g->read_starts[t + 1] - g->read_starts[t];
    d->lanes = calloc(lanes + 1, sizeof(Gaps));
    d->engines = calloc(engines + 1, sizeof(Gaps));
    d->usage = calloc(g->resources + 1, sizeof(Usage));
    d->there_at = malloc((g->values * g->nodes + 1) * sizeof(double));
    d->there_node = malloc((g->values * g->nodes + 1) * sizeof(int32_t));
    d->there = calloc(g->values + 1, sizeof(int32_t));
    d->missing = malloc((most + 1) * sizeof(Missing));
    d->undo = malloc((most + 1) * sizeof(Undo));
    d->hand_pool = malloc((lanes + 1) * sizeof(int64_t));
    d->hand_lane = malloc((lanes + 1) * sizeof(int64_t));
    d->hand_at = malloc((lanes + 1) * sizeof(double));
    if (!(d->lanes && d->engines && d->usage && d->there_at && d->there_node && d->there && d->missing && d->undo && d->hand_pool && d->hand_lane && d->hand_at))
        return 0;
    for (int64_t i = 0; i < lanes; i++)
        if (!open_gaps(d->lanes + i)) return 0;
    for (int64_t i = 0; i < engines; i++)
        if (!open_gaps(d->engines + i)) return 0;
    for (int64_t r = 0; r < g->resources; r++) {
        d->usage[r].capacity = g->capacity[r];
        if (cut(d->usage + r, 0.0) < 0) return 0;
    }
    for (int64_t v = 0; v < g->given; v++) put(d, v, g->host, 0.0);
    return 1;
}

static void close_draft(Draft *d) {
    const Graph *g = d->g;
    for (int64_t i = 0; d->lanes && i < g->lane_starts[g->pools]; i++) {
        free(d->lanes[i].starts);
        free(d->lanes[i].ends);
    }
    for (int64_t i = 0; d->engines && i < g->engine_starts[g->nodes * g->nodes]; i++) {
        free(d->engines[i].starts);
        free(d->engines[i].ends);
    }
    for (int64_t r = 0; d->usage && r < g->resources; r++) {
        free(d->usage[r].times);
        free(d->usage[r].levels);
    }
    void *owned[] = {d->lanes, d->engines, d->usage, d->there_at, d->there_node, d->there, d->missing, d->undo, d->hand_pool, d->hand_lane, d->hand_at};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) free(owned[i]);
}

/* Books the tasks of `order`: on `wanted[task]` where that is a choice that its group allows, else where finish + behind[task][choice] is least
   (`wanted`, `behind` may be 0); then brings the results to the host. `choice_of` is -1 throughout before. Returns how many were booked: all, or those
   before the first that is not possible; -1 where there is no memory; -2 at the first finish + tail above `limit` (`tail` may be 0).
   `copies` has room for each value on each node but one; `copied`: how many there are. */
int64_t hs_draft(const Graph *g, const int64_t *order, const double *behind, const int64_t *wanted, const double *tail, double limit, int64_t *choice_of,
                 double *start_of, double *finish_of, int64_t *lane_of, Copied *copies, int64_t *copied) {
    Draft draft = {.g = g, .choice_of = choice_of, .lane_of = lane_of, .start_of = start_of, .finish_of = finish_of, .copies = copies, .sound = 1}, *d = &draft;
    const int64_t nodes = g->nodes, choices = g->choices;
    double *ready = malloc(nodes * sizeof(double));
    int64_t *group_device = malloc((g->tasks + 1) * sizeof(int64_t));
    int hopeless = 0;
    d->sound = open_draft(d) && ready && group_device;
    for (int64_t t = 0; d->sound && t < g->tasks; t++) group_device[t] = -1;
    for (int64_t i = 0; d->sound && i < g->tasks; i++) {
        const int64_t task = order[i], group = g->group[task], fixed = group >= 0 ? group_device[group] : -1;
        if (choice_of[task] >= 0 || !can_start(d, task)) break;
        int64_t best = -1, lane = 0, only = wanted ? wanted[task] : -1;
        double least = INFINITY, begin = 0.0;
        if (only >= 0 && ((fixed >= 0 && g->device[only] != fixed) || g->seconds[task * choices + only] == INFINITY)) only = -1;
        for (int64_t m = 0; m < nodes; m++) ready[m] = -1.0;
        for (int64_t c = only >= 0 ? only : 0; c < (only >= 0 ? only + 1 : choices); c++) {
            const double seconds = g->seconds[task * choices + c], extra = behind && only < 0 ? behind[task * choices + c] : 0.0;
            if (seconds == INFINITY || (fixed >= 0 && g->device[c] != fixed)) continue;
            if (ready[g->node[c]] < 0) ready[g->node[c]] = fetch(d, task, g->node[c], 0);
            if (ready[g->node[c]] + seconds + extra >= least) continue; /* it starts no earlier */
            int64_t number;
            const double start = slot(d, task, c, ready[g->node[c]], &number), finish = start + seconds + extra;
            if (finish < least) {
                best = c;
                least = finish;
                begin = start;
                lane = number;
            }
        }
        if (best < 0 || !d->sound) break;
        book(d, task, best, begin, lane);
        if (group >= 0) group_device[group] = g->device[best];
        if (tail && finish_of[task] + tail[task] > limit) {
            hopeless = 1;
            break;
        }
    }
    int64_t away = 0;
    if (d->sound && d->turn == g->tasks && !hopeless) {
        for (int64_t k = 0; k < g->outputs; k++)
            if (!arrived(d, g->results[k], g->host)) {
                d->missing[away] = (Missing){first_there(d, g->results[k]), away, g->results[k]};
                away++;
            }
        sort_missing(d->missing, away);
        for (int64_t k = 0; k < away; k++) copy(d, d->missing[k].value, g->host, d->undo);
    }
    *copied = d->copied;
    close_draft(d);
    free(ready);
    free(group_device);
    return !d->sound ? -1 : hopeless ? -2 : d->turn;
}
