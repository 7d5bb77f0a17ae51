/* Whether two holders ever have the same batch. Several handles, each with its thread and loop,
 * claim from one Redis and end their claims in every way there is; sometimes one sleeps for longer
 * than its leases last, so that others get its batches and what it says afterwards must be refused.
 *
 * Every batch has a slot: who holds it (0: nobody), and until when at least. The holder empties the
 * slot before it tells the queue that the claim ends; so whoever claims a batch and finds its slot
 * taken, and the time not over, has been given a batch twice. */
#include "bench/queue/modes.h"
#include "bench/queue/world.h"

#include "gateway/base/clock.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>

enum {
    SLEEP_MS = BENCH_SHORT_LEASE_MS + 4000,
    CLAIMS_PER_SLEEP = 100000,
    AGAIN_MS = 5,
    DELAY_MS = 20,
    HANDLES_MAX = 64,
};

struct slot {
    _Atomic uint64_t holder; /* number of the claim */
    _Atomic int64_t until_ms;
};

/* What the threads share. */
struct board {
    const struct bench_options *options;
    const struct sample *sample;
    struct queue_conf conf;
    struct loop *main_loop;
    struct slot *slots;
    size_t slot_count;
    _Atomic uint64_t claims; /* so far; numbers them too */
    _Atomic uint64_t next_sleep;
    _Atomic uint64_t ready, released, delayed, done, sleeps;
    _Atomic uint64_t taken_over;   /* claims of a batch whose holder had slept too long */
    _Atomic uint64_t refused;      /* settlements of those who had */
    _Atomic uint64_t doubled;      /* wrong: claimed while somebody's lease lasted */
    _Atomic uint64_t late_taken;   /* wrong: settled by somebody who had lost the batch */
    _Atomic uint64_t early_refuse; /* wrong: refused although the lease lasted */
    size_t running;                /* main loop's */
};

struct worker {
    struct board *board;
    pthread_t thread;
    struct loop *loop;
    struct queue *queue;
    struct loop_timer timer;
    uint64_t random;
    size_t waiting; /* settlements and messages not answered yet */
    bool claiming, closing;
};

/* A claim whose end was told, until the answer. */
struct ending {
    struct worker *worker;
    size_t slot;
    int64_t until_ms;
    bool held; /* the slot was still ours */
    bool again;
};

static void claim(void *ctx);

static void check(int status, const char *what)
{
    if (status != 0) {
        bench_die(what, err_name(status));
    }
}

static unsigned dice(struct worker *worker, unsigned sides)
{
    worker->random ^= worker->random << 13;
    worker->random ^= worker->random >> 7;
    worker->random ^= worker->random << 17;
    return (unsigned)(worker->random >> 33) % sides;
}

static void on_closed(void *ctx)
{
    struct worker *worker = ctx;
    loop_stop(worker->loop);
}

static void step(struct worker *worker)
{
    const struct board *board = worker->board;
    if (atomic_load(&board->claims) < board->options->claims) {
        claim(worker);
    } else if (!worker->claiming && worker->waiting == 0 && !worker->closing) {
        worker->closing = true;
        loop_timer_stop(&worker->timer);
        queue_close(worker->queue, on_closed, worker);
    }
}

/* The same batches again, as a new message. */

static void on_enqueued(void *ctx, int status, const struct queue_enqueued *result)
{
    struct worker *worker = ctx;
    (void)result;
    check(status, "enqueue");
    worker->waiting--;
    step(worker);
}

static void enqueue(struct queue *queue, const struct sample *sample, size_t slot,
                    queue_enqueue_cb cb, void *ctx)
{
    char id[MESSAGE_ID_MAX + 1];
    char message_id[64];
    struct message message = sample_message(sample);
    queue_message_id(queue, NULL, id);
    (void)snprintf(message_id, sizeof(message_id), "<%zu@claims>", slot);
    message.id = span_of(id);
    message.message_id = span_of(message_id);
    message.accepted_ms = clock_wall_ms();
    message.expires_ms = message.accepted_ms + 86400000;
    check(queue_enqueue(queue, &message, 0, NULL, cb, ctx), "enqueue");
}

static size_t slot_of(const struct queue_lease *lease)
{
    struct span text = lease->message.message_id;
    uint64_t number = 0;
    text = span_make(text.data + 1, text.len - 1);
    check(span_to_u64(span_cut(&text, '@'), SIZE_MAX / 2, &number), "a message's number");
    return (size_t)number;
}

/* Ending claims. */

static void on_settled(void *ctx, int status)
{
    struct ending *ending = ctx;
    struct worker *worker = ending->worker;
    struct board *board = worker->board;
    bool over = clock_mono_ms() >= ending->until_ms;
    if (status == 0 && !ending->held) {
        board->late_taken++;
    } else if (status == ERR_STALE) {
        board->refused++;
        board->early_refuse += over ? 0 : 1;
    } else {
        check(status, "settle");
    }
    if (ending->again && status == 0) {
        enqueue(worker->queue, board->sample, ending->slot, on_enqueued, worker);
        worker->waiting++;
    }
    worker->waiting--;
    mem_free(ending);
    step(worker);
}

static void settle(struct worker *worker, struct queue_lease *lease, struct ending *ending,
                   enum queue_next next)
{
    struct queue_settlement settlement = {.next = next};
    if (next == QUEUE_NEXT_DELAY) {
        settlement.due_ms = clock_wall_ms() + DELAY_MS;
    }
    worker->waiting++;
    check(queue_settle(worker->queue, lease, &settlement, on_settled, ending), "settle");
}

static void deliver(struct worker *worker, struct queue_lease *lease, struct ending *ending)
{
    int status = queue_start(worker->queue, lease);
    if (status == ERR_STALE) {
        worker->board->refused++;
        mem_free(ending);
        return;
    }
    check(status, "start");
    for (size_t i = 0; i < lease->batch.recipient_count; i++) {
        lease->batch.recipients[i].state = RECIPIENT_DELIVERED;
    }
    worker->board->done++;
    ending->again = true;
    settle(worker, lease, ending, QUEUE_NEXT_DONE);
}

static void end(struct worker *worker, struct queue_lease *lease, uint64_t number, size_t slot)
{
    struct board *board = worker->board;
    uint64_t expected = number;
    struct ending *ending = mem_zero(sizeof(*ending));
    *ending = (struct ending){.worker = worker, .slot = slot};
    ending->until_ms = lease->lease_end_ms;
    ending->held = atomic_compare_exchange_strong(&board->slots[slot].holder, &expected, 0);
    unsigned way = dice(worker, 100);
    if (way < 1) {
        deliver(worker, lease, ending);
    } else if (way < 2) {
        board->delayed++;
        settle(worker, lease, ending, QUEUE_NEXT_DELAY);
    } else if (way < 50) {
        board->ready++;
        settle(worker, lease, ending, QUEUE_NEXT_READY);
    } else {
        board->released++;
        queue_release(worker->queue, lease);
        mem_free(ending);
    }
}

/* Claiming. */

static void take(struct board *board, const struct queue_lease *lease, uint64_t number, size_t slot)
{
    ASSERT(slot < board->slot_count);
    int64_t until_ms = atomic_load(&board->slots[slot].until_ms);
    uint64_t other = atomic_exchange(&board->slots[slot].holder, number);
    if (other != 0 && clock_mono_ms() < until_ms) {
        board->doubled++;
    }
    board->taken_over += other != 0 ? 1 : 0;
    atomic_store(&board->slots[slot].until_ms, lease->lease_end_ms);
}

static void sleep_now(struct board *board)
{
    struct timespec time = {.tv_sec = SLEEP_MS / 1000, .tv_nsec = SLEEP_MS % 1000 * 1000000L};
    board->sleeps++;
    (void)nanosleep(&time, NULL);
}

static void on_claimed(void *ctx, int status, struct queue_lease **leases, size_t count,
                       const int64_t *closed)
{
    struct worker *worker = ctx;
    struct board *board = worker->board;
    (void)closed;
    check(status, "claim");
    worker->claiming = false;
    uint64_t first = atomic_fetch_add(&board->claims, count) + 1;
    for (size_t i = 0; i < count; i++) {
        take(board, leases[i], first + i, slot_of(leases[i]));
    }
    uint64_t next_sleep = atomic_load(&board->next_sleep);
    if (first + count > next_sleep &&
        atomic_compare_exchange_strong(&board->next_sleep, &next_sleep,
                                       next_sleep + CLAIMS_PER_SLEEP)) {
        sleep_now(board);
    }
    for (size_t i = count; i > 0; i--) { /* given back in this order, they keep theirs */
        end(worker, leases[i - 1], first + i - 1, slot_of(leases[i - 1]));
        queue_lease_free(&leases[i - 1]);
    }
    if (count == 0) {
        loop_timer_start(worker->loop, &worker->timer, AGAIN_MS, claim, worker);
    } else {
        step(worker);
    }
}

static void claim(void *ctx)
{
    struct worker *worker = ctx;
    const struct board *board = worker->board;
    struct queue_want want = {
        .lane = board->sample->lane,
        .backend = board->sample->backend,
        .max_batches = (uint32_t)board->options->claim,
    };
    if (atomic_load(&board->claims) >= board->options->claims) {
        step(worker);
    } else if (!worker->claiming) {
        worker->claiming = true;
        check(queue_claim(worker->queue, &want, 1, on_claimed, worker), "claim");
    }
}

/* The threads. */

static void on_state(void *ctx, bool up, const char *why)
{
    if (!up) {
        bench_die("Redis went away", why);
    }
    claim(ctx);
}

static void worker_ended(void *ctx)
{
    struct board *board = ctx;
    board->running--;
    loop_stop(board->main_loop);
}

static void *run(void *ctx)
{
    static const struct queue_ops ops = {.on_state = on_state};
    struct worker *worker = ctx;
    worker->loop = loop_new("claims");
    worker->queue = queue_open(worker->loop, &worker->board->conf, &ops, worker);
    loop_run(worker->loop);
    loop_free(&worker->loop);
    loop_post(worker->board->main_loop, worker_ended, worker->board);
    return NULL;
}

struct count {
    struct loop *loop;
    int64_t batches;
    bool done;
};

static void on_totals(void *ctx, int status, const struct queue_totals *totals)
{
    struct count *count = ctx;
    check(status, "totals");
    for (size_t i = 0; i < totals->depth_count; i++) {
        for (size_t state = 0; state < BATCH_STATE_COUNT; state++) {
            count->batches += totals->depths[i].batches[state];
        }
    }
    count->done = true;
    loop_stop(count->loop);
}

static int64_t count_batches(struct world *world)
{
    struct count count = {.loop = world->loop};
    check(queue_totals(world->out, on_totals, &count), "totals");
    BENCH_RUN_UNTIL(world->loop, count.done);
    return count.batches;
}

static bool report(const struct board *board, double seconds, int64_t lost)
{
    (void)printf("{\"mode\":\"claims\",\"claims\":%" PRIu64 ",\"handles\":%" PRIu64
                 ",\"batches\":%zu,\"seconds\":%.1f,\"claims_per_s\":%.0f,\"ready\":%" PRIu64
                 ",\"released\":%" PRIu64 ",\"delayed\":%" PRIu64 ",\"done\":%" PRIu64
                 ",\"sleeps\":%" PRIu64 ",\"taken_over\":%" PRIu64 ",\"refused\":%" PRIu64
                 ",\"doubled\":%" PRIu64 ",\"late_taken\":%" PRIu64 ",\"early_refused\":%" PRIu64
                 ",\"lost\":%" PRId64 "}\n",
                 board->claims, board->options->handles, board->slot_count, seconds,
                 (double)board->claims / seconds, board->ready, board->released, board->delayed,
                 board->done, board->sleeps, board->taken_over, board->refused, board->doubled,
                 board->late_taken, board->early_refuse, lost);
    return board->doubled == 0 && board->late_taken == 0 && board->early_refuse == 0 && lost == 0;
}

static void on_filled(void *ctx, int status, const struct queue_enqueued *result)
{
    struct world *world = ctx;
    (void)result;
    check(status, "enqueue");
    world->waiting--;
    loop_stop(world->loop);
}

static void fill(struct world *world, const struct board *board)
{
    for (size_t i = 0; i < board->slot_count; i++) {
        enqueue(world->in, board->sample, i, on_filled, world);
        world->waiting++;
        BENCH_RUN_UNTIL(world->loop, world->waiting < board->options->in_flight);
    }
    BENCH_RUN_UNTIL(world->loop, world->waiting == 0);
}

bool bench_claims(const struct bench_options *options)
{
    struct loop *loop = loop_new("bench");
    struct world world;
    struct sample sample;
    struct bench_options one = *options;
    one.batches = 1;
    struct worker workers[HANDLES_MAX] = {0};
    sample_init(&sample, &one, "normal");
    world_open(&world, loop, options);
    struct board board = {
        .options = options,
        .sample = &sample,
        .conf = world.conf,
        .main_loop = loop,
        .slots = mem_zero((size_t)options->messages * sizeof(struct slot)),
        .slot_count = (size_t)options->messages,
        .next_sleep = CLAIMS_PER_SLEEP / 2,
        .running = (size_t)options->handles,
    };
    fill(&world, &board);
    int64_t begin_ms = clock_mono_ms();
    for (size_t i = 0; i < options->handles; i++) {
        workers[i] = (struct worker){.board = &board, .random = 88172645463325252u + i};
        check(pthread_create(&workers[i].thread, NULL, run, &workers[i]) == 0 ? 0 : ERR_IO,
              "thread");
    }
    BENCH_RUN_UNTIL(loop, board.running == 0);
    for (size_t i = 0; i < options->handles; i++) {
        (void)pthread_join(workers[i].thread, NULL);
    }
    double seconds = (double)(clock_mono_ms() - begin_ms) / 1000;
    bool good = report(&board, seconds, (int64_t)board.slot_count - count_batches(&world));
    world_close(&world);
    mem_free(board.slots);
    sample_release(&sample);
    loop_free(&loop);
    return good;
}
