/* Connection and pipeline; redis.h says what is promised.
 *
 * Invariant: requests stand in the list in the order in which their bytes were given to the stream,
 * so the next complete reply always belongs to `first`. Nothing is written to the stream without a
 * request in the list, except a subscription, whose connection never has requests after it. */
#include "queue/redis.h"

#include "gateway/base/clock.h"
#include "gateway/base/codec.h"
#include "gateway/base/failpoint.h"
#include "gateway/base/stream.h"
#include "queue/redis_internal.h"

#include <hiredis/read.h>
#include <stdarg.h>
#include <stdio.h>

enum {
    BACKOFF_FIRST_MS = 50,
    BACKOFF_MAX_MS = 2000,
    CONNECT_TIMEOUT_MS = 5000,
    DEADLINE_MS = 10000,
    WATCH_TICK_MS = 250,
    WATCH_LATE_MS = 500,
    STALL_MS = 1000,
    STALL_TELL_MS = 1500,
    STALL_OVER_MS = 500,
    PING_AFTER_MS = 500,
    REPLICAS_EVERY_MS = 1000,
    WARN_AGAIN_MS = 60000,
    CLOSE_WAIT_MS = 5000,
};
#define WAITING_MAX_BYTES ((size_t)192 << 20)
#define ARGS_MAX_BYTES ((size_t)160 << 20)
#define REPLY_MAX_BYTES ((size_t)256 << 20)
/* From here on the output takes the memory of a plain command instead of a copy. */
#define GIVE_FROM_BYTES ((size_t)32 << 10)

/* Arguments. */

void redis_args_init(struct redis_args *args)
{
    *args = (struct redis_args){0};
    buf_init(&args->bytes, ARGS_MAX_BYTES);
}

void redis_args_release(struct redis_args *args)
{
    buf_release(&args->bytes);
    args->count = 0;
}

/* "$len CR LF bytes CR LF", RESP's bulk string, written by hand: this runs several times for each
 * message. */
void redis_args_join(struct redis_args *args, struct span first, struct span second)
{
    char head[24];
    size_t at = sizeof(head);
    head[--at] = '\n';
    head[--at] = '\r';
    size_t value_len = first.len + second.len;
    size_t len = value_len;
    do {
        head[--at] = (char)('0' + len % 10);
        len /= 10;
    } while (len != 0);
    head[--at] = '$';
    size_t head_len = sizeof(head) - at;
    char *room = NULL;
    if (args->status == 0) {
        args->status = buf_reserve(&args->bytes, head_len + value_len + 2, &room);
    }
    if (args->status != 0) {
        return;
    }
    memcpy(room, head + at, head_len);
    if (first.len > 0) {
        memcpy(room + head_len, first.data, first.len);
    }
    if (second.len > 0) {
        memcpy(room + head_len + first.len, second.data, second.len);
    }
    memcpy(room + head_len + value_len, "\r\n", 2);
    buf_commit(&args->bytes, head_len + value_len + 2);
    args->count++;
}

void redis_args_add(struct redis_args *args, struct span value)
{
    redis_args_join(args, value, (struct span){0});
}

void redis_args_text(struct redis_args *args, const char *value)
{
    redis_args_add(args, span_of(value));
}

void redis_args_number(struct redis_args *args, int64_t value)
{
    char text[CODEC_DECIMAL_MAX];
    redis_args_add(args, codec_decimal(value, text));
}

/* Replies: hiredis parses, these build our values in the reply's arena. */

static const struct redis_value nil_value = {.type = REDIS_NIL};

const struct redis_value *redis_item(const struct redis_value *value, size_t index)
{
    if (value == NULL || value->type != REDIS_ARRAY || index >= value->count) {
        return &nil_value;
    }
    return &value->items[index];
}

int64_t redis_integer(const struct redis_value *value)
{
    uint64_t number = 0;
    if (value->type == REDIS_INTEGER) {
        return value->integer;
    }
    if (value->type == REDIS_TEXT && span_to_u64(value->text, INT64_MAX, &number) == 0) {
        return (int64_t)number;
    }
    return 0;
}

static struct redis_value *value_place(const redisReadTask *task)
{
    struct redis *redis = task->privdata;
    if (task->parent != NULL) {
        struct redis_value *parent = task->parent->obj;
        ASSERT(task->idx >= 0 && (size_t)task->idx < parent->count);
        return &parent->items[task->idx];
    }
    return arena_alloc(&redis->reply_arena, sizeof(struct redis_value));
}

static void *make_string(const redisReadTask *task, char *text, size_t len)
{
    struct redis *redis = task->privdata;
    struct redis_value *value = value_place(task);
    struct span copy = arena_dup(&redis->reply_arena, span_make(text, len));
    if (value == NULL || copy.data == NULL) {
        return NULL;
    }
    value->type = task->type == REDIS_REPLY_ERROR ? REDIS_ERROR : REDIS_TEXT;
    value->text = copy;
    return value;
}

static void *make_array(const redisReadTask *task, int count)
{
    struct redis *redis = task->privdata;
    struct redis_value *value = value_place(task);
    size_t bytes = 0;
    if (value == NULL || count < 0 || size_mul((size_t)count, sizeof(*value), &bytes) != 0) {
        return NULL;
    }
    value->type = REDIS_ARRAY;
    value->count = (size_t)count;
    if (count > 0) {
        value->items = arena_alloc(&redis->reply_arena, bytes);
        return value->items != NULL ? value : NULL;
    }
    return value;
}

static void *make_integer(const redisReadTask *task, long long number)
{
    struct redis_value *value = value_place(task);
    if (value != NULL) {
        value->type = REDIS_INTEGER;
        value->integer = number;
    }
    return value;
}

static void *make_nil(const redisReadTask *task)
{
    struct redis_value *value = value_place(task);
    if (value != NULL) {
        value->type = REDIS_NIL;
    }
    return value;
}

/* Values live in the arena. */
static void free_nothing(void *value)
{
    (void)value;
}

static redisReplyObjectFunctions value_functions = {
    .createString = make_string,
    .createArray = make_array,
    .createInteger = make_integer,
    .createNil = make_nil,
    .freeObject = free_nothing,
};

/* Requests. */

size_t redis_request_bytes(const struct redis_request *request)
{
    return buf_len(&request->head.bytes) + buf_len(&request->body.bytes) +
           buf_len(&request->ahead.bytes);
}

static void request_release(struct redis_request *request)
{
    redis_args_release(&request->head);
    redis_args_release(&request->body);
    redis_args_release(&request->ahead);
    mem_free(request->refusal);
    mem_free(request);
}

void redis_request_fail(struct redis_request *request, int status)
{
    if (request->cb != NULL) {
        request->cb(request->ctx, status, &nil_value);
    }
    request_release(request);
}

static void request_free(struct redis *redis, struct redis_request *request)
{
    redis->waiting_bytes -= redis_request_bytes(request);
    request_release(request);
}

static void request_append(struct redis *redis, struct redis_request *request)
{
    request->next = NULL;
    if (redis->last != NULL) {
        redis->last->next = request;
    } else {
        redis->first = request;
    }
    redis->last = request;
    redis->request_count++;
}

static struct redis_request *request_pop(struct redis *redis)
{
    struct redis_request *request = redis->first;
    redis->first = request->next;
    if (redis->first == NULL) {
        redis->last = NULL;
    }
    redis->request_count--;
    return request;
}

/* Answers everything that waits. Callbacks may close the connection but cannot add requests: it is
 * not up. */
static void fail_requests(struct redis *redis, int status)
{
    if (redis->conf->answering != NULL) {
        *redis->conf->answering = redis->line;
    }
    while (redis->first != NULL) {
        struct redis_request *request = request_pop(redis);
        if (request->cb != NULL) {
            request->cb(request->ctx, status, &nil_value);
        }
        request_free(redis, request);
    }
}

static bool listens(const struct redis *redis)
{
    return redis->conf->kind == REDIS_LISTENER || redis->conf->kind == REDIS_SENTINEL;
}

/* Watch: deadlines, stalls, pings, replicas. */

void redis_warn(struct redis *redis, const char *text)
{
    int64_t now_ms = loop_now_ms(redis->loop);
    struct redis_warning *row = NULL;
    for (size_t i = 0; i < REDIS_WARNINGS_MAX && row == NULL; i++) {
        if (strcmp(redis->warnings[i].text, text) == 0) {
            row = &redis->warnings[i];
        }
    }
    if (row != NULL && now_ms - row->said_ms < WARN_AGAIN_MS) {
        row->more++;
        return;
    }
    char line[320];
    if (row != NULL && row->more > 0) {
        (void)snprintf(line, sizeof(line), "%s (%llu more in the last %lld s)", text,
                       (unsigned long long)row->more, (long long)((now_ms - row->said_ms) / 1000));
    } else {
        (void)snprintf(line, sizeof(line), "%s", text);
    }
    for (size_t i = 0; i < REDIS_WARNINGS_MAX && row == NULL; i++) {
        struct redis_warning *other = &redis->warnings[i];
        if (other->text[0] == '\0' || now_ms - other->said_ms >= WARN_AGAIN_MS) {
            row = other;
        }
    }
    if (row != NULL) {
        (void)snprintf(row->text, sizeof(row->text), "%s", text);
        row->more = 0;
        row->said_ms = now_ms;
    }
    if (redis->ops->on_warning != NULL) {
        redis->ops->on_warning(redis->ctx, line);
    }
}

void redis_replicas_seen(struct redis *redis, uint32_t count)
{
    if (redis->wait != REDIS_WAIT_REPLICA) {
        return;
    }
    uint32_t wanted = redis->conf->server->replicas > 0 ? redis->conf->server->replicas : 1;
    bool was_short = redis->short_replicas;
    redis->short_replicas = count < wanted;
    redis->replicas_ms = loop_now_ms(redis->loop);
    if (redis->short_replicas && !was_short) {
        char text[200];
        (void)snprintf(text, sizeof(text),
                       "Redis has %u of the %u replicas that queue.durability: replicated needs "
                       "(queue.replicas); new messages are put off.",
                       count, wanted);
        redis_warn(redis, text);
    }
}

static void on_replicas(void *ctx, int status, const struct redis_value *value)
{
    if (status == 0) {
        redis_replicas_seen(ctx, redis_facts_replicas(value->text));
    }
}

static void submit_words(struct redis *redis, const char *first, const char *second, redis_cb cb)
{
    struct redis_args args;
    redis_args_init(&args);
    redis_args_text(&args, first);
    if (second != NULL) {
        redis_args_text(&args, second);
    }
    if (redis_submit(redis, &args, cb, redis) != 0) {
        redis_drop(redis, "The output to Redis ran full.");
    }
}

static int64_t waited_ms(const struct redis *redis)
{
    return redis->first != NULL ? loop_now_ms(redis->loop) - redis->first->sent_ms : 0;
}

/* A stall begins after a second and ends when what waits is younger than half of one, so a disk
 * that takes a second for an fsync now and then puts new messages off for the rest of that moment
 * only; it is told when it has lasted a second and a half. Nothing else is given up: what waits
 * goes on waiting for its answer. */
static void watch_stall(struct redis *redis)
{
    int64_t waited = waited_ms(redis);
    if (redis->stalled_ms == 0 && waited > STALL_MS) {
        redis->stalled_ms = redis->first->sent_ms;
    }
    if (redis->stalled_ms > 0 && waited > STALL_TELL_MS && !redis->stall_told) {
        redis->stall_told = true;
        redis_warn(redis,
                   "Redis has not answered for more than a second; new messages are put off.");
    }
}

static void stall_over(struct redis *redis)
{
    if (redis->stalled_ms > 0 && waited_ms(redis) < STALL_OVER_MS) {
        redis->stalled_ms = 0;
        if (redis->stall_told) {
            redis->stall_told = false;
            redis_warn(redis, "Redis answers again.");
        }
    }
}

static void watch(void *ctx)
{
    struct redis *redis = ctx;
    int64_t now_ms = loop_now_ms(redis->loop);
    /* When it was us who stood still, the answers are there and only have to be read. */
    bool is_late = now_ms - redis->watched_ms > WATCH_TICK_MS + WATCH_LATE_MS;
    redis->watched_ms = now_ms;
    loop_timer_start(redis->loop, &redis->watch_timer, WATCH_TICK_MS, watch, redis);
    if (redis->dropping || is_late) {
        return;
    }
    if (waited_ms(redis) > DEADLINE_MS) {
        redis_drop(redis, "Redis did not answer a command for %d seconds.", DEADLINE_MS / 1000);
        return;
    }
    if (redis->phase != REDIS_UP || listens(redis)) {
        return;
    }
    watch_stall(redis);
    if (redis->first == NULL && redis->closing) {
        return;
    }
    if (redis->wait == REDIS_WAIT_REPLICA && now_ms - redis->replicas_ms >= REPLICAS_EVERY_MS) {
        redis->replicas_ms = now_ms;
        submit_words(redis, "INFO", "replication", on_replicas);
    } else if (redis->first == NULL && now_ms - redis->heard_ms >= PING_AFTER_MS) {
        submit_words(redis, "PING", NULL, NULL);
    }
}

/* Whether its arguments stay until the answer. */
static bool request_kept(const struct redis *redis, const struct redis_request *request)
{
    return request->script >= 0 ||
           (redis->ops->on_redirect != NULL && request->shard != REDIS_NO_SHARD);
}

/* What stands before the script of a transaction. */
static int write_ahead(struct redis *redis, struct redis_request *request)
{
    char text[64];
    mem_free(request->refusal);
    request->refusal = NULL;
    request->answers = 0;
    if (request->ahead.count == 0) {
        return 0;
    }
    int len = snprintf(text, sizeof(text), "*1\r\n$5\r\nMULTI\r\n*%zu\r\n", request->ahead.count);
    int status = stream_write(redis->stream, span_make(text, (size_t)len));
    return status != 0 ? status : stream_write(redis->stream, buf_span(&request->ahead.bytes));
}

static int write_request(struct redis *redis, struct redis_request *request)
{
    char text[160];
    int len = 0;
    if (request->script >= 0) {
        char keys[24];
        int keys_len = snprintf(keys, sizeof(keys), "%zu", request->key_count);
        len = snprintf(text, sizeof(text), "*%zu\r\n$7\r\nEVALSHA\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n",
                       request->head.count + request->body.count + 3, REDIS_SHA_LEN,
                       redis->shas[request->script], keys_len, keys);
    } else {
        len = snprintf(text, sizeof(text), "*%zu\r\n", request->head.count);
    }
    struct stream *stream = redis->stream;
    struct buf *head = &request->head.bytes;
    int status = write_ahead(redis, request);
    status = status != 0 ? status : stream_write(stream, span_make(text, (size_t)len));
    status = FAILPOINT_ERROR("redis-write-fails") ? ERR_LIMIT : status;
    if (status == 0 && !request_kept(redis, request) && buf_len(head) >= GIVE_FROM_BYTES) {
        redis->waiting_bytes -= buf_len(head);
        status = stream_give(stream, head);
        redis->waiting_bytes += buf_len(head); /* nothing, unless it was refused */
    } else if (status == 0) {
        status = stream_write(stream, buf_span(head));
    }
    if (status == 0) {
        status = stream_write(stream, buf_span(&request->body.bytes));
    }
    if (status == 0 && request->ahead.count > 0) {
        status = stream_write(stream, SPAN_LIT("*1\r\n$4\r\nEXEC\r\n"));
    }
    if (status != 0) {
        /* Perhaps half a command is out: the pipeline cannot go on. */
        redis_drop(redis, "The output to Redis ran full.");
    }
    return status;
}

static int send_request(struct redis *redis, struct redis_request *request)
{
    int status = write_request(redis, request);
    if (status != 0) {
        return status;
    }
    if (!request_kept(redis, request)) {
        /* A body must not be held twice until its answer. */
        redis->waiting_bytes -= redis_request_bytes(request);
        redis_args_release(&request->head);
    }
    request->sent_ms = loop_now_ms(redis->loop);
    request_append(redis, request);
    return 0;
}

static int submit_request(struct redis *redis, struct redis_request *request)
{
    redis->waiting_bytes += redis_request_bytes(request);
    int status = request->head.status != 0 ? request->head.status : request->body.status;
    status = status != 0 ? status : request->ahead.status;
    if (status == 0 && redis_waiting_bytes(redis) > WAITING_MAX_BYTES) {
        status = ERR_LIMIT;
    }
    status = status == 0 && FAILPOINT_ERROR("redis-refuses") ? ERR_LIMIT : status;
    if (status == 0 && (redis->stream == NULL || redis->dropping)) {
        status = ERR_UNAVAILABLE;
    }
    if (status == 0 && send_request(redis, request) != 0) {
        status = ERR_UNAVAILABLE;
    }
    if (status != 0) {
        request_free(redis, request);
    }
    return status;
}

struct redis_request *redis_request_new(int script, size_t key_count, struct redis_args *head,
                                        struct redis_args *args, redis_cb cb, void *ctx)
{
    struct redis_request *request = mem_zero(sizeof(*request));
    *request = (struct redis_request){.head = *head,
                                      .cb = cb,
                                      .ctx = ctx,
                                      .script = script,
                                      .key_count = key_count,
                                      .shard = REDIS_NO_SHARD};
    redis_args_init(head);
    redis_args_init(&request->body);
    redis_args_init(&request->ahead);
    if (args != NULL) {
        request->body = *args;
        redis_args_init(args);
    }
    return request;
}

void redis_request_put_ahead(struct redis_request *request, struct redis_args *ahead)
{
    ASSERT(request->script >= 0 && request->ahead.count == 0);
    request->ahead = *ahead;
    redis_args_init(ahead);
}

int redis_request_submit(struct redis *redis, struct redis_request *request)
{
    ASSERT(request->script < 0 || (size_t)request->script < redis->conf->script_count);
    if (redis->phase != REDIS_UP || redis->closing) {
        request_release(request);
        return redis->closing ? ERR_CLOSED : ERR_UNAVAILABLE;
    }
    request->repeated = false;
    return submit_request(redis, request);
}

int redis_submit(struct redis *redis, struct redis_args *args, redis_cb cb, void *ctx)
{
    return submit_request(redis, redis_request_new(-1, 0, args, NULL, cb, ctx));
}

int redis_call(struct redis *redis, struct redis_args *args, redis_cb cb, void *ctx)
{
    return redis_request_submit(redis, redis_request_new(-1, 0, args, NULL, cb, ctx));
}

int redis_eval(struct redis *redis, size_t script, size_t key_count, struct redis_args *head,
               struct redis_args *args, redis_cb cb, void *ctx)
{
    return redis_request_submit(redis,
                                redis_request_new((int)script, key_count, head, args, cb, ctx));
}

/* Error replies. */

/* Says once, with what it means, what the server refuses; redirects are the business of nodes.c. */
static void warn_refusal(struct redis *redis, const struct redis_refusal *refusal, struct span text)
{
    if (redis->phase != REDIS_UP || refusal->advice == NULL) {
        return;
    }
    char line[200];
    (void)snprintf(line, sizeof(line), "Redis refuses: %.*s. %s",
                   (int)(text.len < 60 ? text.len : 60), text.data, refusal->advice);
    redis_warn(redis, line);
}

/* Loads the script again and repeats the request behind it. True when the request was taken. */
static bool repeat_after_load(struct redis *redis, struct redis_request *request)
{
    if (redis_load_script(redis, (size_t)request->script, NULL, NULL) != 0) {
        return false;
    }
    request->repeated = true;
    return send_request(redis, request) == 0;
}

static bool taken_over(struct redis *redis, struct redis_request *request,
                       const struct redis_refusal *refusal, struct span text)
{
    if (redis->ops->on_redirect == NULL || request->shard == REDIS_NO_SHARD || refusal == NULL ||
        !refusal->redirect) {
        return false;
    }
    size_t bytes = redis_request_bytes(request);
    redis->waiting_bytes -= bytes;
    if (redis->ops->on_redirect(redis->ctx, request, text)) {
        return true;
    }
    redis->waiting_bytes += bytes;
    return false;
}

/* The answer to the script of a transaction, out of what EXEC says: its last item; or why the
 * transaction did not run, or the command before the script failed. */
static const struct redis_value *transaction_answer(struct redis *redis,
                                                    const struct redis_request *request,
                                                    const struct redis_value *exec)
{
    if (exec->type == REDIS_ARRAY) {
        const struct redis_value *first = redis_item(exec, 0);
        return first->type == REDIS_ERROR ? first : redis_item(exec, exec->count - 1);
    }
    struct redis_value *refused = request->refusal != NULL
                                      ? arena_alloc(&redis->reply_arena, sizeof(*refused))
                                      : NULL;
    if (refused == NULL) {
        return exec;
    }
    *refused = (struct redis_value){.type = REDIS_ERROR, .text = span_of(request->refusal)};
    return refused;
}

/* Whether the first request's answer is complete; `*value` is then the one it is about. */
static bool is_answered(struct redis *redis, const struct redis_value **value)
{
    enum { ANSWERS = 4 };
    struct redis_request *request = redis->first;
    if (request->ahead.count == 0) {
        return true;
    }
    request->answers++;
    if (request->answers < ANSWERS) {
        if ((*value)->type == REDIS_ERROR && request->refusal == NULL) {
            request->refusal = mem_dup((*value)->text);
        }
        return false;
    }
    *value = transaction_answer(redis, request, *value);
    return true;
}

static void take_reply(struct redis *redis, const struct redis_value *value)
{
    if (!is_answered(redis, &value)) {
        redis->heard_ms = loop_now_ms(redis->loop);
        return;
    }
    struct redis_request *request = request_pop(redis);
    const struct redis_refusal *refusal = NULL;
    int status = 0;
    redis->heard = true;
    redis->heard_ms = loop_now_ms(redis->loop);
    stall_over(redis);
    if (redis->conf->answering != NULL) {
        *redis->conf->answering = redis->line;
    }
    if (value->type == REDIS_ERROR) {
        refusal = redis_refusal_find(value->text);
        status = refusal != NULL ? ERR_UNAVAILABLE : ERR_PROTO;
        bool unknown_script = span_starts(value->text, SPAN_LIT("NOSCRIPT"));
        if (unknown_script && request->script >= 0 && !request->repeated &&
            repeat_after_load(redis, request)) {
            return;
        }
        if (taken_over(redis, request, refusal, value->text)) {
            return;
        }
        if (refusal != NULL) {
            warn_refusal(redis, refusal, value->text);
        }
    }
    if (request->cb != NULL) {
        request->cb(request->ctx, status, value);
    }
    /* A server that turned into a replica or is loading will not serve us: connect anew, which
     * checks its role. */
    if (refusal != NULL && refusal->reconnect && redis->phase == REDIS_UP) {
        redis_drop(redis, "Redis answers: %.*s.", SPAN_FMT(value->text));
    }
    request_free(redis, request);
}

/* RESP2 pushes of a subscription: ["message", channel, payload]. */
static void take_push(struct redis *redis, const struct redis_value *value)
{
    if (span_eq(redis_item(value, 0)->text, SPAN_LIT("message"))) {
        redis->ops->on_message(redis->ctx, redis_item(value, 2)->text);
    }
}

static size_t on_data(void *ctx, struct span bytes)
{
    struct redis *redis = ctx;
    if (redisReaderFeed(redis->reader, bytes.data, bytes.len) != REDIS_OK) {
        redis_drop(redis, "Memory for an answer of Redis could not be had.");
        return bytes.len;
    }
    while (!redis->dropping) {
        void *reply = NULL;
        if (redisReaderGetReply(redis->reader, &reply) != REDIS_OK) {
            redis_drop(redis, "Redis sent something that is not its protocol (%s).",
                       redis->reader->errstr);
            break;
        }
        if (reply == NULL) {
            break;
        }
        if (redis->first != NULL && FAILPOINT_ERROR("redis-answer-lost")) {
            redis_drop(redis, "A fail point lost an answer.");
        } else if (redis->first != NULL) {
            take_reply(redis, reply);
        } else if (listens(redis) && redis->phase == REDIS_UP) {
            take_push(redis, reply);
        } else {
            redis_drop(redis, "Redis sent an answer nobody asked for.");
        }
        arena_release(&redis->reply_arena);
        arena_init(&redis->reply_arena, REPLY_MAX_BYTES);
    }
    if (redis->closing && redis->first == NULL && !redis->dropping) {
        redis->dropping = true;
        stream_close(redis->stream);
    }
    return bytes.len;
}

/* Connection. */

static void connect_now(void *ctx);

/* Whether the server has not come up yet, as is expected of it. */
static bool is_starting(const struct redis *redis)
{
    return !redis->was_up &&
           loop_now_ms(redis->loop) - redis->opened_ms < redis->conf->server->start_ms;
}

static void tell(struct redis *redis, bool up, const char *why)
{
    redis->was_up = redis->was_up || up;
    if (!up && is_starting(redis)) {
        return;
    }
    if (!up && strcmp(redis->told, why) == 0) {
        return;
    }
    (void)snprintf(redis->told, sizeof(redis->told), "%s", up ? "" : why);
    redis->ops->on_state(redis->ctx, up, why);
}

void redis_drop(struct redis *redis, const char *format, ...)
{
    if (redis->dropping || redis->stream == NULL) {
        return;
    }
    va_list args;
    va_start(args, format);
    (void)vsnprintf(redis->why.text, sizeof(redis->why.text), format, args);
    va_end(args);
    redis->dropping = true;
    stream_abort(redis->stream);
}

static void finish_close(void *ctx)
{
    struct redis *redis = ctx;
    loop_timer_stop(&redis->retry_timer);
    loop_timer_stop(&redis->watch_timer);
    void (*on_closed)(void *) = redis->on_closed;
    void *closed_ctx = redis->closed_ctx;
    arena_release(&redis->reply_arena);
    mem_free(redis);
    on_closed(closed_ctx);
}

static void on_open(void *ctx)
{
    struct redis *redis = ctx;
    redis->phase = REDIS_SETUP;
    redis->line = redis->conf->lines != NULL ? ++*redis->conf->lines : 0;
    redis->stalled_ms = 0;
    redis->stall_told = false;
    redis->short_replicas = false;
    redis->watched_ms = loop_now_ms(redis->loop);
    loop_timer_start(redis->loop, &redis->watch_timer, WATCH_TICK_MS, watch, redis);
    redis_setup_start(redis);
}

void redis_ready(struct redis *redis)
{
    redis->phase = REDIS_UP;
    redis->backoff_ms = BACKOFF_FIRST_MS;
    redis->heard_ms = loop_now_ms(redis->loop);
    tell(redis, true, "");
}

static void schedule_retry(struct redis *redis)
{
    loop_timer_start(redis->loop, &redis->retry_timer, redis->backoff_ms, connect_now, redis);
    redis->backoff_ms = redis->backoff_ms * 2 < BACKOFF_MAX_MS ? redis->backoff_ms * 2
                                                               : BACKOFF_MAX_MS;
}

static void on_close(void *ctx, int status, const char *why)
{
    struct redis *redis = ctx;
    (void)status;
    char sentence[500];
    (void)snprintf(sentence, sizeof(sentence), "%s",
                   redis->why.text[0] != '\0' ? redis->why.text
                   : why != NULL              ? why
                                              : "The connection to Redis ended.");
    redis->why.text[0] = '\0';
    redis->stream = NULL;
    redis->dropping = false;
    redis->phase = REDIS_AWAY;
    loop_timer_stop(&redis->watch_timer);
    redisReaderFree(redis->reader);
    redis->reader = NULL;
    arena_release(&redis->reply_arena);
    arena_init(&redis->reply_arena, REPLY_MAX_BYTES);
    fail_requests(redis, redis->closing ? ERR_CLOSED : ERR_TIMEOUT);
    redis->line = 0;
    if (redis->closing) {
        finish_close(redis);
        return;
    }
    if (redis->ops->on_away != NULL) {
        redis->ops->on_away(redis->ctx);
    }
    tell(redis, false, sentence);
    if (!redis->closing) {
        schedule_retry(redis);
    }
}

static const struct stream_ops redis_stream_ops = {
    .on_open = on_open,
    .on_data = on_data,
    .on_close = on_close,
};

static void connect_now(void *ctx)
{
    struct redis *redis = ctx;
    const struct queue_conf *server = redis->conf->server;
    bool is_local = redis->conf->host == NULL && server->socket_path != NULL;
    struct stream_target target = {
        .host = is_local                    ? server->socket_path
                : redis->conf->host != NULL ? redis->conf->host
                                            : server->host,
        .port = is_local                    ? 0
                : redis->conf->host != NULL ? redis->conf->port
                                            : server->port,
        .tls = is_local ? NULL : server->tls,
        .connect_timeout_ms = redis->conf->connect_timeout_ms > 0 ? redis->conf->connect_timeout_ms
                                                                  : CONNECT_TIMEOUT_MS,
    };
    struct stream_limits limits = {
        .high_water_bytes = (size_t)16 << 20,
        .max_pending_bytes = WAITING_MAX_BYTES + ((size_t)16 << 20),
        .writes_first = true, /* a start must be out before what it announces */
    };
    redis->phase = REDIS_CONNECTING;
    if (stream_connect(redis->loop, &target, &redis_stream_ops, redis, &limits, &redis->stream) !=
        0) {
        redis->stream = NULL;
        redis->phase = REDIS_AWAY;
        if (redis->ops->on_away != NULL) {
            redis->ops->on_away(redis->ctx);
        }
        tell(redis, false, "The address of Redis (queue.redis) cannot be used.");
        if (!redis->closing) {
            schedule_retry(redis);
        }
        return;
    }
    redis->reader = redisReaderCreateWithFunctions(&value_functions);
    ASSERT(redis->reader != NULL);
    redis->reader->privdata = redis;
}

struct redis *redis_open(struct loop *loop, const struct redis_conf *conf,
                         const struct redis_ops *ops, void *ctx)
{
    ASSERT(conf->script_count <= REDIS_SCRIPTS_MAX);
    struct redis *redis = mem_zero(sizeof(*redis));
    redis->loop = loop;
    redis->conf = conf;
    redis->ops = ops;
    redis->ctx = ctx;
    redis->backoff_ms = BACKOFF_FIRST_MS;
    redis->opened_ms = loop_now_ms(loop);
    arena_init(&redis->reply_arena, REPLY_MAX_BYTES);
    loop_timer_start(loop, &redis->retry_timer, 0, connect_now, redis);
    return redis;
}

static void close_overdue(void *ctx)
{
    struct redis *redis = ctx;
    if (!redis->dropping) {
        redis_drop(redis, "Redis did not answer before the end.");
    }
}

void redis_close(struct redis *redis, void (*on_closed)(void *ctx), void *ctx)
{
    ASSERT(!redis->closing);
    redis->closing = true;
    redis->on_closed = on_closed;
    redis->closed_ctx = ctx;
    if (redis->stream == NULL) {
        loop_timer_start(redis->loop, &redis->retry_timer, 0, finish_close, redis);
        return;
    }
    if (redis->phase != REDIS_UP) {
        redis_drop(redis, "Closed while connecting.");
        return;
    }
    loop_timer_start(redis->loop, &redis->retry_timer, CLOSE_WAIT_MS, close_overdue, redis);
    if (redis->first == NULL && !redis->dropping) {
        redis->dropping = true;
        stream_close(redis->stream);
    }
}

bool redis_is_up(const struct redis *redis)
{
    return redis->phase == REDIS_UP && !redis->dropping && !redis->closing;
}

bool redis_is_prompt(const struct redis *redis)
{
    return redis_is_up(redis) && redis->stalled_ms == 0 && !redis->short_replicas;
}

void redis_again(struct redis *redis, const char *why)
{
    if (redis->closing) {
        return;
    }
    redis->backoff_ms = BACKOFF_FIRST_MS;
    if (redis->stream != NULL) {
        redis_drop(redis, "%s", why);
    } else {
        loop_timer_start(redis->loop, &redis->retry_timer, 0, connect_now, redis);
    }
}

bool redis_heard(const struct redis *redis)
{
    return redis->heard;
}

const struct redis_facts *redis_facts(const struct redis *redis)
{
    return &redis->facts;
}

size_t redis_waiting_bytes(const struct redis *redis)
{
    size_t pending = redis->stream != NULL ? stream_pending_bytes(redis->stream) : 0;
    return redis->waiting_bytes + pending;
}

size_t redis_waiting_count(const struct redis *redis)
{
    return redis->request_count;
}

enum redis_wait redis_wait_kind(const struct redis *redis)
{
    return redis->wait;
}

uint64_t redis_line(const struct redis *redis)
{
    return redis->line;
}
