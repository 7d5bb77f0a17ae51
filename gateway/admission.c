#include "gateway/admission.h"

#include "gateway/base/clock.h"

#include <stdatomic.h>

#define WATCH_EVERY_MS 1000

struct admission {
    const struct admission_conf *conf;
    struct events *events;
    struct loop *loop;
    struct queue *queue; /* NULL while nobody watches */
    struct loop_timer timer;
    bool wants_ages;
    struct queue_levels levels; /* of this second, while the ages are asked for */
    atomic_int verdicts[ADMISSION_LANES_MAX];
};

const char *admission_reason_name(enum admission_reason reason)
{
    switch (reason) {
    case ADMISSION_OPEN:
        return "";
    case ADMISSION_BYTES:
        return "bytes";
    case ADMISSION_MESSAGES:
        return "messages";
    case ADMISSION_MEMORY:
        return "memory";
    case ADMISSION_AGE:
        return "age";
    }
    UNREACHABLE();
}

const char *admission_reason_text(enum admission_reason reason)
{
    switch (reason) {
    case ADMISSION_OPEN:
        return "The lane is open.";
    case ADMISSION_BYTES:
        return "The queue is full for this lane: too many bytes wait; try again later.";
    case ADMISSION_MESSAGES:
        return "The queue is full for this lane: too many messages wait; try again later.";
    case ADMISSION_MEMORY:
        return "The queue is full for this lane: Redis is short of memory; try again later.";
    case ADMISSION_AGE:
        return "This lane is too far behind with what it has; try again later.";
    }
    UNREACHABLE();
}

#define CLOSES 1.0
/* Of bytes the queue itself refuses what does not fit: a little before that the next message would
 * not fit either, and its peer is spared from sending it. */
#define CLOSES_BYTES 0.97
#define OPENS 0.9

/* Whether the level is at the lane's part of the limit; for one that is closed, not yet well below.
 */
static bool reached(uint64_t level, uint64_t limit, uint32_t percent, double share)
{
    return limit > 0 && (double)level >= (double)limit * percent / 100 * share;
}

enum admission_reason admission_decide(const struct admission_conf *conf,
                                       const struct admission_lane *lane,
                                       const struct admission_levels *levels, bool was_open)
{
    uint64_t memory_limit = (uint64_t)conf->max_memory_percent * 10;
    double share = was_open ? CLOSES : OPENS;
    double share_bytes = was_open ? CLOSES_BYTES : OPENS;
    int64_t max_age_ms = was_open ? lane->max_age_ms : lane->max_age_ms / 5 * 4;
    if (reached(levels->memory_permille, memory_limit, lane->admit_percent, share)) {
        return ADMISSION_MEMORY;
    }
    if (reached(levels->bytes, conf->max_bytes, lane->admit_percent, share_bytes)) {
        return ADMISSION_BYTES;
    }
    if (reached(levels->messages, conf->max_messages, lane->admit_percent, share)) {
        return ADMISSION_MESSAGES;
    }
    if (lane->max_age_ms > 0 && levels->oldest_ms > max_age_ms) {
        return ADMISSION_AGE;
    }
    return ADMISSION_OPEN;
}

static enum admission_reason verdict_of(const struct admission *admission, size_t lane)
{
    return (enum admission_reason)atomic_load_explicit(&admission->verdicts[lane],
                                                       memory_order_relaxed);
}

struct admission *admission_new(const struct admission_conf *conf, struct events *events)
{
    ASSERT(conf->lane_count <= ADMISSION_LANES_MAX);
    struct admission *admission = mem_zero(sizeof *admission);
    admission->conf = conf;
    admission->events = events;
    for (size_t i = 0; i < conf->lane_count; i++) {
        admission->wants_ages = admission->wants_ages || conf->lanes[i].max_age_ms > 0;
        events_admission_lane(events, conf->lanes[i].name);
    }
    return admission;
}

void admission_free(struct admission **admission)
{
    if (*admission != NULL) {
        ASSERT((*admission)->queue == NULL);
        mem_free(*admission);
        *admission = NULL;
    }
}

static int64_t oldest_of(const struct queue_totals *totals, const char *lane, int64_t now_ms)
{
    int64_t oldest_ms = 0;
    for (size_t i = 0; totals != NULL && i < totals->depth_count; i++) {
        const struct queue_depth *depth = &totals->depths[i];
        if (depth->since_ms[BATCH_READY] > 0 && span_eq(depth->lane, span_of(lane)) &&
            now_ms - depth->since_ms[BATCH_READY] > oldest_ms) {
            oldest_ms = now_ms - depth->since_ms[BATCH_READY];
        }
    }
    return oldest_ms;
}

static void decide_all(struct admission *admission, const struct queue_totals *totals)
{
    int64_t now_ms = queue_wall_ms(admission->queue);
    struct admission_levels levels = {
        .bytes = admission->levels.bytes,
        .messages = admission->levels.messages,
        .memory_permille = admission->levels.memory_permille,
    };
    for (size_t i = 0; i < admission->conf->lane_count; i++) {
        const struct admission_lane *lane = &admission->conf->lanes[i];
        enum admission_reason before = verdict_of(admission, i);
        levels.oldest_ms = oldest_of(totals, lane->name, now_ms);
        enum admission_reason now = admission_decide(admission->conf, lane, &levels,
                                                     before == ADMISSION_OPEN);
        atomic_store_explicit(&admission->verdicts[i], (int)now, memory_order_relaxed);
        if (now != before) {
            events_admission(admission->events, lane->name, now == ADMISSION_OPEN,
                             admission_reason_name(now));
        }
    }
}

static void watch(void *ctx);

static void watch_again(struct admission *admission)
{
    loop_timer_start(admission->loop, &admission->timer, WATCH_EVERY_MS, watch, admission);
}

static void on_totals(void *ctx, int status, const struct queue_totals *totals)
{
    struct admission *admission = ctx;
    if (admission->queue == NULL) {
        return;
    }
    if (status == 0) {
        decide_all(admission, totals);
    }
    watch_again(admission);
}

static void on_levels(void *ctx, int status, const struct queue_levels *levels)
{
    struct admission *admission = ctx;
    if (admission->queue == NULL) {
        return;
    }
    if (status != 0) {
        watch_again(admission);
        return;
    }
    admission->levels = *levels;
    if (admission->wants_ages && queue_totals(admission->queue, on_totals, admission) == 0) {
        return;
    }
    decide_all(admission, NULL);
    watch_again(admission);
}

static void watch(void *ctx)
{
    struct admission *admission = ctx;
    if (queue_levels(admission->queue, on_levels, admission) != 0) {
        watch_again(admission);
    }
}

void admission_watch(struct admission *admission, struct loop *loop, struct queue *queue)
{
    admission->loop = loop;
    admission->queue = queue;
    loop_timer_start(loop, &admission->timer, 0, watch, admission);
}

void admission_unwatch(struct admission *admission)
{
    admission->queue = NULL;
    loop_timer_stop(&admission->timer);
}

enum admission_reason admission_of(const struct admission *admission, struct span lane)
{
    for (size_t i = 0; admission != NULL && i < admission->conf->lane_count; i++) {
        if (span_eq(span_of(admission->conf->lanes[i].name), lane)) {
            return verdict_of(admission, i);
        }
    }
    return ADMISSION_OPEN;
}

enum admission_reason admission_of_all(const struct admission *admission)
{
    enum admission_reason reason = ADMISSION_OPEN;
    for (size_t i = 0; admission != NULL && i < admission->conf->lane_count; i++) {
        reason = verdict_of(admission, i);
        if (reason == ADMISSION_OPEN) {
            break;
        }
    }
    return reason;
}

const struct admission_conf *admission_limits(const struct admission *admission)
{
    return admission->conf;
}
