/* What happens to a claim: start, heartbeat, settle, release.
 *
 * Starts and settlements go out as one script call per shard at the end of a turn, starts first.
 * While settlements are on their way, a few new ones wait for the answer and go together: Redis is
 * busy with the fsync before it anyway. A settlement stays in memory until Redis has answered it:
 * when the connection breaks it waits and is written again, with the same token, which makes the
 * repetition harmless (settle.lua). */
#include "queue/queue_internal.h"

#include "gateway/base/failpoint.h"

#include <stdio.h>

enum {
    SETTLE_GROUP_MAX = 128,
    SETTLE_WORTH_SENDING = 16, /* settlements that do not wait for the answer to others */
    STARTS_GROUP_MAX = 1000,
    HEARTBEAT_GROUP_MAX = 500,
    SETTLE_RETRY_MS = 250,
    RECORD_BYTES_MAX = 256 * 1024,
    RECORD_BYTES_USUAL = 500, /* a batch of few recipients; reserved at once */
    ITEM_BYTES_USUAL = 900,
};
#define SETTLE_WAITING_MAX ((size_t)64 << 20)

struct settle_item {
    struct settle_item *next;
    uint32_t shard;
    struct redis_args args; /* as settle.lua wants them for one batch */
    char *pair;             /* where the batch goes to; NULL: it is done, or stays */
    queue_settle_cb cb;
    void *ctx;
};

struct settle_group {
    struct queue *queue;
    struct settle_item *first, *last;
    size_t count;
};

static void lease_unlink(struct queue_lease *lease)
{
    if (lease->next != NULL) {
        lease->next->prev = lease->prev;
        lease->prev->next = lease->next;
        lease->next = NULL;
        lease->prev = NULL;
    }
}

void queue_lease_free(struct queue_lease **lease)
{
    if (*lease != NULL) {
        lease_unlink(*lease);
        arena_release(&(*lease)->arena);
        queue_body_unref(&(*lease)->shared_body);
        mem_free(*lease);
        *lease = NULL;
    }
}

static void lease_entry(const struct queue_lease *lease, char out[QUEUE_ENTRY_MAX])
{
    queue_entry(lease->message.id, lease->batch.number, lease->entry_bytes, out);
}

/* Start. */

static void write_starts(struct queue *queue, uint32_t shard)
{
    struct redis_args *args = &queue->starts[shard];
    if (args->count == 0) {
        return;
    }
    struct redis_args head;
    queue_call_begin(shard, &head);
    FAILPOINT("start-before-write");
    /* Nobody waits for the answer. Should the connection break just now, the heartbeat says it
     * again. */
    if (nodes_eval(queue->nodes, shard, SCRIPT_START, 1, &head, args, NULL, NULL) != 0) {
        redis_args_init(args);
    }
    FAILPOINT("start-written");
}

void queue_start_flush(struct queue *queue)
{
    for (uint32_t shard = 0; shard < queue->conf->shards; shard++) {
        write_starts(queue, shard);
    }
}

int queue_start(struct queue *queue, struct queue_lease *lease)
{
    uint32_t shard = queue_shard_of_id(queue, lease->message.id);
    if (queue->closing || !nodes_is_up(queue->nodes, shard) || FAILPOINT_ERROR("start-refused")) {
        return ERR_UNAVAILABLE;
    }
    /* Redis may have been away for longer than the lease: then the batch has been given to others,
     * and nobody waits for the answer that would say so. */
    if (loop_now_ms(queue->loop) >= lease->lease_end_ms) {
        return ERR_STALE;
    }
    char entry[QUEUE_ENTRY_MAX];
    lease_entry(lease, entry);
    struct redis_args *args = &queue->starts[shard];
    redis_args_text(args, entry);
    redis_args_text(args, lease->token);
    if (args->status != 0) {
        return ERR_UNAVAILABLE;
    }
    lease->started = true;
    if (args->count >= 2 * STARTS_GROUP_MAX) {
        write_starts(queue, shard);
    }
    queue_flush_later(queue);
    return 0;
}

/* Heartbeat. */

#define LEASE_NAME_MAX (QUEUE_ENTRY_MAX + 25)

struct heartbeat {
    struct queue *queue;
    int64_t lease_end_ms;
    size_t count;
    char names[HEARTBEAT_GROUP_MAX][LEASE_NAME_MAX];
};

static void lease_name(const struct queue_lease *lease, char out[LEASE_NAME_MAX])
{
    char entry[QUEUE_ENTRY_MAX];
    lease_entry(lease, entry);
    (void)snprintf(out, LEASE_NAME_MAX, "%s %s", entry, lease->token);
}

static void on_heartbeat(void *ctx, int status, const struct redis_value *value)
{
    struct heartbeat *beat = ctx;
    FAILPOINT("heartbeat-answered");
    /* Leases may have been settled and freed meanwhile; those still in the ring stand in the same
     * order. */
    struct queue_lease *ring = &beat->queue->leases;
    size_t at = 0;
    for (struct queue_lease *lease = ring->next; status == 0 && lease != ring;
         lease = lease->next) {
        char name[LEASE_NAME_MAX];
        lease_name(lease, name);
        size_t found = at;
        while (found < beat->count && strcmp(beat->names[found], name) != 0) {
            found++;
        }
        if (found == beat->count) {
            continue; /* claimed since, or of another shard */
        }
        bool kept = redis_integer(redis_item(value, found)) == 1;
        lease->lease_end_ms = kept ? beat->lease_end_ms : INT64_MIN;
        at = found + 1;
    }
    mem_free(beat);
}

static struct queue_lease *beat_some(struct queue *queue, uint32_t shard, struct queue_lease *lease)
{
    struct heartbeat *beat = mem_zero(sizeof(*beat));
    beat->queue = queue;
    beat->lease_end_ms = loop_now_ms(queue->loop) + queue->conf->lease_ms;
    struct redis_args head;
    struct redis_args args;
    queue_call_begin(shard, &head);
    redis_args_number(&head, queue->conf->lease_ms);
    redis_args_init(&args);
    for (; lease != &queue->leases && beat->count < HEARTBEAT_GROUP_MAX; lease = lease->next) {
        if (queue_shard_of_id(queue, lease->message.id) != shard) {
            continue;
        }
        char entry[QUEUE_ENTRY_MAX];
        lease_entry(lease, entry);
        redis_args_text(&args, entry);
        redis_args_text(&args, lease->token);
        redis_args_text(&args, lease->started ? "s" : "c");
        lease_name(lease, beat->names[beat->count++]);
    }
    int status = ERR_UNAVAILABLE;
    if (beat->count > 0) {
        FAILPOINT("heartbeat-before-write");
        status = nodes_eval(queue->nodes, shard, SCRIPT_HEARTBEAT, 1, &head, &args, on_heartbeat,
                            beat);
    } else {
        redis_args_release(&head);
        redis_args_release(&args);
    }
    if (status != 0) {
        mem_free(beat);
    }
    return lease;
}

void queue_heartbeat(struct queue *queue)
{
    for (uint32_t shard = 0; !queue->closing && shard < queue->conf->shards; shard++) {
        struct queue_lease *lease = queue->leases.next;
        while (lease != &queue->leases && nodes_is_up(queue->nodes, shard)) {
            lease = beat_some(queue, shard, lease);
        }
    }
}

/* Settle. */

static void item_append(struct queue *queue, struct settle_item *item)
{
    item->next = NULL;
    if (queue->settle_last != NULL) {
        queue->settle_last->next = item;
    } else {
        queue->settle_first = item;
    }
    queue->settle_last = item;
    queue->settle_count++;
}

static void item_finish(struct queue *queue, struct settle_item *item, int status)
{
    queue->settle_bytes -= buf_len(&item->args.bytes);
    redis_args_release(&item->args);
    if (item->cb != NULL) {
        item->cb(item->ctx, status);
    }
    mem_free(item->pair);
    mem_free(item);
}

static void retry_settles(void *ctx)
{
    queue_flush_later(ctx);
}

static void on_settled(void *ctx, int status, const struct redis_value *value)
{
    struct settle_group *group = ctx;
    FAILPOINT("settle-answered");
    struct queue *queue = group->queue;
    ASSERT(queue->settles_running > 0);
    queue->settles_running--;
    for (size_t i = 0; group->first != NULL; i++) {
        struct settle_item *item = group->first;
        group->first = item->next;
        if (status == 0) {
            item_finish(queue, item, redis_integer(redis_item(value, i)) == 1 ? 0 : ERR_STALE);
        } else if (status == ERR_TIMEOUT || (status == ERR_UNAVAILABLE && !queue->redis_closing)) {
            item_append(queue, item);
        } else {
            item_finish(queue, item, status == ERR_CLOSED ? ERR_CLOSED : ERR_UNAVAILABLE);
        }
    }
    mem_free(group);
    if (status != ERR_UNAVAILABLE && status != ERR_TIMEOUT && queue->settle_first != NULL) {
        queue_flush_later(queue); /* those that waited for this */
    }
    if (status == ERR_UNAVAILABLE && queue->settle_first != NULL &&
        !loop_timer_active(&queue->settle_timer)) {
        loop_timer_start(queue->loop, &queue->settle_timer, SETTLE_RETRY_MS, retry_settles, queue);
    }
}

/* Moves up to a group's worth of the shard's items from the waiting list into a group. */
static struct settle_group *collect(struct queue *queue, uint32_t shard)
{
    struct settle_group *group = mem_zero(sizeof(*group));
    group->queue = queue;
    struct settle_item *item = queue->settle_first;
    queue->settle_first = NULL;
    queue->settle_last = NULL;
    queue->settle_count = 0;
    while (item != NULL) {
        struct settle_item *next = item->next;
        if (item->shard == shard && group->count < SETTLE_GROUP_MAX) {
            item->next = NULL;
            if (group->last != NULL) {
                group->last->next = item;
            } else {
                group->first = item;
            }
            group->last = item;
            group->count++;
        } else {
            item_append(queue, item);
        }
        item = next;
    }
    return group;
}

static bool write_group(struct queue *queue, struct settle_group *group, uint32_t shard)
{
    struct redis_args head;
    struct redis_args args;
    queue_call_begin(shard, &head);
    redis_args_init(&args);
    for (const struct settle_item *item = group->first; item != NULL; item = item->next) {
        /* Not earlier: what was said on a connection that broke may not have been heard, and the
         * sweeper finds no retries of a pair it does not know. */
        if (item->pair != NULL) {
            queue_pair_register(queue, shard, span_of(item->pair));
        }
        if (args.status == 0) {
            args.status = buf_append(&args.bytes, buf_span(&item->args.bytes));
        }
        args.count += item->args.count;
    }
    FAILPOINT("settle-before-write");
    queue->settles_running++;
    if (nodes_eval(queue->nodes, shard, SCRIPT_SETTLE, 1, &head, &args, on_settled, group) == 0) {
        return true;
    }
    on_settled(group, ERR_TIMEOUT, NULL); /* back to the waiting list */
    return false;
}

static bool has_items(const struct queue *queue, uint32_t shard)
{
    for (const struct settle_item *item = queue->settle_first; item != NULL; item = item->next) {
        if (item->shard == shard) {
            return true;
        }
    }
    return false;
}

void queue_settle_write(struct queue *queue)
{
    for (uint32_t shard = 0; shard < queue->conf->shards; shard++) {
        while (nodes_takes(queue->nodes, shard) && has_items(queue, shard)) {
            if (!write_group(queue, collect(queue, shard), shard)) {
                break;
            }
        }
    }
}

/* A lone settlement goes at once; few ones wait a little for each other, or for the answer to those
 * on their way. */
void queue_settle_flush(struct queue *queue)
{
    bool are_few = queue->settle_count < SETTLE_WORTH_SENDING && queue_all_prompt(queue);
    int64_t wait_ms = queue->settled_ms + QUEUE_PACE_MS - loop_now_ms(queue->loop);
    if (queue->settle_first == NULL || (are_few && queue->settles_running > 0)) {
        return;
    }
    if (are_few && wait_ms > 0) {
        if (!loop_timer_active(&queue->settle_timer)) {
            loop_timer_start(queue->loop, &queue->settle_timer, wait_ms, retry_settles, queue);
        }
        return;
    }
    queue->settled_ms = loop_now_ms(queue->loop);
    queue_settle_write(queue);
}

void queue_settle_fail(struct queue *queue, int status)
{
    while (queue->settle_first != NULL) {
        struct settle_item *item = queue->settle_first;
        queue->settle_first = item->next;
        queue->settle_last = queue->settle_first == NULL ? NULL : queue->settle_last;
        queue->settle_count--;
        item_finish(queue, item, status);
    }
}

static struct settle_item *item_new(uint32_t shard, const char *entry, const char *token,
                                    const char *what)
{
    struct settle_item *item = mem_zero(sizeof(*item));
    item->shard = shard;
    redis_args_init(&item->args);
    char *room = NULL;
    item->args.status = buf_reserve(&item->args.bytes, ITEM_BYTES_USUAL, &room);
    redis_args_text(&item->args, entry);
    redis_args_text(&item->args, token);
    redis_args_text(&item->args, what);
    return item;
}

static void item_queue(struct queue *queue, struct settle_item *item)
{
    queue->settle_bytes += buf_len(&item->args.bytes);
    item_append(queue, item);
    queue_flush_later(queue);
}

/* The states recipients came to in this claim: "1=48,2=2". */
static void count_states(const struct queue_lease *lease, char *out, size_t out_bytes)
{
    unsigned counts[RECIPIENT_STATE_COUNT] = {0};
    for (size_t i = 0; i < lease->batch.recipient_count; i++) {
        if ((lease->open_mask >> i & 1) != 0) {
            counts[lease->batch.recipients[i].state]++;
        }
    }
    size_t len = 0;
    out[0] = '\0';
    for (size_t state = 1; state < RECIPIENT_STATE_COUNT; state++) {
        if (counts[state] > 0 && len < out_bytes) {
            len += (size_t)snprintf(out + len, out_bytes - len, "%s%zu=%u", len > 0 ? "," : "",
                                    state, counts[state]);
        }
    }
}

/* Whether somebody may want to see and replay what became of the batch. */
static bool is_dead(const struct batch *batch)
{
    bool dead = false;
    for (size_t i = 0; i < batch->recipient_count; i++) {
        enum recipient_state state = batch->recipients[i].state;
        dead = dead || state == RECIPIENT_FAILED || state == RECIPIENT_EXPIRED ||
               state == RECIPIENT_UNKNOWN;
    }
    return dead;
}

static char letter_of(enum queue_next next)
{
    switch (next) {
    case QUEUE_NEXT_DONE:
        return 'D';
    case QUEUE_NEXT_READY:
        return 'R';
    case QUEUE_NEXT_DELAY:
        return 'W';
    case QUEUE_NEXT_HOLD:
        return 'H';
    }
    UNREACHABLE();
}

/* A retry is never later than the message's expiry, so that the end is known when it comes. */
static int64_t due_of(const struct queue_lease *lease, const struct queue_settlement *settlement)
{
    if (settlement->next != QUEUE_NEXT_DELAY) {
        return 0;
    }
    int64_t expires_ms = lease->message.expires_ms;
    return settlement->due_ms > expires_ms && expires_ms > 0 ? expires_ms : settlement->due_ms;
}

static void add_record(struct settle_item *item, const struct queue_lease *lease, const char *pair,
                       int64_t due_ms, const struct queue_settlement *settlement)
{
    struct batch batch = lease->batch;
    if (settlement->backend.len > 0) {
        batch.backend = settlement->backend;
    }
    char sender[QUEUE_SENDER_MAX];
    struct batch_head head = {
        .state = letter_of(settlement->next),
        .epoch = lease->epoch,
        .due_ms = due_ms,
        .pair = span_of(pair),
        .client = queue_sender(&lease->message, sender),
        .reason = settlement->reason,
    };
    struct buf record;
    char *room = NULL;
    buf_init(&record, RECORD_BYTES_MAX);
    int status = buf_reserve(&record, RECORD_BYTES_USUAL, &room);
    status = status != 0 ? status : queue_batch_store(&head, &batch, &record);
    item->args.status = item->args.status != 0 ? item->args.status : status;
    redis_args_add(&item->args, buf_span(&record));
    buf_release(&record);
}

int queue_settle(struct queue *queue, struct queue_lease *lease,
                 const struct queue_settlement *settlement, queue_settle_cb cb, void *ctx)
{
    if (queue->closing) {
        return ERR_CLOSED;
    }
    ASSERT(settlement->next != QUEUE_NEXT_DONE || batch_open_count(&lease->batch) == 0);
    char entry[QUEUE_ENTRY_MAX];
    char pair[QUEUE_NAMES_MAX + 2];
    char sender[QUEUE_SENDER_MAX];
    char states[64];
    struct span backend = settlement->backend.len > 0 ? settlement->backend : lease->batch.backend;
    int status = queue_pair_name(lease->batch.lane, backend, pair);
    if (status == 0 && queue->settle_bytes > SETTLE_WAITING_MAX) {
        status = ERR_UNAVAILABLE;
    }
    if (status != 0) {
        return status;
    }
    uint32_t shard = queue_shard_of_id(queue, lease->message.id);
    lease_entry(lease, entry);
    count_states(lease, states, sizeof(states));
    char what[2] = {letter_of(settlement->next), '\0'};
    if (settlement->next == QUEUE_NEXT_DONE && is_dead(&lease->batch)) {
        what[0] = 'X';
    }
    int64_t due_ms = due_of(lease, settlement);
    struct settle_item *item = item_new(shard, entry, lease->token, what);
    item->cb = cb;
    item->ctx = ctx;
    add_record(item, lease, pair, due_ms, settlement);
    redis_args_text(&item->args, pair);
    redis_args_add(&item->args, queue_sender(&lease->message, sender));
    redis_args_number(&item->args, due_ms);
    redis_args_number(&item->args, (int64_t)lease->charge);
    redis_args_text(&item->args, lease->batch_total == 1 ? "1" : "");
    redis_args_text(&item->args, states);
    if (item->args.status != 0) {
        status = item->args.status;
        redis_args_release(&item->args);
        mem_free(item);
        return status;
    }
    if (settlement->next != QUEUE_NEXT_DONE && settlement->backend.len > 0) {
        item->pair = mem_dup(span_of(pair));
    }
    lease_unlink(lease);
    item_queue(queue, item);
    return 0;
}

static void add_unwritten(struct settle_item *item, struct span pair, struct span sender)
{
    redis_args_text(&item->args, "");
    redis_args_add(&item->args, pair);
    redis_args_add(&item->args, sender);
    redis_args_number(&item->args, 0);
    redis_args_number(&item->args, 0);
    redis_args_text(&item->args, "");
    redis_args_text(&item->args, "");
}

void queue_release(struct queue *queue, struct queue_lease *lease)
{
    ASSERT(!lease->started);
    char entry[QUEUE_ENTRY_MAX];
    char pair[QUEUE_NAMES_MAX + 2];
    char sender[QUEUE_SENDER_MAX];
    lease_entry(lease, entry);
    if (lease->next == NULL ||
        queue_pair_name(lease->batch.lane, lease->batch.backend, pair) != 0) {
        return; /* settled or released already, or the handle is closed */
    }
    struct settle_item *item = item_new(queue_shard_of_id(queue, lease->message.id), entry,
                                        lease->token, "B");
    add_unwritten(item, span_of(pair), queue_sender(&lease->message, sender));
    FAILPOINT("release-before-write");
    lease_unlink(lease);
    item_queue(queue, item);
}

void queue_settle_unreadable(struct queue *queue, uint32_t shard, struct span entry,
                             const char *token, struct span pair)
{
    char text[QUEUE_ENTRY_MAX];
    (void)snprintf(text, sizeof(text), "%.*s", SPAN_FMT(entry));
    struct settle_item *item = item_new(shard, text, token, "U");
    add_unwritten(item, pair, (struct span){0});
    item_queue(queue, item);
}
