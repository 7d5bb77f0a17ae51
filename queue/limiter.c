/* Quotas in Redis; limiter.h says what is promised, limit_take.lua does it.
 *
 * All windows of a scope stand in one shard, chosen by the scope's hash, so that one script takes
 * from all of them or from none. */
#include "queue/limiter.h"

#include "gateway/base/codec.h"
#include "queue/queue_internal.h"

#include <stdio.h>

enum {
    SCOPE_MAX = 256,
};

struct take {
    limiter_cb cb;
    limiter_share_cb share_cb; /* this one or the other */
    void *ctx;
};

static void on_taken(void *ctx, int status, const struct redis_value *value)
{
    struct take *take = ctx;
    int64_t granted = redis_integer(redis_item(value, 0));
    int64_t wait_ms = redis_integer(redis_item(value, 1));
    bool share_only = redis_integer(redis_item(value, 2)) == 1;
    if (status == ERR_PROTO) {
        status = ERR_UNAVAILABLE;
    }
    if (status != 0) {
        granted = 0;
        wait_ms = 0;
        share_only = false;
    }
    uint64_t units = granted > 0 ? (uint64_t)granted : 0;
    if (take->share_cb != NULL) {
        take->share_cb(take->ctx, status, units, wait_ms, share_only);
    } else {
        take->cb(take->ctx, status, units, wait_ms);
    }
    mem_free(take);
}

static int check(const char *scope, const struct limiter_window *windows, size_t window_count,
                 uint64_t units)
{
    if (window_count == 0 || window_count > LIMITER_WINDOWS_MAX || units == 0 ||
        units > INT32_MAX || strlen(scope) > SCOPE_MAX) {
        return ERR_INVAL;
    }
    for (size_t i = 0; i < window_count; i++) {
        if (windows[i].units == 0 || windows[i].units > INT64_MAX / 2 ||
            windows[i].window_ms <= 0) {
            return ERR_INVAL;
        }
    }
    return 0;
}

static int send_take(struct queue *queue, const char *scope, const struct limiter_window *windows,
                     size_t window_count, const struct limiter_share *share, int64_t units,
                     redis_cb cb, void *ctx)
{
    char tag[QUEUE_TAG_MAX];
    char key[QUEUE_TAG_MAX + SCOPE_MAX + 32];
    uint32_t shard = (uint32_t)(codec_fnv1a(span_of(scope)) % queue->conf->shards);
    queue_tag(shard, tag);
    struct redis_args args;
    redis_args_init(&args);
    for (size_t i = 0; i < window_count; i++) {
        (void)snprintf(key, sizeof(key), "%s:w:%s:%lld", tag, scope,
                       (long long)windows[i].window_ms);
        redis_args_text(&args, key);
    }
    redis_args_number(&args, units);
    redis_args_text(&args, share != NULL ? share->name : "");
    redis_args_number(&args, share != NULL ? share->percent : 100);
    for (size_t i = 0; i < window_count; i++) {
        redis_args_number(&args, (int64_t)windows[i].units);
        redis_args_number(&args, windows[i].window_ms);
    }
    return nodes_eval(queue->nodes, shard, SCRIPT_LIMIT_TAKE, window_count, &args, NULL, cb, ctx);
}

static int start_take(struct queue *queue, const char *scope, const struct limiter_window *windows,
                      size_t window_count, const struct limiter_share *share, uint64_t wanted,
                      const struct take *callback)
{
    int status = check(scope, windows, window_count, wanted);
    if (status == 0 && queue->closing) {
        status = ERR_CLOSED;
    }
    if (status != 0) {
        return status;
    }
    struct take *take = mem_zero(sizeof(*take));
    *take = *callback;
    status = send_take(queue, scope, windows, window_count, share, (int64_t)wanted, on_taken, take);
    if (status != 0) {
        mem_free(take);
        return status == ERR_CLOSED ? ERR_CLOSED : ERR_UNAVAILABLE;
    }
    return 0;
}

int limiter_take(struct queue *queue, const char *scope, const struct limiter_window *windows,
                 size_t window_count, uint64_t wanted, limiter_cb cb, void *ctx)
{
    struct take take = {.cb = cb, .ctx = ctx};
    return start_take(queue, scope, windows, window_count, NULL, wanted, &take);
}

int limiter_take_share(struct queue *queue, const char *scope, const struct limiter_window *windows,
                       size_t window_count, const struct limiter_share *share, uint64_t wanted,
                       limiter_share_cb cb, void *ctx)
{
    struct take take = {.share_cb = cb, .ctx = ctx};
    return start_take(queue, scope, windows, window_count, share, wanted, &take);
}

void limiter_return_share(struct queue *queue, const char *scope,
                          const struct limiter_window *windows, size_t window_count,
                          const struct limiter_share *share, uint64_t unused)
{
    if (check(scope, windows, window_count, unused) == 0 && !queue->closing) {
        /* What cannot be given back is only lost until its window has passed. */
        (void)send_take(queue, scope, windows, window_count, share, -(int64_t)unused, NULL, NULL);
    }
}

void limiter_return(struct queue *queue, const char *scope, const struct limiter_window *windows,
                    size_t window_count, uint64_t unused)
{
    limiter_return_share(queue, scope, windows, window_count, NULL, unused);
}
