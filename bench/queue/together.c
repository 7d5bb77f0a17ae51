/* The whole life of messages at once, as a gateway lives it; and enqueue alone. */
#include "bench/queue/modes.h"
#include "bench/queue/world.h"

#include "gateway/base/clock.h"

#include <stdio.h>

struct together {
    const struct bench_options *options;
    struct world world;
    struct sample sample;
    size_t enqueued, accepted, settled, open;
    bool claiming;
};

static void enqueue_more(struct together *together);
static void claim_more(struct together *together);

static void check(int status, const char *what)
{
    if (status != 0) {
        bench_die(what, err_name(status));
    }
}

static void on_enqueued(void *ctx, int status, const struct queue_enqueued *result)
{
    struct together *together = ctx;
    (void)result;
    check(status, "enqueue");
    together->accepted++;
    enqueue_more(together);
    claim_more(together);
}

static void enqueue_more(struct together *together)
{
    const struct bench_options *options = together->options;
    char id[MESSAGE_ID_MAX + 1];
    struct message message = sample_message(&together->sample);
    while (together->enqueued < options->messages &&
           together->enqueued - together->accepted < options->in_flight) {
        queue_message_id(together->world.in, NULL, id);
        message.id = span_of(id);
        message.accepted_ms = clock_wall_ms();
        message.expires_ms = message.accepted_ms + 86400000;
        check(queue_enqueue(together->world.in, &message, 0, NULL, on_enqueued, together),
              "enqueue");
        together->enqueued++;
    }
}

static void on_settled(void *ctx, int status)
{
    struct together *together = ctx;
    check(status, "settle");
    together->settled++;
    together->open--;
    if (together->settled == together->options->messages * together->options->batches) {
        loop_stop(together->world.loop);
    } else {
        claim_more(together);
    }
}

static void deliver(struct together *together, struct queue_lease *lease)
{
    const struct queue_settlement settlement = {.next = QUEUE_NEXT_DONE};
    struct queue *queue = together->world.out;
    check(queue_start(queue, lease), "start");
    for (size_t i = 0; i < lease->batch.recipient_count; i++) {
        lease->batch.recipients[i].state = RECIPIENT_DELIVERED;
        lease->batch.recipients[i].at_ms = clock_wall_ms();
        lease->batch.recipients[i].last_reply = SPAN_LIT("250 2.0.0 OK 1764000000 hve");
    }
    check(queue_settle(queue, lease, &settlement, on_settled, together), "settle");
    queue_lease_free(&lease);
}

static void on_claimed(void *ctx, int status, struct queue_lease **leases, size_t count,
                       const int64_t *closed)
{
    struct together *together = ctx;
    (void)closed;
    if (status == ERR_CLOSED) {
        return; /* the last claim found nothing and the run is over */
    }
    check(status, "claim");
    together->claiming = false;
    together->open += count;
    for (size_t i = 0; i < count; i++) {
        deliver(together, leases[i]);
    }
    if (count > 0) {
        claim_more(together);
    }
}

static void claim_more(struct together *together)
{
    struct queue_want want = {
        .lane = together->sample.lane,
        .backend = together->sample.backend,
        .max_batches = (uint32_t)together->options->claim,
    };
    if (!together->claiming && together->open < together->options->claim) {
        together->claiming = true;
        check(queue_claim(together->world.out, &want, 1, on_claimed, together), "claim");
    }
}

struct begun {
    struct probe probe;
    double own_us;
    int64_t wall_us;
};

static struct begun begin(struct world *world)
{
    return (struct begun){
        .probe = world_probe(world),
        .own_us = bench_own_cpu_us(),
        .wall_us = clock_mono_us(),
    };
}

static void report(const struct bench_options *options, const struct begun *begun,
                   struct world *world, const char *mode)
{
    double wall_s = (double)(clock_mono_us() - begun->wall_us) / 1e6;
    double own_us = bench_own_cpu_us() - begun->own_us;
    double messages = (double)options->messages;
    struct probe now = world_probe(world);
    struct probe spent = probe_between(&begun->probe, &now);
    (void)printf("{\"mode\":\"%s\",\"messages\":%.0f,\"body_bytes\":%llu,\"batches\":%llu,"
                 "\"recipients\":%llu,\"in_flight\":%llu,\"messages_per_s\":%.0f,"
                 "\"redis_cpu_us\":%.2f,\"redis_main_cpu_us\":%.2f,\"script_us\":%.2f,"
                 "\"commands\":%.2f,\"scripts\":%.3f,\"aof_bytes\":%.0f,\"memory_bytes\":%.0f,"
                 "\"own_cpu_us\":%.2f}\n",
                 mode, messages, (unsigned long long)options->body_bytes,
                 (unsigned long long)options->batches, (unsigned long long)options->recipients,
                 (unsigned long long)options->in_flight, messages / wall_s, spent.cpu_us / messages,
                 spent.main_cpu_us / messages, spent.script_us / messages,
                 spent.commands / messages, spent.scripts / messages, spent.aof_bytes / messages,
                 spent.memory_bytes / messages, own_us / messages);
}

void bench_together(const struct bench_options *options)
{
    struct loop *loop = loop_new("bench");
    struct together together = {.options = options};
    sample_init(&together.sample, options, "normal");
    world_open(&together.world, loop, options);
    struct begun begun = begin(&together.world);
    enqueue_more(&together);
    BENCH_RUN_UNTIL(loop, together.settled == options->messages * options->batches);
    report(options, &begun, &together.world, "together");
    world_close(&together.world);
    sample_release(&together.sample);
    loop_free(&loop);
}

void bench_enqueue(const struct bench_options *options)
{
    struct loop *loop = loop_new("bench");
    struct world world;
    struct sample sample;
    sample_init(&sample, options, "normal");
    world_open(&world, loop, options);
    struct begun begun = begin(&world);
    world_enqueue(&world, &sample, (size_t)options->messages, (size_t)options->in_flight);
    report(options, &begun, &world, "enqueue");
    world_close(&world);
    sample_release(&sample);
    loop_free(&loop);
}
