/* One delivery loop: a queue handle and a courier.
 *
 * Must not know: threads, signals, listeners. Thread: its loop's; dispatch_new() runs before that
 * loop does; dispatch_hint() may be called from any thread. */
#ifndef HEAVE_GATEWAY_DISPATCH_H
#define HEAVE_GATEWAY_DISPATCH_H

#include "gateway/base/loop.h"
#include "gateway/conf.h"
#include "gateway/courier.h"
#include "gateway/events.h"
#include "queue/queue.h"

struct dispatch;

/* `conf`, `queue`, `events` and `pace` must outlive it. Errors: those of courier_new(). */
MUST_USE int dispatch_new(struct loop *loop, const struct conf *conf,
                          const struct queue_conf *queue, struct events *events,
                          struct courier_pace *pace, struct dispatch **out, struct err *err);
/* Work may be there. Any thread; coalesced. */
void dispatch_hint(struct dispatch *dispatch);
/* Lets running deliveries end (at most `grace_ms`), gives the rest back, closes the queue handle,
 * then calls `on_drained`. */
void dispatch_drain(struct dispatch *dispatch, int64_t grace_ms, void (*on_drained)(void *ctx),
                    void *ctx);
/* After it was drained and its loop was freed: a hint of another thread may wait in the loop until
 * then. */
void dispatch_free(struct dispatch **dispatch);

#endif
