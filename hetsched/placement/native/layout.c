/* Where replicas lie, as machine code: `memory.lay_out` of a straight plan without loops: blocks, packing in order of time, reuse edges.

   Statement for statement the same as there, so that both give the same plans. A replica is numbered value * nodes + node. What is found is held in a
   `Layout` until `hs_layout_close`. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ALIGNMENT 64

typedef struct {
    int64_t spans, tasks, values, nodes, host;
    double end;                              /* the last finish */
    const int64_t *kind, *what, *src, *dst;  /* [spans]: 0 launch, 1 copy; task or value; the nodes it reads and writes */
    const double *start, *finish;            /* [spans] */
    const int64_t *low, *high;               /* [spans]: the lanes of a launch on a stream; low = high: none */
    const int64_t *input_start, *inputs, *output_start, *value_task, *nbytes;
    const int64_t *lies, *result, *alike;    /* [values]: 1: has an array form; 1: is an output of the graph; equal for equal specs */
    const int64_t *view, *view_offset, *workspace; /* [tasks]: 1: a view; where it begins in what it views; bytes of scratch */
    const int64_t *pair_start, *pairs;       /* CSR of each task: (output, input) that may share bytes, two numbers each */
} Plan;

typedef struct {
    int64_t node, nbytes, first, last, offset, kept, user, last_user, member, last_member, users;
    double start, finish;
} Block;

typedef struct {
    int64_t span, next;
} User;

typedef struct {
    int64_t before, later;
} Edge;

typedef struct {
    const Plan *p;
    Block *blocks;
    User *users;
    Edge *edges;
    int64_t block_count, block_room, user_count, user_room, edge_count, edge_room;
    int64_t *block_of, *inside, *loose_view, *last_reader, *writer, *next_member; /* [replicas] */
    int64_t *loose, loose_count;                                                  /* values on the host without a place, as they come */
    double *loose_start, *loose_finish;                                           /* [values]; start -1: none */
    int64_t *scratch_of;                                                          /* [tasks]: block of its workspace, -1: none */
    int sound;
} Layout;

static void *grown(void *old, int64_t *room, int64_t count, size_t each) {
    if (count < *room) return old;
    *room = *room ? 2 * *room : 1024;
    return realloc(old, *room * each);
}

static void add_edge(Layout *l, int64_t before, int64_t later) {
    Edge *edges = grown(l->edges, &l->edge_room, l->edge_count, sizeof(Edge));
    if (!edges) {
        l->sound = 0;
        return;
    }
    l->edges = edges;
    l->edges[l->edge_count++] = (Edge){before, later};
}

static void add_user(Layout *l, Block *b, int64_t span) {
    User *users = grown(l->users, &l->user_room, l->user_count, sizeof(User));
    if (!users) {
        l->sound = 0;
        return;
    }
    l->users = users;
    users[l->user_count] = (User){span, -1};
    if (b->users) users[b->last_user].next = l->user_count;
    else b->user = l->user_count;
    b->last_user = l->user_count++;
    b->users++;
}

static void add_member(Layout *l, Block *b, int64_t replica) {
    l->next_member[replica] = -1;
    if (b->member >= 0) l->next_member[b->last_member] = replica;
    else b->member = replica;
    b->last_member = replica;
}

static int64_t new_block(Layout *l, int64_t node, int64_t nbytes, int64_t span, int64_t replica) {
    Block *blocks = grown(l->blocks, &l->block_room, l->block_count, sizeof(Block));
    if (!blocks) {
        l->sound = 0;
        return -1;
    }
    l->blocks = blocks;
    Block *b = blocks + l->block_count;
    *b = (Block){.node = node, .nbytes = nbytes, .first = span, .last = span, .member = -1, .start = l->p->start[span], .finish = l->p->finish[span]};
    add_user(l, b, span);
    if (replica >= 0) add_member(l, b, replica);
    return l->block_count++;
}

/* Blocks ------------------------------------------------------------------------------------------------------------------------------- */

static int in_arena(const Plan *p, int64_t value, int64_t node) {
    return p->lies[value] && (node != p->host || (p->value_task[value] >= 0 && !p->result[value]));
}

static void read_one(Layout *l, int64_t span, int64_t replica) {
    const Plan *p = l->p;
    const double finish = p->finish[span];
    if (l->block_of[replica] >= 0) {
        Block *b = l->blocks + l->block_of[replica];
        add_user(l, b, span);
        if (span > b->last) b->last = span;
        if (finish > b->finish) b->finish = finish;
        return;
    }
    const int64_t base = l->loose_view[replica] >= 0 ? l->loose_view[replica] : replica;
    if (base % p->nodes == p->host && l->loose_start[base / p->nodes] >= 0 && l->loose_finish[base / p->nodes] < finish)
        l->loose_finish[base / p->nodes] = finish;
}

static void show(Layout *l, int64_t task, int64_t node) { /* the output of a view */
    const Plan *p = l->p;
    const int64_t value = p->output_start[task], view = value * p->nodes + node, source = p->inputs[p->input_start[task]] * p->nodes + node;
    const int64_t number = l->block_of[source];
    const int kept = node == p->host && p->result[value];
    if (number < 0) {
        l->loose_view[view] = l->loose_view[source] >= 0 ? l->loose_view[source] : source;
        return;
    }
    if (kept) {
        l->blocks[number].kept = 1;
        l->loose_view[view] = source;
        return;
    }
    add_member(l, l->blocks + number, view);
    l->block_of[view] = number;
    l->inside[view] = l->inside[source] + p->view_offset[task];
}

/* The block whose bytes output `position` may overwrite, -1: none. `taken`: those that other outputs have, `count` of them. */
static int64_t donor(const Layout *l, int64_t span, int64_t task, int64_t node, int64_t position, const int64_t *taken, int64_t count) {
    const Plan *p = l->p;
    const int64_t reads = p->input_start[task + 1] - p->input_start[task], *values = p->inputs + p->input_start[task], written = p->output_start[task] + position;
    for (int64_t k = p->pair_start[task]; k < p->pair_start[task + 1]; k++) {
        const int64_t into = p->pairs[2 * k + 1];
        if (p->pairs[2 * k] != position || into >= reads || p->alike[values[into]] != p->alike[written]) continue;
        const int64_t number = l->block_of[values[into] * p->nodes + node];
        if (number < 0) continue;
        const Block *b = l->blocks + number;
        int good = !b->kept && b->node == node && b->nbytes == p->nbytes[written];
        for (int64_t i = 0; good && i < count; i++) good = taken[i] != number;
        int64_t same = 0;
        for (int64_t i = 0; good && i < reads; i++) same += l->block_of[values[i] * p->nodes + node] == number;
        good = good && same == 1;
        for (int64_t u = b->user; good && u >= 0; u = l->users[u].next) good = l->users[u].span == span || p->finish[l->users[u].span] <= p->start[span];
        for (int64_t r = b->member; good && r >= 0; r = l->next_member[r]) good = l->last_reader[r] <= span;
        if (good) return number;
    }
    return -1;
}

static void write_one(Layout *l, int64_t span, int64_t value, int64_t node, int64_t heir) {
    const Plan *p = l->p;
    const int64_t replica = value * p->nodes + node;
    if (!in_arena(p, value, node)) {
        if (node == p->host && p->value_task[value] >= 0) {
            if (l->loose_start[value] < 0) l->loose[l->loose_count++] = value;
            l->loose_start[value] = p->start[span];
            l->loose_finish[value] = p->result[value] ? p->end : p->finish[span];
        }
        return;
    }
    if (heir < 0) {
        const int64_t number = new_block(l, node, p->nbytes[value], span, replica);
        l->block_of[replica] = number;
        return;
    }
    Block *b = l->blocks + heir;
    for (int64_t u = b->users > 1 ? l->users[b->user].next : b->user; u >= 0; u = l->users[u].next)
        if (l->users[u].span != span) add_edge(l, l->users[u].span, span);
    b->users = 0;
    add_user(l, b, span);
    b->member = -1;
    add_member(l, b, replica);
    l->block_of[replica] = heir;
}

static void find_blocks(Layout *l) {
    const Plan *p = l->p;
    int64_t widest = 1, *taken;
    for (int64_t t = 0; t < p->tasks; t++)
        if (p->output_start[t + 1] - p->output_start[t] > widest) widest = p->output_start[t + 1] - p->output_start[t];
    int64_t *seen = malloc((p->values + 1) * sizeof(int64_t)); /* value -> the last span that read it, so that each is read once */
    taken = malloc(widest * sizeof(int64_t));
    if (!seen || !taken) l->sound = 0;
    for (int64_t v = 0; l->sound && v < p->values; v++) seen[v] = -1;
    for (int64_t i = 0; l->sound && i < p->spans; i++)
        if (p->kind[i]) l->last_reader[p->what[i] * p->nodes + p->src[i]] = i;
        else
            for (int64_t k = p->input_start[p->what[i]]; k < p->input_start[p->what[i] + 1]; k++) l->last_reader[p->inputs[k] * p->nodes + p->src[i]] = i;
    for (int64_t i = 0; l->sound && i < p->spans; i++) {
        const int64_t what = p->what[i], node = p->dst[i];
        if (p->kind[i]) {
            read_one(l, i, what * p->nodes + p->src[i]);
            write_one(l, i, what, node, -1);
            l->writer[what * p->nodes + node] = i;
            continue;
        }
        for (int64_t k = p->input_start[what]; k < p->input_start[what + 1]; k++)
            if (seen[p->inputs[k]] != i) {
                seen[p->inputs[k]] = i;
                read_one(l, i, p->inputs[k] * p->nodes + node);
            }
        int64_t count = 0;
        for (int64_t v = p->output_start[what]; l->sound && v < p->output_start[what + 1]; v++) {
            l->writer[v * p->nodes + node] = i;
            if (p->view[what]) {
                show(l, what, node);
                continue;
            }
            const int64_t heir = in_arena(p, v, node) ? donor(l, i, what, node, v - p->output_start[what], taken, count) : -1;
            if (heir >= 0) taken[count++] = heir;
            write_one(l, i, v, node, heir);
        }
        if (p->workspace[what] > 0) l->scratch_of[what] = new_block(l, node, p->workspace[what], i, -1);
    }
    free(seen);
    free(taken);
}

/* Packing ------------------------------------------------------------------------------------------------------------------------------ */

static int64_t padded(int64_t nbytes) { return (nbytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

static int precedes(const Block *a, const Block *b) { return !a->kept && a->finish <= b->start && a->last < b->first; }

typedef struct {
    int64_t a, b; /* by place: offset, bytes; by size: bytes, offset */
} Pair;

typedef struct {
    Pair *by_place, *by_size;
    int64_t count, size_count, room, size_room, top;
} Holes;

static int64_t at_or_after(const Pair *rows, int64_t count, int64_t a, int64_t b) { /* bisect_left of (a, b) */
    int64_t low = 0, high = count;
    while (low < high) {
        const int64_t mid = (low + high) / 2;
        if (rows[mid].a < a || (rows[mid].a == a && rows[mid].b < b)) low = mid + 1;
        else high = mid;
    }
    return low;
}

static void drop(Pair *rows, int64_t *count, int64_t i) {
    memmove(rows + i, rows + i + 1, (--*count - i) * sizeof(Pair));
}

static Pair *insert(Pair *rows, int64_t *count, int64_t *room, int64_t a, int64_t b) {
    Pair *moved = grown(rows, room, *count, sizeof(Pair));
    if (!moved) return 0;
    const int64_t i = at_or_after(moved, *count, a, b);
    memmove(moved + i + 1, moved + i, (*count - i) * sizeof(Pair));
    moved[i] = (Pair){a, b};
    (*count)++;
    return moved;
}

static int add_hole(Holes *h, int64_t offset, int64_t nbytes) {
    Pair *rows = insert(h->by_place, &h->count, &h->room, offset, nbytes);
    if (!rows) return 0;
    h->by_place = rows;
    rows = insert(h->by_size, &h->size_count, &h->size_room, nbytes, offset);
    if (!rows) return 0;
    h->by_size = rows;
    return 1;
}

static void drop_size(Holes *h, int64_t nbytes, int64_t offset) { drop(h->by_size, &h->size_count, at_or_after(h->by_size, h->size_count, nbytes, offset)); }

static int take_hole(Holes *h, int64_t nbytes, int64_t *offset) {
    int64_t i = at_or_after(h->by_size, h->size_count, nbytes, -1);
    if (i < h->size_count) {
        const Pair found = h->by_size[i];
        *offset = found.b;
        drop(h->by_size, &h->size_count, i);
        drop(h->by_place, &h->count, at_or_after(h->by_place, h->count, found.b, found.a));
        return found.a > nbytes ? add_hole(h, found.b + nbytes, found.a - nbytes) : 1;
    }
    *offset = h->top;
    if (h->count && h->by_place[h->count - 1].a + h->by_place[h->count - 1].b == h->top) {
        const Pair last = h->by_place[--h->count];
        *offset = last.a;
        drop_size(h, last.b, last.a);
    }
    h->top = *offset + nbytes;
    return 1;
}

static int give_hole(Holes *h, int64_t offset, int64_t nbytes) {
    const int64_t i = at_or_after(h->by_place, h->count, offset, 0);
    if (i < h->count && h->by_place[i].a == offset + nbytes) {
        const int64_t size = h->by_place[i].b;
        drop(h->by_place, &h->count, i);
        drop_size(h, size, offset + nbytes);
        nbytes += size;
    }
    if (i && h->by_place[i - 1].a + h->by_place[i - 1].b == offset) {
        const Pair before = h->by_place[i - 1];
        drop(h->by_place, &h->count, i - 1);
        drop_size(h, before.b, before.a);
        offset = before.a;
        nbytes += before.b;
    }
    return add_hole(h, offset, nbytes);
}

static int sooner(const Block *blocks, int64_t a, int64_t b) {
    const double x = blocks[a].kept ? INFINITY : blocks[a].finish, y = blocks[b].kept ? INFINITY : blocks[b].finish;
    return x < y || (x == y && a < b);
}

static void push(const Block *blocks, int64_t *heap, int64_t size, int64_t block) {
    int64_t hole = size;
    for (; hole && sooner(blocks, block, heap[(hole - 1) / 2]); hole = (hole - 1) / 2) heap[hole] = heap[(hole - 1) / 2];
    heap[hole] = block;
}

static int64_t pop(const Block *blocks, int64_t *heap, int64_t size) { /* `size`: before */
    const int64_t block = heap[0], moved = heap[--size];
    int64_t hole = 0;
    for (int64_t child; (child = 2 * hole + 1) < size; hole = child) {
        if (child + 1 < size && sooner(blocks, heap[child + 1], heap[child])) child++;
        if (!sooner(blocks, heap[child], moved)) break;
        heap[hole] = heap[child];
    }
    heap[hole] = moved;
    return block;
}

/* Offsets of the blocks of `node`, by best fit in order of time; bytes rest for `rest` seconds. Returns the bytes of the arena, -1: no memory. */
int64_t hs_layout_pack(Layout *l, int64_t node, double rest) {
    Holes holes = {0};
    int64_t *heap = malloc((l->block_count + 1) * sizeof(int64_t)), *kept = malloc((l->block_count + 1) * sizeof(int64_t)), size = 0;
    int sound = heap && kept;
    for (int64_t i = 0; sound && i < l->block_count; i++) {
        Block *b = l->blocks + i;
        if (b->node != node) continue;
        int64_t count = 0;
        while (sound && size && (l->blocks[heap[0]].kept ? INFINITY : l->blocks[heap[0]].finish) + rest <= b->start) {
            const int64_t done = pop(l->blocks, heap, size--);
            if (precedes(l->blocks + done, b)) sound = give_hole(&holes, l->blocks[done].offset, padded(l->blocks[done].nbytes));
            else kept[count++] = done;
        }
        for (int64_t k = 0; k < count; k++) push(l->blocks, heap, size++, kept[k]);
        if (sound && b->nbytes) {
            sound = take_hole(&holes, padded(b->nbytes), &b->offset);
            push(l->blocks, heap, size++, i);
        }
    }
    free(heap);
    free(kept);
    free(holes.by_place);
    free(holes.by_size);
    return sound ? holes.top : -1;
}

/* Reuse -------------------------------------------------------------------------------------------------------------------------------- */

typedef struct {
    int64_t low, high, block;
} Stretch;

static int64_t low_after(const Stretch *row, int64_t count, int64_t x) { /* bisect_right of lows */
    int64_t low = 0, high = count;
    while (low < high) {
        const int64_t mid = (low + high) / 2;
        if (x < row[mid].low) high = mid;
        else low = mid + 1;
    }
    return low;
}

/* Adds (user of what lay in some bytes, first writer of what lies there next), over neighbours in time only. 0: blocks overlap, or no memory. */
int64_t hs_layout_reuse(Layout *l) {
    const int64_t nodes = l->p->nodes;
    Stretch **rows = calloc(nodes + 1, sizeof *rows);
    int64_t *count = calloc(nodes + 1, sizeof(int64_t)), *room = calloc(nodes + 1, sizeof(int64_t));
    int sound = rows && count && room;
    for (int64_t k = 0; sound && k < l->block_count; k++) {
        const Block *b = l->blocks + k;
        if (!b->nbytes) continue;
        const int64_t n = b->node, low = b->offset, high = low + b->nbytes;
        Stretch *row = grown(rows[n], room + n, count[n] + 2, sizeof(Stretch));
        if (!row) {
            sound = 0;
            break;
        }
        rows[n] = row;
        int64_t i = low_after(row, count[n], low) - 1, j = low_after(row, count[n], high - 1);
        if (i < 0) i = 0;
        if (i < j && row[i].high <= low) i++;
        for (int64_t s = i; s < j; s++) {
            const Block *old = l->blocks + row[s].block;
            if (!precedes(old, b)) sound = 0;
            for (int64_t u = old->users > 1 ? l->users[old->user].next : old->user; u >= 0; u = l->users[u].next) add_edge(l, l->users[u].span, b->first);
        }
        Stretch fresh[3];
        int64_t added = 0;
        if (i < j && row[i].low < low) fresh[added++] = (Stretch){row[i].low, low, row[i].block};
        fresh[added++] = (Stretch){low, high, k};
        if (i < j && row[j - 1].high > high) fresh[added++] = (Stretch){high, row[j - 1].high, row[j - 1].block};
        memmove(row + i + added, row + j, (count[n] - j) * sizeof(Stretch));
        memcpy(row + i, fresh, added * sizeof(Stretch));
        count[n] += added - (j - i);
    }
    for (int64_t n = 0; rows && n < nodes; n++) free(rows[n]);
    free(rows);
    free(count);
    free(room);
    return sound && l->sound;
}

static int is_implied(const Layout *l, Edge e) {
    const Plan *p = l->p;
    if (p->low[e.before] < p->high[e.later] && p->low[e.later] < p->high[e.before]) return 1;
    if (p->kind[e.later]) return l->writer[p->what[e.later] * p->nodes + p->src[e.later]] == e.before;
    for (int64_t k = p->input_start[p->what[e.later]]; k < p->input_start[p->what[e.later] + 1]; k++)
        if (l->writer[p->inputs[k] * p->nodes + p->src[e.later]] == e.before) return 1;
    return 0;
}

static int by_edge(const void *a, const void *b) {
    const Edge *x = a, *y = b;
    if (x->before != y->before) return x->before < y->before ? -1 : 1;
    return x->later < y->later ? -1 : x->later > y->later;
}

/* Sorts the edges and leaves out those that stand twice or hold anyway. Returns how many are left. */
int64_t hs_layout_edges(Layout *l) {
    int64_t left = 0;
    if (l->edge_count) qsort(l->edges, l->edge_count, sizeof(Edge), by_edge);
    for (int64_t i = 0; i < l->edge_count; i++) {
        const Edge e = l->edges[i];
        if ((i && by_edge(l->edges + i - 1, &e) == 0) || is_implied(l, e)) continue;
        l->edges[left++] = e;
    }
    return l->edge_count = left;
}

/* ---------------------------------------------------------------------------------------------------------------------------------------- */

void hs_layout_close(Layout *l) {
    if (!l) return;
    void *owned[] = {l->blocks, l->users, l->edges, l->block_of, l->inside, l->loose_view, l->last_reader, l->writer, l->next_member, l->loose,
                     l->loose_start, l->loose_finish, l->scratch_of};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) free(owned[i]);
    free(l);
}

static int64_t *filled(int64_t count, int64_t with) {
    int64_t *out = malloc((count + 1) * sizeof(int64_t));
    for (int64_t i = 0; out && i < count; i++) out[i] = with;
    return out;
}

/* The blocks of a plan; 0 where there is no memory. `p` must stay where it is until `hs_layout_close`. */
Layout *hs_layout_open(const Plan *p) {
    Layout *l = calloc(1, sizeof *l);
    if (!l) return 0;
    const int64_t replicas = p->values * p->nodes;
    l->p = p;
    l->block_of = filled(replicas, -1);
    l->inside = filled(replicas, 0);
    l->loose_view = filled(replicas, -1);
    l->last_reader = filled(replicas, -1);
    l->writer = filled(replicas, -1);
    l->next_member = filled(replicas, -1);
    l->scratch_of = filled(p->tasks, -1);
    l->loose = filled(p->values, -1);
    l->loose_start = malloc((p->values + 1) * sizeof(double));
    l->loose_finish = malloc((p->values + 1) * sizeof(double));
    l->sound = l->block_of && l->inside && l->loose_view && l->last_reader && l->writer && l->next_member && l->scratch_of && l->loose && l->loose_start
               && l->loose_finish;
    for (int64_t v = 0; l->sound && v < p->values; v++) l->loose_start[v] = -1.0;
    if (l->sound) find_blocks(l);
    if (l->sound) return l;
    hs_layout_close(l);
    return 0;
}

/* How many blocks and edges there are, and how many replicas are freed at most. */
void hs_layout_counts(const Layout *l, int64_t *blocks, int64_t *edges, int64_t *frees) {
    *blocks = l->block_count;
    *edges = l->edge_count;
    *frees = l->loose_count;
    for (int64_t k = 0; k < l->block_count; k++)
        for (int64_t r = l->blocks[k].member; r >= 0; r = l->next_member[r]) ++*frees;
}

void hs_layout_read(const Layout *l, Block *blocks, Edge *edges, int64_t *block_of, int64_t *inside, int64_t *scratch_of) {
    const int64_t replicas = l->p->values * l->p->nodes;
    memcpy(blocks, l->blocks, l->block_count * sizeof(Block));
    memcpy(edges, l->edges, l->edge_count * sizeof(Edge));
    memcpy(block_of, l->block_of, replicas * sizeof(int64_t));
    memcpy(inside, l->inside, replicas * sizeof(int64_t));
    memcpy(scratch_of, l->scratch_of, l->p->tasks * sizeof(int64_t));
}

/* The values on the host without a place. Returns how many. */
int64_t hs_layout_loose(const Layout *l, int64_t *value, double *start, double *finish) {
    for (int64_t k = 0; k < l->loose_count; k++) {
        value[k] = l->loose[k];
        start[k] = l->loose_start[l->loose[k]];
        finish[k] = l->loose_finish[l->loose[k]];
    }
    return l->loose_count;
}

/* The replicas whose bytes are free again, and when. Returns how many. */
int64_t hs_layout_frees(const Layout *l, int64_t *replica, double *at) {
    int64_t count = 0;
    for (int64_t k = 0; k < l->block_count; k++)
        for (int64_t r = l->blocks[k].kept ? -1 : l->blocks[k].member; r >= 0; r = l->next_member[r]) {
            replica[count] = r;
            at[count++] = l->blocks[k].finish;
        }
    for (int64_t k = 0; k < l->loose_count; k++)
        if (!l->p->result[l->loose[k]]) {
            replica[count] = l->loose[k] * l->p->nodes + l->p->host;
            at[count++] = l->loose_finish[l->loose[k]];
        }
    return count;
}

void hs_layout_place(Layout *l, const int64_t *offsets) {
    for (int64_t k = 0; k < l->block_count; k++) l->blocks[k].offset = offsets[k];
}
