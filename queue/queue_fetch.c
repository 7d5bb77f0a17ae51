/* Large bodies on their way out: each piece is asked for, taken apart straight into its place, and
 * forgotten, so that a body is in memory once and a window of pieces beside it. */
#include "queue/queue_internal.h"

#include "gateway/base/failpoint.h"
#include "queue/body.h"

#include <stdio.h>

enum {
    WINDOW_PIECES = 3,
    WHY_MAX = 240,
};

struct queue_fetch {
    struct queue *queue;
    uint32_t shard;
    char id[MESSAGE_ID_MAX + 1];
    size_t kib; /* size of the body, rounded up, as its batches' entries say */
    uint32_t pieces, asked, answered;
    bool whole; /* stored by version 0.1: one string */
    struct queue_body *body;
    int status; /* the first failure */
    char why[WHY_MAX];
    queue_fetch_cb cb;
    void *ctx;
};

void queue_body_unref(struct queue_body **body)
{
    struct queue_body *shared = *body;
    *body = NULL;
    if (shared != NULL && --shared->references == 0) {
        mem_free(shared->bytes);
        mem_free(shared);
    }
}

static void step(struct queue_fetch *fetch);

static void fail(struct queue_fetch *fetch, int status, const char *why)
{
    fetch->status = status;
    (void)snprintf(fetch->why, sizeof(fetch->why), "%s", why);
}

static int make_body(struct queue_fetch *fetch, struct span frame)
{
    size_t bytes = 0;
    int status = body_size(frame, &bytes);
    if (status != 0 || (bytes + 1023) / 1024 != fetch->kib) {
        return ERR_INVAL;
    }
    char *room = mem_try(bytes);
    if (room == NULL) {
        return ERR_NOMEM;
    }
    fetch->body = mem_zero(sizeof(*fetch->body));
    *fetch->body = (struct queue_body){.bytes = room, .len = bytes, .references = 1};
    return 0;
}

static void take_piece(struct queue_fetch *fetch, uint32_t index, struct span frame)
{
    int status = fetch->body == NULL ? make_body(fetch, frame) : 0;
    if (status == 0) {
        struct body_piece piece = {
            .id = span_of(fetch->id), .index = index, .body_bytes = fetch->body->len};
        /* What has no frame is whole or nothing. */
        status = fetch->whole != body_is_bare(frame)
                     ? ERR_INVAL
                     : body_decode(fetch->queue->codec, &piece, frame,
                                   fetch->body->bytes + index * BODY_PIECE_BYTES);
    }
    if (status != 0) {
        char why[WHY_MAX];
        body_explain(status, frame, why, sizeof(why));
        fail(fetch, status == ERR_NOMEM ? ERR_NOMEM : ERR_INVAL, why);
    }
}

static void on_piece(void *ctx, int status, const struct redis_value *value)
{
    struct queue_fetch *fetch = ctx;
    uint32_t index = fetch->answered++;
    FAILPOINT("body-piece-answered");
    if (fetch->status != 0) {
        /* Only the end of it is waited for. */
    } else if (status == ERR_PROTO && !fetch->whole &&
               span_starts(value->text, SPAN_LIT("WRONGTYPE"))) {
        fetch->status = ERR_AGAIN;
    } else if (status != 0) {
        fail(fetch, status == ERR_PROTO ? ERR_UNAVAILABLE : status, "");
    } else if (value->type != REDIS_TEXT) {
        fail(fetch, ERR_INVAL, "The stored body is gone.");
    } else {
        take_piece(fetch, index, value->text);
    }
    step(fetch);
}

static int ask(struct queue_fetch *fetch)
{
    char key[QUEUE_BODY_KEY_MAX];
    struct redis_args args;
    queue_body_key(fetch->shard, span_of(fetch->id), key);
    redis_args_init(&args);
    redis_args_text(&args, fetch->whole ? "GET" : "LINDEX");
    redis_args_text(&args, key);
    if (!fetch->whole) {
        redis_args_number(&args, (int64_t)fetch->asked + 1); /* behind what body.lua put there */
    }
    return nodes_call(fetch->queue->nodes, fetch->shard, &args, on_piece, fetch);
}

static void finish(struct queue_fetch *fetch)
{
    if (fetch->status != 0) {
        queue_body_unref(&fetch->body);
    }
    if (fetch->queue->uploads == NULL) {
        body_codec_rest(fetch->queue->codec);
    }
    fetch->cb(fetch->ctx, fetch->status, fetch->body, fetch->why);
    mem_free(fetch);
}

static void step(struct queue_fetch *fetch)
{
    if (fetch->status == ERR_AGAIN && fetch->asked == fetch->answered) {
        fetch->status = 0;
        fetch->whole = true;
        fetch->pieces = 1;
        fetch->asked = 0;
        fetch->answered = 0;
    }
    while (fetch->status == 0 && fetch->asked < fetch->pieces &&
           fetch->asked - fetch->answered < WINDOW_PIECES) {
        int status = ask(fetch);
        if (status != 0) {
            fail(fetch, ERR_UNAVAILABLE, "");
            break;
        }
        fetch->asked++;
    }
    if (fetch->asked == fetch->answered && (fetch->status != 0 || fetch->asked == fetch->pieces)) {
        finish(fetch);
    }
}

int queue_fetch_body(struct queue *queue, uint32_t shard, struct span id, size_t kib,
                     queue_fetch_cb cb, void *ctx)
{
    struct queue_fetch *fetch = mem_zero(sizeof(*fetch));
    *fetch = (struct queue_fetch){.queue = queue, .shard = shard, .kib = kib, .cb = cb, .ctx = ctx};
    (void)snprintf(fetch->id, sizeof(fetch->id), "%.*s", SPAN_FMT(id));
    fetch->pieces = (uint32_t)body_piece_count(kib * 1024);
    int status = kib > BODY_MAX_BYTES / 1024 ? ERR_INVAL : ask(fetch);
    if (status != 0) {
        mem_free(fetch);
        return status;
    }
    fetch->asked++;
    while (fetch->asked < fetch->pieces && fetch->asked < WINDOW_PIECES && ask(fetch) == 0) {
        fetch->asked++; /* one that cannot be asked for now is asked for, or fails, in step() */
    }
    return 0;
}
