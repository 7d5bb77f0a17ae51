/* What courier.c (deliveries, life), courier_claim.c and courier_quota.c share; for these alone.
 * Thread: the courier's loop. */
#ifndef HEAVE_GATEWAY_COURIER_PRIVATE_H
#define HEAVE_GATEWAY_COURIER_PRIVATE_H

#include "gateway/courier.h"
#include "gateway/lanes.h"

#include <stdbool.h>

#define COURIER_DOWN_WAIT_MS 250
/* What a backend would not take, or what only part of the quota was left for, is not tried again at
 * once. */
#define COURIER_REFUSED_WAIT_MS 1000

struct waiting {
    struct queue_lease **leases; /* ring */
    size_t head, count, cap;
};

/* One (backend, lane). */
struct channel {
    struct waiting waiting;
    uint32_t asked;          /* in the claim on its way */
    uint32_t returned;       /* by the last claim */
    int64_t closed_until_ms; /* loop time: its part of the quota is used up */
    uint32_t partials;       /* times in a row that only part of a batch was granted */
};

struct station {
    struct courier *courier;
    const struct courier_backend_conf *conf;
    const struct backend_defaults *defaults;
    struct backend *backend;
    size_t index;
    struct channel channels[COURIER_LANES_MAX];
    struct lanes lanes;
    size_t waiting_count;
    size_t waiting_bytes;  /* of their bodies */
    size_t finished;       /* since pace_ms */
    int64_t pace_ms;       /* loop time */
    size_t ahead;          /* what it delivers in AHEAD_MS, as measured before pace_ms */
    bool has_finished;     /* since the last plan */
    int64_t gate_until_ms; /* loop time: closed by the queue's gate or the quota */
    int64_t probe_at_ms;   /* loop time */
    int64_t launched_ms;   /* loop time of the last delivery's begin */
    int64_t claimed_ms;    /* loop time of the last claim that asked for it */
    size_t recipients_max; /* of one delivery; a batch may have more */
    bool asking_quota;
    bool closing;
};

/* One delivery on its way. */
struct flight {
    struct courier *courier;
    struct station *station;
    size_t lane;
    struct queue_lease *lease;
    struct delivery delivery;
    struct span recipients[BATCH_RECIPIENTS_MAX];
    size_t map[BATCH_RECIPIENTS_MAX];
    int64_t begun_us;
    uint32_t attempt;   /* from 1 */
    bool start_refused; /* nothing was sent */
};

/* One want of the claim on its way. */
struct asked {
    struct station *station;
    struct channel *channel;
    bool expired_only;
};

struct courier {
    struct loop *loop;
    struct queue *queue;
    const struct courier_conf *conf;
    struct events *events;
    struct courier_pace *pace;
    struct station stations[COURIER_BACKENDS_MAX];
    struct loop_timer poll;
    struct loop_task pump;
    int64_t
        asked_all_ms; /* loop time of the last claim that asked for lanes that had nothing, too */
    bool claiming;
    bool hinted; /* those may have something: asked for with the next claim */
    bool again;  /* a hint came while a claim was on its way */
    bool draining;
    size_t flights;
    size_t settles;
    size_t open_backends;
    struct queue_want wants[COURIER_BACKENDS_MAX * COURIER_LANES_MAX];
    struct asked asked[COURIER_BACKENDS_MAX * COURIER_LANES_MAX]; /* by want */
    size_t want_count;
    struct loop_timer drain_timer;
    bool overdue;                  /* the drain waits no longer for Redis */
    void (*on_drained)(void *ctx); /* NULL once called */
    void *on_drained_ctx;
};

/* Claimed batches that have not begun, oldest first; a lease in it belongs to the station. */
void station_waiting_push(struct station *station, size_t lane, struct queue_lease *lease);
/* There must be one. */
struct queue_lease *station_waiting_pop(struct station *station, size_t lane);

bool station_is_open(const struct station *station);
/* Closes it for this loop; a later time wins. */
void station_close_locally(struct station *station, int64_t wait_ms);
/* Gives everything that waits back to the queue; or all of one lane. */
void station_release_waiting(struct station *station);
void station_release_lane(struct station *station, size_t lane);
/* Settles a claimed batch at once when it has expired or must not be tried again; true when it did,
 * and then the lease is gone. */
bool station_settle_unsent(struct station *station, size_t lane, struct queue_lease *lease);
/* Sends up to `recipients_max` recipients of one claimed batch; takes the lease. */
void station_launch(struct station *station, size_t lane, struct queue_lease *lease,
                    size_t recipients_max);
/* Asks for the batch's units and then sends it, or gives it back; takes the lease. Sets
 * asking_quota until then. */
void station_start_quota(struct station *station, size_t lane, struct queue_lease *lease);

/* One claim for all that could be sent; none must be on its way. */
void courier_claim(struct courier *courier);
void courier_pump_later(struct courier *courier);
/* Ends a drain when nothing is left to wait for; the courier may be gone afterwards. */
void courier_drained_maybe(struct courier *courier);

#endif
