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

/* `granted` (0..wanted) units may be used now. When 0, `wait_ms` says when asking again is worth
 * it. */
typedef void (*limiter_cb)(void *ctx, int status, uint64_t granted, int64_t wait_ms);

/* Takes up to `wanted` units of `scope` against all `windows` at once (the smallest wins).
 * Errors: ERR_UNAVAILABLE, ERR_CLOSED, ERR_INVAL (no window, a window or count of 0). */
MUST_USE int limiter_take(struct queue *queue, const char *scope,
                          const struct limiter_window *windows, size_t window_count,
                          uint64_t wanted, limiter_cb cb, void *ctx);
/* Gives back units taken in the current sub-bucket and not used. */
void limiter_return(struct queue *queue, const char *scope, const struct limiter_window *windows,
                    size_t window_count, uint64_t unused);

#endif
