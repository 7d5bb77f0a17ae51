/* The courier: claim -> pace -> deliver -> settle, one per delivery loop.
 *
 * It asks the queue only for what its backends can send now (room, open gates, quota), shares each
 * backend's room between the lanes, hands batches to backends and settles what they answer
 * (settle.h). Nothing sleeps holding a batch: what turns out not to be sendable is released.
 *
 * Must not know: Redis, services. Thread: its delivery loop; courier_hint() through loop_post only.
 */
#ifndef HEAVE_GATEWAY_COURIER_H
#define HEAVE_GATEWAY_COURIER_H

#include "backends/backend.h"
#include "gateway/base/loop.h"
#include "gateway/events.h"
#include "gateway/settle.h"
#include "queue/limiter.h"
#include "queue/queue.h"

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define COURIER_BACKENDS_MAX 16
#define COURIER_LANES_MAX 8

/* Closings that all delivery loops of the process see at once; the gates in Redis tell the other
 * replicas. Monotonic milliseconds, 0: open. One per process, zero-initialised. */
struct courier_pace {
    _Atomic int64_t closed_until_ms[COURIER_BACKENDS_MAX];
};

/* One backend and what the courier alone needs of it. */
struct courier_backend_conf {
    const struct backend_conf *backend;
    const struct limiter_window *message_windows; /* `rates` in messages: "30/m" */
    size_t message_window_count;
    const struct limiter_window *recipient_windows; /* `rates` in recipients: "10000r/d" */
    size_t recipient_window_count;
};

struct courier_conf {
    const struct lane_conf *lanes; /* in order of precedence */
    size_t lane_count;             /* at most COURIER_LANES_MAX */
    const struct courier_backend_conf *backends;
    size_t backend_count; /* at most COURIER_BACKENDS_MAX */
    mail_read_fn read_mail;
};

struct courier;

/* `conf`, `queue`, `events` and `pace` must outlive it. Errors: those of backend_open, with its
 * sentence. */
MUST_USE int courier_new(struct loop *loop, struct queue *queue, const struct courier_conf *conf,
                         struct events *events, struct courier_pace *pace, struct courier **out,
                         struct err *err);
/* Work may be there. */
void courier_hint(struct courier *courier);
/* Claims no more, gives back what was not started, lets running deliveries end (at most
 * `grace_ms`), waits for their settlements (5 s more), then calls `on_drained`: the caller closes
 * the queue. The courier frees itself, at the latest with the last callback of the queue. */
void courier_drain(struct courier *courier, int64_t grace_ms, void (*on_drained)(void *ctx),
                   void *ctx);

#endif
