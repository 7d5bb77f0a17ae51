/* Sliding-window quotas, and the periods the simulators have told their clients to stay away.
 *
 * services.md 2.6 and 3.4: a request made while throttled still counts, so a window remembers
 * refused requests too.
 *
 * Thread: the loop's. Time is monotonic milliseconds given by the caller. */
#ifndef HEAVE_BENCH_SIM_PACE_H
#define HEAVE_BENCH_SIM_PACE_H

#include "bench/sim/ledger.h"
#include "gateway/base/buf.h"
#include "gateway/base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define QUOTA_WINDOWS_MAX 4

struct quota_window {
    uint32_t limit;
    int64_t window_ms;
    int64_t *times; /* ring of the last `limit` requests */
    uint32_t next;  /* oldest when full */
    uint32_t filled;
};
struct quota {
    struct quota_window windows[QUOTA_WINDOWS_MAX];
    size_t count; /* 0: off */
};

/* Reads "30/m,100/h", "60/10s" or "off". Errors: ERR_INVAL with a sentence. */
MUST_USE int quota_read(struct span text, struct quota *out, struct err *err);
void quota_release(struct quota *quota);
/* Forgets every request. */
void quota_reset(struct quota *quota);
/* Counts one request. Returns NULL when it is within every window; else the window it broke (the
 * one to wait for longest), and `*out_wait_ms` is how long until a request would pass if none came
 * before. */
const struct quota_window *quota_take(struct quota *quota, int64_t now_ms, int64_t *out_wait_ms);

/* Closed periods by scope ("acs", "graph notify1@contoso.test", ...). */
struct closures;
struct closures *closures_new(int64_t grace_ms);
void closures_free(struct closures **closures);
void closures_reset(struct closures *closures);
/* The client was told to stay away for `wait_ms`. `enforced`: requests before the end are refused;
 * otherwise only counted. Past 1,024 scopes the oldest is forgotten. */
void closures_announce(struct closures *closures, struct span scope, int64_t now_ms,
                       int64_t wait_ms, bool enforced);
/* A request came. Counts it in `counts` when it is inside a closed period (in the first `grace_ms`
 * as one that may have been on its way). Returns how long an enforced period still lasts, 0 when
 * the request may pass. */
int64_t closures_check(struct closures *closures, struct span scope, int64_t now_ms,
                       struct ledger_counts *counts);

#endif
