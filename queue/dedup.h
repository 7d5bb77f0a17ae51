/* Windows in which repeats of a message are not queued again. Public, as queue.h is.
 *
 * A window belongs to a scope (a client) and a key (what makes messages "the same"). It opens with
 * the first message that is stored, lets `limit` of them through, and counts the others until it
 * ends. What was counted is told with the next message that is let through after that.
 *
 *   begin: PASS ── stored ──► commit        begin: REPEAT (counted, names the last one stored)
 *            └──── not stored ► give_back   begin: BUSY (another one of this key is being stored)
 *
 * Never says REPEAT of something that may not have been stored: the window opens only with commit.
 * A gateway that dies in between costs one more mail, not one less.
 *
 * Thread, calls and callbacks: as in queue.h. */
#ifndef HEAVE_QUEUE_DEDUP_H
#define HEAVE_QUEUE_DEDUP_H

#include "queue/queue.h"

#define DEDUP_KEY_MAX 64

struct dedup_window {
    struct span scope;
    struct span key; /* at most DEDUP_KEY_MAX bytes */
    uint32_t limit;  /* at least 1 */
    int64_t window_ms;
    struct span owner; /* from queue_key_owner(): one for each message */
};

enum dedup_state {
    DEDUP_PASS,
    DEDUP_REPEAT,
    DEDUP_BUSY, /* ask again in a moment */
};
struct dedup_found {
    enum dedup_state state;
    uint64_t
        suppressed; /* PASS: how many of an ended window were never told; REPEAT: of this one */
    struct span id; /* REPEAT: of the last message let through */
};
typedef void (*dedup_cb)(void *ctx, int status, const struct dedup_found *found);

/* PASS reserves the key for `hold_ms`. Statuses: as of queue_enqueue(); after ERR_TIMEOUT a repeat
 * may have been counted. Errors: ERR_UNAVAILABLE, ERR_INVAL (an argument), ERR_CLOSED. */
MUST_USE int dedup_begin(struct queue *queue, const struct dedup_window *window, int64_t hold_ms,
                         dedup_cb cb, void *ctx);
/* The message `id` is stored, and tells of `told` suppressed ones. */
void dedup_commit(struct queue *queue, const struct dedup_window *window, struct span id,
                  uint64_t told);
/* It is not. What cannot be given back ends by itself after hold_ms. */
void dedup_give_back(struct queue *queue, const struct dedup_window *window);

#endif
