#include "bench/queue/world.h"

#include "gateway/base/clock.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum {
    LEASE_MS = 120000,
    RETENTION_MS = 24 * 3600 * 1000,
    ADDRESS_MAX = 64,
};

_Noreturn void bench_die(const char *what, const char *why)
{
    (void)fprintf(stderr, "heave-queue-bench: %s: %s\n", what, why);
    exit(1);
}

double bench_own_cpu_us(void)
{
    struct rusage usage;
    (void)getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1e6 +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

/* The sample. */

void sample_init(struct sample *sample, const struct bench_options *options, const char *lane)
{
    *sample = (struct sample){
        .lane = lane,
        .backend = "hve",
        .client = "erp",
        .batch_count = (size_t)options->batches,
        .recipient_count = (size_t)options->recipients,
    };
    size_t recipients = sample->batch_count * sample->recipient_count;
    sample->batches = mem_zero(sample->batch_count * sizeof(*sample->batches));
    sample->recipients = mem_zero(recipients * sizeof(*sample->recipients));
    for (size_t i = 0; i < recipients; i++) {
        char address[ADDRESS_MAX];
        (void)snprintf(address, sizeof(address), "firstname.lastname%zu@contoso.com", i);
        sample->recipients[i].address = span_of(mem_dup(span_of(address)));
    }
    for (size_t i = 0; i < sample->batch_count; i++) {
        sample->batches[i] = (struct batch){
            .number = (uint32_t)i,
            .lane = span_of(sample->lane),
            .backend = span_of(sample->backend),
            .recipients = sample->recipients + i * sample->recipient_count,
            .recipient_count = sample->recipient_count,
        };
    }
    uint64_t state = 88172645463325252u;
    char *body = mem_alloc((size_t)options->body_bytes);
    for (size_t i = 0; i < options->body_bytes; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        body[i] = (char)(state >> 32);
    }
    sample->body = span_make(body, (size_t)options->body_bytes);
}

void sample_release(struct sample *sample)
{
    for (size_t i = 0; i < sample->batch_count * sample->recipient_count; i++) {
        mem_free((void *)sample->recipients[i].address.data);
    }
    mem_free(sample->recipients);
    mem_free(sample->batches);
    mem_free((void *)sample->body.data);
}

struct message sample_message(const struct sample *sample)
{
    return (struct message){
        .client = span_of(sample->client),
        .lane = span_of(sample->lane),
        .reverse_path = SPAN_LIT("erp@contoso.com"),
        .header_from = SPAN_LIT("erp@contoso.com"),
        .message_id = SPAN_LIT("<20261123.4711.20815@erp.contoso.com>"),
        .subject = SPAN_LIT("Your invoice of November"),
        .source = SPAN_LIT("192.0.2.17 erp.contoso.com"),
        .body = sample->body,
        .batches = sample->batches,
        .batch_count = sample->batch_count,
    };
}

/* Opening and closing. */

static void on_state(void *ctx, bool up, const char *why)
{
    struct world *world = ctx;
    if (!up) {
        bench_die("Redis went away", why);
    }
    world->ups++;
    loop_stop(world->loop);
}

static const struct queue_ops queue_ops = {.on_state = on_state};

static void on_up(void *ctx)
{
    struct world *world = ctx;
    world->in = queue_open(world->loop, &world->conf, &queue_ops, world);
    world->out = queue_open(world->loop, &world->conf, &queue_ops, world);
    world->open = 2;
}

static void on_down(void *ctx, const char *why)
{
    (void)ctx;
    bench_die("redis-server", why);
}

static const struct embedded_ops embedded_ops = {.on_up = on_up, .on_down = on_down};

void world_open(struct world *world, struct loop *loop, const struct bench_options *options)
{
    char path[256];
    (void)snprintf(path, sizeof(path), "%s/heave-bench-XXXXXX", options->folder);
    if (mkdtemp(path) == NULL) {
        bench_die(path, "cannot be made");
    }
    enum queue_durability durability = options->fsync ? QUEUE_FSYNC : QUEUE_MEMORY;
    *world = (struct world){.loop = loop, .folder = mem_dup(span_of(path))};
    world->socket_path = embedded_socket_path(world->folder);
    world->conf = (struct queue_conf){
        .socket_path = world->socket_path,
        .durability = durability,
        .shards = (uint32_t)options->shards,
        .lease_ms = options->mode == BENCH_CLAIMS ? BENCH_SHORT_LEASE_MS : LEASE_MS,
        .retention_ms = RETENTION_MS,
        .max_bytes = (uint64_t)64 << 30,
        .managed = true,
    };
    world->embedded_conf = (struct embedded_conf){.data_dir = world->folder,
                                                  .durability = durability};
    struct err err = {0};
    int status = embedded_start(loop, &world->embedded_conf, &embedded_ops, world, &world->embedded,
                                &err);
    if (status != 0) {
        bench_die("redis-server", err.text);
    }
    BENCH_RUN_UNTIL(loop, world->ups == 2);
    if (probe_open(&world->probe, world->socket_path) != 0) {
        bench_die(world->socket_path, "cannot be reached");
    }
    /* A rewrite in the middle of a block would be measured with it. */
    world_command(world, "CONFIG SET auto-aof-rewrite-percentage 0");
}

static void on_closed(void *ctx)
{
    struct world *world = ctx;
    world->open--;
    loop_stop(world->loop);
}

static void on_stopped(void *ctx)
{
    struct world *world = ctx;
    world->stopped = true;
    loop_stop(world->loop);
}

static int remove_one(const char *path, const struct stat *info, int kind, struct FTW *where)
{
    (void)info;
    (void)kind;
    (void)where;
    return remove(path);
}

void world_close(struct world *world)
{
    queue_close(world->in, on_closed, world);
    queue_close(world->out, on_closed, world);
    BENCH_RUN_UNTIL(world->loop, world->open == 0);
    probe_close(&world->probe);
    embedded_stop(world->embedded, on_stopped, world);
    BENCH_RUN_UNTIL(world->loop, world->stopped);
    (void)nftw(world->folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    mem_free(world->socket_path);
    mem_free(world->folder);
    mem_free(world->leases);
}

void world_command(struct world *world, const char *command)
{
    if (probe_command(&world->probe, command) != 0) {
        bench_die(command, "was refused");
    }
}

struct probe world_probe(struct world *world)
{
    struct probe probe;
    if (probe_read(&world->probe, &probe) != 0) {
        bench_die("INFO", "was refused");
    }
    return probe;
}

/* The steps. */

static void answered(struct world *world, int status, const char *what)
{
    if (status != 0) {
        bench_die(what, err_name(status));
    }
    world->waiting--;
    loop_stop(world->loop);
}

static void on_enqueued(void *ctx, int status, const struct queue_enqueued *result)
{
    (void)result;
    answered(ctx, status, "enqueue");
}

void world_enqueue(struct world *world, const struct sample *sample, size_t count, size_t in_flight)
{
    char id[MESSAGE_ID_MAX + 1];
    struct message message = sample_message(sample);
    for (size_t i = 0; i < count; i++) {
        BENCH_RUN_UNTIL(world->loop, world->waiting < in_flight);
        queue_message_id(world->in, NULL, id);
        message.id = span_of(id);
        message.accepted_ms = clock_wall_ms();
        message.expires_ms = message.accepted_ms + 86400000;
        int status = queue_enqueue(world->in, &message, 0, NULL, on_enqueued, world);
        if (status != 0) {
            bench_die("enqueue", err_name(status));
        }
        world->waiting++;
    }
    BENCH_RUN_UNTIL(world->loop, world->waiting == 0);
}

static void on_claimed(void *ctx, int status, struct queue_lease **leases, size_t count,
                       const int64_t *closed)
{
    struct world *world = ctx;
    (void)closed;
    if (status != 0 || count == 0) {
        bench_die("claim", status != 0 ? err_name(status) : "nothing was there");
    }
    for (size_t i = 0; i < count; i++) {
        world->leases[world->lease_count++] = leases[i];
    }
    world->claiming = false;
    loop_stop(world->loop);
}

void world_claim(struct world *world, const struct sample *sample, size_t count, size_t each)
{
    ASSERT(world->lease_count == 0);
    world->leases = mem_realloc_try(world->leases, count * sizeof(struct queue_lease *));
    ASSERT(world->leases != NULL);
    while (world->lease_count < count) {
        size_t left = count - world->lease_count;
        struct queue_want want = {
            .lane = sample->lane,
            .backend = sample->backend,
            .max_batches = (uint32_t)(left < each ? left : each),
        };
        world->claiming = true;
        int status = queue_claim(world->out, &want, 1, on_claimed, world);
        if (status != 0) {
            bench_die("claim", err_name(status));
        }
        BENCH_RUN_UNTIL(world->loop, !world->claiming);
    }
}

static void on_shown(void *ctx, int status, const struct message *message)
{
    (void)message;
    answered(ctx, status == ERR_NOTFOUND ? 0 : status, "show");
}

void world_start(struct world *world, size_t each)
{
    for (size_t i = 0; i < world->lease_count; i++) {
        int status = queue_start(world->out, world->leases[i]);
        if (status != 0) {
            bench_die("start", err_name(status));
        }
        if ((i + 1) % each == 0) {
            loop_run_once(world->loop);
        }
    }
    /* Starts are not answered: the answer to a question behind them says that they were taken. */
    world->waiting++;
    int status = queue_show(world->out, SPAN_LIT("none-0"), on_shown, world);
    if (status != 0) {
        bench_die("show", err_name(status));
    }
    BENCH_RUN_UNTIL(world->loop, world->waiting == 0);
}

static void on_settled(void *ctx, int status)
{
    answered(ctx, status, "settle");
}

void world_settle(struct world *world, size_t in_flight)
{
    const struct queue_settlement settlement = {.next = QUEUE_NEXT_DONE};
    for (size_t i = 0; i < world->lease_count; i++) {
        struct queue_lease *lease = world->leases[i];
        BENCH_RUN_UNTIL(world->loop, world->waiting < in_flight);
        for (size_t j = 0; j < lease->batch.recipient_count; j++) {
            lease->batch.recipients[j].state = RECIPIENT_DELIVERED;
            lease->batch.recipients[j].at_ms = clock_wall_ms();
            lease->batch.recipients[j].last_reply = SPAN_LIT("250 2.0.0 OK 1764000000 hve");
        }
        int status = queue_settle(world->out, lease, &settlement, on_settled, world);
        if (status != 0) {
            bench_die("settle", err_name(status));
        }
        queue_lease_free(&world->leases[i]);
        world->waiting++;
    }
    world->lease_count = 0;
    BENCH_RUN_UNTIL(world->loop, world->waiting == 0);
}
