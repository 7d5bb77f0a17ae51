/* Each operation by itself: the difference of what Redis says about its work before and after a
 * block of it. The servers take turns within a round, so that a busy machine harms all alike. */
#include "bench/queue/modes.h"
#include "bench/queue/world.h"

#include "gateway/base/clock.h"

#include <stdio.h>

enum {
    FILL_IN_FLIGHT = 500,
    SETTLE_DOWN_MS = 2000,
};

struct cost {
    const struct bench_options *options;
    struct loop *loop;
    struct sample measured;
    struct sample waiting; /* one batch a message, in the other lane or in the same */
    struct world worlds[WAITING_LEVELS_MAX];
};

enum operation {
    OPERATION_ENQUEUE,
    OPERATION_CLAIM,
    OPERATION_START,
    OPERATION_SETTLE,
};
static const char *const OPERATION_NAMES[] = {"enqueue", "claim", "start", "settle"};

static void run_operation(struct cost *cost, struct world *world, enum operation operation)
{
    const struct bench_options *options = cost->options;
    size_t batches = (size_t)(options->messages * options->batches);
    switch (operation) {
    case OPERATION_ENQUEUE:
        world_enqueue(world, &cost->measured, (size_t)options->messages,
                      (size_t)options->in_flight);
        return;
    case OPERATION_CLAIM:
        world_claim(world, &cost->measured, batches, (size_t)options->claim);
        return;
    case OPERATION_START:
        world_start(world, (size_t)options->claim);
        return;
    case OPERATION_SETTLE:
        world_settle(world, (size_t)options->in_flight);
        return;
    }
}

static void print_block(const struct cost *cost, size_t level, uint64_t round, const char *name,
                        const struct probe *spent, double own_us, int64_t wall_us)
{
    const struct bench_options *options = cost->options;
    (void)printf(
        "{\"op\":\"%s\",\"round\":%llu,\"waiting\":%llu,\"where\":\"%s\",\"messages\":%llu,"
        "\"batches\":%llu,\"recipients\":%llu,\"body_bytes\":%llu,\"cpu_us\":%.0f,"
        "\"main_cpu_us\":%.0f,\"script_us\":%.0f,\"commands\":%.0f,\"scripts\":%.0f,"
        "\"memory_bytes\":%.0f,\"aof_bytes\":%.0f,\"own_us\":%.0f,\"wall_us\":%lld}\n",
        name, (unsigned long long)round, (unsigned long long)options->waiting[level],
        options->waiting_same ? "same" : "other", (unsigned long long)options->messages,
        (unsigned long long)(options->messages * options->batches),
        (unsigned long long)options->recipients, (unsigned long long)options->body_bytes,
        spent->cpu_us, spent->main_cpu_us, spent->script_us, spent->commands, spent->scripts,
        spent->memory_bytes, spent->aof_bytes, own_us, (long long)wall_us);
    (void)fflush(stdout);
}

static void run_block(struct cost *cost, size_t level, uint64_t round, enum operation operation)
{
    struct world *world = &cost->worlds[level];
    struct probe before = world_probe(world);
    double own_us = bench_own_cpu_us();
    int64_t begin_us = clock_mono_us();
    run_operation(cost, world, operation);
    int64_t wall_us = clock_mono_us() - begin_us;
    own_us = bench_own_cpu_us() - own_us;
    struct probe after = world_probe(world);
    struct probe spent = probe_between(&before, &after);
    if (round > 0) { /* the one before fills caches and tables */
        print_block(cost, level, round, OPERATION_NAMES[operation], &spent, own_us, wall_us);
    }
}

static void fill(struct cost *cost, size_t level)
{
    struct world *world = &cost->worlds[level];
    world_command(world, "CONFIG SET appendfsync no");
    world_enqueue(world, &cost->waiting, (size_t)cost->options->waiting[level], FILL_IN_FLIGHT);
    if (cost->options->fsync) {
        world_command(world, "CONFIG SET appendfsync always");
    }
}

static void wake(void *ctx)
{
    loop_stop(ctx);
}

/* Lets what goes on behind (growing tables, writing files) come to its end. */
static void settle_down(struct cost *cost)
{
    struct loop_timer timer = {0};
    loop_timer_start(cost->loop, &timer, SETTLE_DOWN_MS, wake, cost->loop);
    BENCH_RUN_UNTIL(cost->loop, !loop_timer_active(&timer));
}

void bench_cost(const struct bench_options *options)
{
    struct cost cost = {.options = options, .loop = loop_new("bench")};
    struct bench_options one = *options;
    one.batches = 1;
    one.recipients = 1;
    sample_init(&cost.measured, options, "normal");
    sample_init(&cost.waiting, options->waiting_same ? options : &one,
                options->waiting_same ? "normal" : "bulk");
    for (size_t level = 0; level < options->waiting_count; level++) {
        world_open(&cost.worlds[level], cost.loop, options);
        fill(&cost, level);
    }
    settle_down(&cost);
    for (uint64_t round = 0; round <= options->rounds; round++) {
        for (size_t operation = OPERATION_ENQUEUE; operation <= OPERATION_SETTLE; operation++) {
            for (size_t i = 0; i < options->waiting_count; i++) {
                size_t level = round % 2 == 0 ? i : options->waiting_count - 1 - i;
                run_block(&cost, level, round, (enum operation)operation);
            }
        }
    }
    for (size_t level = 0; level < options->waiting_count; level++) {
        world_close(&cost.worlds[level]);
    }
    sample_release(&cost.measured);
    sample_release(&cost.waiting);
    loop_free(&cost.loop);
}
