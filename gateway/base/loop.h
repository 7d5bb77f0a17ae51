/* One event loop per thread: a libuv loop with an inbox, cheap timers and end-of-turn tasks.
 *
 * Must not know: sockets, protocols. Thread: a loop and all its timers and tasks belong to the
 * thread that runs it; only loop_post() and loop_stop() may be called from others.
 *
 * A turn: poll events and timers run first, then every task deferred in this turn, the queue class
 * before the write class. So replies and Redis commands produced by a burst of input leave in one
 * system call per connection, and a Redis command issued in a turn is on the wire before the bytes
 * a stream was given in the same turn. */
#ifndef HEAVE_BASE_LOOP_H
#define HEAVE_BASE_LOOP_H

#include "gateway/base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

struct loop;

/* `name` (static text) appears in logs and as the thread's name. Aborts when the system refuses. */
struct loop *loop_new(const char *name);
/* The loop must have stopped; handles still open are closed and their callbacks run. */
void loop_free(struct loop **loop);
/* Runs until loop_stop(). */
void loop_run(struct loop *loop);
/* Runs whatever is ready without waiting; for tests. */
void loop_run_once(struct loop *loop);
/* Ends loop_run() after the current turn. Any thread. */
void loop_stop(struct loop *loop);
uv_loop_t *loop_uv(struct loop *loop);
const char *loop_name(const struct loop *loop);
/* Monotonic milliseconds as of the start of this turn. */
int64_t loop_now_ms(const struct loop *loop);

/* Calls fn(ctx) on the loop's thread, in the order of posting. Any thread; never blocks for long.
 * Owns: the inbox takes `ctx`; fn must release it. Posts still waiting when the loop is freed run
 * then, so that nothing leaks. */
void loop_post(struct loop *loop, void (*fn)(void *ctx), void *ctx);

/* Runs `work(ctx)` on the libuv pool and then `done(ctx)` on the loop's thread (password hashing;
 * nothing that could run for seconds). `done` always runs exactly once. */
void loop_work(struct loop *loop, void (*work)(void *ctx), void (*done)(void *ctx), void *ctx);

/* A timer lives inside its owner and needs no close callback: after loop_timer_stop() it may be
 * freed at once. Zero-initialised means stopped. */
struct loop_timer {
    struct loop *loop; /* NULL while stopped */
    int64_t due_ms;
    void (*fn)(void *ctx);
    void *ctx;
    size_t slot;    /* place in the heap */
    uint64_t order; /* of starting, so that timers due together run in that order */
};
/* Starts or restarts: fn(ctx) once, `delay_ms` (>= 0) from now. */
void loop_timer_start(struct loop *loop, struct loop_timer *timer, int64_t delay_ms,
                      void (*fn)(void *ctx), void *ctx);
/* Does nothing on a stopped timer. */
void loop_timer_stop(struct loop_timer *timer);
static inline bool loop_timer_active(const struct loop_timer *timer)
{
    return timer->loop != NULL;
}

enum loop_task_class {
    LOOP_TASK_QUEUE, /* Redis commands: first */
    LOOP_TASK_WRITE, /* socket writes and everything else: second */
};
/* A task runs once at the end of the turn. It lives inside its owner; zero-initialised means idle.
 * Deferring a task that waits already changes nothing. */
struct loop_task {
    struct loop_task *next;
    struct loop_task *prev;
    struct loop *loop; /* NULL while idle */
    void (*fn)(void *ctx);
    void *ctx;
};
void loop_defer(struct loop *loop, struct loop_task *task, enum loop_task_class task_class,
                void (*fn)(void *ctx), void *ctx);
/* Takes the task back; does nothing on an idle one. */
void loop_task_cancel(struct loop_task *task);

/* ---- For gateway/base alone ---- */

/* Something with open handles that must be ended before the loop can be freed: loop_free() calls
 * `evict` of each guest, which must close its handles and call loop_guest_leave() when they are
 * closed. Lives inside its owner; zero-initialised means no guest. */
struct loop_guest {
    struct loop_guest *next;
    struct loop_guest *prev;
    void (*evict)(struct loop_guest *guest);
};
void loop_guest_join(struct loop *loop, struct loop_guest *guest,
                     void (*evict)(struct loop_guest *guest));
void loop_guest_leave(struct loop_guest *guest);

/* The read buffer all streams of the loop share: its bytes are good until control returns to the
 * loop, so that idle streams need none of their own. */
#define LOOP_ROOM_BYTES ((size_t)65536)
char *loop_room(struct loop *loop);

#endif
