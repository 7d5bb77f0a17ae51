/* The front of one loop: its listeners, protocol servers, API, intake and queue handle.
 *
 * Every ingress thread has one for the smtp and http listeners; the main thread has one for the
 * admin listeners. They share nothing but the immutable snapshots in struct front_conf.
 *
 * Must not know: threads, signals. Thread: its loop's; front_new() runs before that loop does. */
#ifndef HEAVE_GATEWAY_FRONT_H
#define HEAVE_GATEWAY_FRONT_H

#include "gateway/base/loop.h"
#include "gateway/base/tls.h"
#include "gateway/conf.h"
#include "gateway/events.h"
#include "gateway/policy.h"
#include "queue/queue.h"

#include <stdatomic.h>
#include <stdbool.h>

/* The snapshots a front works with. All but `policy` and the contexts (of which references are
 * taken) must outlive it. */
struct front_conf {
    const struct conf *conf;
    struct policy *policy;
    struct tls_context *smtp_tls; /* NULL when no listener needs one */
    struct tls_context *http_tls; /* the same certificate, offering h2 */
    const struct queue_conf *queue;
    struct events *events;
    struct admission *admission; /* watched by the admin front, read by all */
    atomic_size_t
        *connections; /* open SMTP connections of each listener, over all fronts: max_connections */
    bool admin;       /* take the admin listeners; otherwise the smtp and http ones */
    /* Messages were enqueued: wake the couriers. Any thread. */
    void (*on_enqueued)(void *ctx);
    void *ctx;
};

struct front;

/* Opens the queue handle and all listeners. Errors: ERR_INVAL, ERR_IO with a sentence (an address
 * in use, ...); what was opened is closed when the loop is freed. */
MUST_USE int front_new(struct loop *loop, const struct front_conf *conf, struct front **out,
                       struct err *err);
/* New snapshots for new sessions and messages; listeners stay as they are. */
void front_reconfigure(struct front *front, const struct front_conf *conf);
/* Stops accepting, lets sessions finish what they began (at most `timeout_ms`), closes the queue
 * handle, calls `on_drained` and frees the front. */
void front_drain(struct front *front, int64_t timeout_ms, void (*on_drained)(void *ctx), void *ctx);
/* /readyz says no from now on, all else goes on (the admin front, while the others drain). */
void front_set_draining(struct front *front);
/* New messages are put off (452, 503) from now on, or taken again; all else goes on. */
void front_set_disk_full(struct front *front, bool full);

#endif
