#include "queue/digest.h"

#include "queue/body.h"
#include "queue/queue_internal.h"

#include <stdio.h>

enum {
    KEY_MAX = 64,
    ABOUT_MAX = 1024 * 1024,
    DECODED_MAX = 64 * 1024 * 1024,
};

struct digest_add {
    struct queue *queue;
    uint32_t shard;
    digest_add_cb cb;
    void *ctx;
    char id[MESSAGE_ID_MAX + 1];
    size_t count;
};

static void add_end(struct digest_add *add, int status)
{
    add->cb(add->ctx, status, span_of(add->id), add->count);
    mem_free(add);
}

static void on_added_durable(void *ctx, int status, const struct redis_value *value)
{
    struct digest_add *add = ctx;
    bool durable = status == 0 && queue_wait_reached(add->queue, value);
    add_end(add, durable ? 0 : ERR_TIMEOUT);
}

static void on_added(void *ctx, int status, const struct redis_value *value)
{
    struct digest_add *add = ctx;
    struct queue *queue = add->queue;
    struct span id = redis_item(value, 0)->text;
    if (status != 0 && value->type == REDIS_ERROR &&
        span_search(value->text, SPAN_LIT("OOM")) < value->text.len) {
        status = ERR_FULL;
    } else if (status == ERR_PROTO || (status == 0 && (id.len == 0 || id.len > MESSAGE_ID_MAX))) {
        status = ERR_UNAVAILABLE;
    }
    if (status != 0) {
        add_end(add, status);
        return;
    }
    (void)snprintf(add->id, sizeof(add->id), "%.*s", SPAN_FMT(id));
    add->count = (size_t)redis_integer(redis_item(value, 1));
    uint64_t place = nodes_answering(queue->nodes);
    if (nodes_place_wait(queue->nodes, place) == REDIS_WAIT_NONE) {
        add_end(add, 0);
    } else if (queue_wait_send(queue, place, on_added_durable, add) != 0) {
        add_end(add, ERR_TIMEOUT);
    }
}

/* "id time " and the frame, which is bound to that id. */
static int add_message(struct queue *queue, const struct digest_item *item, struct redis_args *out)
{
    char name[MESSAGE_ID_MAX + 24];
    struct span frame = {0};
    struct body_piece whole = {.id = item->id, .body_bytes = item->first.len + item->second.len};
    int status = body_encode(queue->codec, &whole, item->first, item->second, &frame);
    int len = snprintf(name, sizeof(name), "%.*s %lld ", SPAN_FMT(item->id),
                       (long long)queue_wall_ms(queue));
    if (status == 0) {
        redis_args_join(out, span_make(name, (size_t)len), frame);
    }
    return status;
}

static int check_item(const struct digest_item *item)
{
    if (item->key.len == 0 || item->key.len > KEY_MAX || item->scope.len > QUEUE_NAMES_MAX ||
        item->id.len == 0 || item->id.len > MESSAGE_ID_MAX || item->window_ms <= 0 ||
        item->about.len > ABOUT_MAX) {
        return ERR_INVAL;
    }
    return item->first.len + item->second.len > DIGEST_MESSAGE_MAX ? ERR_LIMIT : 0;
}

int digest_add(struct queue *queue, const struct digest_item *item, digest_add_cb cb, void *ctx)
{
    char name[QUEUE_TAG_MAX + 4 + QUEUE_NAMES_MAX + 2 + KEY_MAX + 1];
    char tag[QUEUE_TAG_MAX];
    int status = queue->closing ? ERR_CLOSED : check_item(item);
    status = status == 0 && queue->refusing ? ERR_FULL : status;
    if (status != 0) {
        return status;
    }
    uint32_t shard = queue_shard_of_key(queue, item->scope, item->key);
    struct redis_args args;
    queue_tag(shard, tag);
    int len = snprintf(name, sizeof(name), "%s:v:%.*s:%.*s", tag, SPAN_FMT(item->scope),
                       SPAN_FMT(item->key));
    queue_call_begin(shard, &args);
    redis_args_add(&args, span_make(name, (size_t)len));
    redis_args_add(&args, item->id);
    redis_args_number(&args, item->window_ms);
    redis_args_add(&args, item->about);
    status = add_message(queue, item, &args);
    if (status != 0) {
        redis_args_release(&args);
        return status;
    }
    redis_args_number(&args, DIGEST_MESSAGES_MAX);
    redis_args_number(&args, (int64_t)DIGEST_BYTES_MAX);
    redis_args_number(&args, (int64_t)(item->first.len + item->second.len));
    struct digest_add *add = mem_zero(sizeof(*add));
    *add = (struct digest_add){.queue = queue, .shard = shard, .cb = cb, .ctx = ctx};
    status = nodes_eval(queue->nodes, shard, SCRIPT_DIGEST_ADD, 2, &args, NULL, on_added, add);
    if (status != 0) {
        mem_free(add);
        return status == ERR_CLOSED ? ERR_CLOSED : ERR_UNAVAILABLE;
    }
    return 0;
}

/* Taking: one shard after the other, until one has a collection that is due. */

struct digest_taking {
    struct queue *queue;
    uint32_t shard;
    int64_t hold_ms;
    digest_take_cb cb;
    void *ctx;
};

static int take_from_shard(struct digest_taking *taking);

/* A stored message into the arena. */
static int read_message(struct queue *queue, struct span stored, struct arena *arena,
                        struct digest_message *out)
{
    struct span frame = stored;
    struct span id = span_cut(&frame, ' ');
    uint64_t at_ms = 0;
    size_t bytes = 0;
    int status = span_to_u64(span_cut(&frame, ' '), INT64_MAX, &at_ms);
    status = status == 0 ? body_size(frame, &bytes) : status;
    if (status != 0 || bytes > DIGEST_MESSAGE_MAX) {
        return ERR_INVAL;
    }
    char *room = arena_alloc(arena, bytes + 1);
    if (room == NULL) {
        return ERR_NOMEM;
    }
    struct body_piece whole = {.id = id, .body_bytes = bytes};
    status = body_decode(queue->codec, &whole, frame, room);
    *out = (struct digest_message){.bytes = span_make(room, bytes), .at_ms = (int64_t)at_ms};
    return status;
}

static void hand_out(struct digest_taking *taking, const struct redis_value *value)
{
    struct arena arena;
    const struct redis_value *stored = redis_item(value, 2);
    arena_init(&arena, DECODED_MAX);
    struct digest_message *messages = arena_alloc(&arena, (stored->count + 1) * sizeof(*messages));
    struct digest digest = {
        .id = redis_item(value, 0)->text,
        .about = redis_item(value, 1)->text,
        .messages = messages,
        .place = taking->shard,
    };
    int status = messages != NULL ? 0 : ERR_NOMEM;
    for (size_t i = 0; i < stored->count && status == 0; i++) {
        status = read_message(taking->queue, redis_item(stored, i)->text, &arena,
                              &messages[digest.count++]);
    }
    taking->cb(taking->ctx, status == 0 ? 0 : ERR_INVAL, &digest);
    arena_release(&arena);
    mem_free(taking);
}

static void on_taken(void *ctx, int status, const struct redis_value *value)
{
    struct digest_taking *taking = ctx;
    if (status == 0 && value->type == REDIS_ARRAY) {
        hand_out(taking, value);
        return;
    }
    taking->shard++;
    if (status == 0 && taking->shard < taking->queue->conf->shards && !taking->queue->closing &&
        take_from_shard(taking) == 0) {
        return;
    }
    taking->cb(taking->ctx, status == ERR_PROTO ? ERR_UNAVAILABLE : status, NULL);
    mem_free(taking);
}

static int take_from_shard(struct digest_taking *taking)
{
    struct redis_args head;
    queue_call_begin(taking->shard, &head);
    redis_args_number(&head, taking->hold_ms);
    return nodes_eval(taking->queue->nodes, taking->shard, SCRIPT_DIGEST_TAKE, 1, &head, NULL,
                      on_taken, taking);
}

int digest_take(struct queue *queue, int64_t hold_ms, digest_take_cb cb, void *ctx)
{
    if (queue->closing) {
        return ERR_CLOSED;
    }
    struct digest_taking *taking = mem_zero(sizeof(*taking));
    *taking = (struct digest_taking){.queue = queue, .hold_ms = hold_ms, .cb = cb, .ctx = ctx};
    int status = take_from_shard(taking);
    if (status != 0) {
        mem_free(taking);
        return status == ERR_CLOSED ? ERR_CLOSED : ERR_UNAVAILABLE;
    }
    return 0;
}

void digest_done(struct queue *queue, uint32_t place, struct span id)
{
    struct redis_args head;
    if (queue->closing || place >= queue->conf->shards) {
        return;
    }
    queue_call_begin(place, &head);
    redis_args_text(&head, "");
    redis_args_add(&head, id);
    if (nodes_eval(queue->nodes, place, SCRIPT_DIGEST_TAKE, 1, &head, NULL, NULL, NULL) != 0) {
        return; /* it is handed out again, and its key is known */
    }
}
