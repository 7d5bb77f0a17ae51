/* Looking at the queue: one message, and the depths. Answers are decoded into an arena that lives
 * until the callback has returned. Pages of messages are in queue_list.c. */
#include "queue/queue_internal.h"

#include <assert.h>
#include <stdio.h>

enum {
    DEPTHS_MAX = 1024,
    BATCHES_MAX = 1000000,
};
#define VIEW_MAX_BYTES ((size_t)256 << 20)

/* The state a stored head and a lease mean together. */
static enum batch_state state_of(const struct batch_head *head, struct span lease)
{
    if (lease.len > 0) {
        return lease.data[0] == 's' ? BATCH_STARTED : BATCH_CLAIMED;
    }
    switch (head->state) {
    case 'W':
        return BATCH_DELAYED;
    case 'H':
        return BATCH_HELD;
    case 'D':
        return BATCH_DONE;
    default:
        return BATCH_READY; /* R and E */
    }
}

/* Decodes show.lua's reply. Spans point into the reply. */
int queue_view_read(const struct redis_value *view, struct span id, struct arena *arena,
                    struct message *out)
{
    uint32_t batch_count = 0;
    struct message message = {.id = id};
    int status = queue_message_read(redis_item(view, 0)->text, &message, &batch_count);
    if (status != 0) {
        return status;
    }
    if (batch_count > BATCHES_MAX || view->count < 1 + 2 * (size_t)batch_count) {
        return ERR_INVAL;
    }
    message.batches = arena_alloc(arena, batch_count * sizeof(*message.batches));
    if (message.batches == NULL) {
        return ERR_NOMEM;
    }
    message.batch_count = batch_count;
    for (size_t i = 0; i < batch_count; i++) {
        struct batch_head head;
        struct batch *batch = &message.batches[i];
        status = queue_batch_read(redis_item(view, 1 + 2 * i)->text, arena, &head, batch);
        if (status != 0) {
            return status;
        }
        batch->state = state_of(&head, redis_item(view, 2 + 2 * i)->text);
        batch->due_ms = batch->state == BATCH_DELAYED ? head.due_ms : 0;
        batch->reason = head.reason;
    }
    *out = message;
    return 0;
}

/* Show. */

struct show {
    queue_show_cb cb;
    void *ctx;
    char id[MESSAGE_ID_MAX + 1];
};

static void on_shown(void *ctx, int status, const struct redis_value *value)
{
    struct show *show = ctx;
    struct message message = {0};
    struct arena arena;
    arena_init(&arena, VIEW_MAX_BYTES);
    if (status == ERR_PROTO) {
        status = ERR_UNAVAILABLE;
    }
    if (status == 0 && value->type != REDIS_ARRAY) {
        status = ERR_NOTFOUND;
    }
    if (status == 0) {
        status = queue_view_read(value, span_of(show->id), &arena, &message);
    }
    show->cb(show->ctx, status, status == 0 ? &message : NULL);
    arena_release(&arena);
    mem_free(show);
}

int queue_view_ask(struct queue *queue, struct span id, redis_cb cb, void *ctx)
{
    struct redis_args head;
    uint32_t shard = queue_shard_of_id(queue, id);
    queue_call_begin(shard, &head);
    redis_args_add(&head, id);
    return nodes_eval(queue->nodes, shard, SCRIPT_SHOW, 1, &head, NULL, cb, ctx);
}

int queue_show(struct queue *queue, struct span id, queue_show_cb cb, void *ctx)
{
    if (queue->closing) {
        return ERR_CLOSED;
    }
    queue_flush_now(queue);
    struct show *show = mem_zero(sizeof(*show));
    show->cb = cb;
    show->ctx = ctx;
    /* An id that is too long is cut and then unknown, as it should be. */
    (void)snprintf(show->id, sizeof(show->id), "%.*s", SPAN_FMT(id));
    int status = queue_view_ask(queue, span_of(show->id), on_shown, show);
    if (status != 0) {
        mem_free(show);
    }
    return status;
}

/* Totals: the shards' answers are added up. */

struct totals {
    struct queue *queue;
    queue_totals_cb cb;
    void *ctx;
    size_t waiting;
    int status;
    struct arena arena;
    struct queue_depth *depths;
    struct queue_totals sums;
    size_t depth_count;
};

static struct queue_depth *depth_of(struct totals *totals, struct span pair)
{
    struct span backend = pair;
    struct span lane = span_cut(&backend, '|');
    for (size_t i = 0; i < totals->depth_count; i++) {
        struct queue_depth *depth = &totals->depths[i];
        if (span_eq(depth->lane, lane) && span_eq(depth->backend, backend)) {
            return depth;
        }
    }
    if (totals->depth_count == DEPTHS_MAX) {
        return NULL;
    }
    struct queue_depth *depth = &totals->depths[totals->depth_count];
    depth->lane = arena_dup(&totals->arena, lane);
    depth->backend = arena_dup(&totals->arena, backend);
    if (depth->lane.data == NULL || depth->backend.data == NULL) {
        return NULL;
    }
    totals->depth_count++;
    return depth;
}

/* The first ten characters of a ULID are its time, 48 bits in Crockford's base32
 * (https://github.com/ulid/spec). */
static const char ulid_digits[] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";
#define ULID_TIME_LEN 10

int64_t queue_id_time_ms(struct span id)
{
    int64_t time_ms = 0;
    if (id.len < ULID_TIME_LEN) {
        return 0;
    }
    for (size_t i = 0; i < ULID_TIME_LEN; i++) {
        const char *found = id.data[i] != '\0' ? strchr(ulid_digits, id.data[i]) : NULL;
        if (found == NULL || (i == 0 && id.data[0] > '7')) {
            return 0;
        }
        time_ms = time_ms * 32 + (found - ulid_digits);
    }
    return time_ms;
}

void queue_id_floor(int64_t time_ms, char out[MESSAGE_ID_MAX + 1])
{
    out[time_ms > 0 ? ULID_TIME_LEN : 0] = '\0';
    for (size_t i = ULID_TIME_LEN; time_ms > 0 && i > 0; i--) {
        out[i - 1] = ulid_digits[time_ms >> (5 * (ULID_TIME_LEN - i)) & 31];
    }
}

/* The values of one pair in totals.lua's reply. */
enum {
    DEPTH_PAIR,
    DEPTH_COUNTS, /* by state, DONE left out */
    DEPTH_OLDEST = DEPTH_COUNTS + BATCH_DONE,
    DEPTH_VALUES = DEPTH_OLDEST + BATCH_DONE,
};

static void add_depth(struct totals *totals, const struct redis_value *value, size_t at)
{
    struct queue_depth *depth = depth_of(totals, redis_item(value, at + DEPTH_PAIR)->text);
    if (depth == NULL) {
        return;
    }
    for (size_t state = 0; state < BATCH_DONE; state++) {
        depth->batches[state] += redis_integer(redis_item(value, at + DEPTH_COUNTS + state));
        const struct redis_value *oldest = redis_item(value, at + DEPTH_OLDEST + state);
        bool is_time = state == BATCH_DELAYED || state == BATCH_HELD;
        int64_t since_ms = is_time ? redis_integer(oldest) : queue_id_time_ms(oldest->text);
        if (since_ms > 0 && (depth->since_ms[state] == 0 || since_ms < depth->since_ms[state])) {
            depth->since_ms[state] = since_ms;
        }
    }
}

static_assert(BATCH_READY == 0 && BATCH_CLAIMED == 1 && BATCH_STARTED == 2 && BATCH_DELAYED == 3 &&
                  BATCH_HELD == 4 && BATCH_DONE == 5,
              "totals.lua gives the states in this order");

static void add_totals(struct totals *totals, const struct redis_value *value)
{
    struct queue_totals *sums = &totals->sums;
    sums->bytes += redis_integer(redis_item(value, 0));
    sums->messages_open += redis_integer(redis_item(value, 1));
    const struct redis_value *recipients = redis_item(value, 2);
    /* The counter of QUEUED counts all that were ever accepted; the others leave it. */
    sums->recipients[RECIPIENT_QUEUED] += redis_integer(redis_item(recipients, 0));
    for (size_t state = 1; state < RECIPIENT_STATE_COUNT; state++) {
        int64_t count = redis_integer(redis_item(recipients, state));
        sums->recipients[state] += count;
        sums->recipients[RECIPIENT_QUEUED] -= count;
    }
    const struct redis_value *ended = redis_item(value, 3);
    sums->dead_messages += redis_integer(redis_item(ended, 0));
    sums->dead_bytes += redis_integer(redis_item(ended, 1));
    sums->history_bytes += redis_integer(redis_item(ended, 2));
    for (size_t at = 4; at + DEPTH_VALUES <= value->count; at += DEPTH_VALUES) {
        add_depth(totals, value, at);
    }
}

static void on_totals(void *ctx, int status, const struct redis_value *value)
{
    struct totals *totals = ctx;
    if (status != 0) {
        totals->status = status == ERR_PROTO ? ERR_UNAVAILABLE : status;
    } else if (value->type == REDIS_ARRAY) {
        add_totals(totals, value);
    }
    totals->waiting--;
    if (totals->waiting > 0) {
        return;
    }
    totals->sums.depths = totals->depths;
    totals->sums.depth_count = totals->depth_count;
    totals->cb(totals->ctx, totals->status, totals->status == 0 ? &totals->sums : NULL);
    arena_release(&totals->arena);
    mem_free(totals);
}

int queue_totals(struct queue *queue, queue_totals_cb cb, void *ctx)
{
    if (queue->closing || !nodes_any_up(queue->nodes)) {
        return queue->closing ? ERR_CLOSED : ERR_UNAVAILABLE;
    }
    queue_flush_now(queue);
    struct totals *totals = mem_zero(sizeof(*totals));
    totals->queue = queue;
    totals->cb = cb;
    totals->ctx = ctx;
    arena_init(&totals->arena, VIEW_MAX_BYTES);
    totals->depths = arena_alloc(&totals->arena, DEPTHS_MAX * sizeof(*totals->depths));
    ASSERT(totals->depths != NULL);
    int status = 0;
    for (uint32_t shard = 0; shard < queue->conf->shards && status == 0; shard++) {
        struct redis_args head;
        if (!nodes_is_up(queue->nodes, shard)) {
            continue; /* the sums of the others are better than none */
        }
        queue_call_begin(shard, &head);
        status = nodes_eval(queue->nodes, shard, SCRIPT_TOTALS, 1, &head, NULL, on_totals, totals);
        totals->waiting += status == 0 ? 1 : 0;
    }
    if (totals->waiting > 0) {
        totals->status = status;
        return 0;
    }
    arena_release(&totals->arena);
    mem_free(totals);
    return status;
}
