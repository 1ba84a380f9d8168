/* Free intervals of one lane, ascending; the last one never ends. */
#ifndef HS_GAPS
#define HS_GAPS
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    int64_t count, room;
    double *starts, *ends;
} Gaps;

static inline int make_room(Gaps *g) {
    if (g->count < g->room) return 1;
    const int64_t room = g->room ? 2 * g->room : 16;
    double *starts = realloc(g->starts, room * sizeof(double));
    if (!starts) return 0;
    g->starts = starts;
    double *ends = realloc(g->ends, room * sizeof(double));
    if (!ends) return 0;
    g->ends = ends;
    g->room = room;
    return 1;
}

static inline int64_t first_from(const double *a, int64_t count, double x) { /* bisect_left */
    int64_t low = 0, high = count;
    while (low < high) {
        const int64_t mid = (low + high) / 2;
        if (a[mid] < x) low = mid + 1;
        else high = mid;
    }
    return low;
}

static inline int64_t first_after(const double *a, int64_t count, double x) { /* bisect_right */
    int64_t low = 0, high = count;
    while (low < high) {
        const int64_t mid = (low + high) / 2;
        if (x < a[mid]) high = mid;
        else low = mid + 1;
    }
    return low;
}

static inline int open_gaps(Gaps *g) { /* one gap without end */
    if (!make_room(g)) return 0;
    g->starts[0] = 0.0;
    g->ends[0] = INFINITY;
    g->count = 1;
    return 1;
}

/* Takes [start, finish) out of gap i. before, after: what is left on that side stays a gap. 0 where there is no memory. */
static inline int carve(Gaps *g, int64_t i, double start, double finish, int before, int after) {
    const int64_t behind = g->count - i - 1;
    if (before && after) {
        if (!make_room(g)) return 0;
        memmove(g->starts + i + 2, g->starts + i + 1, behind * sizeof(double));
        memmove(g->ends + i + 2, g->ends + i + 1, behind * sizeof(double));
        g->starts[i + 1] = finish;
        g->ends[i + 1] = g->ends[i];
        g->ends[i] = start;
        g->count++;
    } else if (before) g->ends[i] = start;
    else if (after) g->starts[i] = finish;
    else {
        memmove(g->starts + i, g->starts + i + 1, behind * sizeof(double));
        memmove(g->ends + i, g->ends + i + 1, behind * sizeof(double));
        g->count--;
    }
    return 1;
}

#endif
