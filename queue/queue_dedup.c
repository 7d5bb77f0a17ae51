#include "queue/dedup.h"
#include "queue/queue_internal.h"

#include <stdio.h>

struct dedup_call {
    dedup_cb cb;
    void *ctx;
};

static void on_begun(void *ctx, int status, const struct redis_value *value)
{
    struct dedup_call *call = ctx;
    struct dedup_found found = {0};
    int64_t state = redis_integer(redis_item(value, 0));
    bool readable = value->type == REDIS_ARRAY && state <= DEDUP_BUSY;
    if (status == ERR_PROTO || (status == 0 && !readable)) {
        status = ERR_UNAVAILABLE;
    }
    if (status == 0) {
        int64_t count = redis_integer(redis_item(value, 1));
        found.state = (enum dedup_state)state;
        found.suppressed = count > 0 ? (uint64_t)count : 0;
        found.id = redis_item(value, 2)->text;
    }
    call->cb(call->ctx, status, &found);
    mem_free(call);
}

static bool window_usable(const struct dedup_window *window)
{
    return window->key.len > 0 && window->key.len <= DEDUP_KEY_MAX && window->limit > 0 &&
           window->window_ms > 0 && window->scope.len <= QUEUE_NAMES_MAX && window->owner.len > 0 &&
           window->owner.len < QUEUE_OWNER_MAX;
}

/* Shard tag, window, what, owner, limit, length. */
static uint32_t call_begin(const struct queue *queue, const struct dedup_window *window,
                           const char *what, struct redis_args *out)
{
    char name[QUEUE_TAG_MAX + 4 + QUEUE_NAMES_MAX + 2 + DEDUP_KEY_MAX + 1];
    char tag[QUEUE_TAG_MAX];
    uint32_t shard = queue_shard_of_key(queue, window->scope, window->key);
    queue_tag(shard, tag);
    int len = snprintf(name, sizeof(name), "%s:v:%.*s:%.*s", tag, SPAN_FMT(window->scope),
                       SPAN_FMT(window->key));
    queue_call_begin(shard, out);
    redis_args_add(out, span_make(name, (size_t)len));
    redis_args_text(out, what);
    redis_args_add(out, window->owner);
    redis_args_number(out, window->limit);
    redis_args_number(out, window->window_ms);
    return shard;
}

int dedup_begin(struct queue *queue, const struct dedup_window *window, int64_t hold_ms,
                dedup_cb cb, void *ctx)
{
    if (queue->closing || !window_usable(window)) {
        return queue->closing ? ERR_CLOSED : ERR_INVAL;
    }
    struct redis_args args;
    uint32_t shard = call_begin(queue, window, "begin", &args);
    redis_args_number(&args, hold_ms);
    struct dedup_call *call = mem_zero(sizeof(*call));
    call->cb = cb;
    call->ctx = ctx;
    int status = nodes_eval(queue->nodes, shard, SCRIPT_DEDUP, 2, &args, NULL, on_begun, call);
    if (status != 0) {
        mem_free(call);
        return status == ERR_CLOSED ? ERR_CLOSED : ERR_UNAVAILABLE;
    }
    return 0;
}

void dedup_commit(struct queue *queue, const struct dedup_window *window, struct span id,
                  uint64_t told)
{
    if (queue->closing || !window_usable(window)) {
        return;
    }
    struct redis_args args;
    uint32_t shard = call_begin(queue, window, "commit", &args);
    redis_args_add(&args, id);
    redis_args_number(&args, (int64_t)told);
    if (nodes_eval(queue->nodes, shard, SCRIPT_DEDUP, 2, &args, NULL, NULL, NULL) != 0) {
        return; /* no window opens: the next one is let through too */
    }
}

void dedup_give_back(struct queue *queue, const struct dedup_window *window)
{
    if (queue->closing || !window_usable(window)) {
        return;
    }
    struct redis_args args;
    uint32_t shard = call_begin(queue, window, "give_back", &args);
    if (nodes_eval(queue->nodes, shard, SCRIPT_DEDUP, 2, &args, NULL, NULL, NULL) != 0) {
        return; /* the reservation ends by itself */
    }
}
