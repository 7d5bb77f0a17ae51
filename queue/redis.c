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
    DEADLINE_TICK_MS = 1000,
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

static size_t request_bytes(const struct redis_request *request)
{
    return buf_len(&request->head.bytes) + buf_len(&request->body.bytes);
}

static void request_free(struct redis *redis, struct redis_request *request)
{
    redis->waiting_bytes -= request_bytes(request);
    redis_args_release(&request->head);
    redis_args_release(&request->body);
    mem_free(request);
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
    while (redis->first != NULL) {
        struct redis_request *request = request_pop(redis);
        if (request->cb != NULL) {
            request->cb(request->ctx, status, &nil_value);
        }
        request_free(redis, request);
    }
}

static void check_deadline(void *ctx)
{
    struct redis *redis = ctx;
    if (redis->first != NULL && loop_now_ms(redis->loop) - redis->first->sent_ms > DEADLINE_MS) {
        redis_drop(redis, "Redis did not answer a command for %d seconds.", DEADLINE_MS / 1000);
        return;
    }
    if (redis->first != NULL) {
        loop_timer_start(redis->loop, &redis->deadline_timer, DEADLINE_TICK_MS, check_deadline,
                         redis);
    }
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
    int status = stream_write(stream, span_make(text, (size_t)len));
    status = FAILPOINT_ERROR("redis-write-fails") ? ERR_LIMIT : status;
    if (status == 0 && request->script < 0 && buf_len(head) >= GIVE_FROM_BYTES) {
        redis->waiting_bytes -= buf_len(head);
        status = stream_give(stream, head);
        redis->waiting_bytes += buf_len(head); /* nothing, unless it was refused */
    } else if (status == 0) {
        status = stream_write(stream, buf_span(head));
    }
    if (status == 0) {
        status = stream_write(stream, buf_span(&request->body.bytes));
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
    if (request->script < 0) {
        /* Only scripts are ever repeated; a body must not be held twice until its answer. */
        redis->waiting_bytes -= request_bytes(request);
        redis_args_release(&request->head);
    }
    request->sent_ms = loop_now_ms(redis->loop);
    request_append(redis, request);
    if (!loop_timer_active(&redis->deadline_timer)) {
        loop_timer_start(redis->loop, &redis->deadline_timer, DEADLINE_TICK_MS, check_deadline,
                         redis);
    }
    return 0;
}

static int submit_request(struct redis *redis, const struct redis_request *template)
{
    struct redis_request *request = mem_zero(sizeof(*request));
    *request = *template;
    redis->waiting_bytes += request_bytes(request);
    int status = request->head.status != 0 ? request->head.status : request->body.status;
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

int redis_submit(struct redis *redis, struct redis_args *args, redis_cb cb, void *ctx)
{
    struct redis_request request = {.head = *args, .cb = cb, .ctx = ctx, .script = -1};
    redis_args_init(&request.body);
    redis_args_init(args);
    return submit_request(redis, &request);
}

int redis_call(struct redis *redis, struct redis_args *args, redis_cb cb, void *ctx)
{
    if (redis->phase != REDIS_UP || redis->closing) {
        redis_args_release(args);
        return redis->closing ? ERR_CLOSED : ERR_UNAVAILABLE;
    }
    return redis_submit(redis, args, cb, ctx);
}

int redis_eval(struct redis *redis, size_t script, size_t key_count, struct redis_args *head,
               struct redis_args *args, redis_cb cb, void *ctx)
{
    struct redis_request request = {
        .head = *head, .cb = cb, .ctx = ctx, .script = (int)script, .key_count = key_count};
    redis_args_init(head);
    redis_args_init(&request.body);
    if (args != NULL) {
        request.body = *args;
        redis_args_init(args);
    }
    ASSERT(script < redis->conf->script_count);
    if (redis->phase != REDIS_UP || redis->closing) {
        redis_args_release(&request.head);
        redis_args_release(&request.body);
        return redis->closing ? ERR_CLOSED : ERR_UNAVAILABLE;
    }
    return submit_request(redis, &request);
}

/* Error replies. */

static int status_of_error(struct span text)
{
    static const char *const for_now[] = {"LOADING",  "READONLY",   "OOM",         "MISCONF",
                                          "BUSY",     "NOSCRIPT",   "CLUSTERDOWN", "NOAUTH",
                                          "TRYAGAIN", "MASTERDOWN", "NOREPLICAS"};
    for (size_t i = 0; i < sizeof(for_now) / sizeof(for_now[0]); i++) {
        if (span_starts(text, span_of(for_now[i]))) {
            return ERR_UNAVAILABLE;
        }
    }
    /* An error raised by redis.call inside a script may come with a prefix. */
    if (span_search(text, SPAN_LIT("OOM command not allowed")) < text.len) {
        return ERR_UNAVAILABLE;
    }
    return ERR_PROTO;
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

/* A server that turned into a replica or is loading will not serve us: connect anew, which checks
 * its role. */
static bool must_reconnect(struct span text)
{
    return span_starts(text, SPAN_LIT("READONLY")) || span_starts(text, SPAN_LIT("LOADING")) ||
           span_starts(text, SPAN_LIT("NOAUTH"));
}

static void take_reply(struct redis *redis, const struct redis_value *value)
{
    struct redis_request *request = request_pop(redis);
    int status = 0;
    if (value->type == REDIS_ERROR) {
        status = status_of_error(value->text);
        bool unknown_script = span_starts(value->text, SPAN_LIT("NOSCRIPT"));
        if (unknown_script && request->script >= 0 && !request->repeated &&
            repeat_after_load(redis, request)) {
            return;
        }
    }
    if (request->cb != NULL) {
        request->cb(request->ctx, status, value);
    }
    if (status == ERR_UNAVAILABLE && redis->phase == REDIS_UP && must_reconnect(value->text)) {
        redis_drop(redis, "Redis answers: %.*s.", SPAN_FMT(value->text));
    }
    request_free(redis, request);
}

struct arena redis_take_reply(struct redis *redis)
{
    struct arena taken = redis->reply_arena;
    arena_init(&redis->reply_arena, REPLY_MAX_BYTES);
    return taken;
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
        } else if (redis->conf->subscribe != NULL && redis->phase == REDIS_UP) {
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

static void tell(struct redis *redis, bool up, const char *why)
{
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
    loop_timer_stop(&redis->deadline_timer);
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
    redis_setup_start(redis);
}

void redis_ready(struct redis *redis)
{
    redis->phase = REDIS_UP;
    redis->backoff_ms = BACKOFF_FIRST_MS;
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
    loop_timer_stop(&redis->deadline_timer);
    redisReaderFree(redis->reader);
    redis->reader = NULL;
    arena_release(&redis->reply_arena);
    arena_init(&redis->reply_arena, REPLY_MAX_BYTES);
    fail_requests(redis, redis->closing ? ERR_CLOSED : ERR_TIMEOUT);
    if (redis->closing) {
        finish_close(redis);
        return;
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
    struct stream_target target = {
        .host = server->socket_path != NULL ? server->socket_path : server->host,
        .port = server->socket_path != NULL ? 0 : server->port,
        .tls = server->socket_path != NULL ? NULL : server->tls,
        .connect_timeout_ms = CONNECT_TIMEOUT_MS,
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
