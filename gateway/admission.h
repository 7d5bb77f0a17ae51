/* Admission: which lanes take new messages now.
 *
 * Each second the levels of the queue (bytes, open messages, Redis' memory, age of the oldest ready
 * batch where a lane asks for it) are compared with the limits. A lane is accepted up to its part
 * (`admit`) of each limit, so the lanes close in the order of their parts: bulk first, alert last.
 * A lane that was closed opens again when the level has fallen a tenth below (an age: a fifth), not
 * at once, so that it does not flap. What one second lets through too many the queue's own limit of
 * bytes (exact, by lane) still refuses.
 *
 * While the levels cannot be asked for, the last verdicts stay; that Redis is away is said
 * elsewhere.
 *
 * Thread: one loop watches and decides; the verdicts are read by any thread. admission_decide() is
 * pure. */
#ifndef HEAVE_GATEWAY_ADMISSION_H
#define HEAVE_GATEWAY_ADMISSION_H

#include "gateway/base/loop.h"
#include "gateway/events.h"
#include "queue/queue.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ADMISSION_LANES_MAX 64

enum admission_reason {
    ADMISSION_OPEN, /* the lane is accepted */
    ADMISSION_BYTES,
    ADMISSION_MESSAGES,
    ADMISSION_MEMORY,
    ADMISSION_AGE,
};
/* "bytes", ...: label of the metric; "" for OPEN. */
const char *admission_reason_name(enum admission_reason reason);
/* A sentence for the peer. */
const char *admission_reason_text(enum admission_reason reason);

struct admission_lane {
    const char *name;
    uint32_t admit_percent; /* of each limit */
    int64_t max_age_ms;     /* 0: no limit */
};

/* The limits; 0: none. Must outlive the admission. */
struct admission_conf {
    const struct admission_lane *lanes;
    size_t lane_count; /* at most ADMISSION_LANES_MAX */
    uint64_t max_bytes;
    uint64_t max_messages;
    uint32_t max_memory_percent; /* of Redis' maxmemory */
};

struct admission_levels {
    uint64_t bytes;
    uint64_t messages;
    uint32_t memory_permille;
    int64_t oldest_ms; /* age of the lane's oldest ready batch */
};
/* The verdict for a lane; `was_open` is the last one. */
enum admission_reason admission_decide(const struct admission_conf *conf,
                                       const struct admission_lane *lane,
                                       const struct admission_levels *levels, bool was_open);

struct admission;

/* All lanes are open at first. `events` hears of each change and must outlive it. */
struct admission *admission_new(const struct admission_conf *conf, struct events *events);
/* Not while watching. */
void admission_free(struct admission **admission);
/* Asks `queue` each second from now on, on its loop. */
void admission_watch(struct admission *admission, struct loop *loop, struct queue *queue);
/* On the same loop, before the queue is closed. Answers that still come are passed over until the
 * queue is closed; free the admission only then. */
void admission_unwatch(struct admission *admission);

/* Any thread; `admission` may be NULL: everything is open. A lane without a limit is open. */
enum admission_reason admission_of(const struct admission *admission, struct span lane);
/* Why no lane at all is open; OPEN when one is. */
enum admission_reason admission_of_all(const struct admission *admission);
const struct admission_conf *admission_limits(const struct admission *admission);

#endif
