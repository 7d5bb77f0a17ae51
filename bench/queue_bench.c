/* heave-queue-bench: what one message costs in Redis, from enqueue to the last settlement.
 *
 *   heave-queue-bench [MESSAGES [BODY_BYTES [BATCHES_PER_MESSAGE [IN_FLIGHT]]]]
 *
 * Starts a private redis-server (append-only file, fsync always) in a temporary directory. One
 * queue handle enqueues with IN_FLIGHT messages waiting for their answer, as so many SMTP sessions
 * would; a second one claims, starts and settles at the same time. Prints one line of JSON:
 * messages a second, and microseconds of CPU per message of the server (from /proc), of the scripts
 * (INFO would say the same) and of this process. */
#include "gateway/base/clock.h"
#include "gateway/base/loop.h"
#include "queue/embedded.h"
#include "queue/queue.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

enum {
    BATCHES_MAX = 200,
    CLAIM_MAX = 64,
};

struct bench {
    struct loop *loop;
    struct embedded *embedded;
    struct queue_conf conf;
    struct queue *in, *out;
    size_t up_count;
    size_t messages, body_bytes, batch_count, in_flight_max;
    size_t enqueued, accepted, settled, failed;
    size_t claimed_open;
    bool claiming;
    char *body;
    int64_t begin_us;
    double redis_begin_s;
    size_t handles_open;
};

static double process_cpu_s(int pid)
{
    char path[64];
    unsigned long user = 0;
    unsigned long system_ticks = 0;
    (void)snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        return 0;
    }
    int got = fscanf(file, "%*d %*s %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user,
                     &system_ticks);
    (void)fclose(file);
    return got == 2 ? (double)(user + system_ticks) / (double)sysconf(_SC_CLK_TCK) : 0;
}

static double own_cpu_s(void)
{
    struct rusage usage;
    (void)getrusage(RUSAGE_SELF, &usage);
    return (double)usage.ru_utime.tv_sec + (double)usage.ru_stime.tv_sec +
           ((double)usage.ru_utime.tv_usec + (double)usage.ru_stime.tv_usec) / 1e6;
}

static void enqueue_more(struct bench *bench);
static void claim_more(struct bench *bench);

static void on_enqueued(void *ctx, int status, const struct queue_enqueued *result)
{
    struct bench *bench = ctx;
    (void)result;
    bench->accepted += status == 0 ? 1 : 0;
    bench->failed += status == 0 ? 0 : 1;
    enqueue_more(bench);
}

static int enqueue_one(struct bench *bench)
{
    char id[MESSAGE_ID_MAX + 1];
    struct recipient recipient = {.address = SPAN_LIT("operations@contoso.com")};
    struct batch batches[BATCHES_MAX];
    queue_message_id(bench->in, NULL, id);
    for (size_t i = 0; i < bench->batch_count; i++) {
        batches[i] = (struct batch){
            .number = (uint32_t)i,
            .lane = SPAN_LIT("normal"),
            .backend = SPAN_LIT("hve"),
            .recipients = &recipient,
            .recipient_count = 1,
        };
    }
    struct message message = {
        .id = span_of(id),
        .client = SPAN_LIT("erp"),
        .lane = SPAN_LIT("normal"),
        .reverse_path = SPAN_LIT("erp@contoso.com"),
        .header_from = SPAN_LIT("erp@contoso.com"),
        .message_id = SPAN_LIT("<20261123.4711@erp.contoso.com>"),
        .subject = SPAN_LIT("Your invoice of November"),
        .accepted_ms = clock_wall_ms(),
        .expires_ms = clock_wall_ms() + 86400000,
        .body = span_make(bench->body, bench->body_bytes),
        .batches = batches,
        .batch_count = bench->batch_count,
    };
    return queue_enqueue(bench->in, &message, 0, NULL, on_enqueued, bench);
}

static void enqueue_more(struct bench *bench)
{
    while (bench->enqueued < bench->messages &&
           bench->enqueued - bench->accepted - bench->failed < bench->in_flight_max) {
        if (enqueue_one(bench) != 0) {
            bench->failed++;
        }
        bench->enqueued++;
    }
}

static void on_settled(void *ctx, int status)
{
    struct bench *bench = ctx;
    bench->failed += status == 0 ? 0 : 1;
    bench->settled++;
    bench->claimed_open--;
    if (bench->settled == bench->messages * bench->batch_count) {
        loop_stop(bench->loop);
        return;
    }
    claim_more(bench);
}

static void deliver(struct bench *bench, struct queue_lease *lease)
{
    struct queue_settlement settlement = {.next = QUEUE_NEXT_DONE};
    if (queue_start(bench->out, lease) != 0) {
        bench->failed++;
    }
    for (size_t i = 0; i < lease->batch.recipient_count; i++) {
        lease->batch.recipients[i].state = RECIPIENT_DELIVERED;
        lease->batch.recipients[i].last_reply = SPAN_LIT("250 2.0.0 OK 1764000000 hve");
    }
    if (queue_settle(bench->out, lease, &settlement, on_settled, bench) != 0) {
        bench->failed++;
    }
    queue_lease_free(&lease);
}

static void on_claimed(void *ctx, int status, struct queue_lease **leases, size_t count,
                       const int64_t *closed)
{
    struct bench *bench = ctx;
    (void)closed;
    bench->claiming = false;
    bench->failed += status == 0 ? 0 : 1;
    bench->claimed_open += count;
    for (size_t i = 0; i < count; i++) {
        deliver(bench, leases[i]);
    }
    if (count > 0) {
        claim_more(bench);
    }
}

static void claim_more(struct bench *bench)
{
    struct queue_want want = {.lane = "normal", .backend = "hve", .max_batches = CLAIM_MAX};
    if (!bench->claiming && bench->claimed_open < CLAIM_MAX) {
        bench->claiming = queue_claim(bench->out, &want, 1, on_claimed, bench) == 0;
    }
}

static void on_hint(void *ctx)
{
    claim_more(ctx);
}

static void on_state(void *ctx, bool up, const char *why)
{
    struct bench *bench = ctx;
    if (!up) {
        (void)fprintf(stderr, "heave-queue-bench: %s\n", why);
        return;
    }
    bench->up_count++;
    if (bench->up_count == 2) {
        bench->begin_us = clock_mono_us();
        bench->redis_begin_s = process_cpu_s(embedded_pid(bench->embedded));
        enqueue_more(bench);
    }
}

static const struct queue_ops in_ops = {.on_state = on_state};
static const struct queue_ops out_ops = {.on_state = on_state, .on_ready_hint = on_hint};

static void on_up(void *ctx)
{
    struct bench *bench = ctx;
    bench->out = queue_open(bench->loop, &bench->conf, &out_ops, bench);
    bench->in = queue_open(bench->loop, &bench->conf, &in_ops, bench);
    bench->handles_open = 2;
}

static void on_down(void *ctx, const char *why)
{
    (void)ctx;
    (void)fprintf(stderr, "heave-queue-bench: %s\n", why);
    exit(1);
}

static void on_stopped(void *ctx)
{
    struct bench *bench = ctx;
    loop_stop(bench->loop);
}

static void on_closed(void *ctx)
{
    struct bench *bench = ctx;
    bench->handles_open--;
    if (bench->handles_open == 0) {
        embedded_stop(bench->embedded, on_stopped, bench);
    }
}

static void report(const struct bench *bench, double own_begin_s)
{
    double wall_s = (double)(clock_mono_us() - bench->begin_us) / 1e6;
    double messages = (double)bench->messages;
    double redis_s = process_cpu_s(embedded_pid(bench->embedded)) - bench->redis_begin_s;
    (void)printf(
        "{\"messages\":%zu,\"body_bytes\":%zu,\"batches\":%zu,\"in_flight\":%zu,\"failed\":%zu,"
        "\"messages_per_s\":%.0f,\"redis_cpu_us\":%.1f,\"own_cpu_us\":%.1f}\n",
        bench->messages, bench->body_bytes, bench->batch_count, bench->in_flight_max, bench->failed,
        messages / wall_s, redis_s * 1e6 / messages, (own_cpu_s() - own_begin_s) * 1e6 / messages);
}

static size_t argument(int argc, char **argv, int index, size_t fallback)
{
    return argc > index ? (size_t)strtoul(argv[index], NULL, 10) : fallback;
}

static int remove_one(const char *path, const struct stat *info, int kind, struct FTW *where)
{
    (void)info;
    (void)kind;
    (void)where;
    return remove(path);
}

int main(int argc, char **argv)
{
    static const struct embedded_ops embedded_ops = {.on_up = on_up, .on_down = on_down};
    char dir[] = "/tmp/heave-bench-XXXXXX";
    if (mkdtemp(dir) == NULL) {
        return 1;
    }
    struct bench bench = {
        .loop = loop_new("bench"),
        .messages = argument(argc, argv, 1, 20000),
        .body_bytes = argument(argc, argv, 2, 2048),
        .batch_count = argument(argc, argv, 3, 1),
        .in_flight_max = argument(argc, argv, 4, 50),
    };
    bench.batch_count = bench.batch_count > BATCHES_MAX ? BATCHES_MAX : bench.batch_count;
    bench.body = mem_zero(bench.body_bytes + 1);
    memset(bench.body, 'x', bench.body_bytes);
    char *socket_path = embedded_socket_path(dir);
    bench.conf = (struct queue_conf){
        .socket_path = socket_path,
        .durability = QUEUE_FSYNC,
        .shards = 1,
        .lease_ms = 60000,
        .retention_ms = 3600000,
        .max_bytes = (uint64_t)4 << 30,
        .managed = true,
    };
    struct embedded_conf embedded_conf = {.data_dir = dir, .durability = QUEUE_FSYNC};
    struct err err = {0};
    if (embedded_start(bench.loop, &embedded_conf, &embedded_ops, &bench, &bench.embedded, &err) !=
        0) {
        (void)fprintf(stderr, "heave-queue-bench: %s\n", err.text);
        return 1;
    }
    double own_begin_s = own_cpu_s();
    loop_run(bench.loop);
    report(&bench, own_begin_s);
    queue_close(bench.in, on_closed, &bench);
    queue_close(bench.out, on_closed, &bench);
    loop_run(bench.loop);
    loop_free(&bench.loop);
    mem_free(socket_path);
    mem_free(bench.body);
    int removed = nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    return removed == 0 && bench.failed == 0 ? 0 : 1;
}
