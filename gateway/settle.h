/* What becomes of a batch after a try: verdicts and the lane's policy in, states and the next step
 * out. Pure.
 *
 * The effect of each verdict class is design.md section 5; retry ladders, expiry and on_unknown are
 * the lane's. Must not know: queue connections, backends, clocks. Thread: any. */
#ifndef HEAVE_GATEWAY_SETTLE_H
#define HEAVE_GATEWAY_SETTLE_H

#include "backends/backend.h"
#include "queue/queue.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One row of `lanes:`. */
struct lane_conf {
    const char *name;
    uint32_t share_percent;   /* guaranteed part of every backend's room */
    const int64_t *ladder_ms; /* waits between tries */
    size_t ladder_count;
    bool last_repeats; /* the last step ends in '*' */
    int64_t expires_ms;
    bool retry_unknown; /* on_unknown: retry; otherwise hold */
};

struct settle_input {
    const struct lane_conf *lane;
    bool asks_when_unknown;       /* struct backend_defaults */
    int64_t now_ms;               /* wall */
    int64_t expires_ms;           /* wall, the message's */
    const struct answer *answers; /* answers[i] belongs to batch recipient map[i] */
    const size_t *map;
    size_t count; /* may be fewer than are open: the rest goes on as if it had not been tried */
    const char *account; /* who sent it; "" nobody */
    uint32_t jitter;     /* any random number: spreads retries by up to 10 % */
};

struct settle_result {
    struct queue_settlement settlement;
    size_t delivered, failed, expired, unknown, deferred; /* recipients of this try */
    size_t worst;    /* index into answers of the answer that decided */
    bool mixed;      /* not all recipients got the same verdict */
    bool close_gate; /* THROTTLED or worse reaching beyond the account */
    int64_t gate_wait_ms;
};

/* Updates states, replies, attempts, epoch and flags of `batch` and says what to do with it.
 * Replies are spans into `answers` and must be settled before those go. */
void settle_decide(struct batch *batch, const struct settle_input *input,
                   struct settle_result *out);

/* A claimed batch whose message has expired: every open recipient ends as EXPIRED, or UNKNOWN when
 * it may have been sent. */
void settle_expire(struct batch *batch, int64_t now_ms, struct settle_result *out);

/* A claimed batch that was STARTED when its last owner died: true when it may be tried again (marks
 * MAYBE_SENT), false when it is to be held (`out` says how). */
bool settle_recovered(struct batch *batch, const struct lane_conf *lane, bool asks_when_unknown,
                      int64_t now_ms, struct settle_result *out);

/* The wait before try number `attempts` + 1, or -1 when the ladder has ended. */
int64_t settle_ladder_wait(const struct lane_conf *lane, uint32_t attempts);

#endif
