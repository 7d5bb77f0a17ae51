/* The server's wall clock as this handle knows it. Redis' clock is the only one leases, due times
 * and expiries are compared with, so what the gateway compares or writes must be told by it too: a
 * gateway whose own clock is wrong, or steps, shall neither expire nor delay anything.
 *
 * TIME is asked when the connection comes up and each second; between the answers the monotonic
 * clock carries on, which no step touches. */
#include "queue/queue_internal.h"

#include "gateway/base/clock.h"

enum {
    ASK_EVERY_MS = 1000,
    /* A slower answer says less than what is known already, unless it contradicts it. */
    PRECISE_MS = 200,
    STEP_MS = 1000,
};

struct clock_question {
    struct queue *queue;
    int64_t asked_ms; /* monotonic */
};

static void note_time(struct queue *queue, int64_t asked_ms, int64_t server_ms)
{
    int64_t now_ms = clock_mono_ms();
    int64_t took_ms = now_ms - asked_ms;
    int64_t offset_ms = server_ms - (asked_ms + took_ms / 2);
    int64_t moved_ms = offset_ms > queue->clock_offset_ms ? offset_ms - queue->clock_offset_ms
                                                          : queue->clock_offset_ms - offset_ms;
    if (queue->clock_known && moved_ms > took_ms + STEP_MS) {
        queue_leases_spare(queue); /* the server's clock was set: heartbeats will follow it */
    }
    if (!queue->clock_known || took_ms <= PRECISE_MS || moved_ms > took_ms) {
        queue->clock_offset_ms = offset_ms;
        queue->clock_known = true;
    }
}

static void on_time(void *ctx, int status, const struct redis_value *value)
{
    struct clock_question *question = ctx;
    int64_t seconds = status == 0 ? redis_integer(redis_item(value, 0)) : 0;
    if (seconds > 0) {
        int64_t micros = redis_integer(redis_item(value, 1));
        note_time(question->queue, question->asked_ms, seconds * 1000 + micros / 1000);
    }
    mem_free(question);
}

void queue_clock_ask(void *ctx)
{
    struct queue *queue = ctx;
    uint32_t shard = 0;
    while (shard + 1 < queue->conf->shards && !nodes_is_up(queue->nodes, shard)) {
        shard++;
    }
    struct redis_args args;
    redis_args_init(&args);
    redis_args_text(&args, "TIME");
    struct clock_question *question = mem_zero(sizeof(*question));
    *question = (struct clock_question){.queue = queue, .asked_ms = clock_mono_ms()};
    if (nodes_call(queue->nodes, shard, &args, on_time, question) != 0) {
        mem_free(question);
    }
    loop_timer_start(queue->loop, &queue->clock_timer, ASK_EVERY_MS, queue_clock_ask, queue);
}

bool queue_clock_known(const struct queue *queue)
{
    return queue->clock_known;
}

int64_t queue_wall_ms(const struct queue *queue)
{
    return queue->clock_known ? clock_mono_ms() + queue->clock_offset_ms : clock_wall_ms();
}
