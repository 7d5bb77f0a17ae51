/* The handle: opening, closing, shards, the end of a turn, the timers, gates. What is done with
 * messages stands in queue_enqueue.c, queue_claim.c, queue_settle.c and queue_read.c.
 *
 * Closing goes in steps: no new calls; running claims come in and are given back; releases and
 * settlements are written; both connections close after their answers; what was never written is
 * failed; the handle is freed. */
#include "queue/queue_internal.h"

#include "gateway/base/codec.h"
#include "gateway/base/failpoint.h"
#include "queue/body.h"

#include <stdio.h>

enum {
    SWEEP_EVERY_MS = 1000,
    SWEEP_AGAIN_MS = 20, /* when a run found more than it may do at once */
    SWEEP_LOCK_MS = 900,
    SWEEP_MOST = 500,
    WALK_EVERY_MS = 900,
    WALK_MESSAGES = 100, /* a second and shard */
    WALK_BATCHES = 300,
    SWEEP_LEASES_AFTER_MS = 5000,
    CLOSE_CLAIMS_MS = 4000,
    ULID_BACK_MS = 10000,
    PAIRS_MAX = 1024,
    IDS_PER_SHARD = 16,
};

const char *queue_durability_name(enum queue_durability durability)
{
    switch (durability) {
    case QUEUE_FSYNC:
        return "fsync";
    case QUEUE_REPLICATED:
        return "replicated";
    case QUEUE_MEMORY:
        return "memory";
    }
    UNREACHABLE();
}

void queue_tag(uint32_t shard, char out[QUEUE_TAG_MAX])
{
    (void)snprintf(out, QUEUE_TAG_MAX, "{h%u}", shard % QUEUE_SHARDS_MAX);
}

uint32_t queue_shard_of_id(const struct queue *queue, struct span id)
{
    size_t dash = id.len;
    while (dash > 0 && id.data[dash - 1] != '-') {
        dash--;
    }
    uint32_t shard = 0;
    for (size_t i = dash; i < id.len && dash > 0 && i < dash + 2; i++) {
        char c = id.data[i];
        uint32_t digit = c >= 'a' && c <= 'f' ? (uint32_t)(c - 'a') + 10 : (uint32_t)(c - '0');
        shard = shard * 16 + (digit < 16 ? digit : 0);
    }
    return shard % queue->conf->shards;
}

void queue_body_key(uint32_t shard, struct span id, char out[QUEUE_BODY_KEY_MAX])
{
    char tag[QUEUE_TAG_MAX];
    queue_tag(shard, tag);
    (void)snprintf(out, QUEUE_BODY_KEY_MAX, "%s:b:%.*s", tag, SPAN_FMT(id));
}

void queue_call_begin(uint32_t shard, struct redis_args *head)
{
    char tag[QUEUE_TAG_MAX];
    queue_tag(shard, tag);
    redis_args_init(head);
    redis_args_text(head, tag);
}

/* FNV-1a, 64 bits. */
static uint64_t hash_more(uint64_t hash, struct span bytes)
{
    for (size_t i = 0; i < bytes.len; i++) {
        hash = (hash ^ (unsigned char)bytes.data[i]) * 1099511628211u;
    }
    return hash;
}

uint32_t queue_shard_of_key(const struct queue *queue, struct span scope, struct span key)
{
    uint64_t hash = hash_more(14695981039346656037u, scope);
    hash = hash_more(hash, SPAN_LIT(":"));
    return (uint32_t)(hash_more(hash, key) % queue->conf->shards);
}

/* Ids of a handle sort in the order in which they were made, for age is told by them: those of one
 * millisecond count up, and a clock that is set back a little does not go back for them. */
static void next_ulid(struct queue *queue)
{
    int64_t now_ms = queue_wall_ms(queue);
    if (now_ms > queue->ulid_ms || now_ms < queue->ulid_ms - ULID_BACK_MS) {
        queue->ulid_ms = now_ms;
        codec_ulid(now_ms, queue->ulid);
    } else {
        codec_ulid_next(queue->ulid);
    }
}

void queue_message_id(struct queue *queue, const struct queue_idempotency *idempotency,
                      char out[MESSAGE_ID_MAX + 1])
{
    next_ulid(queue);
    /* A few messages of one turn share a shard, and so one script call; the next ones and the next
     * turn's (queue_enqueue.c) go to the next shard. Who submits many at once must be found in all
     * shards: a claim is fair inside a shard only. A shard whose server is away or slow is left
     * out. */
    if (queue->ids_given++ % IDS_PER_SHARD == IDS_PER_SHARD - 1) {
        queue->id_shard++;
    }
    uint32_t shard = queue->id_shard % queue->conf->shards;
    for (uint32_t i = 0; i < queue->conf->shards; i++) {
        uint32_t next = (queue->id_shard + i) % queue->conf->shards;
        if (nodes_is_prompt(queue->nodes, next)) {
            shard = next;
            break;
        }
    }
    if (idempotency != NULL && idempotency->key.len > 0) {
        shard = queue_shard_of_key(queue, idempotency->scope, idempotency->key);
    }
    (void)snprintf(out, MESSAGE_ID_MAX + 1, "%s-%x", queue->ulid, shard);
}

/* Pairs. */

static bool pair_known(const struct queue *queue, uint32_t shard, struct span pair)
{
    for (const struct queue_pair *known = queue->pairs; known != NULL; known = known->next) {
        if (known->shard == shard && span_eq(span_of(known->name), pair)) {
            return true;
        }
    }
    return false;
}

static void pairs_forget(struct queue *queue)
{
    while (queue->pairs != NULL) {
        struct queue_pair *pair = queue->pairs;
        queue->pairs = pair->next;
        mem_free(pair);
    }
    queue->pair_count = 0;
}

void queue_pair_register(struct queue *queue, uint32_t shard, struct span pair)
{
    if (pair_known(queue, shard, pair)) {
        return;
    }
    char tag[QUEUE_TAG_MAX];
    char key[QUEUE_TAG_MAX + 3];
    queue_tag(shard, tag);
    (void)snprintf(key, sizeof(key), "%s:p", tag);
    struct redis_args args;
    redis_args_init(&args);
    redis_args_text(&args, "SADD");
    redis_args_text(&args, key);
    redis_args_add(&args, pair);
    if (nodes_call(queue->nodes, shard, &args, NULL, NULL) != 0 || queue->pair_count >= PAIRS_MAX) {
        return;
    }
    struct queue_pair *added = mem_zero(sizeof(*added));
    added->shard = shard;
    (void)snprintf(added->name, sizeof(added->name), "%.*s", SPAN_FMT(pair));
    added->next = queue->pairs;
    queue->pairs = added;
    queue->pair_count++;
}

/* The end of a turn. Enqueues before starts before settlements, so that each follows what it builds
 * on. */

static void flush(void *ctx)
{
    struct queue *queue = ctx;
    queue_upload_flush(queue);
    queue_enqueue_flush(queue);
    queue_start_flush(queue);
    queue_settle_flush(queue);
}

void queue_flush_later(struct queue *queue)
{
    loop_defer(queue->loop, &queue->flush_task, LOOP_TASK_QUEUE, flush, queue);
}

void queue_flush_now(struct queue *queue)
{
    queue_enqueue_write(queue);
    queue_start_flush(queue);
    queue_settle_write(queue);
}

/* Timers. */

static void heartbeat(void *ctx)
{
    struct queue *queue = ctx;
    queue_heartbeat(queue);
    int64_t every_ms = queue->conf->lease_ms / 3;
    loop_timer_start(queue->loop, &queue->heartbeat_timer, every_ms > 0 ? every_ms : 1, heartbeat,
                     queue);
}

static void sweep(void *ctx);

static void sweep_tell(struct queue *queue, const char *what, int64_t count)
{
    if (count > 0 && queue->ops->on_sweep != NULL) {
        queue->ops->on_sweep(queue->ctx, what, count);
    }
}

void queue_leases_spare(struct queue *queue)
{
    int64_t grace_ms = queue->conf->lease_ms < SWEEP_LEASES_AFTER_MS ? queue->conf->lease_ms
                                                                     : SWEEP_LEASES_AFTER_MS;
    queue->sweep_leases_ms = loop_now_ms(queue->loop) + grace_ms;
}

/* What may pass between two signs of life before a holder could have lost its lease by it. */
static int64_t silence_max_ms(const struct queue *queue)
{
    int64_t third_ms = queue->conf->lease_ms / 3;
    return third_ms < SWEEP_EVERY_MS ? third_ms : SWEEP_EVERY_MS;
}

struct sweep_request {
    struct queue *queue;
    int64_t asked_ms; /* loop time */
};

static void on_swept(void *ctx, int status, const struct redis_value *value)
{
    struct sweep_request *request = ctx;
    struct queue *queue = request->queue;
    int64_t took_ms = loop_now_ms(queue->loop) - request->asked_ms;
    mem_free(request);
    if (took_ms > silence_max_ms(queue)) {
        queue_leases_spare(queue); /* the server, or the way to it, stood still */
    }
    if (status != 0 || value->type != REDIS_ARRAY || queue->closing) {
        return;
    }
    FAILPOINT("sweep-answered");
    sweep_tell(queue, "lease_ended", redis_integer(redis_item(value, 0)));
    sweep_tell(queue, "lease_ended_started", redis_integer(redis_item(value, 1)));
    sweep_tell(queue, "expired", redis_integer(redis_item(value, 3)));
    sweep_tell(queue, "removed", redis_integer(redis_item(value, 4)));
    sweep_tell(queue, "lost_record", redis_integer(redis_item(value, 5)));
    sweep_tell(queue, "poison", redis_integer(redis_item(value, 7)));
    sweep_tell(queue, "dead_removed", redis_integer(redis_item(value, 8)));
    if (!queue->closing && redis_integer(redis_item(value, 6)) == 1) {
        loop_timer_start(queue->loop, &queue->sweep_timer, SWEEP_AGAIN_MS, sweep, queue);
    }
}

static void on_walked(void *ctx, int status, const struct redis_value *value)
{
    struct queue *queue = ctx;
    if (status != 0 || value->type != REDIS_ARRAY || queue->closing) {
        return;
    }
    sweep_tell(queue, "orphan", redis_integer(redis_item(value, 0)));
    sweep_tell(queue, "lost_record", redis_integer(redis_item(value, 1)));
}

/* Some of the open messages each time, by whoever has the shard's lock. */
static int walk_orphans(struct queue *queue, uint32_t shard)
{
    struct redis_args head;
    queue_call_begin(shard, &head);
    redis_args_text(&head, queue->instance);
    redis_args_number(&head, queue->conf->lease_ms);
    redis_args_number(&head, WALK_MESSAGES);
    redis_args_number(&head, WALK_BATCHES);
    return nodes_eval(queue->nodes, shard, SCRIPT_ORPHANS, 1, &head, NULL, on_walked, queue);
}

static void sweep(void *ctx)
{
    struct queue *queue = ctx;
    int64_t now_ms = loop_now_ms(queue->loop);
    if (queue->swept_ms > 0 && now_ms - queue->swept_ms > SWEEP_EVERY_MS + silence_max_ms(queue)) {
        queue_leases_spare(queue); /* this process stood still */
    }
    queue->swept_ms = now_ms;
    /* A request that was under way for long ends no leases: what their holders sent with it must be
     * heard first. */
    int64_t until_ms = queue_wall_ms(queue) + silence_max_ms(queue);
    FAILPOINT("sweep-before-write");
    bool walks = loop_now_ms(queue->loop) >= queue->next_walk_ms; /* not when there is more to do */
    queue->next_walk_ms = walks ? loop_now_ms(queue->loop) + WALK_EVERY_MS : queue->next_walk_ms;
    for (uint32_t shard = 0; shard < queue->conf->shards; shard++) {
        if (queue->closing || !nodes_is_up(queue->nodes, shard)) {
            continue;
        }
        struct redis_args head;
        struct sweep_request *request = mem_zero(sizeof(*request));
        *request = (struct sweep_request){.queue = queue, .asked_ms = now_ms};
        queue_call_begin(shard, &head);
        redis_args_text(&head, queue->instance);
        redis_args_number(&head, SWEEP_LOCK_MS);
        redis_args_number(&head, queue->conf->retention_ms);
        redis_args_number(&head, SWEEP_MOST);
        redis_args_number(&head, now_ms >= queue->sweep_leases_ms ? until_ms : 0);
        redis_args_number(&head, (int64_t)(queue->conf->history_bytes / queue->conf->shards));
        redis_args_number(&head, queue->conf->dead_letters_ms);
        redis_args_number(&head, (int64_t)(queue->conf->dead_letter_bytes / queue->conf->shards));
        if (nodes_eval(queue->nodes, shard, SCRIPT_SWEEP, 1, &head, NULL, on_swept, request) != 0) {
            mem_free(request);
            continue; /* swept next time */
        }
        if (walks && walk_orphans(queue, shard) != 0) {
            continue; /* walked next time */
        }
    }
    loop_timer_start(queue->loop, &queue->sweep_timer, SWEEP_EVERY_MS, sweep, queue);
}

/* Connections. */

static void tell_hint(void *ctx)
{
    struct queue *queue = ctx;
    queue->hinted_ms = loop_now_ms(queue->loop);
    queue->ops->on_ready_hint(queue->ctx);
}

/* The first hint in a while is told at once. Under load each would be about a message or two, and
 * their claim, starts and settlement would cost Redis as many fsyncs as those of twenty. */
static void hint_later(struct queue *queue)
{
    int64_t wait_ms = queue->hinted_ms + QUEUE_PACE_MS - loop_now_ms(queue->loop);
    if (queue->closing) {
        return;
    }
    if (wait_ms <= 0) {
        loop_defer(queue->loop, &queue->hint_task, LOOP_TASK_QUEUE, tell_hint, queue);
    } else if (!loop_timer_active(&queue->hint_timer)) {
        loop_timer_start(queue->loop, &queue->hint_timer, wait_ms, tell_hint, queue);
    }
}

static void on_warning(void *ctx, const char *text)
{
    struct queue *queue = ctx;
    if (queue->ops->on_warning != NULL && !queue->closing) {
        queue->ops->on_warning(queue->ctx, text);
    }
}

static void server_came_up(struct queue *queue)
{
    FAILPOINT("queue-up");
    queue_clock_ask(queue);
    pairs_forget(queue);
    /* Settlements that waited go first, and what was started and perhaps not heard is said again.
     */
    queue_flush_later(queue);
    loop_timer_start(queue->loop, &queue->heartbeat_timer, 0, heartbeat, queue);
    /* When Redis was away for longer than a lease, all leases are over, though their holders may be
     * sending: they get the time to come back and say so. */
    queue_leases_spare(queue);
    queue->swept_ms = 0;
    loop_timer_start(queue->loop, &queue->sweep_timer, 0, sweep, queue);
}

static void on_nodes_state(void *ctx, bool up, const char *why)
{
    struct queue *queue = ctx;
    if (queue->closing) {
        return;
    }
    bool was_up = queue->told_up;
    queue->told_up = up;
    if (up && why[0] == '\0') {
        server_came_up(queue);
    } else if (up) {
        on_warning(queue, why); /* a part of a Cluster; the others go on */
    } else {
        loop_timer_stop(&queue->heartbeat_timer);
        loop_timer_stop(&queue->sweep_timer);
        loop_timer_stop(&queue->clock_timer);
    }
    if (queue->ops->on_state != NULL && (!up || !was_up)) {
        queue->ops->on_state(queue->ctx, up, up ? "" : why);
    }
}

static void on_hint(void *ctx, struct span payload)
{
    (void)payload;
    hint_later(ctx);
}

static const struct nodes_ops nodes_ops = {
    .on_state = on_nodes_state, .on_message = on_hint, .on_warning = on_warning};

struct queue *queue_open(struct loop *loop, const struct queue_conf *conf,
                         const struct queue_ops *ops, void *ctx)
{
    ASSERT(conf->shards >= 1 && conf->shards <= QUEUE_SHARDS_MAX && conf->lease_ms > 0);
    struct queue *queue = mem_zero(sizeof(*queue));
    queue->loop = loop;
    queue->conf = conf;
    queue->ops = ops;
    queue->ctx = ctx;
    queue->leases.next = &queue->leases;
    queue->leases.prev = &queue->leases;
    unsigned char random[8];
    codec_random(random, sizeof(random));
    codec_hex(random, sizeof(random), queue->instance);
    queue->id_shard = random[0];
    queue->claim_shard = random[1];
    for (uint32_t shard = 0; shard < conf->shards; shard++) {
        redis_args_init(&queue->starts[shard]);
    }
    if (conf->encryption_keys != NULL) {
        int status = keyring_parse(span_of(conf->encryption_keys), &queue->keyring, NULL);
        ASSERT(status == 0); /* the configuration was checked with the same function */
    }
    queue->codec = body_codec_new(conf->compression, queue->keyring);
    queue->redis_conf = (struct redis_conf){
        .server = conf,
        .scripts = queue_scripts,
        .script_count = SCRIPT_COUNT,
        .subscribe = ops->on_ready_hint != NULL ? "heave:ready" : NULL,
    };
    queue->nodes = nodes_open(loop, &queue->redis_conf, &nodes_ops, queue);
    return queue;
}

bool queue_is_up(const struct queue *queue)
{
    return !queue->closing && nodes_any_prompt(queue->nodes);
}

bool queue_all_prompt(const struct queue *queue)
{
    for (uint32_t shard = 0; shard < queue->conf->shards; shard++) {
        if (!nodes_is_prompt(queue->nodes, shard)) {
            return false;
        }
    }
    return true;
}

/* Closing. */

static void leases_forget(struct queue *queue)
{
    while (queue->leases.next != &queue->leases) {
        struct queue_lease *lease = queue->leases.next;
        queue->leases.next = lease->next;
        lease->next = NULL;
        lease->prev = NULL;
    }
    queue->leases.prev = &queue->leases;
}

static void on_connections_closed(void *ctx)
{
    struct queue *queue = ctx;
    queue_upload_fail(queue);
    queue_enqueue_fail(queue, ERR_CLOSED);
    queue_settle_fail(queue, ERR_CLOSED);
    for (uint32_t shard = 0; shard < queue->conf->shards; shard++) {
        redis_args_release(&queue->starts[shard]);
    }
    leases_forget(queue);
    pairs_forget(queue);
    loop_timer_stop(&queue->heartbeat_timer);
    loop_timer_stop(&queue->sweep_timer);
    loop_timer_stop(&queue->clock_timer);
    loop_timer_stop(&queue->settle_timer);
    loop_timer_stop(&queue->close_timer);
    loop_task_cancel(&queue->flush_task);
    loop_task_cancel(&queue->hint_task);
    loop_timer_stop(&queue->hint_timer);
    void (*on_closed)(void *) = queue->on_closed;
    void *closed_ctx = queue->closed_ctx;
    body_codec_free(&queue->codec);
    keyring_free(&queue->keyring);
    mem_free(queue);
    on_closed(closed_ctx);
}

static void close_connections(void *ctx)
{
    struct queue *queue = ctx;
    if (queue->redis_closing) {
        return;
    }
    queue_flush_now(queue);
    flush(queue); /* finishes what could not be written */
    queue->redis_closing = true;
    nodes_close(queue->nodes, on_connections_closed, queue);
}

void queue_close_step(struct queue *queue)
{
    if (queue->claims_running == 0) {
        close_connections(queue);
    }
}

static void release_unstarted(struct queue *queue)
{
    struct queue_lease *lease = queue->leases.prev;
    while (lease != &queue->leases) {
        struct queue_lease *before = lease->prev;
        if (!lease->started) {
            queue_release(queue, lease);
        }
        lease = before;
    }
}

void queue_close(struct queue *queue, void (*on_closed)(void *ctx), void *ctx)
{
    ASSERT(!queue->closing);
    FAILPOINT("queue-close");
    release_unstarted(queue);
    queue->closing = true;
    queue->on_closed = on_closed;
    queue->closed_ctx = ctx;
    loop_timer_start(queue->loop, &queue->close_timer, CLOSE_CLAIMS_MS, close_connections, queue);
    queue_close_step(queue);
}

/* Gates. */

void queue_gate_close(struct queue *queue, const char *gate, int64_t until_ms, const char *reason)
{
    FAILPOINT("gate-before-write");
    for (uint32_t shard = 0; !queue->closing && shard < queue->conf->shards; shard++) {
        struct redis_args head;
        queue_call_begin(shard, &head);
        redis_args_text(&head, gate);
        redis_args_number(&head, until_ms);
        redis_args_text(&head, reason != NULL ? reason : "");
        if (nodes_eval(queue->nodes, shard, SCRIPT_GATE, 1, &head, NULL, NULL, NULL) != 0) {
            continue; /* away: the service's next answer closes the gate there again */
        }
    }
}
