/* Cluster-wide quotas: "at most N units in any window of W", kept in Redis, taken in small leases.
 *
 * Must not know: what a unit is. Thread: the loop of the queue handle it uses. The sum of all
 * grants of all replicas never passes the limit in any window: windows slide over sub-buckets of
 * W/32 and a grant counts as long as any part of its sub-bucket lies in the window. */
#ifndef HEAVE_QUEUE_LIMITER_H
#define HEAVE_QUEUE_LIMITER_H

#include "queue/queue.h"

#include <stddef.h>
#include <stdint.h>

struct limiter_window {
    uint64_t units;
    int64_t window_ms;
};
#define LIMITER_WINDOWS_MAX 6

/* Whose part of a quota is asked for (a lane). In every window of every scope, over all replicas:
 *  - up to `percent` of the units are the share's own: granted as long as any are left;
 *  - beyond that it borrows what others do not use, but leaves the last tenth of the units to those
 *    still below their own part, and once half of the units are used borrows no faster than the
 *    quota flows (a thirty-second of it in a thirty-second of the window, within one request; a
 *    quarter in a quarter), so that units come back evenly.
 * So a share that was idle finds a tenth of the quota at once (of 10 units and more) and then every
 * unit that comes back before any borrower, until its own part is used. 100 %: no limit of this
 * kind. */
struct limiter_share {
    const char *name; /* without '|' */
    uint32_t percent; /* 1..100 */
};

/* `granted` (0..wanted) units may be used now. When 0, `wait_ms` says when asking again is worth
 * it. */
typedef void (*limiter_cb)(void *ctx, int status, uint64_t granted, int64_t wait_ms);

/* The same for a share. `share_only`: nothing was granted, but a share below its part could have
 * some. */
typedef void (*limiter_share_cb)(void *ctx, int status, uint64_t granted, int64_t wait_ms,
                                 bool share_only);

/* Takes up to `wanted` units of `scope` against all `windows` at once (the smallest wins).
 * Errors: ERR_UNAVAILABLE, ERR_CLOSED, ERR_INVAL (no window, a window or count of 0). */
MUST_USE int limiter_take(struct queue *queue, const char *scope,
                          const struct limiter_window *windows, size_t window_count,
                          uint64_t wanted, limiter_cb cb, void *ctx);
/* Gives back units taken in the current sub-bucket and not used. */
void limiter_return(struct queue *queue, const char *scope, const struct limiter_window *windows,
                    size_t window_count, uint64_t unused);
/* As the two above, on account of a share. What a share took must be returned for that share. */
MUST_USE int limiter_take_share(struct queue *queue, const char *scope,
                                const struct limiter_window *windows, size_t window_count,
                                const struct limiter_share *share, uint64_t wanted,
                                limiter_share_cb cb, void *ctx);
void limiter_return_share(struct queue *queue, const char *scope,
                          const struct limiter_window *windows, size_t window_count,
                          const struct limiter_share *share, uint64_t unused);

#endif
