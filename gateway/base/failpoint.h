/* Fail points: named places where a crash matters, for the chaos suite (tests/chaos).
 *
 * Compiled to nothing unless the build says -DFAILPOINTS=ON. Then the environment decides:
 *
 *   HEAVE_FAILPOINT=name:action[@n][,name2:action[@n]...]
 *
 *   kill       SIGKILL of this process
 *   stop       SIGSTOP of this process; the test sends SIGCONT
 *   sleep=ms   blocks the thread, and with it its loop
 *   error      a FAILPOINT_ERROR() of that name is true; nothing at a FAILPOINT()
 *   @n         at the n-th passage (default 1), counted over all threads; `sleep` and `error` at
 *              that one and every later one with @n+
 *   @~n        at a passage drawn from 1..n; which, stands in the line written when it fires
 *
 * Each firing writes a line "failpoint NAME ACTION passage N" to stderr first. An unknown name or
 * action refuses the start.
 *
 *   HEAVE_CLOCK_OFFSET_FILE=path
 *
 * names a file of 8 bytes, a native int64_t of milliseconds, which is mapped and added to the wall
 * clock (clock_wall_ms) from then on: the test steps the clock of one gateway by writing to it.
 *
 * Must not know: what happens at the places. Thread: any, after failpoint_setup(), which runs once
 * before there are threads. A point is one line at its place; this table is the list of all, with
 * what is at stake there, and tests/check/failpoints.py holds code, table and suite together. */
#ifndef HEAVE_BASE_FAILPOINT_H
#define HEAVE_BASE_FAILPOINT_H

#include "gateway/base/err.h"

#include <stdbool.h>
#include <stdint.h>

/* clang-format off */
#define FAILPOINT_TABLE(POINT)                                                                       \
    /* Accepting. Before the answer nothing may be promised; after it nothing may be lost. */        \
    POINT("intake-before-enqueue", "checked and routed, nothing stored: no yes may be heard")        \
    POINT("key-begun",             "a key is reserved and nothing stored: it must come free again")  \
    POINT("enqueue-body-ahead",    "a large body is under way, its message is not: it must go away") \
    POINT("enqueue-before-write",  "a group is filled, nothing is written")                          \
    POINT("enqueue-answered",      "Redis has the group, no client has heard: in doubt, kept once")  \
    POINT("enqueue-wait-answered", "durable on the replicas or the disk, no client has heard")       \
    POINT("smtp-before-reply",     "stored; 250 is not written yet")                                 \
    POINT("api-before-reply",      "stored; 202 is not written yet; a key finds it again")           \
    /* Claiming. A claim that was not started is ready again, and nobody noticed. */                 \
    POINT("claim-before-write",    "nothing is claimed yet")                                         \
    POINT("claim-answered",        "leased in Redis, no lease in memory: only the sweeper knows")    \
    POINT("claim-body-answered",   "a large body has come; its batches are leased")                  \
    POINT("body-piece-answered",   "some pieces of a large body are here, its batches are leased")   \
    POINT("courier-before-send",   "leased and held, not started: no attempt may be used up")        \
    POINT("start-before-write",    "about to say STARTED; no byte may be out")                       \
    POINT("start-written",         "STARTED is said, no byte is out: unknown though nothing was sent") \
    /* Sending. From here on the service may have the batch: at most one double a batch. */          \
    POINT("smtp-mid-content",      "half a message is out; the service must drop it")                \
    POINT("smtp-after-dot",        "the whole message is out, the answer is not here")               \
    POINT("smtp-answered",         "delivered, and only this process knows")                         \
    POINT("http-body-sent",        "all of the request is given away, the answer is not here")       \
    POINT("http-answered",         "answered, and only this process knows")                          \
    /* Settling. */                                                                                  \
    POINT("start-refused",         "error: STARTED cannot be said; nothing may be sent")             \
    POINT("settle-before-write",   "the verdict is in memory alone")                                 \
    POINT("settle-answered",       "settled in Redis; the process does not know")                    \
    POINT("settle-partial",        "some recipients are done, the others go on: neither twice nor never") \
    POINT("settle-recovered",      "what a crash left STARTED is about to get its verdict")          \
    POINT("settle-expired",        "an expired batch is about to end")                               \
    POINT("release-before-write",  "claims are given back: ready again, no attempt used")            \
    POINT("gate-before-write",     "a throttled backend is not closed for the replicas yet")         \
    /* Operators. */                                                                                 \
    POINT("work-before-write",     "a page of work is decided, nothing is changed")                  \
    POINT("work-applied",          "it is changed, nobody has heard; the rest of the pages is not")  \
    /* Timers. */                                                                                    \
    POINT("heartbeat-before-write", "leases are about to be extended")                               \
    POINT("heartbeat-answered",    "leases are extended; lost ones are not noted yet")               \
    POINT("sweep-before-write",    "ended leases, due retries and expiries wait for the sweeper")    \
    POINT("sweep-answered",        "the sweeper moved them; it dies holding its lock")               \
    /* The connection to Redis: `error` at any of its commands. */                                   \
    POINT("redis-refuses",         "a command is refused before a byte of it is out")                \
    POINT("redis-write-fails",     "half a command is out and the connection goes")                  \
    POINT("redis-answer-lost",     "Redis has done it and the connection goes before its answer is read") \
    /* The process. */                                                                               \
    POINT("stream-written",        "bytes of some connection are with the kernel: 250, a start, half a settle") \
    POINT("queue-up",              "connected; waiting settlements and starts are to be said again") \
    POINT("queue-close",           "closing: releases and settlements are still to be written")      \
    POINT("reload-before",         "the old configuration serves")                                   \
    POINT("reload-applied",        "some threads have the new configuration, some the old")          \
    POINT("drain-begun",           "SIGTERM was heard; sessions and deliveries are under way")       \
    POINT("drain-releasing",       "claims are about to be given back at the stop")                  \
    POINT("embedded-starting",     "the private Redis is about to be started (again)")               \
    POINT("embedded-started",      "it runs, its pid is not written: the next one must not collide")
/* clang-format on */

#ifdef HEAVE_FAILPOINTS
/* Reads the environment. Errors: ERR_INVAL, `err` says what is not understood. */
MUST_USE int failpoint_setup(struct err *err);
void failpoint_pass(const char *name);
MUST_USE bool failpoint_fails(const char *name);
int64_t failpoint_clock_offset_ms(void);
#define FAILPOINT(name) failpoint_pass(name)
/* Where a call can fail: true when it shall. */
#define FAILPOINT_ERROR(name) failpoint_fails(name)
#else
static inline int failpoint_setup(struct err *err)
{
    (void)err;
    return ERR_OK;
}
static inline int64_t failpoint_clock_offset_ms(void)
{
    return 0;
}
#define FAILPOINT(name) ((void)0)
#define FAILPOINT_ERROR(name) false
#endif

#endif
