/* What operators do to messages and batches that wait or have ended: hold, release, retry, cancel,
 * move, purge, replay, by id or by selector.
 *
 * A batch somebody holds a claim on is never touched: it is counted as busy. Everything else is
 * changed by compare and set on its stored record, so work done here and deliveries that go on at
 * the same time cannot undo each other. One call looks at a bounded number of messages and says
 * where to go on; no step grows with the queue.
 *
 * Must not know: HTTP, command lines, backends. Thread: the handle's loop; see queue.h. */
#ifndef HEAVE_QUEUE_WORK_H
#define HEAVE_QUEUE_WORK_H

#include "queue/queue.h"

enum queue_verb {
    QUEUE_HOLD,    /* READY, DELAYED -> HELD, with the reason */
    QUEUE_RELEASE, /* HELD -> READY, or DELAYED while it is not due yet (send_at, a retry);
                    * recipients it was held for as unknown are queued again */
    QUEUE_RETRY,   /* DELAYED, HELD -> READY now; attempts stay unless `reset` */
    QUEUE_CANCEL,  /* open recipients -> CANCELLED; with a domain only those in it */
    QUEUE_MOVE,    /* READY, DELAYED, HELD: to another backend */
    QUEUE_PURGE,   /* open: as cancel, and no body is kept; finished: the history goes */
    QUEUE_REPLAY,  /* dead letters: failed, expired and unknown recipients are queued again */
};
#define QUEUE_VERB_COUNT 7
/* "hold", "release", ... */
const char *queue_verb_name(enum queue_verb verb);

/* States to select by; 0: all the verb is for. */
enum queue_select {
    QUEUE_SELECT_READY = 1u << 0,
    QUEUE_SELECT_DELAYED = 1u << 1,
    QUEUE_SELECT_HELD = 1u << 2,
    QUEUE_SELECT_FAILED = 1u << 3, /* these three: dead letters */
    QUEUE_SELECT_EXPIRED = 1u << 4,
    QUEUE_SELECT_UNKNOWN = 1u << 5,
    QUEUE_SELECT_FINISHED = 1u << 6, /* messages without open batches; for purge */
};

/* Everything named must match; an empty span or 0 matches all. */
struct queue_selector {
    struct span lane, backend, client;
    struct span sender; /* header From or reverse-path: an address, or "*@domain" */
    struct span domain; /* of a recipient that the verb is for */
    struct span tag;
    uint32_t states;            /* enum queue_select */
    int64_t accepted_before_ms; /* wall */
};

/* How long a replayed message may take: its lane's. */
struct queue_lifetime {
    const char *lane;
    int64_t expires_ms;
};

#define QUEUE_WORK_IDS_MAX 500
#define QUEUE_WORK_LIMIT_MAX 10000
/* Copied by queue_work(). */
struct queue_order {
    enum queue_verb verb;
    const struct span *ids; /* "id" or "id/number"; none: the selector alone */
    size_t id_count;
    struct queue_selector selector; /* holds for ids, too */
    struct span reason;             /* stored with hold and cancel; at most 300 bytes */
    struct span to;                 /* MOVE: the backend */
    uint32_t to_recipients_max;     /* and what it takes: larger batches are skipped; 0: anything */
    uint64_t to_bytes_max;          /* compared with the stored size: packed bodies may pass it */
    bool reset;                     /* RETRY: attempts begin at 0 */
    bool dry_run;                   /* count, change nothing */
    const struct queue_lifetime *lifetimes; /* REPLAY; 24 h for a lane that is not in it */
    size_t lifetime_count;
    size_t limit;       /* messages to look at, 1 .. QUEUE_WORK_LIMIT_MAX, about */
    struct span cursor; /* of an earlier call with the same order; empty: the beginning */
};

struct queue_skip {
    struct span id;
    int64_t batch; /* -1: the message */
    const char *reason;
};

struct queue_worked {
    int64_t found;    /* messages that an id named and that are the selector's client's */
    int64_t messages; /* matched, by pages: one with very many batches may count twice */
    int64_t batches;
    int64_t recipients[RECIPIENT_STATE_COUNT]; /* of those, the ones the verb is for, by state */
    int64_t changed;                           /* batches */
    int64_t busy;                   /* matched batches that are claimed: try again later */
    int64_t skipped;                /* matched batches left alone, and ids that named nothing */
    const struct queue_skip *skips; /* the first of those */
    size_t skip_count;
    struct span next_cursor; /* empty: the end */
};
typedef void (*queue_work_cb)(void *ctx, int status, const struct queue_worked *worked);

/* Does `order` to up to `limit` messages. After an error some of it may have been done. Errors:
 * ERR_INVAL (limit, cursor, names, more than QUEUE_WORK_IDS_MAX ids), ERR_UNAVAILABLE, ERR_CLOSED.
 */
MUST_USE int queue_work(struct queue *queue, const struct queue_order *order, queue_work_cb cb,
                        void *ctx);

#endif
