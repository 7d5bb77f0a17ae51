/* Idempotency keys while their submissions are being taken: reserve, and give back or finish. The
 * ordinary end is enqueue.lua's, which makes the reservation the final record in the step that
 * stores the message. A reservation whose owner dies ends by itself. */
#include "queue/queue_internal.h"

#include "gateway/base/failpoint.h"

#include <stdio.h>

struct key_begin {
    struct queue *queue;
    uint32_t shard;
    queue_key_cb cb;
    void *ctx;
    /* A replay that waits for its durability: */
    char id[MESSAGE_ID_MAX + 1];
    char *answer;
    size_t answer_len;
};

static void begin_end(struct key_begin *begin, int status, const struct queue_key_found *found)
{
    begin->cb(begin->ctx, status, found);
    mem_free(begin->answer);
    mem_free(begin);
}

static void on_replay_durable(void *ctx, int status, const struct redis_value *value)
{
    struct key_begin *begin = ctx;
    bool durable = status == 0 && queue_wait_reached(begin->queue, value);
    struct queue_key_found found = {
        .state = QUEUE_KEY_REPLAY,
        .id = span_of(begin->id),
        .answer = span_make(begin->answer, begin->answer_len),
    };
    begin_end(begin, durable ? 0 : ERR_TIMEOUT, &found);
}

/* The first submission's yes may not have been heard because its replicas did not answer in time;
 * then this one must not hear it either before they do. */
static void replay_waits(struct key_begin *begin, const struct queue_key_found *found)
{
    (void)snprintf(begin->id, sizeof(begin->id), "%.*s", SPAN_FMT(found->id));
    begin->answer = mem_dup(found->answer);
    begin->answer_len = found->answer.len;
    struct queue *queue = begin->queue;
    if (queue_wait_send(queue, nodes_answering(queue->nodes), on_replay_durable, begin) != 0) {
        begin_end(begin, ERR_UNAVAILABLE, found);
    }
}

static void on_begun(void *ctx, int status, const struct redis_value *value)
{
    static const enum queue_key_state states[] = {QUEUE_KEY_FRESH, QUEUE_KEY_REPLAY,
                                                  QUEUE_KEY_CONFLICT, QUEUE_KEY_RUNNING};
    struct key_begin *begin = ctx;
    struct queue_key_found found = {0};
    FAILPOINT("key-begun");
    int64_t state = redis_integer(redis_item(value, 0));
    if (status == ERR_PROTO || (status == 0 && (value->type != REDIS_ARRAY || state > 3))) {
        status = ERR_UNAVAILABLE;
    }
    if (status == 0) {
        found.state = states[state];
        found.id = redis_item(value, 1)->text;
        found.answer = redis_item(value, 2)->text;
        found.held_ms = found.state == QUEUE_KEY_RUNNING ? redis_integer(redis_item(value, 1)) : 0;
        const struct nodes *nodes = begin->queue->nodes;
        bool waits = nodes_place_wait(nodes, nodes_answering(nodes)) != REDIS_WAIT_NONE;
        if (found.state == QUEUE_KEY_REPLAY && waits) {
            replay_waits(begin, &found);
            return;
        }
    }
    begin_end(begin, status, &found);
}

static bool key_usable(const struct queue_idempotency *key)
{
    return key->key.len > 0 && key->key.len <= QUEUE_KEY_MAX && key->scope.len <= QUEUE_NAMES_MAX &&
           key->owner.len > 0 && key->owner.len < QUEUE_OWNER_MAX;
}

/* Shard tag, key, what, owner. */
static uint32_t call_begin(const struct queue *queue, const struct queue_idempotency *key,
                           const char *what, struct redis_args *out)
{
    uint32_t shard = queue_shard_of_key(queue, key->scope, key->key);
    queue_call_begin(shard, out);
    queue_key_add(shard, out, key);
    redis_args_text(out, what);
    redis_args_add(out, key->owner);
    return shard;
}

void queue_key_owner(struct queue *queue, char out[QUEUE_OWNER_MAX])
{
    (void)snprintf(out, QUEUE_OWNER_MAX, "%s%llx", queue->instance,
                   (unsigned long long)queue->owner_count++);
}

int queue_key_begin(struct queue *queue, const struct queue_idempotency *key, int64_t hold_ms,
                    queue_key_cb cb, void *ctx)
{
    if (queue->closing || !key_usable(key)) {
        return queue->closing ? ERR_CLOSED : ERR_INVAL;
    }
    struct redis_args args;
    uint32_t shard = call_begin(queue, key, "begin", &args);
    /* Parked, it may run where one is needed. */
    uint64_t place = nodes_place(queue->nodes, shard);
    bool waits = place == 0 || nodes_place_wait(queue->nodes, place) != REDIS_WAIT_NONE;
    redis_args_add(&args, key->fingerprint);
    redis_args_number(&args, hold_ms);
    redis_args_text(&args, waits ? "1" : "");
    struct key_begin *begin = mem_zero(sizeof(*begin));
    begin->queue = queue;
    begin->shard = shard;
    begin->cb = cb;
    begin->ctx = ctx;
    int status = nodes_eval(queue->nodes, shard, SCRIPT_KEY, 2, &args, NULL, on_begun, begin);
    if (status != 0) {
        mem_free(begin);
        return status == ERR_CLOSED ? ERR_CLOSED : ERR_UNAVAILABLE;
    }
    return 0;
}

void queue_key_finish(struct queue *queue, const struct queue_idempotency *key, struct span id)
{
    if (queue->closing || !key_usable(key)) {
        return;
    }
    struct redis_args args;
    uint32_t shard = call_begin(queue, key, "finish", &args);
    redis_args_add(&args, key->fingerprint);
    redis_args_number(&args, QUEUE_KEY_TTL_MS);
    redis_args_add(&args, id);
    redis_args_add(&args, key->answer);
    if (nodes_eval(queue->nodes, shard, SCRIPT_KEY, 2, &args, NULL, NULL, NULL) != 0) {
        return; /* whoever comes again is a repeat again */
    }
}

void queue_key_give_back(struct queue *queue, const struct queue_idempotency *key)
{
    if (queue->closing || !key_usable(key)) {
        return;
    }
    struct redis_args args;
    uint32_t shard = call_begin(queue, key, "give_back", &args);
    if (nodes_eval(queue->nodes, shard, SCRIPT_KEY, 2, &args, NULL, NULL, NULL) != 0) {
        return; /* it frees itself a little later */
    }
}
